"""The graph engine: whole steps of any two modules, recorded once on a CUDA device and replayed.

At small sizes a step is a hundred launches of a few microseconds each, and the device waits for the
host between them. A replayed CUDA graph has no host in it: batches, latents, masks, learning rates
and losses are found by a counter on the device, which the last operation of a step moves on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgan import ops, random, statistics
from fastgan.engines.base import CannotRun, Engine, learning_rate_factor
from fastgan.engines.capture import CudaRecorder, Watch, Work
from fastgan.engines.device_updates import device_update, send
from fastgan.engines.device_updates import unsupported as no_update
from fastgan.engines.step import Counter, Draws, Step, StepShape, shape_of
from fastgan.nn import LinearLeakyReLU

if TYPE_CHECKING:
    from fastgan.problem import Problem

logger = logging.getLogger("fastgan")

CHUNK = 8
"""Steps in the longer of the two kinds of recording: one launch for all of them."""
RING = 1024
"""Steps whose losses and learning rates the device holds at a time."""
MOST_CHUNKS = 16
"""Recordings of chunks that are kept; what comes after goes step by step."""


class GraphEngine(Engine):
    """Runs any pair of modules on CUDA by replaying graphs of whole steps.

    The modules must do the same work in every pass: no value that the host reads from the device,
    no choice that changes with it. A parameter, option or mode (train, eval, requires_grad) that
    the user changes between two runs is noticed; a forward that is replaced, and the state of a
    module that is neither parameter nor buffer, are not. Python's hooks run while recording only.
    """

    name = "graph"

    def __init__(self, problem: Problem, recorder: CudaRecorder | None = None):
        """Warm up and record the first step, leaving no trace of it.

        `recorder` is what captures; by default CUDA graphs on the problem's device.

        Raises:
            CannotRun: a step cannot be recorded; the message names the operation and the module.
        """
        super().__init__(problem)
        self._recorder = recorder or CudaRecorder(problem.device, _generators(problem))
        with self._recorder.here():
            self._restart()
            self._begin()
            try:
                kinds = (shape_of(problem, 0),)
                self._body.prepare(0, kinds)
                recording = self._record(kinds)
                if self._settled():
                    self._graphs[kinds] = recording
            finally:
                self._end(0)
            # Step 0 was prepared and not done.
            self._body.count_from(0)
        self._key = self._current_key()

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """The reason why the problem cannot be replayed, as far as it shows without trying."""
        p = problem
        if p.device.type != "cuda":
            return f"it replays CUDA graphs, and the device is {p.device}"
        for name in ("optimizer_d", "optimizer_g"):
            if reason := no_update(getattr(p, name), p.scalers is not None):
                return f"{name}: {reason}"
        return None

    def describe(self) -> str:
        """One line that says which path is taken."""
        how = f"graphs of 1 and {CHUNK} steps" if self.problem.data.resident else "a graph a step"
        return ", ".join([f"whole steps replayed as CUDA {how}", *self._body.step.describe()])

    def run(self, n: int) -> Tensor:
        """Do n steps; see `Engine.run`. With precision fp16 the end of a run waits for the device.

        A kind of step that cannot be recorded although the first could (an epoch's last batch, for
        instance) is done operation by operation, which a warning says once.
        """
        if n < 0:
            raise ValueError(f"n is {n}; expected a number of steps, 0 or more")
        losses = statistics.table(n, self.problem.device)
        with self._recorder.here():
            if renewed := self._key != self._current_key():
                self._restart()
            renewed |= not self._settled()
            first = self.step
            self._begin()
            try:
                while (done := self.step - first) < n:
                    # Neither losses nor rates may come round to where a later step's are.
                    count = min(n - done, RING - self.step % RING)
                    at = self.step % RING
                    self._body.schedule(self.step, count)
                    self._advance(count)
                    losses[done : done + count] = self._body.losses[at : at + count]
            except BaseException:
                # A step may have stopped half way: begin again from what the user sees.
                self._key = None
                raise
            finally:
                self._end(self.step - first)
        if renewed:
            self._key = self._current_key()
        return losses

    def close(self) -> None:
        """Give recordings and buffers back; another run makes them again."""
        self._graphs.clear()
        self._body = self._key = None

    # --- between two runs ------------------------------------------------------------------------

    def _restart(self) -> None:
        """New buffers and no recordings."""
        self._graphs: dict[tuple[StepShape, ...], Work] = {}
        self._seen: set[tuple[StepShape, ...]] = set()
        self._unrecordable: set[StepShape] = set()
        self._together = CHUNK if self.problem.data.resident else 1
        self._body = Body(self.problem)

    def _settled(self) -> bool:
        """Whether the optimisers have their state: some make it in their first step only."""
        return all(update.ready for update in self._body.updates)

    def _begin(self) -> None:
        for update in self._body.updates:
            update.begin()
        self._body.count_from(self.step)

    def _end(self, steps: int) -> None:
        for update, times in zip(self._body.updates, (self.problem.d_steps, 1), strict=True):
            update.end(steps * times)
        if steps:
            # What autograd has saved of these before is out of date now, and must say so.
            torch.autograd.graph.increment_version(self._body.written())

    def _current_key(self) -> tuple | None:
        """All that recordings take for granted."""
        if self._body is None:
            return ()
        p = self.problem
        networks = [m for m in (p.generator, p.discriminator, p.ema) if m is not None]
        modules = [m for network in networks for m in network.modules()]
        return (
            [t.data_ptr() for t in self._body.written()],
            [(w.data_ptr(), w.requires_grad) for m in networks for w in m.parameters()],
            [m.training for m in modules],
            [_numbers(m) for m in modules],
            [update.layout() for update in self._body.updates],
            (p.generator, p.discriminator, p.optimizer_g, p.optimizer_d, p.ema, p.data),
            (p.config, p.precision),
            (p.ema_decay, p.lr_schedule is None, p.scalers),
            None if p.data.samples is None else p.data.samples.data_ptr(),
            # By these names: the older ones raise where a program has used the newer.
            torch.backends.cuda.matmul.fp32_precision,
            (torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision),
            torch.backends.cudnn.deterministic,
        )

    # --- within a run ----------------------------------------------------------------------------

    def _advance(self, count: int) -> None:
        """Replay so many steps."""
        p, body = self.problem, self._body
        last = self.step + count
        while self.step < last:
            n = self._together if last - self.step >= self._together else 1
            kinds = tuple(shape_of(p, t) for t in range(self.step, self.step + n))
            work = self._chunk(kinds) if n > 1 else None
            if work is None:
                kinds = kinds[:1]
            body.prepare(self.step, kinds)
            (work or self._single(kinds))()
            self.step += len(kinds)

    def _single(self, kinds: tuple[StepShape]) -> Work:
        """The recording of a step, or the step itself."""
        if kinds in self._graphs:
            return self._graphs[kinds]
        body = self._body
        if kinds[0] not in self._unrecordable and self._settled():
            try:
                self._graphs[kinds] = self._record(kinds)
                return self._graphs[kinds]
            except CannotRun as reason:
                logger.warning("engine graph: some steps go operation by operation: %s", reason)
                self._unrecordable.add(kinds[0])
                self._forget()
        return lambda: self._recorder.aside(lambda: body.do(kinds))

    def _chunk(self, kinds: tuple[StepShape, ...]) -> Work | None:
        """The recording of several steps; None if they are better done one by one.

        A sequence that has come once may not come again soon (an epoch's last batch is at another
        place in the next epoch), so it is recorded when it comes the second time.
        """
        if kinds in self._graphs:
            return self._graphs[kinds]
        if kinds not in self._seen:
            self._seen.add(kinds)
            return None
        kept = sum(len(key) > 1 for key in self._graphs)
        if kept >= MOST_CHUNKS or any((kind,) not in self._graphs for kind in kinds):
            return None
        body = self._body
        try:
            self._graphs[kinds] = self._recorder.capture(lambda: body.do(kinds))
        except RuntimeError as error:  # memory: each of the steps has been recorded before
            logger.warning("engine graph: %d steps in one recording: %s", len(kinds), error)
            self._together = 1
            self._forget()
            return None
        return self._graphs[kinds]

    def _forget(self) -> None:
        # Where a capture broke off, torch's generators may have got new states, which are not those
        # that earlier recordings draw from.
        self._graphs.clear()

    def _record(self, kinds: tuple[StepShape]) -> Work:
        """Warm up a step that is prepared and record it; nothing is changed by that."""
        p, body, recorder = self.problem, self._body, self._recorder

        def work() -> None:
            body.do(kinds)

        with self._untouched() as buffers:
            recorder.aside(work)
            if name := _replaced(p, buffers):
                raise CannotRun(
                    f"{name}: the buffer is replaced in a pass, which a replay cannot repeat; "
                    "write into it instead, as copy_() does"
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
    def _untouched(self) -> Iterator[list[tuple[nn.Module, str, Tensor]]]:
        """What is done meanwhile leaves no trace: tensors are put back where they lie.

        Yields the buffers: (module, name, tensor).
        """
        p, body = self.problem, self._body
        buffers = [
            (m, name, buffer)
            for network in (p.generator, p.discriminator)
            for m in network.modules()
            for name, buffer in m._buffers.items()
        ]
        tensors = [*body.written(), body.counter]
        kept = [t.detach().clone() for t in tensors]
        stateless = [u.optimizer for u in body.updates if not u.ready]
        generators = [torch.default_generator, *_generators(p)]
        if p.device.type == "cuda":
            generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
        states = [generator.get_state() for generator in generators]
        try:
            yield buffers
        finally:
            for m, name, buffer in buffers:
                m._buffers[name] = buffer
            with torch.no_grad():
                for t, before in zip(tensors, kept, strict=True):
                    t.copy_(before)
            for optimizer in stateless:
                optimizer.state.clear()
            for scaler in p.scalers or ():
                # Of an update that failed half way.
                scaler._per_optimizer_states.clear()
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _numbers(m: nn.Module) -> list:
    """A dropout's probability, a slope, an epsilon: numbers that are part of the operations.

    Of torch's and fastgan's own modules; one of a user's may count its calls, which is no change.
    """
    if type(m).__module__.split(".")[0] not in ("torch", "fastgan"):
        return []
    return [v for v in vars(m).values() if isinstance(v, int | float)]


class Body:
    """Whole steps over static buffers: what a recording records.

    A call depends on no number of the host that changes, so doing it again is doing the next step.

    Attributes:
        counter: int64 [1], steps done.
        losses: float32 [RING, len(STATISTICS)], those of step t in row t % RING.
    """

    def __init__(self, problem: Problem):
        """Make the buffers."""
        p = self.problem = problem
        self.counter = torch.zeros(1, dtype=torch.int64, device=p.device)
        self.losses = torch.zeros(RING, len(statistics.STATISTICS), device=p.device)
        self._counted = 0
        self._factors = None
        if p.lr_schedule is not None:
            self._factors = torch.ones(RING, dtype=torch.float64, device=p.device)
        self._draws = _DeviceDraws(p, self.counter)
        self.updates = [
            device_update(optimizer, scaler, p.device)
            for optimizer, scaler in zip(
                (p.optimizer_d, p.optimizer_g), p.scalers or (None, None), strict=True
            )
        ]
        self.step = Step(p, self._draws, *self.updates, cached=False)

    def do(self, kinds: tuple[StepShape, ...]) -> None:
        """The next steps, which must be of these kinds."""
        with self.step.ready():
            for kind in kinds:
                slot = self.counter % RING
                if self._factors is not None:
                    factor = self._factors.index_select(0, slot)
                    for update in self.updates:
                        update.scale_rates(factor)
                losses = torch.stack(self.step(kind)).float()
                self.losses.index_copy_(0, slot, losses.view(1, -1))
                self.counter.add_(1)

    def count_from(self, step: int) -> None:
        """The next step is this one; `prepare` follows what is done from here."""
        if self._counted != step:
            self.counter.fill_(step)
            self._counted = step

    def schedule(self, step: int, count: int) -> None:
        """Write down the factors of the next steps' rates; no multiple of RING lies among them."""
        if self._factors is not None:
            at = step % RING
            factors = [learning_rate_factor(self.problem, t) for t in range(step, step + count)]
            send(factors, self._factors[at : at + count])

    def prepare(self, step: int, kinds: tuple[StepShape, ...]) -> None:
        """Lay the images or their order ready for the next steps."""
        self._counted = step + len(kinds)
        self._draws.prepare(step, kinds)

    def written(self) -> list[Tensor]:
        """Every tensor that a step writes to and that a user can see."""
        p = self.problem
        return [
            *(t for m in (p.generator, p.discriminator) for t in (*m.parameters(), *m.buffers())),
            *(() if p.ema is None else (*p.ema.parameters(), *p.ema.buffers())),
            *(t for update in self.updates for t in update.tensors()),
        ]


class _DeviceDraws(Draws):
    """Draws by a step that the device counts."""

    def __init__(self, problem: Problem, counter: Tensor):
        p = self.problem = problem
        self._counter = counter
        self._per_epoch = p.batches_per_epoch
        d = next((w for w in p.discriminator.parameters() if w.dim() == 4), None)
        last = d is not None and d.is_contiguous(memory_format=torch.channels_last)
        self._format = torch.channels_last if last else torch.contiguous_format
        if p.data.resident:
            self._pixels = p.data.samples.contiguous()
            # As many epochs' orders as one replay can reach into, one after another.
            self._epochs: list[int | None] = [None] * (CHUNK * p.d_steps // self._per_epoch + 2)
            self._order = torch.zeros(
                len(self._epochs),
                self._per_epoch * p.batch_size,
                dtype=torch.int64,
                device=p.device,
            )
        else:
            self._fed = [
                torch.empty(p.batch_size, *p.data.shape, device=p.device) for _ in range(p.d_steps)
            ]

    def prepare(self, step: int, kinds: tuple[StepShape, ...]) -> None:
        p = self.problem
        first, last = step * p.d_steps, (step + len(kinds)) * p.d_steps - 1
        if not p.data.resident:
            for k, update in enumerate(range(first, last + 1)):
                images = p.data.batch(p.seed, update, p.batch_size, p.drop_last).images
                self._fed[k][: len(images)].copy_(images)
            return
        for epoch in range(first // self._per_epoch, last // self._per_epoch + 1):
            row = epoch % len(self._epochs)
            if self._epochs[row] != epoch:
                order = random.permutation(p.seed, epoch, len(p.data), device=p.device)
                self._order[row, : len(order)] = order
                self._epochs[row] = epoch

    def batch(self, when: Counter, size: int) -> Tensor:
        p = self.problem
        if not p.data.resident:
            return self._fed[when.offset][:size]
        out = torch.empty(size, *p.data.shape, device=p.device, memory_format=self._format)
        return ops.gather_normalize(
            self._pixels,
            self._order.view(-1),
            self._counter,
            multiplier=when.multiplier,
            offset=when.offset,
            batch=p.batch_size,
            batches_per_epoch=self._per_epoch * len(self._epochs),
            out=out,
        )

    def normal(self, stream: int, when: Counter, shape: tuple[int, ...]) -> Tensor:
        p = self.problem
        out = torch.empty(shape, device=p.device)
        ops.philox_normal_at(out, p.seed, stream, self._counter, *when)
        return out

    def drop(self, x: Tensor, stream: int, when: Counter, p: float, start: int) -> Tensor:
        return ops.dropout_at(x, p, self.problem.seed, stream, self._counter, *when, start=start)

    def drop_after(
        self, layer: LinearLeakyReLU, x: Tensor, stream: int, when: Counter, p: float, start: int
    ) -> Tensor:
        parts = layer.weight, layer.bias, layer.negative_slope
        where = self.problem.seed, stream, self._counter, *when
        return ops.linear_leaky_relu_dropout_at(x, *parts, p, *where, start=start)


def _replaced(problem: Problem, buffers: list[tuple[nn.Module, str, Tensor]]) -> str | None:
    """A buffer that is no longer the tensor it was, by its name."""
    replaced = {(m, name) for m, name, buffer in buffers if m._buffers.get(name) is not buffer}
    for label in ("generator", "discriminator"):
        for path, m in getattr(problem, label).named_modules():
            for name in m._buffers:
                if (m, name) in replaced:
                    return ".".join(filter(None, (label, path, name)))
    return None


def _generators(problem: Problem) -> list[torch.Generator]:
    """Generators of their own that the networks hold on a CUDA device."""
    found = {
        id(value): value
        for network in (problem.generator, problem.discriminator)
        for m in network.modules()
        for value in vars(m).values()
        if isinstance(value, torch.Generator) and value.device.type == "cuda"
    }
    return list(found.values())
