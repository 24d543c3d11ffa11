"""Densities that are known: what they are at a point, and samples of them.

Those of two dimensions are data sets by their names (`fastgan train --data ring8`) and lie within
[-1, 1], where generators that end in tanh can reach them. What fastgan estimates of samples can
then be held against what is true; see `fastgan.theory`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan import random
from fastgan.ops import reference
from fastgan.random import Stream

__all__ = ["DENSITIES", "Density", "Mixture", "Moons", "density", "normal"]

REACH = 8.0
"""Standard deviations around each mean beyond which a normal holds less than 2e-15 of its mass."""


class Density:
    """A distribution over vectors that can be sampled.

    Attributes:
        name: what it is called.
        dim: length of a vector.
        modes: names of the modes, which the labels of samples count from 0.
    """

    name: str
    dim: int
    modes: tuple[str, ...]

    def log_prob(self, x: Tensor) -> Tensor:
        """The logarithm of the density at points [n, dim]: float64 [n].

        Raises:
            ValueError: the density is known by its samples only, or the points have another length.
        """
        raise ValueError(
            f"the density {self.name!r} is known by its samples only; pass samples of it to "
            f"fastgan.theory.jsd_lower_bound, or use one of {', '.join(_with_values())}"
        )

    def sample(self, n: int, seed: int = 0, step: int = 0) -> tuple[Tensor, Tensor]:
        """Samples, the same for the same numbers on every machine.

        Args:
            n: how many.
            seed: of the draw.
            step: another draw of the same seed.

        Returns:
            float32 [n, dim], and int64 [n], the mode that each is from.
        """
        raise NotImplementedError

    def box(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest corner of where the mass is, float64 [dim] each."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Name, dimension and modes."""
        return f"<density {self.name!r}: {self.dim}-D, {len(self.modes)} modes>"


class Mixture(Density):
    """Normals of any number, each the same in all directions.

    Args:
        means: float [k, dim], or [k] for one dimension.
        scales: the standard deviation of each, or one for all.
        weights: of the modes, in any unit. Default: alike.
        name: what it is called.
        modes: the modes' names. Default: their numbers.

    Raises:
        ValueError: the numbers do not fit each other, or a scale or weight is not above 0.
    """

    def __init__(
        self,
        means: Tensor | Sequence,
        scales: float | Sequence[float],
        weights: Sequence[float] | None = None,
        *,
        name: str = "mixture",
        modes: Sequence[str] | None = None,
    ):
        """Check the numbers."""
        means = torch.as_tensor(means, dtype=torch.float64, device="cpu")
        means = means[:, None] if means.dim() == 1 else means
        if means.dim() != 2 or not means.numel():
            raise ValueError(f"means is {list(means.shape)}; expected [k, dim], or [k] for 1-D")
        k, self.dim = means.shape
        scales = torch.as_tensor(scales, dtype=torch.float64, device="cpu")
        given = torch.ones(k, device="cpu") if weights is None else weights
        given = torch.as_tensor(given, dtype=torch.float64, device="cpu")
        for what, values in (("scales", scales), ("weights", given)):
            if values.dim() > 1 or values.numel() not in (1, k) or not bool((values > 0).all()):
                raise ValueError(f"{what} is {values.tolist()}; expected {k} numbers above 0")
        self.means, self.scales = means, scales.expand(k).clone()
        self.weights = (given.expand(k) / given.expand(k).sum()).clone()
        self.name = name
        self.modes = tuple(map(str, range(k))) if modes is None else tuple(modes)

    def log_prob(self, x: Tensor) -> Tensor:
        """The logarithm of the density at points [n, dim]: float64 [n]."""
        x = x.double()
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x is {list(x.shape)}; expected [n, {self.dim}]")
        distance = torch.cdist(x, self.means, compute_mode="donot_use_mm_for_euclid_dist")
        norm = self.dim * (self.scales.log() + math.log(2 * math.pi) / 2)
        return torch.logsumexp(
            self.weights.log() - norm - (distance / self.scales).square() / 2, dim=1
        )

    def sample(self, n: int, seed: int = 0, step: int = 0) -> tuple[Tensor, Tensor]:
        """Samples float32 [n, dim] and their modes int64 [n]."""
        at = random.uniform(seed, Stream.DENSITY, step, n).double()
        labels = torch.searchsorted(self.weights.cumsum(0), at, right=True)
        labels = labels.clamp_(max=len(self.weights) - 1)
        noise = _normals(n * self.dim, seed, step).view(n, self.dim)
        return (self.means[labels] + self.scales[labels, None] * noise).float(), labels

    def box(self) -> tuple[Tensor, Tensor]:
        """REACH standard deviations around every mean."""
        around = REACH * self.scales[:, None]
        return (self.means - around).amin(0), (self.means + around).amax(0)


class Moons(Density):
    """Two half circles that reach into each other, with normal noise; by samples only."""

    name, dim, modes = "moons", 2, ("upper", "lower")

    def __init__(self, radius: float = 0.5, scale: float = 0.04):
        """The radius of both, and the standard deviation of the noise."""
        self.radius, self.scale = radius, scale

    def sample(self, n: int, seed: int = 0, step: int = 0) -> tuple[Tensor, Tensor]:
        """Samples float32 [n, 2] and their moons int64 [n]."""
        u = random.uniform(seed, Stream.DENSITY, step, n).double() * 2
        labels = u.long()
        angle = math.pi * (u - labels)
        side = 1.0 - 2.0 * labels
        r = self.radius
        x = r * angle.cos() - side * r / 2
        y = side * r * angle.sin() - side * r / 4
        noise = self.scale * _normals(2 * n, seed, step).view(n, 2)
        return (torch.stack((x, y), dim=1) + noise).float(), labels

    def box(self) -> tuple[Tensor, Tensor]:
        """Where both moons and their noise are."""
        reach = REACH * self.scale
        high = torch.tensor([1.5, 0.75], dtype=torch.float64, device="cpu") * self.radius + reach
        return -high, high


def _normals(n: int, seed: int, step: int) -> Tensor:
    # In float64 and rounded once, so that data of a name are the same bits on every processor.
    return reference.philox_normal(seed, Stream.DENSITY_NOISE, step, n).double()


def normal(mean: float | Sequence[float] = 0.0, scale: float = 1.0) -> Mixture:
    """One normal, of as many dimensions as its mean has."""
    mean = torch.as_tensor(mean, dtype=torch.float64, device="cpu").reshape(1, -1)
    return Mixture(mean, scale, name="normal")


def _ring(count: int = 8, radius: float = 0.75, scale: float = 0.05) -> Mixture:
    angles = 2 * math.pi / count * torch.arange(count, dtype=torch.float64, device="cpu")
    means = radius * torch.stack((angles.cos(), angles.sin()), dim=1)
    names = [f"{360 / count * i:g} degrees" for i in range(count)]
    return Mixture(means, scale, name=f"ring{count}", modes=names)


def _grid(side: int = 5, reach: float = 0.8, scale: float = 0.04) -> Mixture:
    line = torch.linspace(-reach, reach, side, dtype=torch.float64, device="cpu")
    names = [f"row {i + 1}, column {j + 1}" for i in range(side) for j in range(side)]
    return Mixture(torch.cartesian_prod(line, line), scale, name=f"grid{side**2}", modes=names)


DENSITIES: dict[str, Density] = {
    "gaussian": Mixture([[0.0, 0.0]], 0.2, name="gaussian", modes=["the only one"]),
    "ring8": _ring(),
    "grid25": _grid(),
    "moons": Moons(),
}
"""Those of two dimensions that have a name, within [-1, 1]."""


def _with_values() -> list[str]:
    return [name for name, one in DENSITIES.items() if isinstance(one, Mixture)]


def density(name: str) -> Density:
    """The density of that name; ValueError if there is none."""
    if name not in DENSITIES:
        raise ValueError(f"density is {name!r}; expected one of {', '.join(DENSITIES)}")
    return DENSITIES[name]
