"""BatchNorm of images in training, with the rectifier that follows it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..torch_private import leaky_relu
from . import library, reference
from .conv import suggests_channels_last


class _Norm(torch.autograd.Function):
    """For negative_slope >= 0. What is differentiated twice sends no zeros back: see rectifier."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, negative_slope):
        y, mean, deviation = torch.ops.fastgan.batch_norm_leaky_relu(
            x, weight, bias, running_mean, running_var, momentum, eps, negative_slope
        )
        ctx.eps, ctx.negative_slope = eps, negative_slope
        ctx.save_for_backward(x, weight, bias, mean, deviation)
        return y

    @staticmethod
    def backward(ctx, grad):
        need = ctx.needs_input_grad[:3]
        settings = ctx.eps, ctx.negative_slope, need[0]
        if torch.is_grad_enabled():
            found = _Backward.apply(grad, *ctx.saved_tensors, *settings)
        else:
            run = torch.ops.fastgan.batch_norm_leaky_relu_backward
            found = run(grad, *ctx.saved_tensors, *settings[1:])
        return (*(g if n else None for g, n in zip(found, need, strict=True)), *[None] * 5)


class _Backward(torch.autograd.Function):
    """Gradients of x, weight and bias."""

    @staticmethod
    def forward(ctx, grad, x, weight, bias, mean, deviation, eps, negative_slope, need_x):
        run = torch.ops.fastgan.batch_norm_leaky_relu_backward
        dx, dweight, dbias = run(grad, x, weight, bias, mean, deviation, negative_slope, need_x)
        ctx.eps, ctx.negative_slope = eps, negative_slope
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, x, weight, bias, mean, deviation, dweight, dbias)
        return dx, dweight, dbias

    @staticmethod
    def backward(ctx, *v):
        if v[1] is None and v[2] is None and not torch.is_grad_enabled():
            run = torch.ops.fastgan.batch_norm_leaky_relu_second
            found = run(v[0], *ctx.saved_tensors, ctx.negative_slope)
        else:
            found = _by_reference(ctx, v)
        return (*found, *[None] * 6)


def _by_reference(ctx, v: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Gradients of grad, x and weight for those of all three gradients, or to go on from."""
    inputs, bias = ctx.saved_tensors[:3], ctx.saved_tensors[3]
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: a gradient may depend on x itself, which is not to be counted here.
        inputs = [
            t.view_as(t) if recorded and t.requires_grad else t.detach().requires_grad_()
            for t in inputs
        ]
        made = reference.batch_norm_leaky_relu_backward(*inputs, bias, ctx.eps, ctx.negative_slope)
        pairs = [(out, g) for out, g in zip(made, v, strict=True) if g is not None]
        return torch.autograd.grad(
            [out for out, _ in pairs], inputs, [g for _, g in pairs], create_graph=recorded,
            allow_unused=True,
        )  # fmt: skip


def serves(x: Tensor) -> bool:
    """Whether the operator can take these images, and knows no other way to mean them."""
    return (
        "cpu" in library.KERNELS
        and type(x) is Tensor
        and x.dim() == 4
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and suggests_channels_last(x)
        and not torch.is_autocast_enabled("cpu")
        and library.differentiable_here()
    )


def batch_norm_leaky_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float = 0.1,
    eps: float = 1e-5,
    negative_slope: float = 1.0,
) -> Tensor:
    """leaky_relu(batch_norm(x), negative_slope) in training, of which autograd sees one operation.

    Args:
        x: [batch, channels, height, width], with more than one value a channel.
        weight, bias: [channels].
        running_mean, running_var: [channels], of the dtype of x; moved towards those of the batch.
        momentum: by this part.
        eps: what is added to the variance.
        negative_slope: the factor of negative results, at least 0. 1 leaves them alone.

    Returns:
        the same shape, in the memory format of x.

    In float32 on the CPU and for channels-last images it is fastgan's operator: fewer passes over
    memory, and a second derivative that takes one, where torch's takes dozens of operations. That
    takes the rectifier for linear on both sides, and so sends no zeros back through the network.
    """
    own = (weight, bias, running_mean, running_var)
    if (
        serves(x)
        and negative_slope >= 0
        and x.shape[1] > 0
        and x.numel() > x.shape[1]
        and all(type(t) in library.PLAIN for t in own)
        and all(t.dtype == torch.float32 and t.is_contiguous() for t in own)
    ):
        settings = (momentum, eps, negative_slope)
        if torch.is_grad_enabled():
            return _Norm.apply(x, *own, *settings)
        return torch.ops.fastgan.batch_norm_leaky_relu(x, *own, *settings)[0]
    y = F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    return y if negative_slope == 1 else leaky_relu(y, negative_slope)
