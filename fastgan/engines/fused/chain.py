"""A network as the fused engine reads it: layers, one after another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fastgan.engines.fused.inputs import Inputs
from fastgan.nn import LinearLeakyReLU

if TYPE_CHECKING:
    from fastgan.engines.fused.heads import Ends
    from fastgan.engines.fused.nodes import Join

NORMS = (None, nn.BatchNorm1d, nn.LayerNorm)
"""The norms by their numbers in csrc/step/enums.h."""


@dataclass
class Layer:
    """One Linear with what follows it."""

    name: str
    linear: nn.Linear | LinearLeakyReLU
    activation: str = "none"
    slope: float = 0.0
    """LeakyReLU's negative slope, or ELU's alpha."""
    norm: nn.BatchNorm1d | nn.LayerNorm | None = None
    dropout: nn.Dropout | None = None
    dropout_index: int = 0
    """Which of the network's nn.Dropout modules it is, in the order of modules()."""
    ends: Ends | None = None
    """What becomes of its columns, where that is not the same for all."""
    stage: int = 0
    """How far along linear, norm, activation, dropout, ends the layer has come.

    5: a rectifier has come after the Dropout.
    """
    taken: bool = False
    """Whether anything takes its output."""
    source: int = 0
    """The number of the node that it takes."""

    @property
    def batch_norm(self) -> nn.BatchNorm1d | None:
        """The norm, if its statistics are of the batch."""
        return self.norm if isinstance(self.norm, nn.BatchNorm1d) else None

    @property
    def parameters(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Weight, bias, and the norm's weight and bias; None for what is missing."""
        norm = self.norm
        return (
            self.linear.weight,
            self.linear.bias,
            None if norm is None else norm.weight,
            None if norm is None else norm.bias,
        )


@dataclass
class Chain:
    """A network as layers, one after another in the order in which they run."""

    layers: list[Layer]
    width: int
    """Of the input, with what is joined to it, and of all rows of a pack."""
    inputs: Inputs = field(default_factory=Inputs)
    """Of one row."""
    pack: int = 1
    """Rows of a batch that are one row of the input, side by side."""
    joins: list[Join] = field(default_factory=list)
    """What layers take beside the input and each other's outputs."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of all layers, then the tables of embeddings."""
        found = [p for layer in self.layers for p in layer.parameters if p is not None]
        return found + self.inputs.tables


def absorb_sigmoid(chain: Chain) -> bool:
    """Take a final Sigmoid off, for losses computed from logits; whether there was one."""
    last = chain.layers[-1]
    if last.activation != "sigmoid" or last.dropout is not None:
        return False
    last.activation = "none"
    return True
