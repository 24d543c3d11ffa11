"""Modules over the operators of :mod:`fastgan.ops`, and what puts them into a network.

State dicts do not change: a network saved before :func:`fuse` loads after it, and the other way
round.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, nn

from . import ops
from .torch_private import buffers, children, has_hooks, parameters

__all__ = ["AbsorbedLeakyReLU", "LinearLeakyReLU", "fuse", "unfuse"]


class LinearLeakyReLU(nn.Module):
    """torch.nn.Linear followed by torch.nn.LeakyReLU as one operator.

    Args:
        in_features, out_features, bias: as for torch.nn.Linear, whose state-dict keys (`weight`
            [out, in], `bias` [out]) and initial values it has.
        negative_slope: the factor of negative values; any finite number.

    Shapes: [..., in_features] -> [..., out_features].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        negative_slope: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """See the class."""
        super().__init__()
        if not math.isfinite(negative_slope):
            raise ValueError(f"negative_slope is {negative_slope}; it must be a finite number")
        linear = nn.Linear(in_features, out_features, bias, device, dtype)
        self._adopt(linear, negative_slope)

    def _adopt(self, linear: nn.Linear, negative_slope: float) -> None:
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.negative_slope = float(negative_slope)
        self.weight = linear.weight
        # register_parameter takes None too, which keeps the key out of the state dict as Linear
        # does.
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return ops.linear_leaky_relu(x, self.weight, self.bias, self.negative_slope)

    def extra_repr(self) -> str:
        """What print(module) shows in the parentheses."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, negative_slope={self.negative_slope}"
        )


class AbsorbedLeakyReLU(nn.Identity):
    """The place of a LeakyReLU that the layer before it has absorbed.

    It keeps the names of the later layers.
    """

    def __init__(self, negative_slope: float, inplace: bool):
        """See the class."""
        super().__init__()
        self.negative_slope = negative_slope
        self.inplace = inplace

    def extra_repr(self) -> str:
        """What print(module) shows in the parentheses."""
        return f"negative_slope={self.negative_slope}"


def fuse(module: nn.Module) -> nn.Module:
    """Replace neighbouring Linear and LeakyReLU by :class:`LinearLeakyReLU`, anywhere in a tree.

    Works in place and returns `module`. Neighbours are looked for in every nn.Sequential; a Dropout
    after the pair stays as it is, and the engines take it together with the layer. The parameters
    stay the same objects (optimisers remain valid), state-dict keys, training mode, device, dtype
    and requires_grad do not change, and the LeakyReLU's place is kept by an identity.

    Left alone, because something there would be lost: subclasses of the two (parametrised modules
    are such), modules with hooks, with a forward of their own or with more than the usual
    parameters, and modules used in more than one place. Undo with :func:`unfuse`.
    """
    uses = _uses(module)
    for parent, before, after in _neighbours(module):
        linear, act = children(parent)[before], children(parent)[after]
        if not (type(linear) is nn.Linear and type(act) is nn.LeakyReLU):
            continue
        if not all(_plain(m) and uses[id(m)] == 1 for m in (linear, act)):
            continue
        if set(parameters(linear)) != {"weight", "bias"} or not math.isfinite(act.negative_slope):
            continue
        fused = LinearLeakyReLU.__new__(LinearLeakyReLU)
        nn.Module.__init__(fused)
        fused._adopt(linear, act.negative_slope)
        placeholder = AbsorbedLeakyReLU(act.negative_slope, act.inplace)
        fused.training, placeholder.training = linear.training, act.training
        children(parent).update({before: fused, after: placeholder})
    return module


def unfuse(module: nn.Module) -> nn.Module:
    """Undo :func:`fuse`, in place; returns `module`. The parameters stay the same objects.

    A LinearLeakyReLU that fuse did not put there stays.
    """
    for parent, before, after in _neighbours(module):
        fused, placeholder = children(parent)[before], children(parent)[after]
        if not (type(fused) is LinearLeakyReLU and type(placeholder) is AbsorbedLeakyReLU):
            continue
        # On the meta device nothing is allocated or drawn from the generator before the parameters
        # replace it.
        linear = nn.Linear(fused.in_features, fused.out_features, fused.bias is not None, "meta")
        linear.weight = fused.weight
        linear.bias = fused.bias
        act = nn.LeakyReLU(placeholder.negative_slope, placeholder.inplace)
        linear.training, act.training = fused.training, placeholder.training
        children(parent).update({before: linear, after: act})
    return module


def runs(sequence: nn.Sequential) -> list[tuple[nn.Module, nn.Dropout | None]]:
    """The modules of a sequence in order; a LinearLeakyReLU with the Dropout that follows it.

    Together are only modules that a hook or a forward of their own would not notice.
    """
    found: list[tuple[nn.Module, nn.Dropout | None]] = []
    rest = list(sequence)
    while rest:
        absorbed = len(rest) > 1 and type(rest[1]) is AbsorbedLeakyReLU
        group = rest[: 3 if absorbed else 2]
        kinds = type(group[0]), type(group[-1])
        if kinds == (LinearLeakyReLU, nn.Dropout) and all(map(_plain, group)):
            found.append((group[0], group[-1]))
            del rest[: len(group)]
        else:
            found.append((rest.pop(0), None))
    return found


def sequences(root: nn.Module) -> list[nn.Sequential]:
    """Containers that call their modules one after the other, and do nothing else."""
    return [
        m
        for m in root.modules()
        if type(m).forward is nn.Sequential.forward and "forward" not in m.__dict__
    ]


def _neighbours(root: nn.Module):
    """(container, name, next name) of all modules that are certainly called one after the other."""
    for parent in sequences(root):
        names = list(children(parent))
        yield from ((parent, a, b) for a, b in zip(names, names[1:], strict=False))


def _uses(root: nn.Module) -> Counter:
    """In how many places of the tree each module stands, by id."""
    return Counter(id(child) for parent in root.modules() for child in children(parent).values())


def _plain(module: nn.Module) -> bool:
    """Whether a module has nothing that a replacement would lose."""
    return not (
        has_hooks(module) or buffers(module) or children(module) or "forward" in module.__dict__
    )
