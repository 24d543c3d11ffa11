"""Products with steps of their own, and what a generator of a table's rows is made of.

None of these has a derivative; `fastgan.ctgan_gradients` says how they go together. The CPU's
kernels take float32, and everything else, and other devices, the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import library, reference_table


def _way(name: str, x: Tensor, *written: Tensor | None) -> Callable:
    """An operator, or its twin; the versions of what it writes are counted either way."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or "cpu" not in library.KERNELS:
        return getattr(reference_table, name)
    for t in written:
        if t is not None:
            torch.autograd.graph.increment_version(t)
    return getattr(torch.ops.fastgan, name)


def product_(
    out: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None, *, add: bool = False
) -> Tensor:
    """Products of matrices into `out`.

    Args:
        out: [n, rows, columns], or [rows, columns] for the sum of n products; its columns lie
            together.
        a: [n, rows, depth], or [rows, depth], the same for all.
        b: [n, depth, columns], or [depth, columns]; its columns lie together, or its rows do.
        bias: [columns], added once.
        add: onto what `out` holds.

    Returns:
        out. Bits depend neither on the number of threads nor, with fused multiply-add, on the
        instruction set.
    """
    _way("product_", out, out)(out, a, b, bias, add)
    return out


def heads_(
    rows: Tensor, logits: Tensor, normals: Tensor | None, blocks: list[int], temperature: float
) -> Tensor:
    """Rows of a table [batch, row] of logits; see :func:`fastgan.ops.reference_table.heads_`."""
    _way("heads_", rows, rows)(rows, logits, normals, blocks, temperature)
    return rows


def heads_backward_(grad: Tensor, rows: Tensor, blocks: list[int], temperature: float) -> Tensor:
    """The gradient at such rows becomes that at their logits."""
    _way("heads_backward_", rows, grad)(grad, rows, blocks, temperature)
    return grad


def surprise_(
    grad: Tensor, logits: Tensor, category: Tensor, first: Tensor, wide: Tensor, scale: float
) -> Tensor:
    """Cross-entropies of categories [batch]; see :func:`fastgan.ops.reference_table.surprise_`."""
    return _way("surprise_", logits, grad)(grad, logits, category, first, wide, scale)


def normed_relu_(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor | None,
    running_var: Tensor | None, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """A BatchNorm with a rectifier; :func:`fastgan.ops.reference_table.normed_relu_`."""
    way = _way("normed_relu_", x, out, running_mean, running_var)
    return way(out, x, weight, bias, running_mean, running_var, momentum, eps)


def normed_relu_backward_(
    grad: Tensor, out: Tensor, x: Tensor, weight: Tensor, statistics: Tensor
) -> Tensor:
    """The gradient at its result becomes that at x; those of weight and bias, [2, width]."""
    return _way("normed_relu_backward_", x, grad)(grad, out, x, weight, statistics)


def add_columns_(out: Tensor, columns: Tensor, category: Tensor) -> Tensor:
    """out[b] += columns[:, category[b]], a product with one-hot rows."""
    _way("add_columns_", out, out)(out, columns, category)
    return out


def sum_columns_(out: Tensor, grad: Tensor, category: Tensor) -> Tensor:
    """out[:, c] = the sum of grad[b] over category[b] = c, its gradient."""
    _way("sum_columns_", out, out)(out, grad, category)
    return out
