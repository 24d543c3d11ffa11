"""Which node of a network each tensor of a traced forward is.

A node is the network's input, what a layer makes, or a join: a sum of nodes of one width or a
concatenation (skips past layers, branches that meet). In a plan they are numbered as in
csrc/step/graph.h: 0 the input, then the layers, then the joins.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, fx

from fastgan.engines.fused.trace import NoPlan

if TYPE_CHECKING:
    from fastgan.engines.fused.chain import Layer

KINDS = ("add", "concat")
"""Of joins, by their numbers in csrc/step/enums.h."""
MOST_JOINS, MOST_JOINED = 1024, 64
"""Of a network, and nodes of one; in csrc/step/decode.h."""


@dataclass
class Join:
    """A node that is made of others."""

    kind: str
    before: int
    """Layers that stand before it."""
    nodes: list[int]


class _Input:
    """Of a network; `stage` counts what has been joined to it."""

    stage, taken = 0, False


class _Join:
    stage, taken = 0, False

    def __init__(self, kind: str, before: int, of: list):
        self.kind, self.before, self.of = kind, before, of


class _Place(NamedTuple):
    """What a tensor is: a node, or a layer's output before what follows its Linear is complete."""

    node: _Input | Layer | _Join
    stage: int


_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_CATS = {torch.cat, torch.concat, torch.concatenate}


class Nodes:
    """Follows the tensors of a traced forward."""

    def __init__(self, layers: list[Layer], values: dict[fx.Node, object]):
        """Begin.

        Args:
            layers: those that are found, in the order in which they run.
            values: of the nodes of the graph, tensors without data among them.
        """
        self._layers, self._values = layers, values
        self._places: dict[fx.Node, _Place] = {}
        self._input = _Input()
        self._made: list[tuple[Layer | _Join, list]] = []  # and what of, in their order

    def __contains__(self, node: object) -> bool:
        """Whether a node of the graph is a tensor that is followed."""
        return isinstance(node, fx.Node) and node in self._places

    def start(self, node: fx.Node) -> None:
        """The input itself, or with what is joined to it."""
        if self._places:
            self._input.stage += 1
        self._places[node] = _Place(self._input, self._input.stage)

    def is_input(self, node: fx.Node) -> bool:
        """Whether a tensor is the network's input, in some shape."""
        return self._places[node].node is self._input

    def move(self, node: fx.Node, of: fx.Node) -> None:
        """A tensor in another shape."""
        self._places[node] = self._places[of]

    def further(self, node: fx.Node, of: fx.Node) -> None:
        """A tensor after one more part of its layer."""
        place = self._places[of].node
        self._places[node] = _Place(place, place.stage)

    def layer(self, node: fx.Node, of: fx.Node, where: str) -> None:
        """What the layer makes that was found last, of another tensor."""
        self._made.append((self._layers[-1], [self._take(of, where)]))
        self._places[node] = _Place(self._layers[-1], self._layers[-1].stage)

    def unfinished(self, node: fx.Node, where: str, what: str) -> Layer:
        """The layer whose output a tensor is, which nothing has taken yet."""
        place = self._places[node]
        if place.node is self._input:
            raise NoPlan(f"{where}: {what} before the first Linear has no fused form")
        if isinstance(place.node, _Join):
            raise NoPlan(f"{where}: {what} on a sum or a concatenation has no fused form")
        if place.stage != place.node.stage or place.node.taken:
            raise NoPlan(
                f"{where}: {what} on what is taken without it, too, has no fused form "
                f"({place.node.name})"
            )
        return place.node

    def joins(self, node: fx.Node) -> bool:
        """Whether a call adds or concatenates tensors that are followed, and nothing else."""
        if node.target in _ADDS:
            return len(node.args) == 2 and all(n in self for n in node.args)
        return node.target in _CATS and any(n in self for n in node.all_input_nodes)

    def join(self, node: fx.Node, where: str) -> Tensor:
        """Such a call; its tensor."""
        if node.target in _ADDS:
            made, of, kind = self._added(node, where), node.args, "add"
        else:
            of, made = self._concatenated(where, *node.args, **node.kwargs)
            kind = "concat"
        if not 2 <= len(of) <= MOST_JOINED:
            raise NoPlan(f"{where}: a concatenation of {len(of)} tensors has no fused form")
        nodes = [self._take(n, where) for n in of]
        join = _Join(kind, len(self._layers), nodes)
        self._made.append((join, nodes))
        self._places[node] = _Place(join, 0)
        return made

    def finish(self, output: object, name: str) -> list[Join]:
        """Number the nodes, and those that the layers take.

        Returns:
            the joins that the output depends on.
        """
        place = self._places.get(output) if isinstance(output, fx.Node) else None
        if place is not None and isinstance(place.node, _Join):
            raise NoPlan(
                f"{name} ends in a sum or a concatenation, which has no fused form; end in a Linear"
            )
        last = self._layers[-1] if self._layers else None
        if place is None or place.node is not last or place.stage != last.stage or last.taken:
            raise NoPlan(f"{name} does not return what the last of its layers makes")
        needed = {id(last)}
        for node, of in reversed(self._made):
            if id(node) in needed:
                needed |= {id(n) for n in of}
        for layer in self._layers:
            if id(layer) not in needed:
                raise NoPlan(f"{layer.name}: the output does not depend on it")
        kept = [n for n, _ in self._made if isinstance(n, _Join) and id(n) in needed]
        if len(kept) > MOST_JOINS:
            raise NoPlan(f"{name} has more than {MOST_JOINS} sums and concatenations")
        numbers = {id(n): i for i, n in enumerate([self._input, *self._layers, *kept])}
        for node, of in self._made:
            if not isinstance(node, _Join):
                node.source = numbers[id(of[0])]
        return [Join(join.kind, join.before, [numbers[id(n)] for n in join.of]) for join in kept]

    def _take(self, node: fx.Node, where: str) -> _Input | Layer | _Join:
        place = self._places[node]
        if place.stage != place.node.stage:
            what = "the input" if place.node is self._input else f"what {place.node.name} makes"
            raise NoPlan(f"{where}: takes {what} before it is complete, which has no fused form")
        place.node.taken = True
        return place.node

    def _added(self, node: fx.Node, where: str) -> Tensor:
        a, b = (self._values[n] for n in node.args)
        if any(value != 1 for value in node.kwargs.values()) or a.shape != b.shape:
            raise NoPlan(f"{where}: a sum is fused of two tensors of one shape, each once")
        return a

    def _concatenated(
        self, where: str, tensors: object, dim: int = 0, **other: object
    ) -> tuple[list[fx.Node], Tensor]:
        dim = other.pop("axis", dim)
        if other or not isinstance(tensors, list | tuple) or not all(n in self for n in tensors):
            raise NoPlan(f"{where}: a concatenation is fused of what layers make, and the input")
        metas = [self._values[n] for n in tensors]
        if any(x.dim() < 2 for x in metas) or dim not in (1, 1 - metas[0].dim()):
            raise NoPlan(f"{where}: a concatenation is fused along dimension 1")
        if len({(x.dim(), x.shape[2:]) for x in metas}) > 1:
            raise NoPlan(f"{where}: a concatenation is fused of tensors of as many dimensions")
        return list(tensors), torch.cat(metas, 1)
