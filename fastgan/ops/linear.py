"""A linear layer with a leaky rectifier, and with the dropout that follows it."""

from __future__ import annotations

import functools

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from ..torch_private import leaky_relu, leaky_relu_
from . import library, reference
from .draws import DropoutAt, dropout_at, mask_arguments, which_mask


class _LinearLeakyReLU(torch.autograd.Function):
    """The operator with its derivative, for negative_slope >= 0.

    The sign of the result is then that of the pre-activation, and nothing else need be kept.
    """

    # The context is taken by forward: a separate setup_context costs 20 us a call.
    @staticmethod
    def forward(ctx, x, weight, bias, negative_slope):
        out = torch.ops.fastgan.linear_leaky_relu(x, weight, bias, negative_slope)
        ctx.negative_slope = negative_slope
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, out = ctx.saved_tensors
        need, slope = ctx.needs_input_grad, ctx.negative_slope
        recorded = torch.is_grad_enabled()
        if torch.compiler.is_compiling() or (grad.is_cuda and not recorded):
            gx, gw, gb = torch.ops.fastgan.linear_leaky_relu_backward(
                grad, x, weight, out, slope, need[0], need[1], need[2]
            )
        elif recorded:
            # `out` carries the sign only: the rectifier has no curvature, so nothing is
            # differentiated through it.
            gx, gw, gb = reference.linear_leaky_relu_backward(grad, x, weight, out.detach(), slope)
        else:
            # torch's products: on the shapes this road is taken for, they are the faster ones.
            pre = torch.ops.aten.leaky_relu_backward(grad, out, slope, True)
            batch = x.shape[:-1].numel()
            rows = pre.reshape(batch, weight.shape[0])
            gx = pre @ weight if need[0] else None
            gw = rows.t() @ x.reshape(batch, weight.shape[1]) if need[1] else None
            gb = rows.sum(0) if need[2] else None
        return gx if need[0] else None, gw if need[1] else None, gb if need[2] else None, None


def _linear_leaky_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float
) -> Tensor:
    """The operator, differentiable; negative_slope >= 0."""
    if x is weight:
        weight = weight.view_as(weight)  # torch.compile takes no tensor twice
    return _LinearLeakyReLU.apply(x, weight, bias, negative_slope)


@torch.fx.wrap  # torch.fx records one call and does not look at the shapes that choose the road
def linear_leaky_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2
) -> Tensor:
    """leaky_relu(x @ weight.T + bias), one layer of a multi-layer perceptron.

    Args:
        x: [..., in]; float32, float64, bfloat16, or on CUDA float16; any strides; empty and size-1
            dimensions are fine.
        weight: [out, in], same dtype as x.
        bias: [out] or None.
        negative_slope: the factor of negative values; any finite number, 0 and negative ones
            included.

    Returns:
        [..., out] in the dtype of x, or in autocast's dtype where that is on.

    The road is chosen by shape, dtype, device and instruction set alone, never by timing, so equal
    calls give equal bits. On CUDA the products are torch's, under its settings (allow_tf32), with
    one pass for bias and rectifier and one for the derivatives of both. FASTGAN_LINEAR=tiles, read
    once from the environment, gives layers of at most 2048 rows and features and 2**26 products
    tiles of our own: one launch forward and two backward, float32 to about its precision whatever
    the settings. Rectifier: A. Maas, A. Hannun, A. Ng, "Rectifier Nonlinearities Improve Neural
    Network Acoustic Models", 2013.
    """
    if weight.is_cuda and _on_cuda(x, weight, bias, negative_slope):
        layer = (
            _linear_leaky_relu if torch.is_grad_enabled() else torch.ops.fastgan.linear_leaky_relu
        )
        return layer(x, weight, bias, negative_slope)
    wide = weight.numel()
    if wide >= _WIDE:
        recording = torch.is_grad_enabled()
        if (wide >= _WIDE_ENOUGH_TO_RECORD or not recording) and _few_rows(
            x, weight, bias, negative_slope
        ):
            layer = _linear_leaky_relu if recording else torch.ops.fastgan.linear_leaky_relu
            return layer(x, weight, bias, negative_slope)
    y = F.linear(x, weight, bias)
    # A negative slope maps both signs to positive values: the result no longer tells the sign that
    # the derivative needs, so torch keeps the pre-activation.
    if negative_slope < 0 or y.numel() < _IN_PLACE_FROM:
        return leaky_relu(y, negative_slope)
    # The product is fresh memory, so the rectifier may overwrite it: one allocation and one pass
    # over new pages fewer than torch.
    return leaky_relu_(y, negative_slope)


# Below this many elements the bookkeeping of an in-place operation costs more than it saves.
_IN_PLACE_FROM = 16384

# Where the operator is faster (benchmarks/operators.py): a few rows against a wide weight, with
# AVX-512. Its vectors run along the features of both, so the weight is read once, as it lies; MKL
# takes about twice the time. On all other shapes torch's product is as fast or faster.
_FEW_ROWS = range(4, 17)
_WIDE, _LONG = 1 << 20, 1024
# Recording it for autograd in Python costs about 25 us, which a product of this size repays.
_WIDE_ENOUGH_TO_RECORD = 1 << 22


@functools.cache
def _few_rows_isa() -> bool:
    return "cpu" in library.KERNELS and library.isa() in ("avx512", "amx")


def _on_cuda(x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float) -> bool:
    """Whether the CUDA operator takes this layer: it needs fewer launches than torch."""
    return (
        "cuda" in library.KERNELS
        and not torch.compiler.is_compiling()
        and negative_slope >= 0
        and _plain(x, weight, bias)
        and x.dtype == weight.dtype
        and x.dtype in library.DTYPES["cuda"]
        and x.device == weight.device
        and not torch.is_autocast_enabled("cuda")
        and library.differentiable_here()
    )


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are tensors of torch's own, not subclasses with a mind of theirs."""
    plain = library.PLAIN
    return type(x) is Tensor and type(weight) in plain and (bias is None or type(bias) in plain)


def _few_rows(x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float) -> bool:
    """Whether the operator takes this layer: a rule of shapes and dtypes, never of timings."""
    features = weight.shape[-1]
    return (
        not torch.compiler.is_compiling()
        and features >= _LONG
        and x.numel() // features in _FEW_ROWS
        and negative_slope >= 0
        and _plain(x, weight, bias)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.is_contiguous()
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and library.differentiable_here()
        and _few_rows_isa()
    )


class _LinearLeakyReLUDropoutAt(torch.autograd.Function):
    """The layer with its dropout, for negative_slope >= 0.

    What is kept has the sign of the pre-activation; what is dropped passes no gradient.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, negative_slope, counter, where):
        out = torch.ops.fastgan.linear_leaky_relu_dropout_at(
            x, weight, bias, negative_slope, *mask_arguments(counter, where)
        )
        ctx.negative_slope, ctx.where = negative_slope, where
        ctx.save_for_backward(x, weight, out, counter)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, out, counter = ctx.saved_tensors
        need = ctx.needs_input_grad
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            gx, gw, gb = torch.ops.fastgan.linear_leaky_relu_dropout_backward_at(
                *(grad, x, weight, out, ctx.negative_slope, *need[:3]),
                *mask_arguments(counter, ctx.where),
            )
        else:
            # As where nothing is dropped, but for the mask, which is linear.
            grad = DropoutAt.apply(grad, counter, ctx.where)
            gx, gw, gb = reference.linear_leaky_relu_backward(
                grad, x, weight, out.detach(), ctx.negative_slope
            )
        none = None, None, None
        return gx if need[0] else None, gw if need[1] else None, gb if need[2] else None, *none


def linear_leaky_relu_dropout_at(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    negative_slope: float,
    p: float,
    seed: int,
    stream: int,
    counter: Tensor,
    multiplier: int = 1,
    offset: int = 0,
    *,
    start: int = 0,
) -> Tensor:
    """:func:`dropout_at` of :func:`linear_leaky_relu`: the same mask, and no pass of its own.

    On CUDA bias, rectifier and dropout are one pass, and so are the derivatives of the three;
    elsewhere, and where the operator does not take the layer, the two functions are called. The
    result is rounded once. Arguments and result are theirs.
    """
    if weight.is_cuda and _on_cuda(x, weight, bias, negative_slope):
        mask = which_mask(p, seed, stream, counter, multiplier, offset, start)
        return _LinearLeakyReLUDropoutAt.apply(x, weight, bias, negative_slope, counter, mask)
    y = linear_leaky_relu(x, weight, bias, negative_slope)
    return dropout_at(y, p, seed, stream, counter, multiplier, offset, start=start)
