"""Alarms: what usually goes wrong with a GAN, said as it happens, with the evidence."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastgan import conditions, sampling
from fastgan.callbacks import Callback
from fastgan.config import ConfigError
from fastgan.config.kinds import integer

if TYPE_CHECKING:
    from fastgan.trainer import Trainer

logger = logging.getLogger("fastgan")

COLLAPSE, SATURATED = "mode collapse suspected", "discriminator saturated"
DIVERGING, STARVED = "diverging", "generator starved"
ALARMS = (COLLAPSE, SATURATED, DIVERGING, STARVED)

LOW_DIVERSITY = 0.1
"""Of the data's: that of samples which are nearly one."""
STILL, STILL_WEIGHTS = 1e-3, 1e-6
"""How little samples move from line to line, as a part of the data's diversity, if G stands; and
how little its weights, as a part of their size: where there is BatchNorm, samples of a G that
stands move with its running statistics."""
WON = 0.05
"""D's loss on logits, beyond the least possible, where it is all but never wrong. Of densities with
nothing in common D* has 0, and log 4 = 1.386 of two alike."""
LARGE, HUGE = 30.0, 1000.0
"""Sizes of losses and scores that are much if they keep growing, and that are too much anyhow."""


class Alarm(NamedTuple):
    """One alarm."""

    name: str
    step: int
    evidence: str
    suggestion: str

    def __str__(self) -> str:
        """A sentence."""
        return f"step {self.step}: {self.name}: {self.evidence}; {self.suggestion}"


class Alarms(Callback):
    """Tells of a run that goes wrong: ``Trainer(..., callbacks=fastgan.Alarms())``.

    At every log line it looks at what the engine told since the last one, and at a batch of samples
    of latents that stay the same. What goes wrong for `patience` lines is said once, and once more
    if it comes back. Names of alarms that hold are in the log line under "alarms", and the samples'
    mean distance to each other, as a part of the data's, under "diversity".

    Args:
        patience: log lines for which it must hold. Default 3.
        warmup: steps before a lack of diversity is one: an untrained generator has none. Default
            1000.
        stop: names of alarms that end the run. Default: none.
        count: samples looked at. Default 64.

    Attributes:
        raised: the alarms so far.

    Raises:
        ValueError: an argument is none.
    """

    def __init__(
        self,
        patience: int = 3,
        warmup: int = 1000,
        stop: str | Sequence[str] = (),
        count: int = 64,
    ):
        """Nothing is looked at before the first line."""
        self.patience = integer(1).take("patience", patience)
        self.warmup = integer(0).take("warmup", warmup)
        self.count = integer(2).take("count", count)
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        for name in self.stop:
            if name not in ALARMS:
                raise ConfigError(f"stop: {name!r}; expected of {', '.join(map(repr, ALARMS))}")
        self.raised: list[Alarm] = []
        self._held: dict[str, int] = dict.fromkeys(ALARMS, 0)
        self._sizes: list[float] = []
        self._diversities: list[float] = []
        self._before: Tensor | None = None
        self._weights: Tensor | None = None
        self._of_data: float | None = None
        self._scaled = False

    def start(self, trainer: Trainer) -> None:
        """Measure the data."""
        # A scaler looks for the largest scale by gradients that are not finite, and leaves them.
        self._scaled = trainer.problem.scalers is not None
        if self._of_data is None:
            data = trainer.data
            first = data.first(self.count) or data.batch(trainer.config.seed, 0, self.count)
            self._of_data = spread(first.images)

    def line(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Look, tell, and note in the line what holds."""
        diversity, stands = self._look(trainer)
        line["diversity"] = float(f"{diversity:.6g}")
        self._diversities = [*self._diversities, diversity][-self.patience :]
        found = dict.fromkeys(ALARMS)
        found[SATURATED] = _saturated(trainer, line)
        found[DIVERGING] = self._diverging(trainer, line, sure=found[SATURATED] is not None)
        # In a run that runs away the others mean nothing.
        if found[DIVERGING]:
            found[SATURATED] = None
        else:
            # What G has not learned yet is no collapse of it.
            found[COLLAPSE] = None if stands else self._collapse(trainer)
            found[STARVED] = _starved(trainer, line, stands)
        for name, told in found.items():
            evidence = told and (told[0] + _beside(name, line), told[1])
            self._held[name] = self._held[name] + 1 if evidence else 0
            # What is out of all proportion needs no second look.
            needed = 1 if name == DIVERGING else self.patience
            if self._held[name] == needed:
                self._raise(trainer, Alarm(name, trainer.step, *evidence))
        held = [n for n in ALARMS if self._held[n] >= (1 if n == DIVERGING else self.patience)]
        if held:
            line["alarms"] = held

    def _raise(self, trainer: Trainer, alarm: Alarm) -> None:
        self.raised.append(alarm)
        logger.warning("%s", alarm)
        if alarm.name in self.stop:
            trainer.stop(f"the alarm {alarm.name!r}")

    def _look(self, trainer: Trainer) -> tuple[float, str | None]:
        """The diversity of samples over the data's, and what shows that G stands."""
        p = trainer.problem
        # G itself and not its average, which shows late what G does.
        samples = sampling.sample(
            p.generator, self.count, p.latent, p.seed, p.device, p.data.drawable,
            conditions.to_sample_by(p, self.count, None),
        ).flatten(1)  # fmt: skip
        unit = self._of_data or 1.0
        weights = torch.cat([w.detach().flatten()[:64].cpu() for w in p.generator.parameters()])
        stands = None
        if self._before is not None and self._before.shape == samples.shape:
            moved = float((samples - self._before).norm(dim=1).mean()) / unit
            if moved < STILL:
                stands = f"samples of the same latents moved by {moved:.2g} of the data's diversity"
        if not stands and self._weights is not None and self._weights.shape == weights.shape:
            changed = float((weights - self._weights).norm() / weights.norm().clamp(min=1e-30))
            if changed < STILL_WEIGHTS:
                stands = f"G's weights changed by {changed:.2g} of their size"
        self._before, self._weights = samples, weights
        return spread(samples) / unit, stands

    def _collapse(self, trainer: Trainer) -> tuple[str, str] | None:
        # From line to line it moves by a third and more.
        diversity = sum(self._diversities) / len(self._diversities)
        if trainer.step < self.warmup or not diversity < LOW_DIVERSITY:
            return None
        return (
            f"samples of {self.count} latents are {diversity:.2g} times as far from each other as "
            "the data are",
            "lower G's learning rate or raise D's (lr=(G's, D's)), or add a penalty: "
            "penalties='r1:1'",
        )

    def _diverging(
        self, trainer: Trainer, line: dict[str, Any], *, sure: bool
    ) -> tuple[str, str] | None:
        values = [line[f"{name}_mean"] for name in ("d_loss", "g_loss", "d_real", "d_fake")]
        size = max(map(abs, values)) if all(map(math.isfinite, values)) else math.inf
        self._sizes = [*self._sizes[-self.patience :], size]
        way_out = (
            "lower the learning rates (lr=), or keep D's slope in bounds: penalties='wgan-gp' for "
            "loss='wasserstein', 'r1:1' for others"
        )
        if (line.get("nonfinite") or 0) > 0 and not self._scaled:
            return "gradients or weights are not finite", way_out
        rising = [b > a for a, b in zip(self._sizes, self._sizes[1:], strict=False)]
        grows = len(rising) == self.patience and all(rising) and size > 2 * self._sizes[0]
        # The scores of a D that is sure, and G's loss with them, grow as long as it learns.
        lost = _logits(trainer) and values[0] > LARGE
        if not (size > HUGE or lost or (size > LARGE and grows and not sure)):
            return None
        earlier = len(self._sizes) - 1
        after = f", after {self._sizes[0]:.3g} {earlier} lines ago" if earlier else ""
        return (
            f"the largest of losses and scores is {size:.3g}{after}",
            way_out,
        )

    def state_dict(self) -> dict[str, Any]:
        """What was raised, and what is watched."""
        return {
            "raised": [list(alarm) for alarm in self.raised],
            "held": dict(self._held),
            "sizes": list(self._sizes),
            "diversities": list(self._diversities),
            "before": self._before,
            "weights": self._weights,
            "of_data": self._of_data,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.raised = [Alarm(*alarm) for alarm in state["raised"]]
        self._held = {name: int(state["held"].get(name, 0)) for name in ALARMS}
        self._sizes, self._of_data = list(state["sizes"]), state["of_data"]
        self._diversities = list(state.get("diversities", ()))
        self._before, self._weights = state["before"], state.get("weights")


def spread(samples: Tensor) -> float:
    """The mean distance between two of some samples [n, ...]."""
    return float(torch.pdist(samples.flatten(1).float()).mean())


def _logits(trainer: Trainer) -> bool:
    loss = trainer.problem.loss
    return loss is not None and loss.scores == "logits"


def _saturated(trainer: Trainer, line: dict[str, Any]) -> tuple[str, str] | None:
    if not _logits(trainer):
        return None
    s = trainer.config.label_smoothing
    least = -(s * math.log(s) + (1 - s) * math.log(1 - s)) if 0 < s < 1 else 0.0
    if not line["d_loss_mean"] - least < WON:
        return None
    return (
        f"D's loss is {line['d_loss_mean']:.2g}, where a D that cannot tell has 1.39: its scores "
        f"are {line['d_real_mean']:.3g} of real and {line['d_fake_mean']:.3g} of fake samples",
        "lower D's learning rate (lr=(G's, D's)), or add a penalty: penalties='r1:1'",
    )


def _beside(name: str, line: dict[str, Any]) -> str:
    """What was measured at the step that speaks for an alarm, if it was."""
    parts = {
        SATURATED: (
            ("d_real_accuracy", "D takes {:.0%} of the real samples for real"),
            ("d_fake_accuracy", "{:.0%} of the fake ones for fake"),
        ),
        DIVERGING: (
            ("nonfinite", "numbers that are not finite: {:.0f}"),
            ("d_grad_norm", "D's gradient has the norm {:.3g}"),
            ("g_grad_norm", "G's {:.3g}"),
        ),
        STARVED: (
            ("g_grad_norm", "G's gradient has the norm {:.3g}"),
            ("g_update_ratio", "an update moves G's weights by {:.2g} of their size"),
        ),
    }
    known = ((line.get(which), words) for which, words in parts.get(name, ()))
    said = [words.format(value) for value, words in known if value is not None]
    return f" ({', '.join(said)})" if said else ""


def _starved(trainer: Trainer, line: dict[str, Any], stands: str | None) -> tuple[str, str] | None:
    none = line.get("g_grad_norm") == 0.0
    cut_off = (
        "no gradient reaches G",
        "see whether D or G has layers that are dead (ReLU) or cut off (detach(), no_grad())",
    )
    if not _logits(trainer):
        return cut_off if none else None
    # The slope of log(1 - D) where D is sure is D itself.
    share = 1 / (1 + math.exp(min(-line["d_fake_mean"], 700.0)))
    if trainer.problem.loss.name == "minimax" and share < 0.01:
        return (
            f"D gives its samples a probability of {share:.1g}, and the gradient of the minimax "
            "loss is as small",
            "use loss='non-saturating', whose gradient D's certainty does not take away",
        )
    if none:
        return cut_off
    knows = line["d_real_mean"] - line["d_fake_mean"] > 2
    if knows and stands:
        return (
            f"{stands} since the last line, while D tells real from fake "
            f"({line['d_real_mean']:.3g} against {line['d_fake_mean']:.3g})",
            "raise G's learning rate (lr=(G's, D's)), or see whether gradients reach its weights",
        )
    return None
