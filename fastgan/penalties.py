"""What is added to D's loss: penalties on the slope of D.

A penalty is data (:class:`Penalty`); adding one is one entry of PENALTIES, or a Penalty of your own
passed wherever a name is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .packs import slopes_of
from .plain import real, whole
from .words import nearest

__all__ = ["PENALTIES", "PLACES", "Penalty", "penalties"]

PLACES = ("real", "fake", "between", "around")


def wide(scores: Tensor) -> Tensor:
    """Half-precision scores are averaged in float32."""
    return scores if scores.element_size() >= 4 else scores.float()


@dataclass(frozen=True)
class Penalty:
    """A penalty on the gradient of the discriminator's scores with respect to its input.

    It is added to the discriminator's loss before the backward pass; the losses that a run reports
    are without it, so that they can be compared between runs, and between steps if it is lazy.

    Where D judges several rows together (`fastgan.nn.Pack`) a slope is that of a pack's score by
    all of its rows, [packs, rows, ...], as in CTGAN (L. Xu et al., NeurIPS 2019): one norm of a
    pack, the mean over packs, and one place on the way for all rows of one.

    Attributes:
        name: how logs and checkpoints call it.
        of: (gradients [b, ...], in float32 or better) -> scalar, the penalty of weight 1.
        at: where the gradients are taken: at the "real" images or at the "fake" ones, in the pass
            that the loss takes; or, in a pass of its own, "between", at random points on the lines
            between real and fake images, or "around" the real ones. Default "real".
        weight: its factor, above 0. Default 10.
        sigma: above 0, `of` is not given the slope but what differences tell of it, which takes one
            pass of D more and no second derivative: (D(x + sigma n) - D(x)) / sigma, [b, 1], with n
            standard normal and the masks of dropout those of D(x). Their squares have the mean of
            the slope's own, but for terms of sigma**2. Default 0.
        every: D updates from one penalty to the next. With k, updates 0, k, 2k, ... have it, k
            times as heavy (T. Karras et al., "Analyzing and Improving the Image Quality of
            StyleGAN", CVPR 2020). Default 1.

    Raises:
        ValueError: one of these is something else.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    at: str = "real"
    weight: float = 10.0
    every: int = 1
    sigma: float = 0.0

    def __post_init__(self):
        """Check what was given, and take numbers of any kind as Python's own."""
        if self.at not in PLACES:
            raise ValueError(
                f"penalty {self.name!r}: at is {self.at!r}; expected one of {', '.join(PLACES)}"
            )
        if not callable(self.of) or isinstance(self.of, type):
            raise ValueError(
                f"penalty {self.name!r}: of is {self.of!r}; expected a function of the gradients "
                "[b, ...] that returns a scalar"
            )
        weight, every, sigma = real(self.weight), whole(self.every), real(self.sigma)
        if weight is None or not 0 < weight < math.inf:
            raise ValueError(
                f"penalty {self.name!r}: weight is {self.weight!r}; expected a finite number above "
                "0"
            )
        if every is None or every < 1:
            raise ValueError(
                f"penalty {self.name!r}: every is {self.every!r}; expected an integer of at least 1"
            )
        if sigma is None or not 0 <= sigma < math.inf:
            raise ValueError(
                f"penalty {self.name!r}: sigma is {self.sigma!r}; expected a finite number of at "
                "least 0"
            )
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "every", every)
        object.__setattr__(self, "sigma", sigma)

    def due(self, update: int) -> bool:
        """Whether D's update of this number, counted from 0, has the penalty."""
        return update % self.every == 0

    def value(self, scores: Tensor, images: Tensor, scale: Tensor | None = None) -> Tensor:
        """The weighted penalty of one update, differentiable: a scalar.

        Args:
            scores: what D made of `images`: [b], or [b / n] of n rows together.
            images: [b, ...], requiring gradients.
            scale: a factor that keeps float16 gradients from vanishing in the backward pass; the
                result is without it.
        """
        if scale is not None:
            # As in the loss, a mean: the scale alone, 2**16 at first, is more than float16 holds.
            scale = scale / len(scores)
        total = scores.sum() if scale is None else scores.sum() * scale
        (slope,) = torch.autograd.grad(total, images, create_graph=True)
        slope = slopes_of(wide(slope), scores)
        if scale is not None:
            slope = slope / scale
        return self.weight * self.every * self.of(slope)

    def value_nearby(self, scores: Tensor, nearby: Tensor) -> Tensor:
        """The same of one with `sigma`, by differences.

        Args:
            scores: [b], of the points.
            nearby: [b], of the points with noise.
        """
        slope = (wide(nearby) - wide(scores)) / self.sigma
        return self.weight * self.every * self.of(slope.unsqueeze(1))

    def __str__(self) -> str:
        """As `penalties` reads it: name:weight:every:sigma."""
        known = PENALTIES.get(self.name)
        own = known is not None and self.sigma != known.sigma
        rest = f":{self.every}" if self.every != 1 or own else ""
        return f"{self.name}:{self.weight:g}{rest}" + (f":{self.sigma:g}" if own else "")


def takes_slopes(penalties: Sequence[Penalty], due: Sequence[bool]) -> bool:
    """Whether an update that has these of the penalties differentiates D's slope."""
    return any(has and not one.sigma for has, one in zip(due, penalties, strict=False))


def _half_square(slope: Tensor) -> Tensor:
    return 0.5 * slope.flatten(1).square().sum(1).mean()


def _distance_from_one(slope: Tensor) -> Tensor:
    # vector_norm has derivative 0 at 0, where the root of a sum of squares would give NaN.
    return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().mean()


PENALTIES: dict[str, Penalty] = {
    p.name: p
    for p in (
        # L. Mescheder, A. Geiger and S. Nowozin, "Which Training Methods for GANs do actually
        # Converge?", ICML 2018: weight/2 * E |grad D(x)|^2 at real x, and R2 the same at fake x.
        Penalty("r1", _half_square),
        Penalty("r2", _half_square, "fake"),
        # S. Lin et al., "Diffusion Adversarial Post-Training for One-Step Video Generation", ICML
        # 2025: R1 by differences. Its lambda E (D(x + sigma n) - D(x))^2 is weight / 2 times what
        # is squared here: weight = 2 * lambda * sigma^2.
        Penalty("approximate-r1", _half_square, sigma=0.01),
        # I. Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017: weight * E
        # (|grad D(x)| - 1)^2 at x between real and fake.
        Penalty("wgan-gp", _distance_from_one, "between"),
        # N. Kodali, J. Abernethy, J. Hays and Z. Kira, "On Convergence and Stability of GANs",
        # 2017: the same at x near real ones.
        Penalty("dragan", _distance_from_one, "around"),
    )
}


PENALTY_ALIASES = {
    "gp": "wgan-gp",
    "gradient-penalty": "wgan-gp",
    "wgangp": "wgan-gp",
    "zero-centered": "r1",
    "r1r2": "penalties=['r1', 'r2']",
    "ar1": "approximate-r1",
    "approx-r1": "approximate-r1",
    "approximated-r1": "approximate-r1",
}


def penalties(given: Any = None) -> tuple[Penalty, ...]:
    """The penalties that were asked for.

    Args:
        given: None for none; a Penalty; a text ``name[:weight[:every]]`` such as "r1" or
            "r1:10:16", for those by differences with ``:sigma`` behind it; or several of these in a
            list or tuple.

    Raises:
        ValueError: an unknown name, or a weight or interval that is none.
    """
    if given is None:
        return ()
    parts = given if isinstance(given, (list, tuple)) else [given]
    return tuple(part if isinstance(part, Penalty) else _read_penalty(part) for part in parts)


def _read_penalty(text: Any) -> Penalty:
    expected = (
        f"expected one of {', '.join(PENALTIES)}, as name[:weight[:every]] such as 'r1:10:16', or "
        "a losses.Penalty"
    )
    if not isinstance(text, str):
        raise ValueError(f"penalties: {text!r} is none; {expected}")
    name, *rest = text.split(":")
    most = 3 if name in PENALTIES and PENALTIES[name].sigma else 2
    if name not in PENALTIES or len(rest) > most:
        raise ValueError(
            f"penalties: {text!r} is none; {expected}{nearest(name, PENALTIES, PENALTY_ALIASES)}"
        )
    try:
        kinds = (("weight", float), ("every", int), ("sigma", float))
        options = {k: kind(v) for (k, kind), v in zip(kinds, rest, strict=False)}
    except ValueError:
        raise ValueError(f"penalties: {text!r} is none; {expected}") from None
    return replace(PENALTIES[name], **options)
