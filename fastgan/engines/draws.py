"""Where the batches and random numbers of a step come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastgan import conditions, ops, random
from fastgan.data.batch import Batch, map_condition, tensors_of

if TYPE_CHECKING:
    from fastgan.nn import LinearLeakyReLU
    from fastgan.problem import Problem

PENALTY_STREAM = 6
"""The stream of a penalty's draws, beside those of `random.Stream`."""
AROUND_STREAM = 13
"""The stream of points around real samples."""
CONDITION_STREAM = 16
"""The first of the streams of conditions drawn for fake samples, one for each player."""
METHOD_STREAM = 1 << 28
"""The first of the streams of what a method draws itself."""
AUGMENT_STREAM = 1 << 29
"""The first of the streams of what D's inputs go through, one for each pass."""


class Counter(NamedTuple):
    """The number that an update's draws go by, as a function of the step t.

    It is t * multiplier + offset.
    """

    multiplier: int
    offset: int


class Draws(ABC):
    """Batches, noise and dropout masks: those of the whole batch, of which a rank has its rows.

    Attributes:
        part: whose rows they are: this rank's, or those of a part of them.
        memory_format: of images.
    """

    memory_format = torch.preserve_format

    def __init__(self, problem: Problem):
        """For one problem."""
        self.problem = problem
        self.part = problem.world
        self._step = 0
        self._last = Batch(torch.empty(0, device="cpu")), 0
        """This rank's rows of the last batch, and how many all ranks have."""
        self._conditions: Any = None
        """Those of the last batch, of all ranks, once they were asked for."""

    @property
    def host_step(self) -> int:
        """The step, as a number of the host."""
        return self._step

    def rows(self, size: int) -> range:
        """The rows of a batch that the part at hand has."""
        return self.part.rows(size)

    def batch(self, counter: Counter, size: int) -> Batch:
        """The samples of an update of D and their conditions, this rank's rows of `size`."""
        self.part = self.problem.world
        own = self._batch(counter, size)
        self._last, self._conditions = (own, size), None
        return own

    def of_part(self, batch: Batch, size: int) -> Batch:
        """The rows of this rank's batch that the part at hand has."""
        rows, own = self.rows(size), self.problem.world.rows(size)
        if rows == own:
            return batch
        first, last = rows.start - own.start, rows.stop - own.start
        return Batch(*map_condition(lambda t: t[first:last], batch))

    def normal(self, stream: int, counter: Counter, shape: tuple[int, ...]) -> Tensor:
        """As random.normal, the rows of the part at hand."""
        return self._own(self._normal(stream, counter, shape), shape[0])

    def conditions(self, stream: int, counter: Counter, size: int) -> Any:
        """Conditions of samples drawn at random, the part's rows of `size`.

        They are drawn from those of the last batch where those of all samples are not in memory.

        Args:
            stream: of the draw.
            counter: its number.
            size: rows of the whole batch.
        """
        data = self.problem.data
        source = data.condition if data.resident else self._of_last_batch()
        count = len(next(tensors_of(source)))
        place = torch.special.ndtr(self.normal(stream, counter, (size,)))
        return conditions.taken(source, (place * count).long().clamp_max(count - 1))

    def _of_last_batch(self) -> Any:
        """The conditions of the last batch, of all ranks, which all come here together."""
        if self._conditions is None:
            (own, size), world = self._last, self.problem.world
            self._conditions = own.condition
            if world.size > 1:
                self._conditions = map_condition(lambda t: world.whole(t, size), own.condition)
        return self._conditions

    def drop(self, x: Tensor, stream: int, counter: Counter, p: float, start: int) -> Tensor:
        """Dropout by elements start, start + 1, ... of random.keep_mask, out of place."""
        keep = self._kept(stream, counter, start + x.numel(), p)
        return x * keep[start:].view(x.shape).to(x.dtype) * random.keep_scale(p)

    def drop_after(
        self, layer: LinearLeakyReLU, x: Tensor, stream: int, counter: Counter, p: float, start: int
    ) -> Tensor:
        """The same of what a layer makes of x."""
        return self.drop(layer(x), stream, counter, p, start)

    @abstractmethod
    def _batch(self, counter: Counter, size: int) -> Batch:
        """This rank's rows."""

    @abstractmethod
    def _normal(self, stream: int, counter: Counter, shape: tuple[int, ...]) -> Tensor: ...

    @abstractmethod
    def _kept(self, stream: int, counter: Counter, n: int, p: float) -> Tensor:
        """Which of n elements dropout keeps."""

    def _own(self, whole: Tensor, size: int) -> Tensor:
        rows = self.rows(size)
        return whole if len(rows) == size else whole[rows.start : rows.stop]


class HostDraws(Draws):
    """Draws by a step that the host counts, in `step`."""

    @property
    def step(self) -> int:
        """The step that the next draws are for."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step

    def _kept(self, stream: int, counter: Counter, n: int, p: float) -> Tensor:
        where = self.problem.seed, stream, self._at(counter)
        return random.keep_mask(*where, n, p, device=self.problem.device)

    def _at(self, counter: Counter) -> int:
        return self.step * counter.multiplier + counter.offset

    def _batch(self, counter: Counter, size: int) -> Batch:
        world = self.problem.world
        found = batch_of(self.problem, self._at(counter), world.rows if world.size > 1 else None)
        return found if self.problem.uses_conditions else Batch(found.images)

    def _normal(self, stream: int, counter: Counter, shape: tuple[int, ...]) -> Tensor:
        p = self.problem
        return random.normal(p.seed, stream, self._at(counter), shape, device=p.device)


class DeviceDraws(Draws):
    """Draws by a step that the device counts, for one process."""

    def __init__(self, problem: Problem, counter: Tensor, most: int):
        """Make the buffers.

        Args:
            problem: whose batches.
            counter: int64 [1] on the device, the step.
            most: steps that one replay may do.
        """
        super().__init__(problem)
        self.asked = False
        p, self._counter = problem, counter
        self._per_epoch = p.batches_per_epoch
        d = next((w for w in p.discriminator.parameters() if w.dim() == 4), None)
        last = d is not None and d.is_contiguous(memory_format=torch.channels_last)
        last &= len(p.data.shape) == 3
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        if p.data.resident:
            self._samples = p.data.samples.contiguous()
            # As many epochs' orders as one replay can reach into, one after another.
            self._epochs: list[int | None] = [None] * (most * p.d_steps // self._per_epoch + 2)
            self._order = torch.zeros(
                len(self._epochs),
                self._per_epoch * p.batch_size,
                dtype=torch.int64,
                device=p.device,
            )
        else:
            self._fed = [p.data.blank(p.batch_size) for _ in range(p.d_steps)]

    @property
    def host_step(self) -> int:
        """The step, as a number of the host: whoever asks is not to be replayed."""
        self.asked = True
        return self._step

    def begin(self, step: int) -> None:
        """The next draws are for this step."""
        self._step = step

    def next(self) -> None:
        """The next draws are for the next step."""
        self._step += 1

    def prepare(self, step: int, count: int) -> None:
        """Lay the samples or their order ready for so many steps."""
        p = self.problem
        first, last = step * p.d_steps, (step + count) * p.d_steps - 1
        if not p.data.resident:
            for k, update in enumerate(range(first, last + 1)):
                batch = batch_of(p, update)
                map_condition(lambda to, part: to[: len(part)].copy_(part), self._fed[k], batch)
            return
        for epoch in range(first // self._per_epoch, last // self._per_epoch + 1):
            row = epoch % len(self._epochs)
            if self._epochs[row] != epoch:
                order = random.permutation(p.seed, epoch, len(p.data), device=p.device)
                order = order[: self._order.shape[1]]
                self._order[row, : len(order)] = order
                self._epochs[row] = epoch

    def drop(self, x: Tensor, stream: int, counter: Counter, p: float, start: int) -> Tensor:
        """See `Draws.drop`."""
        return ops.dropout_at(x, p, self.problem.seed, stream, self._counter, *counter, start=start)

    def drop_after(
        self, layer: LinearLeakyReLU, x: Tensor, stream: int, counter: Counter, p: float, start: int
    ) -> Tensor:
        """See `Draws.drop_after`."""
        parts = layer.weight, layer.bias, layer.negative_slope
        where = self.problem.seed, stream, self._counter, *counter
        return ops.linear_leaky_relu_dropout_at(x, *parts, p, *where, start=start)

    def _batch(self, counter: Counter, size: int) -> Batch:
        p = self.problem
        if not p.data.resident:
            return Batch(*map_condition(lambda part: part[:size], self._fed[counter.offset]))
        out = torch.empty(
            (size, *p.data.shape),
            dtype=torch.float32,
            device=p.device,
            memory_format=self.memory_format,
        )
        batches = self._per_epoch * len(self._epochs)
        ops.gather_normalize(
            self._samples,
            self._order.view(-1),
            self._counter,
            multiplier=counter.multiplier,
            offset=counter.offset,
            batch=p.batch_size,
            batches_per_epoch=batches,
            out=out,
        )
        if not p.uses_conditions:
            return Batch(out)
        update = self._counter * counter.multiplier + counter.offset
        first = update.remainder(batches) * p.batch_size
        rows = self._order.view(-1)[first + torch.arange(size, device=p.device)]
        return Batch(out, conditions.taken(p.data.condition, rows))

    def _normal(self, stream: int, counter: Counter, shape: tuple[int, ...]) -> Tensor:
        p = self.problem
        out = torch.empty(shape, dtype=torch.float32, device=p.device)
        ops.philox_normal_at(out, p.seed, stream, self._counter, *counter)
        return out

    def _kept(self, stream: int, counter: Counter, n: int, p: float) -> Tensor:
        out = torch.empty(n, dtype=torch.bool, device=self.problem.device)
        return ops.keep_mask_at(out, self.problem.seed, stream, self._counter, *counter, p)


def batch_of(problem: Problem, update: int, rows: Callable[[int], range] | None = None) -> Batch:
    """The samples of D's update of that number, and what came with them; with `rows` some."""
    p = problem
    return p.data.batch(p.seed, update, p.batch_size, p.drop_last, rows)
