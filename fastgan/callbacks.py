"""What happens beside the steps: callbacks, those that every run has and a user's own.

A callback is called between steps, never within one, and nothing that it does moves the run: it
draws from the program's random generators and not from the run's. What it raises ends the run,
after the state of the last whole step was saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from fastgan import diagnosis
from fastgan.run import files, pictures
from fastgan.screen import Screen

if TYPE_CHECKING:
    from fastgan.trainer import Trainer


class Callback:
    """Does something along a run; override what you need.

    Attributes:
        name: the key of its state in the checkpoint. Default: the name of its class.
        on_all_ranks: whether `save` is called on every rank where networks are divided over them,
            with None as the directory on all but the first. Default: False. One that samples does
            so on every rank or not at all.
    """

    name: str | None = None
    on_all_ranks = False

    def check(self, trainer: Trainer) -> None:
        """The run is made, and nothing is written yet: ConfigError if this cannot go beside it."""

    def start(self, trainer: Trainer) -> None:
        """A call of `fit` begins, before its first step."""

    def chunk(self, trainer: Trainer, statistics: Tensor) -> None:
        """Some steps were done, several times a second.

        Args:
            trainer: the run; `trainer.step` says where it stands.
            statistics: float32 [steps, len(STATISTICS)] of these steps, on the run's device.
                Looking at the values waits for the device.
        """

    def line(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """A log line is about to be written: once every `log_every` steps, and at the end.

        Args:
            trainer: the run.
            line: what the line says: statistics of the step and their means, its measures (None
                where there is no number); plain values that are added are written with it.
        """

    def save(self, trainer: Trainer, directory: Path) -> None:
        """A checkpoint was written to the run's directory, where more may be laid beside it."""

    def end(self, trainer: Trainer, error: BaseException | None) -> None:
        """The call of `fit` ends: as it should (error is None), or by what was raised."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: numbers, words, tensors, lists and dicts of these."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""


class NonFiniteLossError(FloatingPointError):
    """A loss or a weight became infinite or NaN.

    Attributes:
        step: the first bad step, counted from 1.
    """

    def __init__(self, message: str, step: int):
        """Keep the step beside the message."""
        super().__init__(message)
        self.step = step


class NonFiniteGuard(Callback):
    """Ends the run where losses or weights are no longer finite, and leaves the last good save."""

    def look_at_losses(self, trainer: Trainer) -> None:
        """NonFiniteLossError if a loss since the last line is not finite."""
        if bad := trainer.log.first_bad():
            followed, values = bad
            what = f"D loss is {values['d_loss']:g} and G loss is {values['g_loss']:g}"
            raise self._error(trainer, what, trainer.step - followed)

    def look_at_weights(self, trainer: Trainer) -> None:
        """NonFiniteLossError if a weight is not finite."""
        if name := diagnosis.bad_weights(trainer.problem):
            raise self._error(
                trainer, f"weights of the {name} are not finite", max(trainer.step, 1)
            )

    @staticmethod
    def _error(trainer: Trainer, what: str, step: int) -> NonFiniteLossError:
        kept = "no checkpoint was written"
        if trainer.saved is not None:
            kept = f"the last good checkpoint is {trainer.saved} (step {trainer.saved_step})"
        cause = diagnosis.likely_cause(trainer.problem, step)
        return NonFiniteLossError(
            f"training stopped: at step {step} {what}. Likely cause: {cause}; {kept}", step
        )


class Samples(Callback):
    """Draws samples.png at every save, and keeps pictures of the same latents in samples/.

    There is one of each save, and besides at log lines ever further apart, so that each doubling
    of the steps has as many.
    """

    on_all_ranks = True
    COUNT = 64
    POINTS = 1000
    GROWTH = 1.25

    def line(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Keep a picture if it is time, which only the step decides."""
        lines, between = divmod(trainer.step, trainer.config.log_every)
        if not trainer.saves or between or not lines:
            return
        if lines == 1 or self._octave(lines) > self._octave(lines - 1):
            self._draw(trainer, trainer.out, last=False)

    def _octave(self, lines: int) -> int:
        return math.floor(math.log(lines, self.GROWTH))

    def save(self, trainer: Trainer, directory: Path | None) -> None:
        """Draw the same latents as before, if samples can be drawn at all."""
        self._draw(trainer, directory, last=True)

    def _draw(self, trainer: Trainer, directory: Path | None, *, last: bool) -> None:
        if (picture := self.picture(trainer)) is None or directory is None:
            return
        along = directory / pictures.SERIES
        along.mkdir(exist_ok=True)
        # A tenth of the time that the usual compression takes, for an eighth more bytes.
        hurried = partial(picture.save, format="PNG", compress_level=1)
        files.write(along / f"{trainer.step:08d}.png", hurried)
        if last:
            files.write(directory / pictures.SAMPLES, partial(picture.save, format="PNG"))

    def picture(self, trainer: Trainer) -> Image.Image | None:
        """Samples of the same latents as ever; None where they are neither images nor points."""
        if trainer.data.drawable:
            return pictures.sheet(trainer.sample(self.COUNT))
        if not trainer.data.plane:
            return None
        first = trainer.data.first(self.POINTS)
        return pictures.plane(trainer.sample(self.POINTS), None if first is None else first.images)


class Checkpoints(Callback):
    """Saves every `checkpoint_every` steps, or every minute."""

    SECONDS = 60.0

    def start(self, trainer: Trainer) -> None:
        """Save once, before the first step: what cannot be saved is best known now."""
        if trainer.saves and trainer.saved_step is None:
            trainer.save()
        self._saved_at = time.perf_counter()

    def chunk(self, trainer: Trainer, statistics: Tensor) -> None:
        """Save if it is time; the end of the run saves by itself."""
        every = trainer.config.checkpoint_every
        if every:
            due = trainer.step % every == 0
        else:
            due = time.perf_counter() - self._saved_at >= self.SECONDS
        if trainer.problem.divided:  # by the first rank's clock
            due = bool(trainer.world.first(int(due)))
        if due and trainer.saves and trainer.step != trainer.target:
            trainer.save_all()
            self._saved_at = time.perf_counter()


class Console(Screen, Callback):
    """What a person sees of a run meanwhile; its arguments are those of `Screen`."""

    def start(self, trainer: Trainer) -> None:
        """Say what will be done."""
        self._begin(trainer.step)
        if trainer.step == 0:
            self.say(f"{trainer.data.name}: {trainer.data.origin}")
        else:
            self.say(f"continuing at step {trainer.step}")
        self.say(trainer.explanation)
        if trainer.out is not None:
            self.say(f"writing to {trainer.out}")

    def chunk(self, trainer: Trainer, statistics: Tensor) -> None:
        """Move the bar, or say a line if the last is some seconds old."""
        if self._has_bar():
            beside = None
            if trainer.logged:
                last = trainer.log.last
                beside = f"D={last['d_loss']:.3f}, G={last['g_loss']:.3f}"
            self._move(trainer.step, trainer.target, beside)
        elif trainer.logged and self._is_time():
            self.say(self._line(trainer))

    @staticmethod
    def _line(trainer: Trainer) -> str:
        s = trainer.state
        left = ""
        if s.target is not None:
            left = f"/{s.target}, {(s.target - s.step) * s.ms_per_step / 1e3:.0f} s left"
        return (
            f"step {s.step}{left}, epoch {s.epoch}, D loss {s.d_loss:.4f}, "
            f"G loss {s.g_loss:.4f}, {s.ms_per_step:.2f} ms/step"
        )

    def end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Close the bar and say where things are."""
        self._close()
        if error is not None:
            return
        s = trainer.state
        if s.step == self._first:
            self.say(
                f"nothing left to do: the run has {s.step} steps (epoch {s.epoch}), and limits are "
                f"totals of the whole run; give steps= above {s.step} to go on"
            )
            return
        where = "" if trainer.out is None else f"; look at {trainer.out}"
        how = f"stopped by {trainer.stopped}" if trainer.stopped else "done"
        self.say(
            f"{how}: step {s.step}, epoch {s.epoch}, D loss {s.d_loss:.4f}, G loss {s.g_loss:.4f}, "
            f"{s.ms_per_step:.2f} ms/step{where}"
        )


def of_a_run(own: Sequence[Callback], console: str) -> list[Callback]:
    """The callbacks that are called in a run, in order: a user's own, and those of every run.

    One of the user's that is a Console, Samples or Checkpoints stands in the place of ours.
    """
    always = (Samples(), Checkpoints())
    ours = [one for one in always if not any(isinstance(c, type(one)) for c in own)]
    shown = [] if any(isinstance(c, Console) for c in own) else [Console(console)]
    return [*shown, *own, *ours]


def names_of(callbacks: Sequence[Callback]) -> list[str]:
    """The keys of their states; a second one of a name gets a number."""
    names: list[str] = []
    for callback in callbacks:
        base = callback.name or type(callback).__name__
        name, n = base, 1
        while name in names:
            n += 1
            name = f"{base}-{n}"
        names.append(name)
    return names


def check(given: Any) -> tuple[Callback, ...]:
    """The user's callbacks, as a tuple; TypeError if one is none."""
    several = isinstance(given, (list, tuple))
    callbacks = tuple(given) if several else () if given is None else (given,)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            hint = "; make an instance of it" if isinstance(callback, type) else ""
            raise TypeError(
                f"callbacks holds {callback!r}; expected instances of fastgan.Callback{hint}"
            )
    return callbacks
