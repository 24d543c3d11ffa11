"""Precision, recall, density and coverage; sliced Wasserstein; nearest neighbours.

Sources: T. Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative
Models", NeurIPS 2019; M. F. Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative
Models", ICML 2020; J. Rabin et al., "Wasserstein Barycenter and Its Application to Texture Mixing",
SSVM 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan import random
from fastgan.config.kinds import integer
from fastgan.random import Stream

_ROWS = 1024


def _distances(rows: Tensor, to: Tensor) -> Tensor:
    # Without the product of matrices, which loses half the digits of near points.
    return torch.cdist(rows, to, compute_mode="donot_use_mm_for_euclid_dist")


def _same_width(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"real is {list(real.shape)} and fake {list(fake.shape)}; expected [n, features] and "
            "[m, features]"
        )
    return real.double(), fake.to(real.device).double()


def _radii(points: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th neighbour."""
    # A point is its own nearest.
    return torch.cat(
        [_distances(rows, points).kthvalue(k + 1, dim=1).values for rows in points.split(_ROWS)]
    )


def manifold(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage, with balls that reach to the k-th neighbour.

    Precision is the share of fakes in a ball around a real one, recall the share of real ones in a
    ball around a fake. Density counts the real balls that a fake is in, over k, and may be above 1;
    coverage is the share of real balls with a fake in them.

    Args:
        real: features [n, d].
        fake: features [m, d].
        k: which neighbour a ball reaches to, not counting the point itself.

    Raises:
        ValueError: the shapes do not fit, or there are no more than k points of one.
    """
    real, fake = _same_width(real, fake)
    k = integer(1).take("k", k)
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"{len(real)} real and {len(fake)} fake; expected more than k={k} of each")
    around_real, around_fake = _radii(real, k), _radii(fake, k)
    precise, balls = [], []
    near_fake = torch.full((len(real),), torch.inf, device=real.device, dtype=real.dtype)
    found = torch.zeros(len(real), device=real.device, dtype=torch.bool)
    for rows in fake.split(_ROWS):
        distances = _distances(rows, real)
        within = distances < around_real
        precise.append(within.any(1))
        balls.append(within.sum(1))
        near_fake = torch.minimum(near_fake, distances.amin(0))
    first = 0
    for radii, rows in zip(around_fake.split(_ROWS), fake.split(_ROWS), strict=True):
        found |= (_distances(rows, real) < radii[:, None]).any(0)
        first += len(rows)
    return {
        "precision": float(torch.cat(precise).double().mean()),
        "recall": float(found.double().mean()),
        "density": float(torch.cat(balls).double().mean() / k),
        "coverage": float((near_fake < around_real).double().mean()),
    }


def sliced_wasserstein(real: Tensor, fake: Tensor, directions: int = 256, seed: int = 0) -> float:
    """The root of the mean square, over random directions, of both sets' Wasserstein-2 distance.

    Args:
        real: [n, d].
        fake: [m, d]; the first of the longer set are taken, so that both are as many.
        directions: how many.
        seed: of the directions.

    Raises:
        ValueError: the shapes do not fit.
    """
    real, fake = _same_width(real, fake)
    n = min(len(real), len(fake))
    lines = random.normal(
        seed, Stream.ESTIMATE, 0, (real.shape[1], integer(1).take("directions", directions))
    )
    lines = (lines.double() / lines.double().norm(dim=0)).to(real.device)
    # In groups, as samples may be many and directions long.
    squares = [
        ((real[:n] @ some).sort(0).values - (fake[:n] @ some).sort(0).values).square().mean(0)
        for some in lines.split(32, dim=1)
    ]
    return float(torch.cat(squares).mean().sqrt())


def nearest(samples: Tensor, data: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """The k nearest of some data to each sample, by the distance of their values.

    Args:
        samples: [n, ...].
        data: [m, ...].
        k: how many.

    Returns:
        int64 [n, k], which of the data, the nearest first, and their distances [n, k].
    """
    k = min(integer(1).take("k", k), len(data))
    flat, held = samples.flatten(1).double(), data.to(samples.device).flatten(1)
    parts = [
        (_distances(flat, rows.double()), at)
        for at, rows in zip(range(0, len(held), _ROWS), held.split(_ROWS), strict=True)
    ]
    best = flat.new_full((len(flat), 0), 0)
    where = torch.zeros((len(flat), 0), dtype=torch.int64, device=flat.device)
    for distances, at in parts:
        rows = torch.arange(at, at + distances.shape[1], device=flat.device).expand(len(flat), -1)
        best, where = torch.cat((best, distances), 1), torch.cat((where, rows), 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1, largest=False)
        where = where.gather(1, order)
    return where, best
