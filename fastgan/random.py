"""Randomness as a function: value = f(seed, stream, step, element), by Philox4x32-10.

There is no generator object and no state. The same four numbers give the same value on every
device, on every instruction set and in every engine: integers, uniforms and masks to the bit,
normals within 2e-6. A run is therefore continued exactly from its seed and its step, and the result
does not depend on how the work was divided.

Definition. key = (seed mod 2**32, seed // 2**32); counter = (block, stream, step mod 2**32, step //
2**32); element e of a stream is word e mod 4 of block e // 4. `seed` and `step` lie in [0, 2**64),
`stream` in [0, 2**32), and a draw has fewer than 2**34 words.

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1,
2, 3", SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from .ops import reference
from .ops.draws import check_seed_and_stream, keep_threshold, signed
from .ops.library import has_kernels

__all__ = ["Stream", "keep_mask", "keep_scale", "normal", "permutation", "uniform", "words"]


class Stream(IntEnum):
    """What a draw is for. Two uses never share a stream, so no draw moves another."""

    LATENT_D = 0
    LATENT_G = 1
    ORDER = 2
    SAMPLE = 3
    INIT = 4
    AUGMENT = 5
    LATENT_JOINT = 7
    DENSITY = 8
    DENSITY_NOISE = 9
    ESTIMATE = 10
    """What an estimate of fastgan.theory draws itself."""
    ROWS = 11
    NEARBY = 12
    """The first of those of noise around points that penalties look at, one for each place."""
    DROPOUT = 64
    """The first of the dropout streams; layer i and use u take DROPOUT + 8 * i + u."""
    CHOICE = 1 << 30
    """Likewise the first of those by which heads choose."""


def _check(seed: int, stream: int, step: int, n: int, start: int = 0) -> None:
    check_seed_and_stream(seed, stream)
    if not 0 <= step < 1 << 64:
        raise ValueError(f"step is {step}; it must be an integer in [0, 2**64)")
    if n < 0 or start < 0 or start + n > reference.MAX_ELEMENTS:
        raise ValueError(
            f"elements {start} .. {start + n} of one stream were asked for, which has 2**34, "
            "counted from 0; use another stream or step for the rest"
        )


def _numel(shape: int | Sequence[int]) -> tuple[tuple[int, ...], int]:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return shape, math.prod(shape)


def words(
    seed: int,
    stream: int,
    step: int,
    n: int,
    *,
    start: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Words start .. start + n - 1 of a stream: int64 [n], values in [0, 2**32).

    Raises ValueError for a seed, stream, step or range outside the definition above.
    """
    _check(seed, stream, step, n, start)
    out = torch.empty(n, dtype=torch.int64, device=device)
    if has_kernels(out.device):
        torch.ops.fastgan.philox_words(out, signed(seed), stream, signed(step), start)
        return out
    return reference.philox_words(seed, stream, step, start, n, device)


def uniform(
    seed: int,
    stream: int,
    step: int,
    shape: int | Sequence[int],
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform on [0, 1): float32 of `shape`, multiples of 2**-24, exact."""
    shape, n = _numel(shape)
    _check(seed, stream, step, n)
    out = torch.empty(shape, dtype=torch.float32, device=device)
    if has_kernels(out.device):
        torch.ops.fastgan.philox_uniform(out, signed(seed), stream, signed(step))
        return out
    return reference.philox_uniform(seed, stream, step, n, device).view(shape)


def normal(
    seed: int,
    stream: int,
    step: int,
    shape: int | Sequence[int],
    *,
    device: torch.device | str = "cpu",
    out: Tensor | None = None,
) -> Tensor:
    """Standard normal by Box and Muller: float32 of `shape`; implementations agree within 2e-6.

    `out`, if given, receives the values and is returned: contiguous float32 of `shape` (its device
    counts, not `device`).
    """
    shape, n = _numel(shape)
    _check(seed, stream, step, n)
    if out is None:
        out = torch.empty(shape, dtype=torch.float32, device=device)
    elif tuple(out.shape) != shape or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(
            f"out has shape {tuple(out.shape)}, dtype {out.dtype} and strides {out.stride()}; "
            f"it must be a contiguous float32 tensor of shape {shape}"
        )
    if has_kernels(out.device):
        torch.ops.fastgan.philox_normal(out, signed(seed), stream, signed(step))
        torch.autograd.graph.increment_version(out)
        return out
    return out.copy_(reference.philox_normal(seed, stream, step, n, out.device).view(shape))


def keep_mask(
    seed: int,
    stream: int,
    step: int,
    shape: int | Sequence[int],
    p: float,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Dropout mask: bool of `shape`, True (keep) with probability round((1 - p) * 65536) / 65536.

    Multiply what is kept by :func:`keep_scale`. Raises ValueError unless 0 <= p <= 1.
    """
    shape, n = _numel(shape)
    _check(seed, stream, step, (n + 1) >> 1)
    threshold = keep_threshold(p)
    out = torch.empty(shape, dtype=torch.bool, device=device)
    if has_kernels(out.device):
        torch.ops.fastgan.philox_keep_mask(out, signed(seed), stream, signed(step), threshold)
        return out
    return reference.philox_keep_mask(seed, stream, step, n, threshold, device).view(shape)


def keep_scale(p: float) -> float:
    """What makes a kept element unbiased: 65536 / round((1 - p) * 65536); 0 if none is kept."""
    keep_threshold(p)
    return reference.keep_scale(p)


def permutation(seed: int, epoch: int, n: int, *, device: torch.device | str = "cpu") -> Tensor:
    """The order of n items in one epoch: int64 [n].

    It is the stable argsort of words(seed, Stream.ORDER, epoch, n).
    """
    return torch.argsort(words(seed, Stream.ORDER, epoch, n, device=device), stable=True)
