"""A batch gathered from the images and normalised in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from . import library, reference
from .draws import check_draw


def gather_normalize(
    pixels: Tensor,
    order: Tensor,
    counter: Tensor,
    *,
    multiplier: int = 1,
    offset: int = 0,
    batch: int,
    batches_per_epoch: int,
    out: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The batch of update u = counter * multiplier + offset, gathered and normalised in one pass.

    Row i is pixels[order[(u % batches_per_epoch) * batch + i]], mapped by x * (2 / 255) - 1 if the
    pixels are bytes.

    Args:
        pixels: contiguous [images, ...], uint8 or float32 (float64 for a float64 result).
        order: int64 [n], the images of the epoch at hand in their order; the caller refills it.
        counter: int64, one element, on the device of pixels.
        batch: images in a full batch.
        batches_per_epoch: after so many updates `order` starts anew.
        out: [rows, ...] with rows <= batch (a ragged last batch has fewer), contiguous or
            channels_last; float32, float64, bfloat16 or float16. Default: new, `batch` rows of
            `dtype`.

    Returns:
        `out`. A row that lies outside of `order` or `pixels` is an error on the CPU; on CUDA, where
        nobody waits for the answer, it becomes NaN.
    """
    check_draw(0, 0, counter)
    if out is None:
        out = torch.empty((batch, *pixels.shape[1:]), dtype=dtype, device=pixels.device)
    where = multiplier, offset, batch, batches_per_epoch
    if library.has_kernels(out.device):
        torch.ops.fastgan.gather_normalize(out, pixels, order, counter, *where)
        torch.autograd.graph.increment_version(out)
        return out
    rows = out.shape[0]
    return out.copy_(
        reference.gather_normalize(pixels, order, counter, *where, rows, dtype=out.dtype)
    )
