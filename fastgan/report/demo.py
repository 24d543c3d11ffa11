"""A run on a density of the plane, looked at: samples, D's surface and what theory says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from fastgan import theory
from fastgan.callbacks import Callback
from fastgan.config import ConfigError
from fastgan.config.kinds import integer
from fastgan.densities import DENSITIES, Mixture
from fastgan.report import Report, charts, frames, through_time
from fastgan.report.charts import Curve
from fastgan.report.markup import Markup, tag
from fastgan.report.page import ROOM, whole
from fastgan.run import pictures, torch_rng
from fastgan.theory.scores import restore, scores_of, to_eval

if TYPE_CHECKING:
    from fastgan.trainer import Trainer

PAGE, GIF = "demo.html", "demo.gif"

_DRAWN = 1000
_GIF_SIDE, _GIF_PLOT = 495, 560
_LEAD = (
    "What a GAN learns, seen against what the theory says: the data are a density that is known."
)
_ESTIMATES = {"jsd": "a critic", "jsd_by_d": "the run's own D"}
_MODES = {"modes_found": "modes found", "at_a_mode": "share of samples at one"}
_SECTIONS = {"samples": "Samples and D", "curves": "Curves", "theory": "What is drawn"}
_WORDS = (
    "Grey points are the data, blue ones are samples of the same latents at each step. The ground "
    "is what D says: orange where it takes a point for real, blue where it takes it for generated, "
    "white where it cannot tell. At the equilibrium it is white wherever there are data.",
    "The Jensen-Shannon divergence of data and samples is 0 where both are the same and log 2 = "
    "0.693 where they have nothing in common. Whatever D is, (V(D, G) + log 4) / 2 is at most "
    "that. So the run's own D gives a lower bound, which is loose where D is not the best for this "
    "G; and a critic that the run never sees gives another: at each look it learns on from one "
    "half of the samples and is asked about the other. A bound may lie below 0 by the error of "
    "finite samples.",
    "A sample is at a mode if it is within three standard deviations of its centre; a mode is "
    "found if at least a fifth of its share of the samples is there.",
)


class Demo(Callback):
    """Looks at a run of points of a plane at every log line, and writes a page and a GIF on it.

    ``demo.html``, one file that needs nothing beside it, and ``demo.gif``, in the run's directory.
    The log lines get "jsd", the lower bound on the Jensen-Shannon divergence by a critic that goes
    on from look to look (see `fastgan.theory.jsd_lower_bound`), "jsd_by_d", that of the run's own
    D, where its loss is one on logits, and of mixtures "modes_found" and "at_a_mode". A look costs
    `steps` updates of the critic on `n` samples.

    Args:
        n: samples in a look. Default 4000.
        steps: updates of the critic in a look. Default 150.

    Raises:
        ConfigError: when the Trainer is made, the run has no directory, or its samples are no
            points of a plane, or its networks take conditions or are trained by a method.
    """

    def __init__(self, n: int = 4000, steps: int = 150):
        """Nothing is seen yet."""
        self.n, self.steps = integer(40).take("n", n), integer(1).take("steps", steps)
        self._critic: nn.Module | None = None
        self.lines: list[dict[str, Any]] = []
        self.seen: list[tuple[int, Image.Image]] = []

    def check(self, trainer: Trainer) -> None:
        """ConfigError for a run that cannot be shown."""
        if not trainer.data.plane:
            raise ConfigError(
                f"a demo shows points of a plane, and a sample of {trainer.data.name} is "
                f"{list(trainer.data.shape)}; expected data such as {', '.join(DENSITIES)}"
            )
        p = trainer.problem
        if p.loss is None or any(p.conditioned):
            raise ConfigError(
                "a demo shows what D says of a point and nothing else; expected a pair that is "
                "trained by loss= and takes no conditions"
            )
        if trainer.config.out is None:
            raise ConfigError("a demo has nowhere to write: give the run a directory, out=")

    def start(self, trainer: Trainer) -> None:
        """Look before the first step."""
        if trainer.world.leads:
            self._look(trainer, {})

    def line(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Look."""
        if trainer.world.leads:
            self._look(trainer, line)

    def _look(self, trainer: Trainer, line: dict[str, Any]) -> None:
        fake, real = trainer.sample(self.n), self._real(trainer)
        if self._critic is None:
            with torch_rng.seeded(0, trainer.device):
                self._critic = theory.critic(tuple(real.shape[1:]))
        bound = theory.jsd_lower_bound(real, fake, network=self._critic, steps=self.steps)
        found = {"jsd": bound.value}
        if trainer.problem.loss.scores == "logits":
            value = theory.value(trainer.discriminator, real, fake).value
            found["jsd_by_d"] = (value + math.log(4)) / 2
        density = DENSITIES.get(trainer.data.name)
        if isinstance(density, Mixture):
            found |= _at_modes(density, fake)
        line |= {name: float(f"{value:.5g}") for name, value in found.items()}
        self.lines.append({**line, "step": trainer.step})

        def surface(x: Tensor) -> Tensor:
            modes = to_eval(trainer.discriminator)
            try:
                return torch.sigmoid(scores_of(trainer.discriminator)(x))
            finally:
                restore(modes)

        picture = pictures.plane(fake[:_DRAWN], real[:_DRAWN], surface)
        self.seen.append((trainer.step, picture))

    def _real(self, trainer: Trainer) -> Tensor:
        """Samples of the data, other ones than the run learns from where there is a density."""
        density = DENSITIES.get(trainer.data.name)
        if density is not None:
            return density.sample(self.n, seed=trainer.config.seed, step=1)[0].to(trainer.device)
        return trainer.data.first(self.n).images.to(trainer.device)

    def end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Write what was seen, after an error as well."""
        if trainer.world.leads and self.seen:
            self.report(trainer).save(trainer.out / PAGE)
            self.animate(trainer.out / GIF)

    def report(self, trainer: Trainer) -> Report:
        """The page on what was seen so far."""
        found, _ = frames.embed(self.seen, ROOM)
        steps = [look["step"] for look in self.lines]
        plays = [i for i, step in enumerate(steps) if step in {f.at for f in found}]
        name = f"{trainer.data.name}, {type(trainer.generator).__name__}"
        figure = through_time.series(
            name,
            found,
            "time",
            f"Samples on {trainer.data.name} over D's surface",
            "step",
            last=True,
        )
        samples = tag("section", tag("h2", "Samples over D's surface"), figure, id="samples")
        drawn = [one for one in self._charts(steps) if one]
        curves = tag(
            "section", tag("h2", "Curves"), tag("div", drawn, class_="charts"), id="curves"
        )
        told = tag(
            "section",
            tag("h2", "What is drawn"),
            [tag("p", words) for words in _WORDS],
            id="theory",
        )
        bar = through_time.bar("time", steps, plays, "step", "Step of the run", loops=False)
        columns = tag("div", tag("div", samples), tag("div", curves), class_="beside")
        body = [tag("div", bar, columns), told]
        return Report(whole(f"A GAN on {trainer.data.name}", _LEAD, body, _SECTIONS))

    def _charts(self, steps: Sequence[int]) -> list[Markup]:
        span = (0, max(steps[-1], 1))
        named = {
            "Jensen-Shannon divergence": ("Lower bounds, in nats.", _ESTIMATES),
            "Modes found": ("", {"modes_found": "modes"}),
            "Samples at a mode": ("Share of all.", {"at_a_mode": "share"}),
            "Losses": ("Means since the last look.", dict(pictures.LOSS_CURVES)),
        }
        return [
            charts.chart(
                title,
                [
                    Curve(words, pictures.numbers(self.lines, name), slot)
                    for slot, (name, words) in enumerate(curves.items())
                ],
                span=span,
                help=help,
            )
            for title, (help, curves) in named.items()
        ]

    def animate(self, path: Path) -> None:
        """Write what was seen as a GIF, the estimates beside the samples."""
        names = {n: w for n, w in _ESTIMATES.items() if any(n in look for look in self.lines)}
        made = []
        for step, picture in self.seen:
            title = f"step {step:,}: JSD is at least, by"
            plot = pictures.plot(self.lines, names, title, until=step, width=_GIF_PLOT)
            both = Image.new("RGB", (_GIF_SIDE + _GIF_PLOT, plot.height), "white")
            both.paste(picture.resize((_GIF_SIDE, plot.height), Image.Resampling.LANCZOS), (0, 0))
            both.paste(plot, (_GIF_SIDE, 0))
            made.append(both)
        palette = pictures.palette()
        made = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in made]
        # The last is looked at longest.
        pictures.animate([*made, *made[-1:] * 12], path, seconds=0.12)


def _at_modes(density: Mixture, samples: Tensor) -> dict[str, float]:
    """How many modes have samples, and the share of samples that are at one."""
    distance = torch.cdist(samples.cpu().double(), density.means)
    near, mode = (distance / density.scales).min(1)
    counts = torch.bincount(mode[near < 3], minlength=len(density.means)) / len(samples)
    found = int((counts >= density.weights / 5).sum())
    return {"modes_found": found, "at_a_mode": float(counts.sum())}
