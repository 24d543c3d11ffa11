"""The value of the game and the divergence, of densities by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.config.kinds import integer
from fastgan.densities import Density
from fastgan.theory.scores import (
    Estimate,
    logits_of,
    place_of,
    restore,
    scores_of,
    to_eval,
    value_of_samples,
)

_MOST_POINTS = 1 << 22
_CHUNK = 1 << 16


def optimal_logits(real: Density, fake: Density) -> Callable[[Tensor], Tensor]:
    """The logits of D*: log p - log q, a function of points [n, dim] that gives float64 [n]."""
    return lambda x: real.log_prob(x) - fake.log_prob(x)


def optimal_discriminator(real: Density, fake: Density) -> Callable[[Tensor], Tensor]:
    """D* = p / (p + q), a function of points [n, dim] that gives float64 [n]."""
    logits = optimal_logits(real, fake)
    return lambda x: torch.sigmoid(logits(x))


def jsd(real: Density, fake: Density, tolerance: float = 1e-7) -> Estimate:
    """The Jensen-Shannon divergence of two densities of one or two dimensions, in nats.

    Args:
        real: one of them.
        fake: the other.
        tolerance: the error at which the grid is fine enough. The error that comes back is above
            it where a grid of four million points was not.

    Raises:
        ValueError: a density has no values, or they have not the same one or two dimensions.
    """
    best = value(None, real, fake, tolerance=tolerance)
    return Estimate((best.value + math.log(4)) / 2, best.error / 2)


def value(
    discriminator: Callable[[Tensor], Tensor] | None,
    real: Density | Tensor,
    fake: Density | Tensor,
    *,
    tolerance: float = 1e-7,
) -> Estimate:
    """V(D, G) = E_p log D + E_q log(1 - D).

    Args:
        discriminator: points [n, dim] to one score each. What comes out of a sigmoid is taken for a
            probability, all else for logits. None is D*, of densities only.
        real: the data, as a density or as samples [n, ...].
        fake: the generator's, likewise.
        tolerance: as for `jsd`; a network with kinks may not reach it, which the error then tells.

    Raises:
        ValueError: as for `jsd`; or one of the two is a density and the other is not.
    """
    if isinstance(real, Tensor) and isinstance(fake, Tensor) and discriminator is not None:
        return value_of_samples(discriminator, real, fake)
    if not (isinstance(real, Density) and isinstance(fake, Density)):
        kinds = f"{type(real).__name__} and {type(fake).__name__}"
        raise ValueError(
            f"real and fake are {kinds}; expected two densities, or samples of both as tensors "
            "together with a discriminator"
        )
    logits = optimal_logits(real, fake)
    if discriminator is not None:
        logits = scores_of(discriminator)

    def integrand(x: Tensor) -> Tensor:
        at = logits(x).double()
        of_real, of_fake = real.log_prob(x).exp(), fake.log_prob(x).exp()
        return of_real * F.logsigmoid(at) + of_fake * F.logsigmoid(-at)

    modes = to_eval(discriminator)
    try:
        return _integral(integrand, *_grid_of(real, fake), tolerance)
    finally:
        restore(modes)


def _grid_of(real: Density, fake: Density) -> tuple[Tensor, Tensor, float]:
    """The box that holds both, and the spacing to begin with."""
    if real.dim != fake.dim or real.dim not in (1, 2):
        raise ValueError(
            f"real has {real.dim} dimensions and fake {fake.dim}; integrals are computed in one or "
            "two, the same for both; pass samples to jsd_lower_bound for more"
        )
    for one in (real, fake):
        one.log_prob(torch.zeros(1, one.dim, device="cpu"))  # says if it has no values
    corners = [one.box() for one in (real, fake)]
    low = torch.minimum(corners[0][0], corners[1][0])
    high = torch.maximum(corners[0][1], corners[1][1])
    scale = min(float(getattr(one, "scales", (high - low) / 64).min()) for one in (real, fake))
    points = math.prod(float(side) / scale + 1 for side in high - low)
    if points > _MOST_POINTS:
        raise ValueError(
            f"a grid of {points:.0e} points would be needed, as the narrowest mode is {scale:.1e} "
            f"wide and both reach over {float((high - low).max()):.1e}; pass samples to "
            "jsd_lower_bound"
        )
    return low, high, scale


def _integral(
    integrand: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, h: float, tolerance: float
) -> Estimate:
    """By the trapezoidal rule, which converges exponentially where a function is analytic and falls
    off to nothing at the ends, on grids of halved spacing."""
    before = None
    while True:
        counts = [math.ceil(float(side) / h) + 1 for side in high - low]
        if math.prod(counts) > _MOST_POINTS and before is not None:
            return Estimate(before[-1], abs(before[-1] - before[0]))
        total = _sum(integrand, low, h, counts) * h ** len(counts)
        if before is not None and abs(total - before[-1]) <= tolerance:
            return Estimate(total, abs(total - before[-1]))
        before = (total if before is None else before[-1], total)
        h /= 2


def _sum(integrand: Callable[[Tensor], Tensor], low: Tensor, h: float, counts: list[int]) -> float:
    total = 0.0
    for first in range(0, math.prod(counts), _CHUNK):
        at = torch.arange(first, min(first + _CHUNK, math.prod(counts)), device="cpu")
        places = [at // counts[1], at % counts[1]] if len(counts) == 2 else [at]
        total += float(integrand(low + h * torch.stack(places, dim=1).double()).sum())
    return total


def fit(network: nn.Module, real: Density, fake: Density, steps: int = 200) -> Estimate:
    """Train a discriminator on V itself, computed by quadrature, and return its V.

    What limits it is the network and not the samples, of which there are none.

    Args:
        network: points [n, dim] to logits, trained in place by L-BFGS.
        real: the data's density.
        fake: the generator's.
        steps: iterations at most.

    Raises:
        ValueError: as for `jsd`.
    """
    low, high, h = _grid_of(real, fake)
    counts = [math.ceil(float(side) / h * 2) + 1 for side in high - low]
    lines = [a + h / 2 * torch.arange(n, device="cpu") for a, n in zip(low, counts, strict=True)]
    x = torch.cartesian_prod(*lines).view(-1, len(lines))
    weights = [one.log_prob(x).exp() * (h / 2) ** len(lines) for one in (real, fake)]
    held = weights[0] + weights[1] > 1e-12
    where = place_of(network)
    x, (on_real, on_fake) = x[held].to(**where), (w[held].to(**where) for w in weights)
    lbfgs = torch.optim.LBFGS(
        network.parameters(),
        max_iter=integer(1).take("steps", steps),
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        lbfgs.zero_grad()
        at = logits_of(network, x)
        loss = -(on_real * F.logsigmoid(at) + on_fake * F.logsigmoid(-at)).sum()
        loss.backward()
        return loss

    lbfgs.step(closure)
    return value(network, real, fake, tolerance=1e-5)
