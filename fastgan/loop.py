"""One call of `Trainer.fit`: chunks of steps, lines, callbacks, signals, and what an error leaves.

How a run is cut into chunks changes nothing but how soon a signal is heard.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fastgan import engines, resuming
from fastgan.callbacks import Callback, NonFiniteLossError
from fastgan.config import LIMITS, Config, ConfigError, field_of
from fastgan.run import checkpoint
from fastgan.run.signals import Signals

if TYPE_CHECKING:
    from fastgan.trainer import Trainer

logger = logging.getLogger("fastgan")

SETTINGS = {
    name: f"; it is a setting: Trainer(..., {name}=...)"
    for name in Config.__dataclass_fields__
    if name not in LIMITS
}
"""What to say of names that `Trainer.fit` does not take."""

CHUNK_SECONDS = 0.2
"""A chunk of steps should take this long, so that a signal is heard soon."""


@dataclass(frozen=True)
class State:
    """Where a run stands; handed to `until` of `Trainer.fit`."""

    step: int
    """Steps done, counted from the start of the run."""
    epoch: int
    """The epoch of the last step, counted from 1."""
    steps_per_epoch: int
    d_loss: float
    """The discriminator's loss at the last step that was logged; NaN before the first."""
    g_loss: float
    seconds: float
    """Training time of the whole run."""
    ms_per_step: float
    """Milliseconds that a step took on average in this call of `fit`, without all else."""
    target: int | None
    """The step at which the run will end, if `epochs` or `steps` says so."""


def state_of(trainer: Trainer) -> State:
    """Where the run stands."""
    return State(
        step=trainer.step,
        epoch=trainer.epoch,
        steps_per_epoch=trainer.steps_per_epoch,
        d_loss=trainer.log.last["d_loss"],
        g_loss=trainer.log.last["g_loss"],
        seconds=trainer.seconds,
        ms_per_step=trainer.ms_per_step,
        target=trainer.target,
    )


def goal_of(
    trainer: Trainer, given: dict[str, Any], until: Callable | None
) -> tuple[dict[str, Any], int | None]:
    """The limits that hold in a call of `fit`, and the step at which it will end, if they say so.

    Raises:
        ConfigError: a limit is none, or there is none at all, or `fit` is at work.
    """
    if trainer.at_work:
        raise ConfigError(
            "this trainer's fit() is at work, and one at a time can be; a callback ends it by "
            "trainer.stop(why), and learning rates and weights may change while it runs"
        )
    goal = {name: field_of(name).metadata["kind"].take(name, v) for name, v in given.items()}
    if until is None and all(value is None for value in goal.values()):
        goal = trainer.goal
        if all(value is None for value in goal.values()):
            raise ConfigError("say when to stop: fit(epochs=...), steps=, seconds= or until=")
    targets = [] if goal["steps"] is None else [goal["steps"]]
    if goal["epochs"] is not None:
        targets.append(goal["epochs"] * trainer.steps_per_epoch)
    return goal, min(targets, default=None)


class Loop:
    """Trains until a limit, a callback or a signal says stop."""

    def __init__(self, trainer: Trainer, callbacks: Sequence[Callback]):
        """Nothing is done before `run`."""
        self.trainer = trainer
        self.callbacks = callbacks
        self.pace = _Pace()
        self.signals = Signals()

    def run(self) -> dict[str, Any]:
        """Do it; see `Trainer.fit`."""
        t = self.trainer
        before, earlier = t.step, t.seconds
        t.stopped, t.at_work = None, True
        try:
            return self._run(before, earlier)
        finally:
            t.at_work = False

    def _run(self, before: int, earlier: float) -> dict[str, Any]:
        t = self.trainer
        if t.saves:
            # Hours of work must not end in a state that cannot be saved.
            checkpoint.try_state(resuming.state_of(t))
        with ExitStack() as stack:
            if t.out is not None:
                stack.enter_context(t.alone())
            t.new = False
            stack.enter_context(self.signals)
            stack.enter_context(t.random_states.in_use())
            stack.enter_context(t.log.open(t.out, resuming.about(t)))
            error: BaseException | None = None
            try:
                # Divided networks meet in whatever looks at their weights, a save as well.
                with t.world.named():
                    self._tell("start")
                    self._steps(earlier)
                    if not self.signals.received:
                        self._write_line(whole=False)
                    if t.saves:
                        t.save_all()
                    # What the first rank has written is there when any of them goes on.
                    t.world.meet()
            except BaseException as stop:
                error = stop
                if not isinstance(stop, NonFiniteLossError):
                    self._rescue()
                raise
            finally:
                self._end(error)
        if self.signals.received:
            self.signals.deliver(self._stopped_message())
        return {
            "steps": t.step,
            "seconds": round(t.seconds - earlier, 3),
            "ms_per_step": round(self.pace.ms_per_step, 4) if t.step > before else None,
            "engine": t.engine.name,
            "device": str(t.device),
            "precision": t.problem.precision,
            **t.log.last,
            **t.log.measures,
            "out": None if t.out is None else str(t.out),
        }

    def _steps(self, earlier: float) -> None:
        t, began = self.trainer, time.perf_counter()
        while n := self._next():
            ends = t.step + n
            t.engine.measuring = ends % t.config.log_every == 0 or ends == t.target
            since = time.perf_counter()
            engine, statistics = engines.advance(t.engine, n, t.config.engine)
            if engine is not t.engine:
                t.engine, n, t.fell_back = engine, len(statistics), True
                t.explanation = f"engine {engine.name}: {engine.describe()}"
                if not n:
                    continue
            if t.device.type == "cuda":
                torch.cuda.synchronize(t.device)
            self.pace.record(n, time.perf_counter() - since)
            t.seconds = earlier + time.perf_counter() - began
            t.ms_per_step = self.pace.ms_per_step
            t.logged = t.step % t.config.log_every == 0
            t.log.add(statistics)
            if t.logged:
                self._write_line()
            self._tell("chunk", statistics)
        t.seconds = earlier + time.perf_counter() - began
        if self.signals.received:
            t.stopped = self.signals.name

    def _next(self) -> int:
        """How many steps are to be done next, the same for every rank; 0: the run ends here."""
        t = self.trainer
        left = [] if t.target is None else [t.target - t.step]
        if left and left[0] <= 0:
            return 0
        marks = [n for n in (t.config.log_every, t.config.checkpoint_every) if n]
        n = self.pace.chunk(*(every - t.step % every for every in marks), *left)
        over = (t.goal["seconds"] or t.seconds + 1) <= t.seconds
        n, stops = t.world.agree(n, bool(self.signals.received or t.stopped or over))
        if stops and not (over or t.stopped or self.signals.received):
            t.stopped = "another rank"
        return 0 if stops else n

    def _write_line(self, *, whole: bool = True) -> None:
        t = self.trainer
        t.guard.look_at_losses(t)
        line = t.log.line(t.step, t.epoch)
        if line is None:
            return
        line |= {name: float(f"{float(v):.9g}") for name, v in t.engine.logged.items()}
        line |= t.log.measure(t.engine.measured)
        try:
            self._tell("line", line)
        finally:  # a run that is continued after an error does not come by here again
            t.log.write(line, t.seconds, whole=whole)

    def _tell(self, event: str, *what: Any) -> None:
        with self.trainer.random_states.outside():
            for callback in self.callbacks:
                told = getattr(callback, event)
                # Most do nothing at most events, and to note the modes of a large network takes ms.
                if getattr(told, "__func__", None) is getattr(Callback, event):
                    continue
                with self.trainer.modes.kept():
                    told(self.trainer, *what)

    def _end(self, error: BaseException | None) -> None:
        ended = error
        with self.trainer.random_states.outside():
            for callback in self.callbacks:
                try:
                    callback.end(self.trainer, ended)
                except Exception as failed:
                    if ended is None:  # the others have files to close all the same
                        ended = failed
                    else:
                        logger.exception("callback %r failed as well, at the end", callback)
        if ended is not error:
            raise ended

    def _rescue(self) -> None:
        """Save the last whole step before an error goes on its way."""
        t = self.trainer
        if t.engine.unreported is None:
            kept = "nothing was" if t.saved is None else f"step {t.saved_step} is in {t.saved}"
            logger.warning(
                "the error came in the middle of step %d, which cannot be saved; %s",
                t.step + 1,
                kept,
            )
            return
        t.log.add(t.engine.unreported)
        if t.problem.divided:
            last = "there is none" if t.saved_step is None else f"step {t.saved_step} is the last"
            logger.warning(
                "step %d is not saved, as no rank has whole networks, and the others may not have "
                "come here; %s that was saved", t.step, last,
            )  # fmt: skip
            return
        # Of a new run that a callback did not let begin there is nothing to go on with.
        if t.out is None or (t.saved is None and t.step == 0):
            return
        try:
            t.save()
            logger.warning(
                "step %d was saved before the error; to continue: %s",
                t.step,
                resuming.how_to_continue(t),
            )
        except Exception as second:
            logger.warning("step %d could not be saved: %s", t.step, second)

    def _stopped_message(self) -> str:
        t, what = self.trainer, self.signals.name
        if t.out is None:
            return f"stopped by {what} after step {t.step}; nothing was saved (out is None)"
        way = resuming.how_to_continue(t)
        return f"stopped by {what} after step {t.step}; saved. To continue: {way}"


class _Pace:
    """Sizes the next chunk of steps from how long the last ones took, and keeps their average."""

    def __init__(self):
        self.n = 1
        self.steps, self.seconds = 0, 0.0

    def chunk(self, *limits: int) -> int:
        return min(self.n, *limits)

    def record(self, n: int, seconds: float) -> None:
        # The first chunk holds the engine's warm-up and says little, hence the slow growth.
        fitting = int(CHUNK_SECONDS * n / max(seconds, 1e-9))
        self.n = max(1, min(fitting, 8 * self.n))
        self.steps += n
        self.seconds += seconds

    @property
    def ms_per_step(self) -> float:
        return self.seconds / self.steps * 1e3 if self.steps else float("nan")
