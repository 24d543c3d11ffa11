"""Two passes of a network over batches of a size as one over both, in a trace.

D's update has a pass on real samples and one on fakes, by the same weights. Operations that treat
every sample by itself do both at once: a weight is packed once, its gradient is one sum, and there
is more work for threads to share. A BatchNorm has its sums of each half (`parts`). Which operations
those are is seen in the trace, so that nothing is asked of networks; what is not among them gets
the halves of a result, which are views. Gradients of weights are rounded otherwise.
"""

from __future__ import annotations

import heapq
import operator
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import fx

from fastgan.engines.places import Looking, written
from fastgan.ops import library

_aten = torch.ops.aten

_IN_PLACE = {_aten.leaky_relu_.default, _aten.relu_.default}
_SEEDS = {_aten.convolution.default}
_ROLES = {
    _aten.convolution.default: ("x", "x"),
    _aten.convolution_backward.default: ("xx", "x++"),
    _aten.relu.default: ("x", "x"),
    _aten.relu_.default: ("x", "x"),
    _aten.leaky_relu.default: ("x", "x"),
    _aten.leaky_relu_.default: ("x", "x"),
    _aten.threshold_backward.default: ("xx", "x"),
    _aten.leaky_relu_backward.default: ("xx", "x"),
    _aten.avg_pool2d.default: ("x", "x"),
    _aten.avg_pool2d_backward.default: ("xx", "x"),
    _aten.add.Tensor: ("xx", "x"),
}
"""Of the arguments and of the results: x: a row for each sample; s: one for each part of the batch;
+: a sum over the samples. Other arguments are the same for all."""
_PARTS = set()
if "cpu" in library.KERNELS:
    _own = torch.ops.fastgan
    _SEEDS |= {_own.conv2d_leaky_relu.default, _own.conv_transpose2d_leaky_relu.default}
    _ROLES |= {
        _own.conv2d_leaky_relu.default: ("x---x", "x"),
        _own.conv_transpose2d_leaky_relu.default: ("x---x", "x"),
        _own.conv2d_grad_weight.default: ("xx", "+"),
        _own.batch_norm_leaky_relu.default: ("x", "xss"),
        _own.batch_norm_leaky_relu_backward.default: ("xx--ss", "x++"),
    }
    _PARTS |= {
        _own.batch_norm_leaky_relu.default,
        _own.batch_norm_leaky_relu_backward.default,
    }
_WITHOUT_PARTS = 8
"""Arguments of those when the batch is one part."""


def paired(graph: fx.GraphModule, looked: Looking) -> bool:
    """Make one of two; whether there were any.

    Args:
        graph: a trace, which is changed; what is idle then is left in it.
        looked: where its tensors lie.
    """
    pairs = _Pairs(graph.graph, looked)
    if not pairs.found:
        return False
    _Joining(pairs).run()
    return True


class _Pairs:
    """Nodes of a trace of which one can do the work of two.

    Attributes:
        found: the second by the first, in the order in which they were found.
        sums: the node that adds the sums of a pair, by the first.
        order: all nodes in an order in which pairs are neighbours.
    """

    def __init__(self, graph: fx.Graph, looked: Looking):
        self.graph, self.places, self.looked = graph, looked.places, looked
        self.nodes = list(graph.nodes)
        self.found: dict[fx.Node, fx.Node] = {}
        self.sums: dict[fx.Node, fx.Node] = {}
        self.firsts: dict[fx.Node, fx.Node] = {}
        self.order = self.nodes
        self._before = dict(self._constraints())
        for a, b in self._seeds():
            if a in self.found or b in self.firsts or a in self.firsts or b in self.found:
                continue
            kept = dict(self.found), dict(self.sums), dict(self.firsts)
            self._add(a, b)
            order = self._sorted()
            if order is None:
                self.found, self.sums, self.firsts = kept
            else:
                self.order = order

    # --- which are ---------------------------------------------------------------------------

    def _seeds(self) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Convolutions of two batches by one weight."""
        waiting: dict[tuple, fx.Node] = {}
        for node in self.nodes:
            if node.target in _SEEDS and self._alike(node.args[0], node.args[0]):
                shape = self.places[node.args[0]].shape
                key = node.target, shape, *map(_hashable, node.args[1:])
                if (first := waiting.pop(key, None)) is None:
                    waiting[key] = node
                else:
                    yield first, node

    def _add(self, a: fx.Node, b: fx.Node) -> None:
        """A pair, and what follows from it."""
        waiting = [(a, b)]
        self._note(a, b)
        while waiting:
            a, b = waiting.pop(0)
            for u in list(a.users):
                v = next((v for v in b.users if self._match(u, v)), None)
                if v is None:
                    continue
                self._note(u, v)
                roles = _ROLES[u.target][1]
                if roles == "x":
                    waiting.append((u, v))
                for i, role in enumerate(roles):
                    parts = (u, v) if len(roles) == 1 else (_part(u, i), _part(v, i))
                    if role == "+" and parts[0] is not None:
                        self.sums[parts[0]] = next(iter(parts[0].users))
                    if len(roles) > 1 and None not in parts:
                        self._note(*parts)
                        if role != "+":
                            waiting.append(parts)

    def _note(self, a: fx.Node, b: fx.Node) -> None:
        self.found[a] = b
        self.firsts[b] = a

    def _match(self, u: fx.Node, v: fx.Node) -> bool:
        """Whether two operations may be one, some of whose arguments are a pair's."""
        taken = u in self.found or u in self.firsts or v in self.found or v in self.firsts
        if taken or u is v or u.target != v.target or u.target not in _ROLES:
            return False
        if len(u.args) != len(v.args) or u.kwargs or v.kwargs:
            return False
        roles, results = _ROLES[u.target]
        if u.target in _PARTS and len(u.args) != _WITHOUT_PARTS:
            return False
        for i, (x, y) in enumerate(zip(u.args, v.args, strict=True)):
            role = roles[i] if i < len(roles) else "-"
            together = self._is_pair(x, y)
            if role == "-":
                if _hashable(x) != _hashable(y):
                    return False
            elif not together:
                known = isinstance(x, fx.Node) and (x in self.found or x in self.firsts)
                if role == "s" or known or not self._alike(x, y) or u.target in _IN_PLACE:
                    return False
        if u.target is _aten.add.Tensor and not self._alike(*u.args[:2]):
            return False
        if u.target in _IN_PLACE and len(u.args[0].users) + len(v.args[0].users) > 2:
            return False
        sums = (i for i, role in enumerate(results) if role == "+")
        return all(self._added(u, v, i, len(results)) for i in sums)

    def _is_pair(self, x, y) -> bool:
        return isinstance(x, fx.Node) and isinstance(y, fx.Node) and self.found.get(x) is y

    def _alike(self, x, y) -> bool:
        """Whether two are batches of a size and a kind."""
        if x not in self.places or y not in self.places:
            return False
        a, b = self.places[x], self.places[y]
        return a.shape == b.shape and a.dtype == b.dtype and len(a.shape) > 1 and a.shape[0] > 0

    def _added(self, u: fx.Node, v: fx.Node, i: int, results: int) -> bool:
        """Whether all that is done with two sums is that they are added."""
        if results > 1:
            u, v = _part(u, i), _part(v, i)
        if u is None or v is None:
            return u is v
        user = next(iter(u.users), None)
        return (
            list(u.users) == list(v.users) == [user]
            and user.target is _aten.add.Tensor
            and not user.kwargs
            and set(user.args) == {u, v}
        )

    # --- when --------------------------------------------------------------------------------

    def _constraints(self) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
        """What must come before a node."""
        last: dict[int, fx.Node] = {}
        since: dict[int, list[fx.Node]] = defaultdict(list)
        drawn = None
        for node in self.nodes:
            before = list(node.all_input_nodes)
            held = {n: self.places[n].memory for n in node.all_input_nodes if n in self.places}
            changed = {held[n] for n in written(node) if n in held}
            for memory in set(held.values()) & self.looked.written.keys():
                if memory in last:
                    before.append(last[memory])
                if memory in changed:
                    before += since.pop(memory, [])
                    last[memory] = node
                else:
                    since[memory].append(node)
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                before += [] if drawn is None else [drawn]
                drawn = node
            if node.op in ("placeholder", "output"):
                before = self.nodes[: self.nodes.index(node)]
            yield node, before

    def _sorted(self) -> list[fx.Node] | None:
        """All nodes in an order in which pairs are neighbours, or None if there is none."""
        place = {node: i for i, node in enumerate(self.nodes)}
        unit = {node: self.firsts.get(node, node) for node in self.nodes}
        after: dict[fx.Node, set[fx.Node]] = defaultdict(set)
        open_ = dict.fromkeys(unit.values(), 0)
        for node, before in self._before.items():
            for other in before:
                if unit[other] is not unit[node] and unit[node] not in after[unit[other]]:
                    after[unit[other]].add(unit[node])
                    open_[unit[node]] += 1
                elif unit[other] is unit[node] and other in node.all_input_nodes:
                    return None

        def key(node: fx.Node) -> tuple[int, int]:
            return max(place[node], place.get(self.found.get(node), 0)), place[node]

        ready = [key(node) for node, left in open_.items() if not left]
        heapq.heapify(ready)
        found: list[fx.Node] = []
        while ready:
            node = self.nodes[heapq.heappop(ready)[1]]
            found += [node, self.found[node]] if node in self.found else [node]
            for other in after[node]:
                open_[other] -= 1
                if not open_[other]:
                    heapq.heappush(ready, key(other))
        return found if len(found) == len(self.nodes) else None


class _Joining:
    """Puts one node in the place of each pair."""

    def __init__(self, pairs: _Pairs):
        self.pairs, self.graph, self.places = pairs, pairs.graph, pairs.places
        self.args = {node: node.args for node in pairs.order}
        self.users = {node: list(node.users) for node in pairs.order}
        self.made: dict[fx.Node, fx.Node] = {}
        self.cats: dict[tuple, fx.Node] = {}
        self.idle: list[fx.Node] = []

    def run(self) -> None:
        """Go through them in their order."""
        last, *others = self.pairs.order
        for node in others:
            last.append(node)
            last = node
        for a in self.pairs.order:
            if a in self.pairs.found:
                with self.graph.inserting_before(a):
                    self._join(a, self.pairs.found[a])
        # Some of them write, and would not be taken for idle.
        for node in reversed(self.idle):
            self.graph.erase_node(node)

    def _join(self, a: fx.Node, b: fx.Node) -> None:
        pairs, new = self.pairs, self._joined(a, b)
        self.made[a] = new
        self.idle += [a, b]
        if a in pairs.sums:
            total = pairs.sums[a]
            total.replace_all_uses_with(new)
            self.idle.append(total)
            return
        for i, node in enumerate((a, b)):
            alone = [u for u in self.users[node] if u not in pairs.found and u not in pairs.firsts]
            if node in self.places and alone:
                node.replace_all_uses_with(self._half(new, node, i))
            elif alone:  # one of several results
                for part in alone:
                    both = self.graph.call_function(operator.getitem, (new, part.args[1]))
                    part.replace_all_uses_with(self._half(both, part, i))
                    self.idle.append(part)

    def _joined(self, a: fx.Node, b: fx.Node) -> fx.Node:
        if a.target is operator.getitem:
            of, i = self.args[a]
            return self.graph.call_function(operator.getitem, (self.made[of], i))
        roles = _ROLES[a.target][0].ljust(len(a.args), "-")[: len(a.args)]
        args = tuple(
            x if role == "-" else self._both(i, a, b)
            for i, (role, x) in enumerate(zip(roles, a.args, strict=True))
        )
        return self.graph.call_function(a.target, (*args, 2) if a.target in _PARTS else args)

    def _both(self, i: int, a: fx.Node, b: fx.Node) -> fx.Node:
        if (made := self.made.get(self.args[a][i])) is not None:
            return made
        key = a.args[i], b.args[i]
        if key not in self.cats:
            self.cats[key] = self.graph.call_function(_aten.cat.default, (list(key),))
        return self.cats[key]

    def _half(self, both: fx.Node, node: fx.Node, i: int) -> fx.Node:
        size = self.places[node].shape[0]
        return self.graph.call_function(_aten.slice.Tensor, (both, 0, i * size, (i + 1) * size))


def _part(node: fx.Node, i: int) -> fx.Node | None:
    """One of an operation's results."""
    found = (u for u in node.users if u.target is operator.getitem and u.args[1] == i)
    return next(found, None)


def _hashable(value):
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value
