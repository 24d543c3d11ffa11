"""A trace in two halves, between which something else is done.

With `shared_fakes` D's update comes between G's pass and the rest of G's update, which goes on from
what the pass has left.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

from torch import Tensor, fx

from fastgan.engines.base import CannotRun

Code = Callable[..., list[Tensor]]


class Halves(NamedTuple):
    """What calls the halves one after the other; called, it does both."""

    first: Code
    """Returns the samples first."""
    second: Code
    """Takes what the first has returned, and then its own inputs."""
    own: tuple[list[int], list[int]]
    """Which of the inputs each takes."""

    def begin(self, *inputs: Tensor) -> tuple[Tensor, Callable[[], list[Tensor]]]:
        """The samples, and what does the rest."""
        of_first, of_second = ([inputs[i] for i in own] for own in self.own)
        left = self.first(*of_first)
        return left[0], partial(self.second, *left, *of_second)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Both."""
        return self.begin(*inputs)[1]()


def halved(
    graph: fx.GraphModule, inputs: list[Tensor], later: Collection[int]
) -> tuple[fx.GraphModule, fx.GraphModule, tuple[list[int], list[int]]]:
    """A trace up to its last result, and what follows.

    Args:
        graph: the trace, whose last result is made before anything else is done.
        inputs: what it is called with.
        later: ids of those that the first half must not take, as they change in between.

    Returns:
        the halves and which of the inputs they take; see `Halves`.

    Raises:
        CannotRun: the first half takes one of those.
    """
    nodes = list(graph.graph.nodes)
    places = [node for node in nodes if node.op == "placeholder"]
    results = nodes[-1].args[0]
    work = [node for node in nodes if node.op not in ("placeholder", "output")]
    last = work.index(results[-1]) + 1
    # Of an operation with several results they are taken apart where it is.
    early = work[:last] + [n for n in work[last:] if _is_part(n) and n.args[0] in work[:last]]
    halves = early, [node for node in work if node not in early]
    needed = {n for node in halves[1] for n in node.all_input_nodes}
    needed |= {n for n in results if isinstance(n, fx.Node)}
    left = [results[-1], *(n for n in early if n in needed and n is not results[-1])]
    own = tuple(
        [i for i, place in enumerate(places) if any(place in n.all_input_nodes for n in half)]
        for half in halves
    )
    direct = [i for i, place in enumerate(places) if place in results]
    own = own[0], sorted({*own[1], *direct})
    if any(id(inputs[i]) in later for i in own[0]):
        raise CannotRun("shared_fakes: G's pass works with what D's update moves")
    first = _graph(graph, [places[i] for i in own[0]], early, left)
    second = _graph(graph, [*left, *(places[i] for i in own[1])], halves[1], results)
    return first, second, own


def _is_part(node: fx.Node) -> bool:
    return node.target is operator.getitem


def _graph(
    whole: fx.GraphModule, inputs: list[fx.Node], work: list[fx.Node], results: list
) -> fx.GraphModule:
    graph, known = fx.Graph(), {}
    for i, node in enumerate(inputs):
        known[node] = graph.placeholder(f"x{i}")
    for node in work:
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output([known.get(n, n) for n in results])
    return fx.GraphModule(whole, graph)
