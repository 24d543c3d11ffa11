"""A trace of an update as operations that are called one after the other, without what is idle.

Where most of an update is spent in operators of fastgan's, a compiler has little left to fuse, and
takes half a minute for it. The trace alone saves autograd and the Python of modules. What is taken
out of it changes no number: results that nothing uses (autograd makes gradients of weights where a
penalty asks for those of samples), copies of copies, rectifiers behind convolutions of ours, and
memory of results that may lie where an operand did. `paired` and `resampled` do the same sums in
fewer operations, in another order: without them results are autograd's to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, fx

from fastgan import torch_graphs
from fastgan.engines import probe
from fastgan.engines.paired import paired
from fastgan.engines.places import Looking, written
from fastgan.engines.resampled import resampled
from fastgan.ops import library

logger = logging.getLogger("fastgan")

_aten = torch.ops.aten

_IN_PLACE = {
    _aten.relu.default: _aten.relu_.default,
    _aten.leaky_relu.default: _aten.leaky_relu_.default,
    _aten.tanh.default: _aten.tanh_.default,
    _aten.add.Tensor: _aten.add_.Tensor,
    _aten.mul.Tensor: _aten.mul_.Tensor,
    _aten.div.Tensor: _aten.div_.Tensor,
}
"""Element by element, from the first operand."""
_INTO_GRADIENT = {
    _aten.threshold_backward.default: _aten.threshold_backward.grad_input,
    _aten.leaky_relu_backward.default: _aten.leaky_relu_backward.grad_input,
    _aten.tanh_backward.default: _aten.tanh_backward.grad_input,
}
"""The same, of operations that are told where their result goes."""

_RECTIFIERS = {
    _aten.relu.default: lambda: 0.0,
    _aten.relu_.default: lambda: 0.0,
    _aten.leaky_relu.default: lambda slope=0.01: slope if slope >= 0 else None,
    _aten.leaky_relu_.default: lambda slope=0.01: slope if slope >= 0 else None,
}
"""The factor of negative values by the arguments behind the first."""
_DERIVATIVES = {
    _aten.threshold_backward.default: lambda threshold: 0.0 if threshold == 0 else None,
    _aten.leaky_relu_backward.default: lambda slope, _: slope if slope >= 0 else None,
}
"""The same by those behind the second, whose sign decides."""
_CONVOLUTIONS = [
    getattr(torch.ops.fastgan, name).default
    for name in ("conv2d_leaky_relu", "conv_transpose2d_leaky_relu")
    if "cpu" in library.KERNELS
]

_FORMATS = (torch.contiguous_format, torch.channels_last)


def simplified(graph: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
    """The same operations on the same tensors, fewer and with less memory.

    Args:
        graph: a trace of operations of torch without branches; it is changed.
        inputs: what it is called with. It is called, and writes where it writes.
    """
    for node in graph.graph.nodes:
        if node.target is _aten.alias.default:
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code(_does_more)
    looked = Looking(graph)
    looked.run(*inputs)
    if resampled(graph, looked):
        graph.graph.eliminate_dead_code(_does_more)
        looked = Looking(graph)
        looked.run(*inputs)
    for node in list(graph.graph.nodes):
        _rectify(node, looked)
    for node in graph.graph.nodes:
        _shorten(node, looked)
    graph.graph.eliminate_dead_code(_does_more)
    if paired(graph, looked):
        looked = Looking(graph)
        looked.run(*inputs)
    _reuse(graph.graph, looked)
    graph.recompile()
    return graph


def called(graph: fx.GraphModule) -> Callable[..., list[Tensor]]:
    """What calls the operations: torch's interpreter, or Python where that cannot."""
    try:
        return torch_graphs.interpreted(graph)
    except Exception as error:
        logger.info(
            "operations of an update are called by Python, as torch's interpreter cannot: %s",
            probe.first_line(error),
        )
        return graph.forward


def _does_more(node: fx.Node) -> bool:
    """Whether a node does more than to return something."""
    if node.op != "call_function":
        return True
    seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return seeded or bool(written(node))


def _rectify(node: fx.Node, looked: Looking) -> None:
    """Let a convolution of ours do the work of a rectifier, or of its derivative, behind it."""
    x = node.args[0] if node.args else None
    if not isinstance(x, fx.Node) or x.target not in _CONVOLUTIONS:
        return
    if len(x.users) > 1 or len(x.args) > 4 or x.args[3] != 1:
        return
    if node.target in _RECTIFIERS:
        slope, sign = _RECTIFIERS[node.target](*node.args[1:]), ()
    elif node.target in _DERIVATIVES:
        slope, sign = _DERIVATIVES[node.target](*node.args[2:]), (node.args[1],)
    else:
        return
    for by in sign:  # read where the convolution is
        alike = by in looked.places and looked.places[by].shape == looked.places[node].shape
        if not (alike and looked.order[by] < looked.order[x] and looked.stays_after(by, x)):
            return
    if slope is None or looked.places[x].strides != looked.places[node].strides:
        return
    x.args = (*x.args[:3], slope, *sign)
    node.replace_all_uses_with(x)
    looked.lie_together(node, x)
    node.graph.erase_node(node)  # in place it would not be taken for idle


def _shorten(node: fx.Node, looked: Looking) -> None:
    """Take out what makes another tensor of the same values where nobody can tell."""
    places = looked.places
    if node.target is _aten.reshape.default:
        x = node.args[0]
        while x.target is _aten.reshape.default and places[x].memory == places[node].memory:
            x = x.args[0]
        if places[x] == places[node]:
            node.replace_all_uses_with(x)
    elif node.target is _aten.clone.default and node.kwargs.get("memory_format") in _FORMATS:
        while (x := node.args[0]).target is _aten.clone.default and looked.stay(x, x.args[0]):
            node.replace_input_with(x, x.args[0])
        alike = places[x][1:] == places[node][1:] and places[x].whole
        if alike and looked.stay(node, x) and places[x].memory not in looked.given:
            node.replace_all_uses_with(x)
            looked.lie_together(node, x)


def _reuse(graph: fx.Graph, looked: Looking) -> None:
    """Let results lie where the operand did whose last use their operation is."""
    places = looked.places
    order = {node: i for i, node in enumerate(graph.nodes)}
    memory = {node: places[node].memory for node in graph.nodes if node in places}
    last: dict[int, int] = {}
    for node, own in memory.items():
        uses = [order[user] for user in node.users]
        used = len(order) if node.op == "placeholder" else max(uses, default=0)
        last[own] = max(last.get(own, 0), used)
    for node in list(graph.nodes):
        if node.target not in _IN_PLACE and node.target not in _INTO_GRADIENT:
            continue
        x, out = node.args[0], places[node]
        others = [n for n in node.all_input_nodes if n is not x]
        if (
            x not in memory
            or places[x][1:] != out[1:]
            or not out.whole
            or last[memory[x]] != order[node]
            or sum(a is x for a in node.args) > 1
            or any(memory.get(n) == memory[x] for n in others)
        ):
            continue
        if node.target in _IN_PLACE:
            node.target = _IN_PLACE[node.target]
        else:
            node.target = _INTO_GRADIENT[node.target]
            node.kwargs = {**node.kwargs, "grad_input": x}
        own, taken = memory[node], memory[x]
        last[taken] = last.pop(own)
        memory.update({n: taken for n, at in memory.items() if at == own})
