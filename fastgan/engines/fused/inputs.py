"""What a network is fed besides latents or samples: conditions concatenated to them.

A network's input fits when it is torch.cat of its own columns, flat, and of parts that are made of
the condition: a label as one-hot, a label through an nn.Embedding, or numbers as they are; side by
side in any order, before the first Linear.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastgan.engines.fused.trace import NoPlan

if TYPE_CHECKING:
    from fastgan.problem import Problem

KINDS = ("numbers", "one_hot", "embedding")
"""What columns are, by their numbers in csrc/step/enums.h."""
MOST_PARTS, MOST_CLASSES = 64, 1 << 24
"""Of an input; in csrc/step/decode.h."""


class Condition(NamedTuple):
    """What belongs to a sample: one label, or some numbers."""

    shape: tuple[int, ...]
    """Of one sample's."""
    is_label: bool
    classes: int | None
    """More than the largest label, where all are known."""


@dataclass(frozen=True)
class Part:
    """Columns of an input that come of the condition."""

    kind: str
    width: int
    where: str
    classes: int = 1
    embedding: nn.Embedding | None = None


OWN = "own"
"""In place of a part: the latents or the samples."""


@dataclass
class Inputs:
    """The columns of a network's input, from the first on."""

    columns: list[Part | str] = field(default_factory=lambda: [OWN])

    @property
    def parts(self) -> list[Part]:
        """Those of the condition."""
        return [part for part in self.columns if part is not OWN]

    @property
    def tables(self) -> list[nn.Parameter]:
        """The weights of embeddings."""
        return [part.embedding.weight for part in self.parts if part.embedding is not None]

    def joined(self, own: Tensor, condition: Any, of_copy: dict[nn.Module, nn.Module]) -> Tensor:
        """The input, [b, columns], of networks' copies."""
        if not self.parts:
            return own
        return torch.cat(
            [
                own.flatten(1) if part is OWN else _computed(part, condition, of_copy)
                for part in self.columns
            ],
            1,
        )


def _computed(part: Part, condition: Tensor, of_copy: dict[nn.Module, nn.Module]) -> Tensor:
    rows = condition.reshape(len(condition), -1)
    if part.kind == "numbers":
        return rows
    if part.kind == "one_hot":
        return (rows == torch.arange(part.classes, device=rows.device)).float()
    return of_copy[part.embedding].weight.index_select(0, rows[:, 0])


_SHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous"}
_CASTS = {"float", "long", "int", "to", "type_as", "double", "half", "bfloat16", "type"}
_SHAPE_FUNCTIONS = {torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze}
_CATS = {torch.cat, torch.concat, torch.concatenate}


class Reader:
    """Follows what comes of the condition through a traced forward, beside the one chain."""

    def __init__(self, condition: Condition | None, values: dict[fx.Node, object], batch: int):
        """Begin.

        Args:
            condition: what belongs to a sample; None where the network takes nothing of it.
            values: of the nodes of the graph, tensors without data among them.
            batch: theirs.
        """
        self.inputs = Inputs()
        self._condition, self._values, self._batch = condition, values, batch
        self._found: dict[fx.Node, list[Part] | str] = {}
        self._used: set[nn.Module] = set()

    def start(self, node: fx.Node) -> bool:
        """Take an argument for the condition; whether it is that."""
        if self._condition is None or self._found:
            return False
        kind = torch.int64 if self._condition.is_label else torch.float32
        shape = (self._batch, *self._condition.shape)
        self._values[node] = torch.empty(shape, dtype=kind, device="meta")
        self._found[node] = "label" if self._condition.is_label else "numbers"
        return True

    def takes(self, node: fx.Node) -> bool:
        """Whether a call is of something that comes of the condition."""
        return any(n in self._found for n in node.all_input_nodes)

    def module(self, node: fx.Node, m: nn.Module, where: str) -> None:
        """A layer of it."""
        kind, source = type(m).__name__, self._source(node)
        if type(m) is nn.Embedding and source == "label":
            self._keep(node, self._embedded(m, node, where))
        elif source is not None and type(m) in (nn.Flatten, nn.Unflatten, nn.Identity):
            self._move(node, m.forward(self._meta(node)), where)
        else:
            raise NoPlan(f"{where}: {kind} on a condition has no fused form")

    def function(
        self, node: fx.Node, current: fx.Node, where: str, what: str, args: tuple, kwargs: dict
    ) -> Tensor | None:
        """A function or a method of it; a tensor where it is joined to the own columns."""
        target, method = node.target, node.op == "call_method"
        if target in _CATS:
            return self._cat(node, current, where, *node.args, **node.kwargs)
        source = self._source(node)
        if source is None:
            raise NoPlan(f"{where}: {what} on a condition has no fused form")
        if target is F.one_hot and source == "label":
            self._one_hot(node, where, *args, **kwargs)
        elif method and target in _SHAPES:
            self._move(node, getattr(args[0], target)(*args[1:], **kwargs), where)
        elif target in _SHAPE_FUNCTIONS:
            self._move(node, target(*args, **kwargs), where)
        elif method and target in _CASTS:
            self._cast(node, getattr(args[0], target)(*args[1:], **kwargs), where, what)
        else:
            raise NoPlan(f"{where}: {what} on a condition has no fused form")
        return None

    def _source(self, node: fx.Node) -> list[Part] | str | None:
        first = node.args[0] if node.args else None
        return self._found.get(first) if isinstance(first, fx.Node) else None

    def _meta(self, node: fx.Node) -> Tensor:
        return self._values[node.args[0]]

    def _keep(self, node: fx.Node, found: tuple[Tensor, list[Part] | str]) -> None:
        self._values[node], self._found[node] = found

    def _move(self, node: fx.Node, tensor: Tensor, where: str) -> None:
        if tensor.dim() < 1 or tensor.shape[0] != self._batch:
            raise NoPlan(f"{where}: a change of shape mixes the conditions of a batch")
        self._keep(node, (tensor, self._source(node)))

    def _cast(self, node: fx.Node, tensor: Tensor, where: str, what: str) -> None:
        source = self._source(node)
        # One-hots are whole numbers until they are joined; numbers are float32 all along.
        kept = (torch.int64,) if source == "label" else (torch.float32,)
        if tensor.dtype not in (kept if isinstance(source, str) else (torch.int64, torch.float32)):
            raise NoPlan(
                f"{where}: {what} makes a condition {str(tensor.dtype).removeprefix('torch.')}, "
                "which has no fused form"
            )
        self._keep(node, (tensor, source))

    def _one_hot(self, node: fx.Node, where: str, labels: Tensor, num_classes: int = -1) -> None:
        if num_classes < 1:
            raise NoPlan(f"{where}: one_hot has a fused form with a number of classes")
        part = Part("one_hot", num_classes, where, num_classes)
        self._keep(node, (labels.new_empty(*labels.shape, num_classes), [part]))

    def _embedded(
        self, m: nn.Embedding, node: fx.Node, where: str
    ) -> tuple[Tensor, list[Part] | str]:
        if m in self._used:
            raise NoPlan(f"{where}: an Embedding that is used twice has no fused form")
        self._used.add(m)
        options = {
            "padding_idx": m.padding_idx is not None,
            "max_norm": m.max_norm is not None,
            "scale_grad_by_freq": m.scale_grad_by_freq,
            "sparse": m.sparse,
        }
        for name, given in options.items():
            if given:
                raise NoPlan(f"{where}: Embedding with {name} has no fused form")
        labels = self._meta(node)
        part = Part("embedding", m.embedding_dim, where, m.num_embeddings, m)
        made = torch.empty(*labels.shape, m.embedding_dim, device="meta")
        return made, [part]

    def _cat(
        self, node: fx.Node, current: fx.Node, where: str, tensors: Any, dim: int = 0, **other: Any
    ) -> Tensor | None:
        dim = other.get("axis", dim)
        if not all(isinstance(n, fx.Node) for n in tensors) or not isinstance(dim, int):
            raise NoPlan(f"{where}: cat of what is not read has no fused form")
        columns: list[Part | str] = []
        for n in tensors:
            x = self._values.get(n)
            if not isinstance(x, Tensor) or x.dim() != 2 or dim not in (1, -1):
                raise NoPlan(f"{where}: conditions are joined in one flat row; flatten first")
            source = self.inputs.columns if n is current else self._found.get(n)
            if source is None:
                raise NoPlan(f"{where}: cat of what is not read has no fused form")
            if source == "label":
                raise NoPlan(
                    f"{where}: a label as a number has no fused form; one_hot or Embedding has"
                )
            columns += [Part("numbers", x.shape[1], where)] if source == "numbers" else source
        made = torch.empty(
            self._batch, sum(self._values[n].shape[1] for n in tensors), device="meta"
        )
        if columns.count(OWN) > 1:
            raise NoPlan(f"{where}: an input that is joined to itself has no fused form")
        if OWN not in columns:
            self._keep(node, (made, columns))
            return None
        self.inputs = Inputs(columns)
        return made


def condition_of(problem: Problem, which: int) -> Condition | None:
    """What D (0) or G (1) is given beside its samples or latents.

    Raises:
        NoPlan: it has no fused form.
    """
    p = problem
    if not p.conditioned[which] or not p.uses_conditions:
        return None
    like = p.data.blank(1).condition
    if like is None:
        return None
    name = ("discriminator", "generator")[which]
    if not isinstance(like, Tensor):
        raise NoPlan(f"{name} takes a condition of several parts, which has no fused form")
    if p.device.type != "cpu":
        raise NoPlan(f"{name} takes a condition, which has a fused form on the CPU only")
    if like.dtype == torch.float32:
        return Condition(tuple(like.shape[1:]), False, None)
    if like.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8) or like.numel() != 1:
        kind = str(like.dtype).removeprefix("torch.")
        raise NoPlan(
            f"{name} takes a condition {kind} {[*like.shape[1:]]}, which has no fused form"
        )
    held = p.data.condition if p.data.resident else None
    if held is not None and len(held) and int(held.min()) < 0:
        raise NoPlan("a label below 0 has no fused form")
    classes = None if held is None else int(held.max()) + 1
    return Condition(tuple(like.shape[1:]), True, classes)


def check(inputs: Inputs, condition: Condition | None) -> None:
    """Refuse what the plan cannot hold, and labels that a table does not have."""
    if len(inputs.parts) > MOST_PARTS:
        raise NoPlan(f"more than {MOST_PARTS} parts of an input have no fused form")
    for part in inputs.parts:
        if part.classes > MOST_CLASSES:
            raise NoPlan(f"{part.where}: more than {MOST_CLASSES} classes have no fused form")
        if (
            condition.classes is not None
            and part.kind != "numbers"
            and (condition.classes > part.classes)
        ):
            raise NoPlan(
                f"{part.where}: has {part.classes} classes, and the data labels up to "
                f"{condition.classes - 1}"
            )
