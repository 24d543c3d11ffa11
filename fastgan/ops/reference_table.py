"""What the operators of `fastgan.ops.table` do, in plain PyTorch: fallback and test oracle."""

from __future__ import annotations

import torch
from torch import Tensor

_FARTHEST = 5.2934
"""Normals of choices are taken within this, where 6e-8 of them lie beyond."""


def product_(
    out: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None, add: bool = False
) -> None:
    """out [n, rows, columns] = a b + bias for each of n, or [rows, columns] their sum; or onto out.

    a [n, rows, depth] and b [n, depth, columns]; one without n is the same for all.
    """
    found = (a @ b).sum(0) if max(a.dim(), b.dim()) > out.dim() else a @ b
    found = found if bias is None else found + bias
    out.copy_(out + found if add else found)


def gumbel(normals: Tensor) -> Tensor:
    """Gumbel's noise: that whose place among all noise is the normal's among all normals."""
    within = normals.clamp(-_FARTHEST, _FARTHEST)
    return -(-torch.special.log_ndtr(within)).log()


def heads_(
    rows: Tensor, logits: Tensor, normals: Tensor | None, blocks: list[int], temperature: float
) -> None:
    """rows [batch, row] of logits: tanh, and nearly one-hot choices by normals [batch, choices].

    blocks: kind (0: tanh, 1: softmax), size, how many; of each of the heads that stand together.
    Choices: E. Jang, S. Gu and B. Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR
    2017.
    """
    if normals is not None:
        noise = gumbel(normals)
    at = choice = 0
    for kind, size, many in zip(blocks[::3], blocks[1::3], blocks[2::3], strict=True):
        end, part = at + size * many, logits[:, at : at + size * many]
        if kind:
            own, choice = noise[:, choice : choice + size * many], choice + size * many
            part = ((part + own) / temperature).unflatten(1, (many, size)).softmax(2).flatten(1)
        rows[:, at:end] = part if kind else part.tanh()
        at = end


def heads_backward_(grad: Tensor, rows: Tensor, blocks: list[int], temperature: float) -> None:
    """The gradient at rows becomes that at their logits."""
    at = 0
    for kind, size, many in zip(blocks[::3], blocks[1::3], blocks[2::3], strict=True):
        part, made = (x[:, at : at + size * many].unflatten(1, (many, size)) for x in (grad, rows))
        if kind:
            part.sub_((part * made).sum(2, keepdim=True)).mul_(made).div_(temperature)
        else:
            part.mul_(1 - made * made)
        at += size * many


def surprise_(
    grad: Tensor, logits: Tensor, category: Tensor, first: Tensor, wide: Tensor, scale: float
) -> Tensor:
    """The cross-entropies [batch] of the categories that rows of logits were asked for.

    category: [batch], of the last numbers of a row; first and wide: where the group of each begins,
    and its width. scale times the gradient is added to grad.
    """
    place = torch.arange(logits.shape[1], device=logits.device)
    asked = (category + logits.shape[1] - len(first))[:, None]
    begin, width = first[category, None], wide[category, None]
    others = (place < begin) | (place >= begin + width)
    log = logits.masked_fill(others, float("-inf")).log_softmax(1)
    slope = log.exp().scatter_add_(1, asked, log.new_full(asked.shape, -1.0))
    grad.add_(slope, alpha=scale)
    return -log.gather(1, asked)[:, 0]


def normed_relu_(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor | None,
    running_var: Tensor | None, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """out = max(0, a BatchNorm of the batch x [batch, width]); [means, inverse deviations].

    S. Ioffe and C. Szegedy, "Batch Normalization", ICML 2015; running values move as torch's do.
    """
    mean, var = x.mean(0), x.var(0, correction=0)
    inverse = (var + eps).rsqrt()
    out.copy_((x - mean) * inverse * weight + bias).clamp_min_(0)
    if running_mean is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(x.var(0), momentum)
    return torch.stack([mean, inverse])


def normed_relu_backward_(
    grad: Tensor, out: Tensor, x: Tensor, weight: Tensor, statistics: Tensor
) -> Tensor:
    """The gradient at out becomes that at x; those of weight and bias, [2, width]."""
    mean, inverse = statistics
    passed, normal = torch.where(out > 0, grad, 0.0), (x - mean) * inverse
    found = torch.stack([(passed * normal).sum(0), passed.sum(0)])
    along, level = found / len(x)
    grad.copy_((passed - level - normal * along) * inverse * weight)
    return found


def add_columns_(out: Tensor, columns: Tensor, category: Tensor) -> None:
    """out[b] += columns[:, category[b]]: out [batch, units], columns [units, categories]."""
    out.add_(columns.t()[category])


def sum_columns_(out: Tensor, grad: Tensor, category: Tensor) -> None:
    """out[:, c] = the sum of grad[b] over category[b] = c: out [units, categories]."""
    out.copy_(torch.zeros_like(out).index_add_(1, category, grad.t()))
