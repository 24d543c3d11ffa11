"""What a generator is fed: normal noise, or named parts of noise, classes and codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.plain import in_words, items, real, whole

__all__ = ["Latent", "Normal", "OneHot", "Uniform", "latent"]


@dataclass(frozen=True)
class Normal:
    """A part of `width` independent standard normals."""

    width: int

    @property
    def drawn(self) -> int:
        """Normals that one latent takes."""
        return self.width

    def of(self, normals: Tensor) -> Tensor:
        """float32 [b, drawn] -> [b, width]."""
        return normals

    def plain(self) -> int | str:
        """As a file has it."""
        return self.width


@dataclass(frozen=True)
class Uniform:
    """A part of `width` independent uniform numbers, such as InfoGAN's continuous codes.

    X. Chen et al., "InfoGAN: Interpretable Representation Learning by Information Maximizing
    Generative Adversarial Nets", NeurIPS 2016.
    """

    width: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self):
        """Check, and take numbers of any kind as Python's own."""
        low, high = real(self.low), real(self.high)
        if low is None or high is None or not -math.inf < low < high < math.inf:
            raise ValueError(
                f"Uniform: from {self.low!r} to {self.high!r}; expected two finite numbers, the "
                "lower first"
            )
        object.__setattr__(self, "width", _width(self, self.width))
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def drawn(self) -> int:
        """Normals that one latent takes."""
        return self.width

    def of(self, normals: Tensor) -> Tensor:
        """float32 [b, drawn] -> [b, width]."""
        return self.low + (self.high - self.low) * torch.special.ndtr(normals)

    def plain(self) -> int | str:
        """As a file has it."""
        return f"uniform:{self.width}:{in_words(self.low)}:{in_words(self.high)}"


@dataclass(frozen=True)
class OneHot:
    """A part that is one of `width` classes, each as likely, as a one-hot vector."""

    width: int

    def __post_init__(self):
        """Check the number."""
        object.__setattr__(self, "width", _width(self, self.width))

    @property
    def drawn(self) -> int:
        """Normals that one latent takes."""
        return 1

    def of(self, normals: Tensor) -> Tensor:
        """float32 [b, 1] -> [b, width]."""
        # A normal far out has the distribution function 1 in float32.
        at = (torch.special.ndtr(normals[:, 0]) * self.width).long().clamp_max(self.width - 1)
        # Without F.one_hot, which waits for the device.
        classes = torch.arange(self.width, device=at.device)
        return (at[:, None] == classes).to(normals.dtype)

    def plain(self) -> int | str:
        """As a file has it."""
        return f"onehot:{self.width}"


_WORDS = {"normal": Normal, "uniform": Uniform, "onehot": OneHot}
_EXPECTED = (
    "expected a length of at least 1, a shape such as (100, 1, 1), named parts such as "
    "{'noise': 62, 'digit': 'onehot:10', 'code': 'uniform:2'}, or None (the generator takes the "
    "condition alone)"
)


def _width(part: object, width: Any) -> int:
    found = whole(width)
    if found is None or found < 1:
        raise ValueError(f"{type(part).__name__}: {width!r}; expected a number of at least 1")
    return found


@dataclass(frozen=True)
class Latent:
    """How a latent is made from standard normals.

    Attributes:
        shape: of one latent; None if there is none.
        parts: by name, in their order along the latent; empty if it is noise throughout.
    """

    shape: tuple[int, ...] | None
    parts: tuple[tuple[str, Normal | Uniform | OneHot], ...] = ()

    @property
    def drawn(self) -> tuple[int, ...]:
        """The shape of the normals that one latent takes."""
        if self.parts:
            return (sum(part.drawn for _, part in self.parts),)
        return self.shape or ()

    @property
    def is_noise(self) -> bool:
        """Whether it is standard normal throughout."""
        return self.shape is not None and all(isinstance(part, Normal) for _, part in self.parts)

    @property
    def normals(self) -> bool:
        """Whether there is normal noise in it."""
        return self.is_noise or any(isinstance(part, Normal) for _, part in self.parts)

    def truncated(self, normals: Tensor, limit: float) -> Tensor:
        """The normals of noise, [b, *drawn], as a normal distribution cut off at +-limit has them.

        The order of the numbers stays: each goes to the place in the new distribution that it had
        in the old. What other parts are drawn from stays as it is.
        """
        low = 0.5 * math.erfc(limit / math.sqrt(2.0))
        place = low + torch.special.ndtr(normals.double()) * (1.0 - 2.0 * low)
        cut = torch.special.ndtri(place).clamp(-limit, limit).to(normals.dtype)
        if self.is_noise:
            return cut
        parts = [part for _, part in self.parts]
        widths = [part.drawn for part in parts]
        some = zip(parts, cut.split(widths, 1), normals.split(widths, 1), strict=True)
        return torch.cat([a if isinstance(part, Normal) else b for part, a, b in some], 1)

    def of(self, normals: Tensor) -> Tensor:
        """float32 [b, *drawn] -> the latents, [b, *shape]."""
        if self.is_noise:
            return normals
        taken = normals.split([part.drawn for _, part in self.parts], 1)
        return torch.cat(
            [part.of(some) for (_, part), some in zip(self.parts, taken, strict=True)], 1
        )

    def split(self, latents: Tensor) -> dict[str, Tensor]:
        """The parts of latents [b, *shape] by their names; {} of such without names."""
        widths = [part.width for _, part in self.parts]
        if not widths:
            return {}
        return dict(zip((name for name, _ in self.parts), latents.split(widths, 1), strict=True))

    def plain(self) -> Any:
        """As a file has it, and as `latent` reads it."""
        if self.parts:
            return {name: part.plain() for name, part in self.parts}
        if self.shape is None:
            return None
        return self.shape[0] if len(self.shape) == 1 else list(self.shape)


def latent(given: Any) -> Latent:
    """What was asked for.

    Args:
        given: a length; a shape; None for none; or a dict of named parts, each a length of normal
            noise, a `Normal`, `Uniform` or `OneHot`, or a word for one: ``"onehot:10"``,
            ``"uniform:2"``, ``"uniform:2:0:1"``.

    Raises:
        ValueError: it is none of these.
    """
    if given is None or isinstance(given, Latent):
        return given or Latent(None)
    if isinstance(given, Mapping):
        if not given:
            raise ValueError(_EXPECTED)
        parts = tuple((str(name), _part(name, part)) for name, part in given.items())
        return Latent((sum(part.width for _, part in parts),), parts)
    sides = items(given)
    sides = [whole(side) for side in (sides if isinstance(sides, list) else [sides])]
    if not sides or any(side is None or side < 1 for side in sides):
        raise ValueError(_EXPECTED)
    return Latent(tuple(sides))


def _part(name: object, given: Any) -> Normal | Uniform | OneHot:
    if isinstance(given, tuple(_WORDS.values())):
        return given
    width = whole(given)
    if width is not None and width >= 1:
        return Normal(width)
    word, *numbers = given.split(":") if isinstance(given, str) else ("",)
    try:
        if word.isdigit():
            return Normal(int(word))
        return _WORDS[word](int(numbers[0]), *map(float, numbers[1:]))
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(
            f"part {name!r} is {given!r}; expected a length, 'onehot:N', 'uniform:N' or "
            "'uniform:N:LOW:HIGH'"
        ) from None
