"""Where the tensors of a trace lie, and what is written into them."""

from __future__ import annotations

from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

_OF_NORMS = {
    torch.ops.aten.native_batch_norm.default,
    torch.ops.aten.cudnn_batch_norm.default,
    torch.ops.aten.miopen_batch_norm.default,
}
"""They write into running averages, and their schemas do not say so."""


def written(node: fx.Node) -> list[fx.Node]:
    """What an operation writes into."""
    if node.target in _OF_NORMS:
        training = node.args[5]
        return [n for n in node.args[3:5] if training and isinstance(n, fx.Node)]
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
    written = [
        given.get(a.name) for a in schema.arguments if a.alias_info and a.alias_info.is_write
    ]
    found = [
        n for value in written for n in (value if isinstance(value, (list, tuple)) else (value,))
    ]
    return [n for n in found if isinstance(n, fx.Node)]


class Place(NamedTuple):
    """Where a tensor lies."""

    memory: int
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    whole: bool
    """Whether it fills its memory."""


class Looking(fx.Interpreter):
    """Runs a graph and notes where its tensors lie, and which memory is written into later."""

    def __init__(self, graph: fx.GraphModule):
        """Of that graph."""
        super().__init__(graph)
        self.places: dict[fx.Node, Place] = {}
        self.written: dict[int, int] = {}
        """The last operation that writes into a memory, by its place in the trace."""
        self.order = {node: i for i, node in enumerate(graph.graph.nodes)}
        self.given: set[int] = set()
        """Memory of what goes in, and of what comes out."""
        self._numbers = count()
        self._held: dict[fx.Node, dict[int, int]] = {}
        """Of a node that is alive: numbers of memory by its address."""

    def run_node(self, n: fx.Node) -> Any:
        """See `fx.Interpreter`."""
        alive = {at: number for node in self.env for at, number in self._held[node].items()}
        value = super().run_node(n)
        own = self._held[n] = {}
        for t in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                at = storage.data_ptr()
                own[at] = alive.setdefault(at, next(self._numbers))
                whole = t.numel() > 0 and t.numel() * t.element_size() == storage.nbytes()
                if t is value:
                    self.places[n] = Place(own[at], t.shape, t.stride(), t.dtype, whole)
        if n.op in ("placeholder", "output"):
            self.given |= set(own.values())
        if n.op == "call_function":
            for x in written(n):
                if x in self.places:
                    self.written[self.places[x].memory] = self.order[n]
        return value

    def stay(self, *nodes: fx.Node) -> bool:
        """Whether nothing writes into what these have returned."""
        return not {self.places[n].memory for n in nodes} & self.written.keys()

    def stays_after(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether nothing writes into what a node has returned once another one is done."""
        if node not in self.places:
            return False
        return self.written.get(self.places[node].memory, -1) <= self.order[other]

    def lies(self, node: fx.Node, place: Place, since: fx.Node) -> None:
        """A new node lies like that in memory of its own; it comes when another one comes."""
        self.places[node] = place._replace(memory=next(self._numbers), whole=True)
        self.order[node] = self.order[since]

    def lie_together(self, node: fx.Node, other: fx.Node) -> None:
        """What lay where a result did now lies where another one does."""
        own, taken = self.places[node].memory, self.places[other].memory
        if own in self.given:
            self.given.add(taken)
        for n, place in self.places.items():
            if place.memory == own:
                self.places[n] = place._replace(memory=taken)
