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
    *nodes, output = graph.graph.nodes
    places = [node for node in nodes if node.op == "placeholder"]
    work, results = [node for node in nodes if node.op != "placeholder"], output.args[0]
    samples = results[-1]
    first = set(work[: work.index(samples) + 1])
    # Of an operation with several results they are taken apart where it is.
    first |= {n for n in work if n.target is operator.getitem and n.args[0] in first}
    early, late = ([n for n in work if (n in first) == is_first] for is_first in (True, False))
    later_users = {*late, output}
    left = [samples, *(n for n in early if n is not samples and later_users & n.users.keys())]
    own = tuple(
        [i for i, place in enumerate(places) if users & place.users.keys()]
        for users in (first, later_users)
    )
    if any(id(inputs[i]) in later for i in own[0]):
        raise CannotRun("shared_fakes: G's pass works with what D's update moves")
    return (
        _graph(graph, [places[i] for i in own[0]], early, left),
        _graph(graph, [*left, *(places[i] for i in own[1])], late, results),
        own,
    )


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
