"""Draws that a replayed step makes anew, and dropout.

A captured step is not told its number. It counts on the device: `counter` is an int64 tensor of one
element on the device of the other tensors, and a draw is made at step counter * multiplier +
offset, with the values that fastgan.random gives for that step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import library, reference


def signed(value: int) -> int:
    """An operator's int argument is a signed 64-bit number; this one has the bits of `value`."""
    return value - (1 << 64) if value >= 1 << 63 else value


def keep_threshold(p: float) -> int:
    """round((1 - p) * 65536), for 0 <= p <= 1."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p is {p}; the probability of dropping an element must lie in [0, 1]")
    return reference.keep_threshold(p)


def check_seed_and_stream(seed: int, stream: int) -> None:
    """ValueError unless both are in the ranges of fastgan.random."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; it must be an integer in [0, 2**64)")
    if not 0 <= stream < 1 << 32:
        raise ValueError(f"stream is {stream}; it must be an integer in [0, 2**32)")


def check_draw(seed: int, stream: int, counter: Tensor) -> None:
    """ValueError unless a draw can be made at a counter."""
    check_seed_and_stream(seed, stream)
    if counter.dtype != torch.int64 or counter.numel() != 1:
        raise ValueError(
            f"counter has shape {tuple(counter.shape)} and dtype {counter.dtype}; it must be an "
            "int64 tensor of one element"
        )


def philox_normal_at(
    out: Tensor, seed: int, stream: int, counter: Tensor, multiplier: int = 1, offset: int = 0
) -> Tensor:
    """random.normal at step counter * multiplier + offset, into `out`, which is returned.

    Args:
        out: contiguous float32 tensor of any shape.
        seed, stream: as for random.normal.
        counter: int64, one element, on the device of `out`.
    """
    check_draw(seed, stream, counter)
    if library.has_kernels(out.device):
        torch.ops.fastgan.philox_normal_at(
            out, signed(seed), int(stream), counter, multiplier, offset
        )
        torch.autograd.graph.increment_version(out)
        return out
    step = reference.step_at(counter, multiplier, offset)
    drawn = reference.philox_normal(seed, stream, step, out.numel(), out.device)
    return out.copy_(drawn.view(out.shape))


def keep_mask_at(
    out: Tensor, seed: int, stream: int, counter: Tensor, multiplier: int, offset: int, p: float
) -> Tensor:
    """random.keep_mask at step counter * multiplier + offset, into `out`, which is returned.

    Args:
        out: contiguous bool tensor of any shape; True: keep.
        seed, stream, p: as for random.keep_mask.
        counter: int64, one element, on the device of `out`.
    """
    check_draw(seed, stream, counter)
    threshold = keep_threshold(p)
    if library.has_kernels(out.device):
        torch.ops.fastgan.philox_keep_mask_at(
            out, signed(seed), int(stream), counter, multiplier, offset, threshold
        )
        torch.autograd.graph.increment_version(out)
        return out
    step = reference.step_at(counter, multiplier, offset)
    drawn = reference.philox_keep_mask(seed, stream, step, out.numel(), threshold, out.device)
    return out.copy_(drawn.view(out.shape))


class DropoutAt(torch.autograd.Function):
    """Linear in x, so its derivative is itself: every backward pass draws the mask again."""

    @staticmethod
    def forward(ctx, x, counter, where):  # noqa: D102
        ctx.where = where
        ctx.save_for_backward(counter)  # autograd refuses if it has moved on before the backward
        return _dropout_operator(x, counter, where)

    @staticmethod
    def backward(ctx, grad):  # noqa: D102
        (counter,) = ctx.saved_tensors
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return _dropout_operator(grad, counter, ctx.where), None, None
        return DropoutAt.apply(grad, counter, ctx.where), None, None


def _dropout_operator(x, counter, where):
    return torch.ops.fastgan.dropout_at(x, *mask_arguments(counter, where))


def which_mask(
    p: float, seed: int, stream: int, counter: Tensor, multiplier: int, offset: int, start: int
) -> tuple[int, ...]:
    """Which mask is meant, checked, as numbers an operator takes."""
    check_draw(seed, stream, counter)
    return keep_threshold(p), signed(seed), int(stream), multiplier, offset, start


def mask_arguments(counter, where):
    """The last arguments of an operator that drops."""
    threshold, seed, stream, multiplier, offset, start = where
    return threshold, seed, stream, counter, multiplier, offset, start


def dropout_at(
    x: Tensor,
    p: float,
    seed: int,
    stream: int,
    counter: Tensor,
    multiplier: int = 1,
    offset: int = 0,
    *,
    start: int = 0,
) -> Tensor:
    """x times its keep mask times random.keep_scale(p), in one pass; the mask is never stored.

    Args:
        x: any shape; float32, float64, bfloat16 or float16. Element i of x, flattened in its
            logical order, takes element start + i of the mask.
        p: probability of dropping, 0 <= p <= 1.
        seed, stream: as for random.keep_mask.
        counter: int64, one element, on the device of x. It must not change before the backward
            pass, which draws the mask again.

    Returns:
        A contiguous tensor like x, differentiable any number of times.

    N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR
    2014.
    """
    mask = which_mask(p, seed, stream, counter, multiplier, offset, start)
    if library.has_kernels(x.device) and library.differentiable_here():
        return DropoutAt.apply(x, counter, mask)
    return reference.dropout_at(x, mask[0], seed, stream, counter, multiplier, offset, start)
