"""The graph engine: whole steps of any two modules, recorded once on a CUDA device and replayed.

At small sizes a step is a hundred launches of a few microseconds each, and the device waits for the
host between them. A replayed CUDA graph has no host in it: batches, latents, masks, learning rates
and statistics are found by a counter on the device, which the last operation of a step moves on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan import torch_private
from fastgan.engines.base import CannotRun, Engine
from fastgan.engines.capture import CudaRecorder, Watch, Work
from fastgan.engines.device_step import CHUNK, RING, DeviceStep
from fastgan.engines.device_updates import unsupported as no_update
from fastgan.engines.rehearsal import generators_of, hooked, own_state, untouched
from fastgan.engines.shapes import StepShape, shape_of
from fastgan.engines.snapshot import Snapshot
from fastgan.statistics import measures_of, table

if TYPE_CHECKING:
    from fastgan.problem import Problem

logger = logging.getLogger("fastgan")

MOST_CHUNKS = 16
"""Recordings of chunks that are kept; what comes after goes step by step."""


class GraphEngine(Engine):
    """Runs any pair of modules on CUDA by replaying graphs of whole steps.

    The modules must do the same work in every pass: no value that the host reads from the device,
    no choice that changes with it, no attribute that a pass assigns, no hook. What the user changes
    in modules and optimisers between two runs is noticed (see `Snapshot`).
    """

    name = "graph"
    _device_step = DeviceStep

    def __init__(self, problem: Problem, recorder: CudaRecorder | None = None):
        """Warm up and record the first step, leaving no trace of it.

        `recorder` is what captures; by default CUDA graphs on the problem's device.

        Raises:
            CannotRun: a step cannot be recorded; the message names the operation and the module.
        """
        super().__init__(problem)
        self._recorder = recorder or CudaRecorder(problem.device, generators_of(problem, "cuda"))
        with self._recorder.here():
            self._restart()
            self._begin()
            try:
                self._made_ready()
                shapes = (shape_of(problem, 0),)
                self._body.prepare(0, 1)
                recording = self._record(shapes)
                if self._settled():
                    self._graphs[shapes] = recording
            finally:
                self._end(0)
            # Step 0 was prepared and not done.
            self._body.count_from(0)
        self._seen_last = self._look()

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """The reason why the problem cannot be replayed, as far as it shows without trying."""
        p = problem
        if p.device.type != "cuda":
            return f"it replays CUDA graphs, and the device is {p.device}"
        if p.world.size > 1:
            return f"it trains in one process, and there are {p.world.size}"
        if p.divided:
            return "fully_shard gathers and frees weights within a pass"
        return _unsupported_parts(p)

    def describe(self) -> str:
        """One line that says which path is taken."""
        how = f"graphs of 1 and {CHUNK} steps" if self.problem.data.resident else "a graph a step"
        return ", ".join([f"whole steps replayed as CUDA {how}", *self._body.step.describe()])

    def run(self, n: int) -> Tensor:
        """Do n steps; see `Engine.run`. With precision fp16 the end of a run waits for the device.

        A shape of step that cannot be recorded although the first could (an epoch's last batch, for
        instance) is done operation by operation, which a warning says once.
        """
        if n < 0:
            raise ValueError(f"n is {n}; expected a number of steps, 0 or more")
        statistics = table(n, self.problem.device)
        self.measured, self._measured_step = None, self.step + n - 1 if self.measuring else None
        with self._recorder.here():
            self.unreported = statistics[:0]
            if renewed := self._seen_last is None or self._seen_last.difference() is not None:
                self._restart()
            renewed |= not self._settled()
            first, copied, self._whole = self.step, 0, True
            self._begin()

            def copy() -> None:
                nonlocal copied
                done, at = self.step - first, (first + copied) % RING
                statistics[copied:done] = self._body.statistics[at : at + done - copied]
                copied = done

            try:
                self._made_ready()
                while copied < n:
                    # Neither statistics nor rates may come round to where a later step's are.
                    count = min(n - copied, RING - self.step % RING)
                    self._body.schedule(self.step, count)
                    self._advance(count)
                    copy()
            except BaseException:
                # A step may have stopped half way: begin again from what the user sees.
                self._seen_last = self.unreported = None
                if self._whole:
                    copy()
                    self.unreported = statistics[:copied]
                raise
            finally:
                self._end(self.step - first)
        if renewed:
            self._seen_last = self._look()
        if self.measuring and n:
            self.measured = measures_of(self._body.sums)
        return statistics

    def close(self) -> None:
        """Give recordings and buffers back; another run makes them again."""
        self._forget()
        self._body = self._seen_last = None

    # --- between two runs ------------------------------------------------------------------------

    def _restart(self) -> None:
        """New buffers and no recordings."""
        self._seen_last = None
        if reason := _unsupported_parts(self.problem):
            raise CannotRun(reason)
        self._graphs: dict[tuple[StepShape, ...], Work] = {}
        self._measured: dict[tuple[StepShape, ...], Work] = {}
        self._seen: set[tuple[StepShape, ...]] = set()
        self._unrecordable: set[StepShape] = set()
        self._together = CHUNK if self.problem.data.resident else 1
        self._body = self._device_step(self.problem)
        self.logged = self._body.logged

    def _made_ready(self) -> None:
        """What must be there before a step is recorded."""

    def _settled(self) -> bool:
        """Whether the optimisers have their state: some make it in their first step only."""
        return all(update.ready for update in self._body.updates)

    def _begin(self) -> None:
        for update in self._body.updates:
            update.begin()
        self._body.count_from(self.step)

    def _end(self, steps: int) -> None:
        for update, times in zip(self._body.updates, self._body.times, strict=True):
            update.end(steps * times)
        if steps:
            # What autograd has saved of these before is out of date now, and must say so.
            torch.autograd.graph.increment_version(self._body.written())

    def _look(self) -> Snapshot:
        """All that recordings take for granted."""
        p, body = self.problem, self._body
        return Snapshot(
            {"generator": p.generator, "discriminator": p.discriminator, "ema": p.ema},
            {"optimizer_g": p.optimizer_g, "optimizer_d": p.optimizer_d},
            also=lambda: (
                own_state(p)
                | {
                    "the state of an optimiser": [update.layout() for update in body.updates],
                    "where tensors lie": [t.data_ptr() for t in body.written()],
                    "where the samples lie": (
                        None if p.data.samples is None else p.data.samples.data_ptr()
                    ),
                    # By these names: the older ones raise where a program has used the newer.
                    "the rounding of products": (
                        torch.backends.cuda.matmul.fp32_precision,
                        torch.backends.cudnn.conv.fp32_precision,
                        torch.backends.cudnn.rnn.fp32_precision,
                        torch.backends.cudnn.deterministic,
                    ),
                }
            ),
        )

    # --- within a run ----------------------------------------------------------------------------

    def _advance(self, count: int) -> None:
        """Replay so many steps."""
        p, body = self.problem, self._body
        last = self.step + count
        while self.step < last:
            measured = self.step == self._measured_step
            left = last - self.step - (self._measured_step == last - 1)
            n = self._together if left >= self._together else 1
            shapes = tuple(shape_of(p, t) for t in range(self.step, self.step + n))
            work = self._chunk(shapes) if n > 1 else None
            if work is None:
                shapes = shapes[:1]
            body.prepare(self.step, len(shapes))
            if measured:
                work = self._measuring(shapes)
            self._whole = False
            (work or self._single(shapes))()
            self._whole = True
            self.step += len(shapes)

    def _single(self, shapes: tuple[StepShape]) -> Work:
        """The recording of a step, or the step itself."""
        if shapes in self._graphs:
            return self._graphs[shapes]
        body = self._body
        if shapes[0] not in self._unrecordable and self._settled():
            try:
                self._graphs[shapes] = self._record(shapes)
                return self._graphs[shapes]
            except CannotRun as reason:
                logger.warning("engine graph: some steps go operation by operation: %s", reason)
                self._unrecordable.add(shapes[0])
                self._forget()
        return lambda: self._recorder.aside(lambda: body.do(shapes))

    def _measuring(self, shapes: tuple[StepShape]) -> Work:
        """The recording of a step that is measured, or the step itself.

        One of its own: to measure each step would cost each a few launches.
        """
        self._single(shapes)
        body = self._body

        def work() -> None:
            body.do(shapes, measured=True)

        if shapes in self._graphs and shapes not in self._measured:
            try:
                self._measured[shapes] = self._recorder.capture(work)
            except RuntimeError as error:  # memory: without its measures it has been recorded
                logger.warning("engine graph: a measured step is not recorded: %s", error)
                self._forget()
        if shapes in self._measured:
            return self._measured[shapes]
        return lambda: self._recorder.aside(work)

    def _chunk(self, shapes: tuple[StepShape, ...]) -> Work | None:
        """The recording of several steps; None if they are better done one by one.

        A sequence that has come once may not come again soon (an epoch's last batch is at another
        place in the next epoch), so it is recorded when it comes the second time.
        """
        if shapes in self._graphs:
            return self._graphs[shapes]
        if shapes not in self._seen:
            self._seen.add(shapes)
            return None
        kept = sum(len(key) > 1 for key in self._graphs)
        if kept >= MOST_CHUNKS or any((shape,) not in self._graphs for shape in shapes):
            return None
        body = self._body
        try:
            self._graphs[shapes] = self._recorder.capture(lambda: body.do(shapes))
        except RuntimeError as error:  # memory: each of the steps has been recorded before
            logger.warning("engine graph: %d steps in one recording: %s", len(shapes), error)
            self._together = 1
            self._forget()
            return None
        return self._graphs[shapes]

    def _forget(self) -> None:
        # Where a capture broke off, torch's generators may have got new states, which are not those
        # that earlier recordings draw from.
        self._graphs.clear()
        self._measured.clear()

    def _record(self, shapes: tuple[StepShape]) -> Work:
        """Warm up a step that is prepared and record it; nothing is changed by that."""
        p, body, recorder = self.problem, self._body, self._recorder

        def work() -> None:
            body.do(shapes)

        with self._untouched():
            before = Snapshot(
                {"generator": p.generator, "discriminator": p.discriminator},
                also=lambda: own_state(p),
            )
            body.asked  # noqa: B018 - from here on
            recorder.aside(work)
            if difference := before.difference():
                raise CannotRun(
                    f"{difference} by a pass, which a replay cannot repeat; write into a buffer "
                    "instead, as copy_() does"
                )
            if body.asked:
                raise CannotRun(
                    "the method or a term asks for the number of the step, which a replay cannot "
                    "repeat"
                )
        try:
            with self._untouched():
                recorder.warm_up(work)
            return recorder.capture(work)
        except Exception as error:
            watch = Watch(generator=p.generator, discriminator=p.discriminator)
            try:
                with self._untouched():
                    recorder.provoke(watch.over(work))
            except Exception as again:
                raise CannotRun(watch.told(again)) from error
            raise CannotRun(f"recording failed, and then did not fail again: {error}") from error

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """What is done meanwhile leaves no trace: tensors are put back where they lie."""
        p, body = self.problem, self._body
        stateless = [u.optimizer for u in body.updates if not u.ready]
        try:
            with untouched(p, [*body.written(), body.counter]):
                yield
        finally:
            for optimizer in stateless:
                optimizer.state.clear()
            for scaler in p.scalers or ():
                torch_private.forget_unscaled(scaler)  # of an update that failed half way


def _unsupported_parts(problem: Problem) -> str | None:
    """What of the networks and optimisers cannot be replayed, besides what trying tells."""
    p = problem
    for name in ("d_start", "g_start"):
        if value := getattr(p.config, name):
            return f"{name}={value}: it counts on every step's updating both networks"
    for name in ("optimizer_d", "optimizer_g"):
        if reason := no_update(getattr(p, name), p.scalers is not None):
            return f"{name}: {reason}"
    return hooked(p, "recording")
