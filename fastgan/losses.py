"""What the discriminator and the generator each minimise, as functions of D's scores.

A loss is data (:class:`Loss`); adding one is one entry of LOSSES, or a Loss of your own passed
wherever a name is accepted. A :class:`Penalty` on the slope of D is data in the same way.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .plain import real, whole
from .words import nearest

__all__ = ["LOSSES", "PENALTIES", "SCORES", "Loss", "Penalty", "loss", "penalties"]

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
        middle: the score above which D takes a sample for real and below which for fake, by which
            its accuracy is told. None: 0 for logits, 0.5 for probabilities, and none for other
            scores.

    Raises:
        ValueError: scores is none of these; middle is no finite number; or d_loss or g_loss takes
            another number of arguments.
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


def _wide(scores: Tensor) -> Tensor:
    """Half-precision scores are averaged in float32."""
    return scores if scores.element_size() >= 4 else scores.float()


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


# --- penalties -----------------------------------------------------------------------------------

PLACES = ("real", "fake", "between", "around")


@dataclass(frozen=True)
class Penalty:
    """A penalty on the gradient of the discriminator's scores with respect to its input.

    It is added to the discriminator's loss before the backward pass; the losses that a run reports
    are without it, so that they can be compared between runs, and between steps if it is lazy.

    Attributes:
        name: how logs and checkpoints call it.
        of: (gradients [b, ...], in float32 or better) -> scalar, the penalty of weight 1.
        at: where the gradients are taken: at the "real" images or at the "fake" ones, in the pass
            that the loss takes; or, in a pass of its own, "between", at random points on the lines
            between real and fake images, or "around" the real ones. Default "real".
        weight: its factor, above 0. Default 10.
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
        weight, every = real(self.weight), whole(self.every)
        if weight is None or not 0 < weight < math.inf:
            raise ValueError(
                f"penalty {self.name!r}: weight is {self.weight!r}; expected a finite number above "
                "0"
            )
        if every is None or every < 1:
            raise ValueError(
                f"penalty {self.name!r}: every is {self.every!r}; expected an integer of at least 1"
            )
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "every", every)

    def due(self, update: int) -> bool:
        """Whether D's update of this number, counted from 0, has the penalty."""
        return update % self.every == 0

    def value(self, scores: Tensor, images: Tensor, scale: Tensor | None = None) -> Tensor:
        """The weighted penalty of one update, differentiable: a scalar.

        Args:
            scores: what D made of `images`.
            images: [b, ...], requiring gradients.
            scale: a factor that keeps float16 gradients from vanishing in the backward pass; the
                result is without it.
        """
        if scale is not None:
            # As in the loss, a mean: the scale alone, 2**16 at first, is more than float16 holds.
            scale = scale / len(scores)
        total = scores.sum() if scale is None else scores.sum() * scale
        (slope,) = torch.autograd.grad(total, images, create_graph=True)
        slope = _wide(slope)
        if scale is not None:
            slope = slope / scale
        return self.weight * self.every * self.of(slope)

    def __str__(self) -> str:
        """As `penalties` reads it: name:weight:every."""
        return f"{self.name}:{self.weight:g}" + (f":{self.every}" if self.every != 1 else "")


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
}


def penalties(given: Any = None) -> tuple[Penalty, ...]:
    """The penalties that were asked for.

    Args:
        given: None for none; a Penalty; a text ``name[:weight[:every]]`` such as "r1" or
            "r1:10:16"; or several of these in a list or tuple.

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
    if name not in PENALTIES or len(rest) > 2:
        raise ValueError(
            f"penalties: {text!r} is none; {expected}{nearest(name, PENALTIES, PENALTY_ALIASES)}"
        )
    try:
        kinds = (("weight", float), ("every", int))
        options = {k: kind(v) for (k, kind), v in zip(kinds, rest, strict=False)}
    except ValueError:
        raise ValueError(f"penalties: {text!r} is none; {expected}") from None
    return replace(PENALTIES[name], **options)
