"""ReLU and LeakyReLU whose second derivative is nothing, where torch's is a tensor of zeros.

A penalty on the slope of a network is differentiated through its backward pass. There torch makes
zeros as the gradient of each pre-activation and sends them back through all layers below: products
of a whole backward pass, whose results are zero. A weight on which a loss depends by such zeros
alone has no gradient here; in torch an optimiser moves it by them, so they are made up for.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..torch_private import leaky_relu, leaky_relu_
from . import library


class _Rectifier(torch.autograd.Function):
    """For negative_slope >= 0, with which the result has the sign of the pre-activation."""

    @staticmethod
    def forward(ctx, x, negative_slope, inplace):
        if inplace:
            ctx.mark_dirty(x)
        out = _plain(x, negative_slope, inplace)
        ctx.negative_slope = negative_slope
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        below = ctx.next_functions[0][0]
        return _Backward.apply(grad, out.detach(), ctx.negative_slope, below), None, None


class _Backward(torch.autograd.Function):
    """Linear in the gradient, and its own derivative."""

    @staticmethod
    def forward(ctx, grad, out, negative_slope, below):
        ctx.negative_slope, ctx.below = negative_slope, below
        ctx.save_for_backward(out)
        if negative_slope == 0:
            return torch.ops.aten.threshold_backward(grad, out, 0)
        return torch.ops.aten.leaky_relu_backward(grad, out, negative_slope, True)

    @staticmethod
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return _Backward.apply(grad, out, ctx.negative_slope, ctx.below), None, None, None


def _plain(x: Tensor, negative_slope: float, inplace: bool) -> Tensor:
    if negative_slope == 0:  # of -inf LeakyReLU makes a NaN, and it takes no integers
        return torch.relu_(x) if inplace else torch.relu(x)
    return (leaky_relu_ if inplace else leaky_relu)(x, negative_slope)


def rectifier(x: Tensor, negative_slope: float = 0.0, inplace: bool = False) -> Tensor:
    """leaky_relu(x, negative_slope), which torch.autograd does not differentiate twice.

    Args:
        x: of any shape and floating-point type.
        negative_slope: the factor of negative values; below 0 it is torch's.
        inplace: whether the result takes the memory of x.
    """
    recorded = type(x) is Tensor and x.requires_grad and torch.is_grad_enabled()
    if recorded and negative_slope >= 0 and library.differentiable_here():
        return _Rectifier.apply(x, negative_slope, inplace)
    return _plain(x, negative_slope, inplace)


def by_zeros(loss: Tensor, weights: Iterable[Tensor]) -> list[Tensor]:
    """Those of some weights that have no gradient of a loss, and would have zeros in torch.

    Args:
        loss: after its backward pass.
        weights: without a gradient of it.
    """
    without = {id(w): w for w in weights if w.requires_grad}
    found: list[Tensor] = []
    nodes, seen = [loss.grad_fn], {None}
    while without and nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if (w := without.pop(id(getattr(node, "variable", None)), None)) is not None:
            found.append(w)
        nodes += [below for below, _ in node.next_functions]
        nodes.append(getattr(node, "below", None))
    return found
