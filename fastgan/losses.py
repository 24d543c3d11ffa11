"""What the discriminator and the generator each minimise, as functions of D's scores.

A loss is data (:class:`Loss`); adding one is one entry of LOSSES, or a Loss of your own passed
wherever a name is accepted. What is added to D's loss, penalties, is in `fastgan.penalties`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from . import ops
from .penalties import PENALTIES, PLACES, Penalty, penalties
from .penalties import wide as _wide
from .plain import real
from .words import nearest

__all__ = ["LOSSES", "PENALTIES", "PLACES", "SCORES", "Loss", "Penalty", "loss", "penalties"]

SCORES = ("logits", "raw", "probabilities")
"""What a loss can be stated for."""


@dataclass(frozen=True)
class Loss:
    """One adversarial game.

    Attributes:
        name: how logs and checkpoints call it.
        d_loss: (scores of real, scores of fake), each [b], -> scalar that the discriminator
            minimises.
        g_loss: (scores of fake) -> scalar that the generator minimises; or (scores of fake, scores
            of real), as relativistic losses want, for which D also scores the step's last real
            batch.
        scores: what D's outputs are to the loss. "logits": logits of a probability, so a final
            Sigmoid of D is absorbed. "raw": scores of any size, so a Sigmoid at D's end is an
            error. "probabilities": D's outputs as they are, in [0, 1]. None, for a loss of your
            own that does not say: as "raw", but a D whose outputs are bounded to [0, 1] is asked
            about.
        label_smoothing: s of one-sided label smoothing, already applied in d_loss; 0 if there is
            none.
        middle: the score above which D takes a sample for real and below which for fake. None: 0
            for logits, 0.5 for probabilities, and none for other scores.

    Raises:
        ValueError: scores, middle, or the number of arguments of d_loss or g_loss is another.
    """

    name: str
    d_loss: Callable[[Tensor, Tensor], Tensor]
    g_loss: Callable[..., Tensor]
    scores: str | None = None
    label_smoothing: float = 0.0
    middle: float | None = None

    def __post_init__(self):
        """Check what can be checked before a step is done."""
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"Loss: name is {self.name!r}; expected a word for logs and files")
        if self.scores not in (*SCORES, None):
            raise ValueError(
                f"Loss {self.name!r}: scores is {self.scores!r}; expected "
                f"{', '.join(map(repr, SCORES))}, or None"
            )
        middle = real(self.middle)
        if self.middle is not None and (middle is None or not math.isfinite(middle)):
            raise ValueError(
                f"Loss {self.name!r}: middle is {self.middle!r}; expected a finite score, or None"
            )
        _require_arity(self, "d_loss", (2,), "(real scores, fake scores)")
        _require_arity(self, "g_loss", (1, 2), "(fake scores), or (fake scores, real scores)")

    @property
    def threshold(self) -> float:
        """The score that D decides by; NaN if there is none."""
        usual = {"logits": 0.0, "probabilities": 0.5}.get(self.scores, math.nan)
        return usual if self.middle is None else float(self.middle)

    @property
    def needs_real(self) -> bool:
        """Whether the generator's loss takes the real scores as well."""
        return 1 not in _arities(self.g_loss)


def _arities(function: Callable) -> set[int]:
    """The numbers of tensors, of 1 and 2, that a function can be called with."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of C: it will say so itself
        return {1, 2}
    found = set()
    for n in (1, 2):
        try:
            signature.bind(*[None] * n)
        except TypeError:
            continue
        found.add(n)
    return found


def _require_arity(loss: Loss, name: str, allowed: tuple[int, ...], what: str) -> None:
    function = getattr(loss, name)
    if isinstance(function, type) or not callable(function):
        raise ValueError(
            f"Loss {loss.name!r}: {name} is {function!r}; expected a function of {what} that "
            "returns a scalar" + ("; make an instance of the class" if callable(function) else "")
        )
    if not _arities(function) & set(allowed):
        raise ValueError(f"Loss {loss.name!r}: {name} must take {what}; {function!r} does not")


@dataclass(frozen=True)
class _MinimaxD:
    # A class and not a closure: a Loss must survive pickling (data-parallel workers) and compare by
    # value.
    real_label: float

    def __call__(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return ops.discriminator_loss(real_logits, fake_logits, real_label=self.real_label)


def _saturating_g(fake_logits: Tensor) -> Tensor:
    return ops.generator_loss(fake_logits, saturating=True)


def _non_saturating_g(fake_logits: Tensor) -> Tensor:
    return ops.generator_loss(fake_logits, saturating=False)


def _hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - _wide(real)).mean() + F.relu(1 + _wide(fake)).mean()


def _minus_mean_g(fake: Tensor) -> Tensor:
    return -_wide(fake).mean()


def _least_squares_d(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * ((_wide(real) - 1).square().mean() + _wide(fake).square().mean())


def _least_squares_g(fake: Tensor) -> Tensor:
    return 0.5 * (_wide(fake) - 1).square().mean()


def _wasserstein_d(real: Tensor, fake: Tensor) -> Tensor:
    return _wide(fake).mean() - _wide(real).mean()


def _relativistic_d(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(_wide(fake) - _wide(real)).mean()


def _relativistic_g(fake: Tensor, real: Tensor) -> Tensor:
    return F.softplus(_wide(real) - _wide(fake)).mean()


@dataclass(frozen=True)
class _Average:
    """Of (real, fake) what D minimises, of (fake, real) G: the first should lie above the mean of
    the second, and the second below that of the first."""

    low: Callable[[Tensor], Tensor]
    """What is minimised of scores that should be high."""

    def __call__(self, high: Tensor, low: Tensor) -> Tensor:
        high, low = _wide(high), _wide(low)
        return self.low(high - low.mean()).mean() + self.low(high.mean() - low).mean()


def _below_zero(x: Tensor) -> Tensor:
    return F.softplus(-x)


def _below_one(x: Tensor) -> Tensor:
    return F.relu(1 - x)


def _from_one(x: Tensor) -> Tensor:
    return (x - 1).square()


LOSSES: dict[str, Loss] = {
    one.name: one
    for one in (
        # I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014: the game's value, and
        # its variant for G.
        Loss("minimax", _MinimaxD(1.0), _saturating_g, "logits"),
        Loss("non-saturating", _MinimaxD(1.0), _non_saturating_g, "logits"),
        # J. H. Lim and J. C. Ye, "Geometric GAN", 2017; D. Tran et al., 2017.
        Loss("hinge", _hinge_d, _minus_mean_g, "raw", middle=0.0),
        # X. Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017, with a = 0, b =
        # c = 1.
        Loss("least-squares", _least_squares_d, _least_squares_g, "raw", middle=0.5),
        # M. Arjovsky et al., "Wasserstein GAN", ICML 2017; it needs a Lipschitz constraint on D
        # besides.
        Loss("wasserstein", _wasserstein_d, _minus_mean_g, "raw"),
        # A. Jolicoeur-Martineau, "The relativistic discriminator: a key element missing from
        # standard GAN", ICLR 2019, in pairs (RpGAN).
        Loss("relativistic", _relativistic_d, _relativistic_g, "raw"),
        # The same paper's averages (RaSGAN, RaHingeGAN, RaLSGAN). A part of a batch, and a rank's
        # rows, have averages of their own.
        *(
            Loss(f"relativistic-average{name}", _Average(low), _Average(low), "raw")
            for name, low in (
                ("", _below_zero),
                ("-hinge", _below_one),
                ("-least-squares", _from_one),
            )
        ),
    )
}

ALIASES = {
    word: ours
    for ours, words in {
        "non-saturating": (
            "bce ns nsgan vanilla standard gan logistic softplus cross-entropy bce-loss "
            "bce-with-logits bce-with-logits-loss binary-cross-entropy "
            "binary-cross-entropy-with-logits soft-margin-loss"
        ),
        "minimax": "saturating",
        "least-squares": "lsgan mse l2 mse-loss",
        "wasserstein": "wgan emd earth-mover critic",
        "loss='wasserstein' with penalties='wgan-gp'": "wgan-gp",
        "relativistic": "rpgan rgan rsgan",
        "relativistic-average": "ragan rasgan",
        "relativistic-average-least-squares": "ralsgan",
        "relativistic-average-hinge": "rahinge",
        "penalties='r1'": "r1",
        "penalties='r2'": "r2",
        "penalties='wgan-gp'": "gp",
        "hinge": "hinge-embedding-loss geometric",
    }.items()
    for word in words.split()
}
"""Words that others use, for the message that names ours."""


def loss(name: str | Loss = "non-saturating", label_smoothing: float = 0.0) -> Loss:
    """The loss of that name (a key of LOSSES), or the Loss itself.

    Args:
        name: which. Default "non-saturating".
        label_smoothing: s in [0, 1): the discriminator's target for real images becomes 1 - s
            (one-sided smoothing; T. Salimans et al., "Improved Techniques for Training GANs",
            NeurIPS 2016). Only the two minimax losses have a target. Default 0.

    Raises:
        ValueError: an unknown name, a smoothing outside [0, 1), or one in a loss without labels.
    """
    if isinstance(name, Loss):
        chosen = name
    elif isinstance(name, str) and name in LOSSES:
        chosen = LOSSES[name]
    else:
        raise ValueError(
            f"loss is {name!r}; it must be one of {', '.join(LOSSES)}, or a losses.Loss"
            f"{_way_out(name)}"
        )
    smoothing = real(label_smoothing)
    if smoothing is None or not 0.0 <= smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing!r}; it must lie in [0, 1)")
    if smoothing in (0.0, chosen.label_smoothing):
        return chosen
    if not isinstance(chosen.d_loss, _MinimaxD):
        raise ValueError(
            f"label_smoothing is {smoothing}, but the loss {chosen.name!r} has no labels to "
            "smooth; use 'minimax' or 'non-saturating', or leave label_smoothing at 0"
        )
    smoothed = _MinimaxD(1.0 - smoothing)
    return replace(chosen, d_loss=smoothed, label_smoothing=smoothing)


def _way_out(given: Any) -> str:
    """What the message adds about something that is no loss, such as a module of torch."""
    if isinstance(given, str):
        return nearest(given, LOSSES, ALIASES)
    if not callable(given):
        return ""
    called = getattr(given, "__name__", type(given).__name__)
    of_two = "two functions of D's scores make one: losses.Loss('mine', d_loss, g_loss, 'logits')"
    own = "make an instance of the class" if isinstance(given, type) else of_two
    return nearest(called, LOSSES, ALIASES) or f"; {own}"
