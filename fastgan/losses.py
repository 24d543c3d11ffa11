"""The games: what the discriminator and the generator each minimise, as functions of D's logits.

A game is data (:class:`Game`); adding one is one entry of the table below, or a Game of your own
passed wherever a name is accepted. A :class:`Penalty` on the slope of D is data in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops

__all__ = ["GAMES", "PENALTIES", "Game", "Penalty", "game", "penalty"]


@dataclass(frozen=True)
class Game:
    """One adversarial game.

    Attributes:
        name: how logs and checkpoints call it.
        d_loss: (real_logits, fake_logits) -> scalar that the discriminator minimises.
        g_loss: (fake_logits) -> scalar that the generator minimises.
        takes_sigmoid: the game is stated for D's probabilities, so a final Sigmoid of D is absorbed
            into the losses.
        label_smoothing: s of one-sided label smoothing, already applied in d_loss; 0 if there is
            none.
    """

    name: str
    d_loss: Callable[[Tensor, Tensor], Tensor]
    g_loss: Callable[[Tensor], Tensor]
    takes_sigmoid: bool = False
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class _MinimaxD:
    # A class and not a closure: a Game must survive pickling (data-parallel workers) and compare by
    # value.
    real_label: float

    def __call__(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return ops.discriminator_loss(real_logits, fake_logits, real_label=self.real_label)


def _saturating_g(fake_logits: Tensor) -> Tensor:
    return ops.generator_loss(fake_logits, saturating=True)


def _non_saturating_g(fake_logits: Tensor) -> Tensor:
    return ops.generator_loss(fake_logits, saturating=False)


def _wide(logits: Tensor) -> Tensor:
    """Half-precision logits are averaged in float32."""
    return logits if logits.element_size() >= 4 else logits.float()


def _hinge_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return F.relu(1 - _wide(real_logits)).mean() + F.relu(1 + _wide(fake_logits)).mean()


def _minus_mean_g(fake_logits: Tensor) -> Tensor:
    return -_wide(fake_logits).mean()


def _least_squares_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return 0.5 * ((_wide(real_logits) - 1).square().mean() + _wide(fake_logits).square().mean())


def _least_squares_g(fake_logits: Tensor) -> Tensor:
    return 0.5 * (_wide(fake_logits) - 1).square().mean()


def _wasserstein_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return _wide(fake_logits).mean() - _wide(real_logits).mean()


GAMES: dict[str, Game] = {
    g.name: g
    for g in (
        # I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014: the game's value, and
        # its variant for G.
        Game("minimax", _MinimaxD(1.0), _saturating_g, takes_sigmoid=True),
        Game("non-saturating", _MinimaxD(1.0), _non_saturating_g, takes_sigmoid=True),
        # J. H. Lim and J. C. Ye, "Geometric GAN", 2017; D. Tran et al., 2017.
        Game("hinge", _hinge_d, _minus_mean_g),
        # X. Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017, with a = 0, b =
        # c = 1.
        Game("least-squares", _least_squares_d, _least_squares_g),
        # M. Arjovsky et al., "Wasserstein GAN", ICML 2017; it needs a Lipschitz constraint on D
        # besides.
        Game("wasserstein", _wasserstein_d, _minus_mean_g),
    )
}


def game(name: str | Game = "non-saturating", label_smoothing: float = 0.0) -> Game:
    """The game of that name (a key of GAMES), or the Game itself.

    label_smoothing: s in [0, 1): the discriminator's target for real images becomes 1 - s
        (one-sided smoothing, T.
    Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016). Only the two minimax
    games have a target.

    Raises ValueError for an unknown name, for a smoothing outside [0, 1), and for smoothing in a
    game without labels.
    """
    if isinstance(name, Game):
        chosen = name
    elif name in GAMES:
        chosen = GAMES[name]
    else:
        raise ValueError(
            f"loss is {name!r}; it must be one of {', '.join(GAMES)}, or a losses.Game"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")
    if label_smoothing == chosen.label_smoothing or label_smoothing == 0.0:
        return chosen
    if not isinstance(chosen.d_loss, _MinimaxD):
        raise ValueError(
            f"label_smoothing is {label_smoothing}, but the game {chosen.name!r} has no labels to "
            "smooth; use 'minimax' or 'non-saturating', or leave label_smoothing at 0"
        )
    return Game(
        chosen.name,
        _MinimaxD(1.0 - label_smoothing),
        chosen.g_loss,
        chosen.takes_sigmoid,
        label_smoothing,
    )


@dataclass(frozen=True)
class Penalty:
    """A penalty on the gradient of the discriminator's logits with respect to its input.

    It is added to the discriminator's loss before the backward pass; the losses that a run reports
    are without it, so that they can be compared between runs, and between steps if it is lazy.

    Attributes:
        name: how logs and checkpoints call it.
        of: (gradients [b, ...], in float32 or better) -> scalar, the penalty of weight 1.
        between: take the gradients at random points on the lines between real and fake images (a
            third pass of D); otherwise at the real images, in the pass that the loss takes.
        weight: its factor.
        every: D updates from one penalty to the next. With k, updates 0, k, 2k, ... have it, k
            times as heavy (T. Karras et al., "Analyzing and Improving the Image Quality of
            StyleGAN", CVPR 2020).
    """

    name: str
    of: Callable[[Tensor], Tensor]
    between: bool = False
    weight: float = 10.0
    every: int = 1

    def due(self, update: int) -> bool:
        """Whether D's update of this number, counted from 0, has the penalty."""
        return update % self.every == 0

    def value(self, logits: Tensor, images: Tensor, scale: Tensor | None = None) -> Tensor:
        """The weighted penalty of one update, differentiable: a scalar.

        Args:
            logits: what D made of `images`.
            images: [b, ...], requiring gradients.
            scale: a factor that keeps float16 gradients from vanishing in the backward pass; the
                result is without it.
        """
        if scale is not None:
            # As in the loss, a mean: the scale alone, 2**16 at first, is more than float16 holds.
            scale = scale / len(logits)
        total = logits.sum() if scale is None else logits.sum() * scale
        (slope,) = torch.autograd.grad(total, images, create_graph=True)
        slope = _wide(slope)
        if scale is not None:
            slope = slope / scale
        return self.weight * self.every * self.of(slope)


def _half_square(slope: Tensor) -> Tensor:
    return 0.5 * slope.flatten(1).square().sum(1).mean()


def _distance_from_one(slope: Tensor) -> Tensor:
    # vector_norm has derivative 0 at 0, where the root of a sum of squares would give NaN.
    return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().mean()


PENALTIES: dict[str, Penalty] = {
    p.name: p
    for p in (
        # L. Mescheder, A. Geiger and S. Nowozin, "Which Training Methods for GANs do actually
        # Converge?", ICML 2018: weight/2 * E |grad D(x)|^2 at real x.
        Penalty("r1", _half_square),
        # I. Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017: weight * E
        # (|grad D(x)| - 1)^2 at x between real and fake.
        Penalty("wgan-gp", _distance_from_one, between=True),
    )
}


def penalty(
    name: str | Penalty | None = None, weight: float | None = None, every: int | None = None
) -> Penalty | None:
    """The penalty of that name (a key of PENALTIES), or the Penalty itself; None for none.

    weight: gamma of R1, lambda of WGAN-GP. Default 10.
    every: D updates from one penalty to the next. Default 1.

    Raises ValueError for an unknown name, for a weight that is not finite and above 0, for an
    `every` below 1, and for either without a penalty.
    """
    given = {k: v for k, v in (("weight", weight), ("every", every)) if v is not None}
    if name is None:
        if given:
            raise ValueError(
                f"penalty_{next(iter(given))} is {next(iter(given.values()))!r}, but there is no "
                f"penalty; add penalty= one of {', '.join(PENALTIES)}"
            )
        return None
    if isinstance(name, Penalty):
        chosen = name
    elif name in PENALTIES:
        chosen = PENALTIES[name]
    else:
        raise ValueError(
            f"penalty is {name!r}; it must be one of {', '.join(PENALTIES)}, a losses.Penalty, or "
            "None"
        )
    if weight is not None and not 0 < weight < float("inf"):
        raise ValueError(f"penalty_weight is {weight!r}; expected a finite number above 0")
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(f"penalty_every is {every!r}; expected an integer of at least 1")
    return replace(chosen, **given)
