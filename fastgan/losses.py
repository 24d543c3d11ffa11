"""The games: what the discriminator and the generator each minimise, as functions of D's logits.

A game is data (:class:`Game`); adding one is one entry of the table below, or a Game of your own
passed wherever a name is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from . import ops

__all__ = ["GAMES", "Game", "game"]


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
