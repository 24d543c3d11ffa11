"""Gaussian mixtures of numbers: the modes of many columns of a table, found at once.

The model is the variational Bayesian mixture with a Dirichlet process for its weights (D. M. Blei
and M. I. Jordan, "Variational Inference for Dirichlet Process Mixtures", Bayesian Analysis 2006),
with the priors that CTGAN uses (L. Xu et al., "Modeling Tabular Data using Conditional GAN",
NeurIPS 2019): up to ten modes, of which those without a part of the data are dropped.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MOST = 10
"""Modes that a column may have."""
_LEAST_WEIGHT = 0.005
_CONCENTRATION = 1e-3
_NARROWEST = 1e-6
_ROUNDS, _LLOYD = 100, 20
_STILL = 2e-4
# A column's values are summed up in this many points, which hold their spread: what follows takes
# the same time for a million rows as for as many.
_POINTS = 2048
# Columns at a time, so that what is held stays below 10 MB.
_COLUMNS = 16


class Modes(NamedTuple):
    """The modes of one column, in the order of their means: float64 [k] each."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    def chances(self, values: Tensor) -> Tensor:
        """How likely each value comes from each mode: float64 [n] -> [n, k], rows sum to 1."""
        z = (values[:, None] - self.means) / self.stds
        return (self.weights.log() - self.stds.log() - z * z / 2).softmax(1)


def modes_of(columns: list[Tensor]) -> list[Modes]:
    """The modes of each column of finite float64 values, at least one of each."""
    found: list[Modes] = []
    for at in range(0, len(columns), _COLUMNS):
        found += _fit(columns[at : at + _COLUMNS])
    return found


class _Points(NamedTuple):
    """Values of columns by the points that stand for them: float64 [columns, points] each."""

    at: Tensor
    count: Tensor
    spread: Tensor
    """The variance of the values that a point stands for."""


def _summed_up(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points, counts and variances of one column: its different values, if they are few."""
    at, count = values.unique(return_counts=True)
    count = count.double()
    if len(at) <= _POINTS:
        return at, count, torch.zeros_like(at)
    # By rank, so that every point but those of frequent values stands for as many.
    rank = count.cumsum(0) - count / 2
    bins = (rank * (_POINTS / len(values))).long().unique(return_inverse=True)[1]

    def total(x: Tensor) -> Tensor:
        found = torch.zeros(int(bins[-1]) + 1, dtype=torch.float64, device="cpu")
        return found.index_add_(0, bins, x)

    whole = total(count)
    mean = total(at * count) / whole
    return mean, whole, total((at - mean[bins]).square() * count) / whole


def _fit(columns: list[Tensor]) -> list[Modes]:
    # Squares of the values themselves may be more than float64 holds, or less.
    low = torch.stack([c.min() for c in columns])
    span = torch.stack([c.max() for c in columns]) - low
    span = torch.where(span > 0, span, low.abs().clamp_min(1.0))
    columns = [(c - at) / by for c, at, by in zip(columns, low, span, strict=True)]
    mean = torch.stack([c.mean() for c in columns])
    std = torch.stack([c.std(correction=0) for c in columns]).clamp_min(1e-12)
    parts = [_summed_up((c - m) / s) for c, m, s in zip(columns, mean, std, strict=True)]
    points = _Points(
        *(torch.nn.utils.rnn.pad_sequence(list(p), True) for p in zip(*parts, strict=True))
    )
    weights, means, variances = _converged(points)
    found = []
    for i in range(len(columns)):
        kept = (weights[i] > _LEAST_WEIGHT).nonzero()[:, 0]
        kept = kept[means[i][kept].argsort()]
        share = weights[i][kept]
        found.append(
            Modes(
                share / share.sum(),
                (means[i][kept] * std[i] + mean[i]) * span[i] + low[i],
                variances[i][kept].sqrt() * std[i] * span[i],
            )
        )
    return found


def _first(points: _Points) -> Tensor:
    """Which mode each point belongs to at first, [c, p, k]: k-means from spread out centres."""
    whole = points.count.sum(1, keepdim=True)
    share = (points.count.cumsum(1) - points.count / 2) / whole
    low, high = points.at.amin(1, keepdim=True), points.at.amax(1, keepdim=True)
    half = torch.arange(MOST // 2, dtype=torch.float64, device="cpu").add(0.5) / (MOST // 2)
    by_rank = torch.searchsorted(share, half.expand(len(low), -1).contiguous())
    by_rank = points.at.gather(1, by_rank.clamp_max(points.at.shape[1] - 1))
    centres = torch.cat([by_rank, low + (high - low) * half], 1)
    for _ in range(_LLOYD):
        nearest = (points.at[..., None] - centres[:, None]).abs().argmin(2)
        belongs = torch.nn.functional.one_hot(nearest, MOST).double()
        held = torch.einsum("cp,cpk->ck", points.count, belongs)
        sums = torch.einsum("cp,cpk->ck", points.count * points.at, belongs)
        centres = torch.where(held > 0, sums / held.clamp_min(1), centres)
    return belongs


def _converged(points: _Points) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and variances [c, k] of standardised columns."""
    at, count, spread = points
    squares = at * at + spread
    n = count.sum(1)
    chance = _first(points)
    before = torch.full_like(n, -math.inf)
    for turn in range(_ROUNDS):
        held = torch.einsum("cp,cpk->ck", count, chance) + 1e-12
        mean = torch.einsum("cp,cpk->ck", count * at, chance) / held
        square = torch.einsum("cp,cpk->ck", count * squares, chance) / held
        variance = (square - mean * mean).clamp_min(0) + _NARROWEST
        # The priors' means are 0 and variances 1, those of a standardised column.
        precision = 1 + held
        centre = held * mean / precision
        freedom = 1 + held
        width = (1 + held * (variance + mean * mean / precision)) / freedom
        a, b = 1 + held, _CONCENTRATION + held.flip(1).cumsum(1).flip(1) - held
        both = torch.digamma(a + b)
        stopped = torch.digamma(b) - both
        log_weight = torch.digamma(a) - both + stopped.cumsum(1) - stopped
        log_width = torch.digamma(freedom / 2) + math.log(2) - freedom.log() - width.log()
        distance = squares[..., None] - 2 * at[..., None] * centre[:, None] + centre[:, None] ** 2
        logit = (log_weight + (log_width - 1 / precision) / 2)[:, None]
        logit = logit - distance / width[:, None] / 2
        chance = logit.softmax(2)
        if turn % 5 == 4:
            now = (logit.logsumexp(2) * count).sum(1) / n
            if bool((now - before < _STILL).all()):
                break
            before = now
    share = b / (a + b)
    weights = a / (a + b) * share.cumprod(1) / share
    return weights / weights.sum(1, keepdim=True), centre, width
