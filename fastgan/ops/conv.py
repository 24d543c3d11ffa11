"""The convolutions of DCGANs and ResNets, with the rectifier that follows them."""

from __future__ import annotations

import functools

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from ..torch_private import leaky_relu
from . import library, reference

# --- Where the operators were measured faster -----------------------------------------------------

FEW = 4
"""Channels up to which a layer is one of images: the first of a discriminator, the last of G."""


def is_faster(
    way: str,
    kernel: int,
    batch: int,
    inside: int,
    outside: int,
    rows: int,
    columns: int,
    channels_last: bool,
) -> bool:
    """Whether an operator was measured faster than torch's (benchmarks/operators.py --conv).

    A function of its arguments and of the instruction set.

    Args:
        way: "forward", "data" (transposed) or "weight".
        kernel: 4 (stride 2), 3 or 1.
        batch, inside, outside: images, channels of the convolution's input and of its output.
        rows, columns: of its output; of the input where that is what is computed.
        channels_last: whether the result is to have that memory format.
    """
    products = batch * rows * columns * inside * outside * kernel * kernel
    if products < _WORTH:
        return False
    least = min(inside, outside)
    if kernel == 1:
        return way == "weight" and channels_last and least >= 64 and inside + outside >= 192
    if least <= FEW:
        ways = _FEW_CHANNELS.get((kernel, inside <= FEW, channels_last), {})
        first = way == "forward" and inside <= FEW
        return way in ways and max(inside, outside) >= ways[way] and not (first and _wide())
    tiles = batch * -(-rows // 2) * -(-columns // 2)
    filled = _FILLED[way]
    if _wide() and (kernel, way) == (4, "forward") and inside < 256 and tiles < _TILES_FORWARD:
        return False
    if _wide() and kernel == 3:
        if way != "forward" and least < 32:
            return False
        if not channels_last and way != "weight" and tiles < _TILES_NCHW:
            return False
        if way == "data":
            filled = max(filled, 2.8)
        elif way == "weight":
            filled *= -(-inside // _PANEL) * _PANEL / inside
    if tiles < _TILES or batch * rows * columns < filled * tiles:
        return False
    if way == "data":
        return True
    if channels_last:
        return kernel == 3 or least >= 32
    # All images are rearranged, which only many products repay.
    return inside * outside >= (20 if (kernel, way) == (3, "forward") else 40) * (inside + outside)


# Multiplications that repay what recording a layer in Python costs, 25 us a pass.
_WORTH = 1 << 21
# Tiles, of 2x2 outputs, that repay the transform of the weight.
_TILES = 32
# The same of 4x4 forward, where vectors have 64 bytes and few channels are summed.
_TILES_FORWARD = 128
# The same where torch has formats of its own to sum in, with vectors of 64 bytes.
_TILES_NCHW = 128
# Channels of the input that come at a time to the sums of a gradient, filled up with zeros.
_PANEL = 32
# Outputs of a tile that must be there, in the mean: at the edge of odd sizes some are not.
_FILLED = {"forward": 2.9, "data": 2.5, "weight": 2.2}
# (kernel, few of the input or of the output, channels last): {way: fewest of the other channels}
_FEW_CHANNELS = {
    (4, True, True): {"forward": 64, "data": 8},
    (3, True, True): {"forward": 64, "data": 8},
    (3, False, True): {"forward": 32, "weight": 32},
}


@functools.cache
def _wide() -> bool:
    """Whether vectors have 64 bytes, by which torch gains more than the operators do."""
    return library.isa() in ("avx512", "amx")


def _sizes(x: Tensor, weight: Tensor, transposed: bool) -> tuple[int, ...]:
    """kernel, batch, inside, outside, rows, columns, as `is_faster` takes them."""
    outside, inside, kernel, _ = weight.shape
    batch, _, rows, columns = x.shape
    if kernel == 4 and not transposed:
        rows, columns = rows // 2, columns // 2
    return kernel, batch, inside, outside, rows, columns


# --- The operators, differentiable ----------------------------------------------------------------


class _Conv(torch.autograd.Function):
    """A convolution or a transposed one with its rectifier, for negative_slope >= 0.

    The sign of the result is then that of the pre-activation. The three products of a convolution
    are linear in both of their factors, and the derivatives of each are the two others.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, negative_slope, transposed, channels_last):
        out = _convolve(x, weight, bias, negative_slope, transposed, channels_last)
        ctx.negative_slope, ctx.transposed = negative_slope, transposed
        ctx.save_for_backward(x, weight, None if negative_slope == 1 else out)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, out = ctx.saved_tensors
        need, slope, transposed = ctx.needs_input_grad, ctx.negative_slope, ctx.transposed
        recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        pre = grad
        if slope != 1 and recorded:
            # `out` carries the sign only: the rectifier has no curvature, so nothing is
            # differentiated through it.
            pre = reference.leaky_relu_backward(grad, out.detach(), slope)
        elif slope != 1:
            pre = torch.ops.aten.leaky_relu_backward(grad, out, slope, True)
        sizes = _sizes(x, weight, transposed)
        x_last, weight_last = suggests_channels_last(x), suggests_channels_last(weight)
        ours = is_faster("forward" if transposed else "data", *sizes, x_last)
        ours_weight = is_faster("weight", *sizes, weight_last or x_last)
        theirs = [need[0] and not ours, need[1] and not ours_weight, False]
        gx = gw = gb = None
        if any(theirs):
            stride, padding = ([n, n] for n in reference.CONV_PLACES[sizes[0]])
            places = None, stride, padding, [1, 1], transposed, [0, 0], 1
            backward = torch.ops.aten.convolution_backward
            gx, gw, _ = backward(pre, x, weight, *places, theirs)
        if need[0] and ours:
            conv = _Conv.apply if recorded else _convolve
            gx = conv(pre, weight, None, 1.0, not transposed, x_last)
        if need[1] and ours_weight:
            grad_weight = _GradWeight.apply if recorded else torch.ops.fastgan.conv2d_grad_weight
            images, results = (pre, x) if transposed else (x, pre)
            gw = grad_weight(images, results, sizes[0], weight_last)
        if need[2]:
            gb = pre.sum((0, 2, 3))
        return gx, gw, gb, None, None, None


class _GradWeight(torch.autograd.Function):
    """The gradient of a convolution's weight."""

    @staticmethod
    def forward(ctx, x, grad, kernel, channels_last):
        ctx.save_for_backward(x, grad)
        return torch.ops.fastgan.conv2d_grad_weight(x, grad, kernel, channels_last)

    @staticmethod
    def backward(ctx, weight):
        x, grad = ctx.saved_tensors
        conv = _Conv.apply if torch.is_grad_enabled() else _convolve
        gx = gg = None
        if ctx.needs_input_grad[0]:
            gx = conv(grad, weight, None, 1.0, True, suggests_channels_last(x))
        if ctx.needs_input_grad[1]:
            gg = conv(x, weight, None, 1.0, False, suggests_channels_last(grad))
        return gx, gg, None, None


def _convolve(x, weight, bias, negative_slope, transposed, channels_last):
    sizes = _sizes(x, weight, transposed)
    if is_faster("data" if transposed else "forward", *sizes, channels_last):
        run = torch.ops.fastgan.conv2d_leaky_relu
        if transposed:
            run = torch.ops.fastgan.conv_transpose2d_leaky_relu
        y = run(x, weight, bias, negative_slope)
        return y if channels_last else y.contiguous()
    run = F.conv_transpose2d if transposed else F.conv2d
    y = run(x, weight, bias, *reference.CONV_PLACES[sizes[0]])
    return y if negative_slope == 1 else leaky_relu(y, negative_slope)


def to_channels_last(x: Tensor) -> Tensor:
    """The images [b, c, h, w] in the channels-last format, in strides that torch takes for it."""
    if suggests_channels_last(x):
        return x
    b, c, h, w = x.shape
    if (c == 1 or h == w == 1) and x.is_contiguous():
        return x.view(b, h, w, c).permute(0, 3, 1, 2)  # both formats are the same memory
    return x.contiguous(memory_format=torch.channels_last)


def suggests_channels_last(t: Tensor) -> bool:
    """Whether torch gives what it makes of `t`, [.., .., .., ..], channels-last memory."""
    least = 0
    sizes, strides = t.shape, t.stride()
    for d in (1, 3, 2, 0):
        if sizes[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return False
        least = strides[d] * max(sizes[d], 1)
    return True


def _layer(x, weight, bias, negative_slope, transposed, channels_last):
    if x is weight:
        weight = weight.view_as(weight)  # torch.compile takes no tensor twice
    layer = _Conv.apply if torch.is_grad_enabled() else _convolve
    return layer(x, weight, bias, negative_slope, transposed, channels_last)


# --- Ends: a single pixel on one side -------------------------------------------------------------


def _ends(x, weight, bias, padding, dilation, groups, transposed) -> bool:
    """Whether a side of the layer is one pixel, so that it is a product of two matrices."""
    return (
        "cpu" in library.KERNELS
        and weight.dim() == x.dim() == 4
        and groups == 1
        and (_both(padding), _both(dilation)) == ((0, 0), (1, 1))
        and x.shape[2:] == ((1, 1) if transposed else weight.shape[2:])
        and weight.shape[2:] != (1, 1)
        and x.shape[1] == weight.shape[0 if transposed else 1]
        and type(x) is Tensor
        and all(type(t) in library.PLAIN for t in (weight, bias) if t is not None)
        and all(t.dtype == torch.float32 for t in (x, weight, bias) if t is not None)
        and all(t.device.type == "cpu" for t in (x, weight, bias) if t is not None)
        and (bias is None or bias.shape == (weight.shape[1 if transposed else 0],))
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x, weight, bias, negative_slope, transposed):
    """The layer of `_ends`, in the memory format that torch would give it."""
    last = suggests_channels_last(x) or suggests_channels_last(weight)
    b, out = len(x), weight.shape[1 if transposed else 0]
    if transposed:
        y = (x.flatten(1) @ weight.flatten(1)).view(b, *weight.shape[1:])
        if bias is not None:
            y = y + bias.view(-1, 1, 1)
        if last:
            y = to_channels_last(y)
    else:
        if suggests_channels_last(x):  # whose memory has the channels innermost
            x, weight = x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
        y = F.linear(x.flatten(1), weight.flatten(1), bias).view(b, out, 1, 1)
    return y if negative_slope == 1 else leaky_relu(y, negative_slope)


# --- Which road -----------------------------------------------------------------------------------


@torch.fx.wrap  # torch.fx records one call and does not look at the shapes that choose the road
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    negative_slope: float = 1.0,
) -> Tensor:
    """leaky_relu(torch.nn.functional.conv2d(...), negative_slope), with its arguments.

    Args:
        x: [batch, in, height, width].
        weight: [out, in / groups, kernel height, kernel width].
        bias: [out] or None.
        stride, padding, dilation, groups: as for torch.
        negative_slope: the factor of negative results; any finite number. 1 leaves them alone.

    Returns:
        [batch, out, rows, columns], in the memory format that torch would give it.

    4x4 with stride 2 and padding 1, 3x3 with padding 1 and 1x1, in float32 on the CPU, run by our
    operators where those were measured faster (`is_faster`), layers whose input or output is one
    pixel as a product of two matrices, everything else by torch. The road is chosen by shapes,
    dtypes, memory formats and the instruction set, never by timing, so equal calls give equal bits.
    Their error is at most about four times that of torch's convolutions in the same memory format.
    Working memory is kept between calls; :func:`release_memory` frees it.
    """
    if _serves(x, weight, bias, stride, padding, dilation, groups, negative_slope, False):
        last = suggests_channels_last(x) or suggests_channels_last(weight)
        if _any_faster(x, weight, bias, False, last):
            return _layer(x, weight, bias, negative_slope, False, last)
    if _ends(x, weight, bias, padding, dilation, groups, False):
        return _product(x, weight, bias, negative_slope, False)
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return y if negative_slope == 1 else leaky_relu(y, negative_slope)


@torch.fx.wrap
def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    *,
    negative_slope: float = 1.0,
) -> Tensor:
    """leaky_relu(torch.nn.functional.conv_transpose2d(...), negative_slope): see :func:`conv2d`.

    Args:
        x: [batch, in, height, width].
        weight: [in, out / groups, kernel height, kernel width].
        bias: [out] or None.
        stride, padding, output_padding, groups, dilation: as for torch.
        negative_slope: the factor of negative results; any finite number. 1 leaves them alone.

    Returns:
        [batch, out, rows, columns], in the memory format that torch would give it.
    """
    if output_padding in (0, (0, 0)):
        if _serves(x, weight, bias, stride, padding, dilation, groups, negative_slope, True):
            last = suggests_channels_last(x) or suggests_channels_last(weight)
            if _any_faster(x, weight, bias, True, last):
                return _layer(x, weight, bias, negative_slope, True, last)
        if _ends(x, weight, bias, padding, dilation, groups, True):
            return _product(x, weight, bias, negative_slope, True)
    y = F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return y if negative_slope == 1 else leaky_relu(y, negative_slope)


def _serves(x, weight, bias, stride, padding, dilation, groups, negative_slope, transposed) -> bool:
    """Whether the operators can do this layer: a rule of shapes and dtypes."""
    if not ("cpu" in library.KERNELS and weight.dim() == x.dim() == 4 and groups == 1):
        return False
    kernel = weight.shape[2]
    expected = reference.CONV_PLACES.get(kernel)
    return (
        expected is not None
        and weight.shape[3] == kernel
        and (_both(stride), _both(padding), _both(dilation)) == (*map(_both, expected), (1, 1))
        and negative_slope >= 0
        and type(x) is Tensor
        and type(weight) in library.PLAIN
        and (bias is None or type(bias) in library.PLAIN)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.shape[1] == weight.shape[0 if transposed else 1]
        and (transposed or kernel != 4 or (x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0))
        and (bias is None or (bias.dtype == x.dtype and bias.device == x.device))
        and not torch.is_autocast_enabled("cpu")
        and library.differentiable_here()
    )


def _any_faster(x, weight, bias, transposed, channels_last) -> bool:
    """Whether one of the passes that the layer may need is faster by an operator."""
    sizes = _sizes(x, weight, transposed)
    if is_faster("data" if transposed else "forward", *sizes, channels_last):
        return True
    recorded = x.requires_grad or weight.requires_grad
    if not (recorded and torch.is_grad_enabled()):
        return False
    return any(is_faster(way, *sizes, channels_last) for way in _WAYS)


_WAYS = ("forward", "data", "weight")


def conv2d_is_faster(
    batch, channels_last, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
) -> bool:
    """Whether a pass of that layer, forward or backward, is faster by an operator.

    Args:
        batch: images, in place of those of x.
        channels_last: the memory format of x.
        The others are those of :func:`conv2d`.
    """
    places = stride, padding, dilation, groups
    return _trained_faster(batch, channels_last, x, weight, bias, places, False)


def conv_transpose2d_is_faster(
    batch, channels_last, x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,
    dilation=1,
) -> bool:  # fmt: skip
    """The same for :func:`conv_transpose2d`."""
    places = stride, padding, dilation, groups
    return output_padding in (0, (0, 0)) and _trained_faster(
        batch, channels_last, x, weight, bias, places, True
    )


def _trained_faster(batch, channels_last, x, weight, bias, places, transposed) -> bool:
    if not _serves(x, weight, bias, *places, 1.0, transposed):
        return False
    kernel, _, *sizes = _sizes(x, weight, transposed)
    return any(is_faster(way, kernel, batch, *sizes, channels_last) for way in _WAYS)


def _both(value):
    """A number for both directions, as torch takes them; a word is left alone."""
    return (value, value) if isinstance(value, int) else value


def release_memory() -> int:
    """Free the working memory that the operators keep between calls; its bytes."""
    return torch.ops.fastgan.conv_release_memory() if "cpu" in library.KERNELS else 0
