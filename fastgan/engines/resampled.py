"""Doubled and halved images as part of the convolutions beside them, in a trace.

A 3x3 convolution of an image whose pixels were doubled is a transposed 4x4 one with stride 2 of the
image itself, one whose result is averaged over squares of 2x2 pixels a 4x4 one with stride 2, each
with the 3x3 filter summed over its shifts by a pixel (`fused_scale` in the program of T. Karras et
al., "Progressive Growing of GANs", ICLR 2018). A 1x1 convolution and either change of size commute.
That is the same function by 4 products an output where there were 9, and by a quarter of those of
1x1, without the large image in between; gradients of it likewise. Rounding is another.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import fx

from fastgan.engines.places import Looking, Place
from fastgan.ops import conv, library
from fastgan.ops.resized import folded, spread

_aten = torch.ops.aten
_UP, _UP_BACKWARD = _aten.upsample_nearest2d.default, _aten.upsample_nearest2d_backward.default
_POOL, _POOL_BACKWARD = _aten.avg_pool2d.default, _aten.avg_pool2d_backward.default
_CONV, _CONV_BACKWARD = _aten.convolution.default, _aten.convolution_backward.default


class _Grown(NamedTuple):
    """An image whose pixels are those of a small one, each four times, times a factor."""

    small: fx.Node
    factor: float
    since: fx.Node
    """What has read the small one."""


def resampled(graph: fx.GraphModule, looked: Looking) -> bool:
    """Take them in; whether there were any.

    Args:
        graph: a trace, which is changed; what is idle then is left in it.
        looked: where its tensors lie.
    """
    if "cpu" not in library.KERNELS:
        return False
    return _Rewriting(graph, looked).run()


class _Rewriting:
    """Goes through a trace once."""

    def __init__(self, graph: fx.GraphModule, looked: Looking):
        self.graph, self.looked, self.places = graph.graph, looked, looked.places
        self.grown: dict[fx.Node, _Grown] = {}
        self.changed = False
        self._once: dict[tuple, tuple[fx.Node, fx.Node]] = {}
        """What was made of a node, and when."""
        self._replaced: set[fx.Node] = set()

    def run(self) -> bool:
        """See `resampled`."""
        for node in list(self.graph.nodes):
            if node.op != "call_function" or not node.users:
                continue
            with self.graph.inserting_before(node):
                self._look(node)
        return self.changed

    def _look(self, node: fx.Node) -> None:
        if node.target is _UP and _by_two(node, 2) and self._doubles(node.args[0], node):
            self.grown[node] = _Grown(node.args[0], 1.0, node)
        elif node.target is _POOL_BACKWARD and self._is_pool(node, 2, node.args[0]):
            self._double(node)
        elif node.target is _aten.clone.default and node.args[0] in self.grown:
            if node.kwargs.get("memory_format") is torch.channels_last:
                self.grown[node] = self.grown[node.args[0]]
        elif node.target is _aten.sum.dim_IntList:
            self._sum(node)
        elif self._halves(node):
            self._halved(node)
        elif node.target in (_CONV, _Ours.forward, _Ours.data):
            self._of_grown(node)
        elif node.target is _Ours.weight:
            self._weight(node)
        elif node.target is _CONV_BACKWARD and self._is_1x1(node, 2, node.args[4:10]):
            self._backward_1x1(node)

    # --- what nodes are ----------------------------------------------------------------------

    def _doubles(self, small: fx.Node, large: fx.Node) -> bool:
        """Whether one image has twice the sides of another, float32 and in plain order."""
        if small not in self.places or large not in self.places:
            return False
        a, b = self.places[small], self.places[large]
        if len(a.shape) != 4 or not a.dtype == b.dtype == torch.float32:
            return False
        return (2 * a.shape[2], 2 * a.shape[3]) == tuple(b.shape[2:])

    def _is_pool(self, node: fx.Node, settings: int, small: fx.Node) -> bool:
        """Whether it averages 2x2 pixels, or is the derivative of that."""
        large = node if node.target is _POOL_BACKWARD else node.args[0]
        kernel, stride, padding, ceil_mode, _, divisor = _filled(
            node, settings, (None, [], 0, False, True, None)
        )
        return (
            _pair(kernel) == (2, 2)
            and _pair(stride or kernel) == (2, 2)
            and _pair(padding) == (0, 0)
            and not ceil_mode
            and divisor is None
            and self._doubles(small, large)
        )

    def _halves(self, node: fx.Node) -> bool:
        """Whether each pixel is made of 2x2 others that a convolution has returned."""
        if node.target is _POOL:
            return self._is_pool(node, 1, node)
        up = node.target is _UP_BACKWARD and _by_two(node, 3)
        return up and self._doubles(node, node.args[0])

    def _is_1x1(self, node: fx.Node, weight: int, places: tuple) -> bool:
        if node.args[weight] not in self.places:
            return False
        stride, padding, dilation, transposed, output_padding, groups = places
        return (
            tuple(self.places[node.args[weight]].shape[2:]) == (1, 1)
            and (_pair(stride), _pair(padding), _pair(dilation)) == ((1, 1), (0, 0), (1, 1))
            and not transposed
            and groups == 1
        )

    def _kernel_3(self, node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None, float] | None:
        """(x, weight, bias, negative slope) of a 3x3 convolution with padding 1."""
        if node.target is _CONV:
            x, w, b, stride, padding, dilation, transposed, _, groups = node.args
            slope = 1.0
            plain = (_pair(stride), _pair(padding), _pair(dilation)) == ((1, 1),) * 3
            if transposed or groups != 1 or not plain:
                return None
        elif node.target in (_Ours.forward, _Ours.data):
            x, w, b, slope = node.args
        else:
            return None
        if w not in self.places or tuple(self.places[w].shape[2:]) != (3, 3):
            return None
        return x, w, b, slope

    def _is_last(self, node: fx.Node) -> bool:
        """Whether a tensor is in the memory format that the operators' results have."""
        b, c, h, w = self.places[node].shape
        return self.places[node].strides == (c * h * w, 1, c * w, c)

    def _stay(self, since: fx.Node, *nodes: fx.Node) -> bool:
        """Whether what was read then may be read later."""
        return all(self.looked.stays_after(n, since) for n in nodes)

    def _faster(self, way: str, large: fx.Node, small: fx.Node) -> bool:
        """Whether the 4x4 convolution from one image to another is by an operator of ours."""
        batch, inside, _, _ = self.places[large].shape
        _, outside, rows, columns = self.places[small].shape
        return conv.is_faster(way, 4, batch, inside, outside, rows, columns, True)

    # --- what is made of them ----------------------------------------------------------------

    def _made(self, target, args: tuple, place: Place, since: fx.Node) -> fx.Node:
        """A new node, which lies as an old one does, in memory of its own."""
        node = self.graph.call_function(target, args)
        self.looked.lies(node, place, since)
        return node

    def _put(self, node: fx.Node, target, args: tuple) -> fx.Node:
        """The same in place of a node."""
        new = self._made(target, args, self.places[node], node)
        self._replace(node, new)
        return new

    def _replace(self, node: fx.Node, new: fx.Node) -> None:
        node.replace_all_uses_with(new)
        self._replaced.add(node)
        self.changed = True

    def _spread(self, weight: fx.Node, turned: bool, factor: float, since: fx.Node) -> fx.Node:
        key = weight, turned, factor
        return self._made_once(key, lambda: self.graph.call_function(spread, key), since)

    def _made_once(self, key: tuple, make: Callable[[], fx.Node], since: fx.Node) -> fx.Node:
        """What is made of a node, the first of the key, unless that is written into since."""
        made, before = self._once.get(key, (None, None))
        if made is None or not self._stay(before, key[0]):
            made = make()
            self._once[key] = made, since
        return made

    def _double(self, node: fx.Node) -> None:
        """A gradient of an average, which takes its size from an image that need not be made."""
        grad, place = node.args[0], self.places[node]
        if self._is_last(grad) != self._is_last(node) or not self.places[grad].whole:
            return
        small = self._made(_aten.mul.Tensor, (grad, 0.25), self.places[grad], node)
        sizes = list(place.shape[2:])
        new = self._put(node, _UP, (small, sizes, None, None))
        self.grown[new] = _Grown(grad, 0.25, node)

    def _sum(self, node: fx.Node) -> None:
        """Of all pixels, for the gradient of a bias."""
        found = self.grown.get(node.args[0])
        if found is None or 4 * found.factor != 1 or node.args[1] != [0, 2, 3]:
            return
        if self._stay(found.since, found.small):
            self._put(node, node.target, (found.small, *node.args[1:]))

    def _of_grown(self, node: fx.Node) -> None:
        """A convolution of a doubled image."""
        found = self.grown.get(node.args[0])
        if found is None or not self._stay(found.since, found.small) or not self._is_last(node):
            return
        if node.target is _CONV and self._is_1x1(node, 1, node.args[3:9]):
            self._after(node, found)
        elif (kernel := self._kernel_3(node)) and self._faster("data", node, found.small):
            _, w, bias, slope = kernel
            filters = self._spread(w, node.target is not _Ours.data, found.factor, node)
            self._put(node, _Ours.data, (found.small, filters, bias, slope))

    def _after(self, node: fx.Node, found: _Grown) -> None:
        """A 1x1 convolution before its input is doubled."""
        if found.factor != 1:
            return
        small = self._small(node, self.places[node].shape[1])
        x = self._last(found.small)
        made = self._made(_CONV, (x, *node.args[1:]), small, node)
        new = self._put(node, _UP, (made, list(self.places[node].shape[2:]), None, None))
        self.grown[new] = _Grown(made, 1.0, node)

    def _halved(self, node: fx.Node) -> None:
        """What a convolution has returned, halved."""
        of, pool = node.args[0], node.target is _POOL
        # A derivative of the average asks the image for no more than its size.
        others = [
            user
            for user in of.users.keys() - self._replaced - {node}
            if user.target is not _POOL_BACKWARD or user.args[0] is of
        ]
        if others or of.op != "call_function" or not self._is_last(node):
            return
        if pool and of.target is _CONV and self._is_1x1(of, 1, of.args[3:9]):
            x = of.args[0]
            if x in self.places and self._is_last(x) and self._stay(of, *_tensors(of)):
                self._put(node, _CONV, (self._pool(x, of), *of.args[1:]))
        elif kernel := self._kernel_3(of):
            x, w, bias, slope = kernel
            if (
                slope == 1
                and (pool or bias is None)
                and x in self.places
                and self._stay(of, *_tensors(of))
                and self._faster("forward", x, node)
            ):
                filters = self._spread(w, of.target is _Ours.data, 0.25 if pool else 1.0, node)
                self._put(node, _Ours.forward, (x, filters, bias, 1.0))

    def _weight(self, node: fx.Node) -> None:
        """The gradient of a 3x3 convolution's weight, or of a 1x1 one."""
        x, grad, kernel, channels_last = node.args
        turned = x in self.grown
        found = self.grown.get(x) or self.grown.get(grad)
        large = grad if turned else x
        if found is None or large not in self.places or not self._stay(found.since, found.small):
            return
        if kernel == 1:
            self._weight_1x1(node, found, turned)
        if kernel != 3 or not self._faster("weight", large, found.small):
            return
        made = self.graph.call_function(_Ours.weight, (large, found.small, 4, False))
        self._put(node, folded, (made, turned, found.factor, channels_last))

    def _weight_1x1(self, node: fx.Node, found: _Grown, turned: bool) -> None:
        x, grad, *rest = node.args
        if turned and found.factor == 1:
            self._put(node, node.target, (found.small, self._summed(grad, node), *rest))
        elif not turned and 4 * found.factor == 1 and self._is_last(x):
            self._put(node, node.target, (self._pool(x, node), found.small, *rest))

    def _backward_1x1(self, node: fx.Node) -> None:
        """The derivatives of a 1x1 convolution of a doubled image, or whose result is halved."""
        grad, x, w, *rest = node.args
        parts = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        dx = parts.get(0)
        if len(parts) != len(node.users) or grad not in self.places or x not in self.places:
            return
        if (of_x := self.grown.get(x)) and of_x.factor == 1 and self._stay(of_x.since, of_x.small):
            halved = list(dx.users) if dx is not None else []
            if not all(self._halves(user) and user.target is _UP_BACKWARD for user in halved):
                return
            made, small = self._summed(grad, node), self._last(of_x.small)
            new = self.graph.call_function(_CONV_BACKWARD, (made, small, w, *rest))
            for user in halved:
                place = self.places[user]
                user.replace_all_uses_with(self._part(new, 0, place, node))
        elif (of_grad := self.grown.get(grad)) and 4 * of_grad.factor == 1:
            if not (self._stay(of_grad.since, of_grad.small) and self._is_last(x)):
                return
            made = of_grad.small
            new = self.graph.call_function(_CONV_BACKWARD, (made, self._pool(x, node), w, *rest))
            if dx is not None:
                place = self.places[dx]
                channels = place.shape[1]
                low = self._part(new, 0, self._small(dx, channels), node)
                scaled = self._made(_aten.mul.Tensor, (low, 0.25), self.places[low], node)
                large = self._made(_UP, (scaled, list(place.shape[2:]), None, None), place, node)
                self.grown[large] = _Grown(low, 0.25, node)
                dx.replace_all_uses_with(large)
        else:
            return
        self.changed = True
        for i in (1, 2):
            if i in parts:
                self._replace(parts[i], self._part(new, i, self.places[parts[i]], node))

    def _part(self, node: fx.Node, i: int, place: Place, since: fx.Node) -> fx.Node:
        return self._made(operator.getitem, (node, i), place, since)

    def _small(self, node: fx.Node, channels: int) -> Place:
        """How an image of half the sides lies, channels last."""
        b, _, h, w = self.places[node].shape
        h, w = h // 2, w // 2
        shape, strides = (
            torch.Size((b, channels, h, w)),
            (channels * h * w, 1, channels * w, channels),
        )
        return self.places[node]._replace(shape=shape, strides=strides)

    def _last(self, x: fx.Node) -> fx.Node:
        """An image in channels-last memory."""
        if self._is_last(x):
            return x
        kwargs = {"memory_format": torch.channels_last}
        return self.graph.call_function(_aten.clone.default, (x,), kwargs)

    def _pool(self, x: fx.Node, since: fx.Node) -> fx.Node:
        """The average of 2x2 pixels of an image that stays."""
        small = self._small(x, self.places[x].shape[1])
        args = x, [2, 2], [2, 2]
        return self._made_once((x, _POOL), lambda: self._made(_POOL, args, small, since), since)

    def _summed(self, grad: fx.Node, since: fx.Node) -> fx.Node:
        """The sums of 2x2 pixels."""
        place = self.places[grad]
        small = self._small(grad, place.shape[1])
        args = grad, list(place.shape[2:]), list(small.shape), None, None
        return self._made(_UP_BACKWARD, args, small, since)


class _Ours:
    """fastgan's operators."""

    if "cpu" in library.KERNELS:
        forward = torch.ops.fastgan.conv2d_leaky_relu.default
        data = torch.ops.fastgan.conv_transpose2d_leaky_relu.default
        weight = torch.ops.fastgan.conv2d_grad_weight.default


def _pair(value) -> tuple[int, int]:
    """A number for both directions, or one for each."""
    if isinstance(value, int):
        return value, value
    return (*value, *value) if len(value) == 1 else tuple(value)


def _filled(node: fx.Node, first: int, defaults: tuple) -> tuple:
    """Arguments from a place on, with those that are not written down."""
    given = node.args[first:]
    return (*given, *defaults[len(given) :])


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.args if isinstance(n, fx.Node)]


def _by_two(node: fx.Node, first: int) -> bool:
    """Whether the factors from a place on, if they are given, are 2."""
    return all(factor in (None, 2) for factor in node.args[first:])
