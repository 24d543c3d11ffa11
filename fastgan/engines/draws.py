"""Where the batches and random numbers of a step come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastgan import ops, random

if TYPE_CHECKING:
    from fastgan.nn import LinearLeakyReLU
    from fastgan.problem import Problem

PENALTY_STREAM = 6
"""The stream of a penalty's draws, beside those of `random.Stream`."""


class Counter(NamedTuple):
    """The number that an update's draws go by, as a function of the step t.

    It is t * multiplier + offset.
    """

    multiplier: int
    offset: int


class Draws(ABC):
    """Batches, noise and dropout masks: those of the whole batch, of which a rank has its rows."""

    def __init__(self, problem: Problem):
        """For one problem."""
        self.problem = problem

    def rows(self, size: int) -> range:
        """This rank's rows of a batch."""
        return self.problem.world.rows(size)

    def batch(self, counter: Counter, size: int) -> Tensor:
        """The samples of an update of D, this rank's rows of [size, *shape]."""
        return self._own(self._batch(counter, size), size)

    def normal(self, stream: int, counter: Counter, shape: tuple[int, ...]) -> Tensor:
        """As random.normal, this rank's rows."""
        return self._own(self._normal(stream, counter, shape), shape[0])

    @abstractmethod
    def drop(self, x: Tensor, stream: int, counter: Counter, p: float, start: int) -> Tensor:
        """Dropout by elements start, start + 1, ... of random.keep_mask, out of place."""

    def drop_after(
        self, layer: LinearLeakyReLU, x: Tensor, stream: int, counter: Counter, p: float, start: int
    ) -> Tensor:
        """The same of what a layer makes of x."""
        return self.drop(layer(x), stream, counter, p, start)

    @abstractmethod
    def _batch(self, counter: Counter, size: int) -> Tensor: ...

    @abstractmethod
    def _normal(self, stream: int, counter: Counter, shape: tuple[int, ...]) -> Tensor: ...

    def _own(self, whole: Tensor, size: int) -> Tensor:
        rows = self.rows(size)
        return whole if len(rows) == size else whole[rows.start : rows.stop]


class HostDraws(Draws):
    """Draws by a step that the host counts, in `step`."""

    def __init__(self, problem: Problem):
        """From step 0."""
        super().__init__(problem)
        self.step = 0

    def drop(self, x: Tensor, stream: int, counter: Counter, p: float, start: int) -> Tensor:
        """See `Draws.drop`."""
        n, seed = start + x.numel(), self.problem.seed
        keep = random.keep_mask(seed, stream, self._at(counter), n, p, device=x.device)
        return x * keep[start:].view(x.shape).to(x.dtype) * random.keep_scale(p)

    def _at(self, counter: Counter) -> int:
        return self.step * counter.multiplier + counter.offset

    def _batch(self, counter: Counter, size: int) -> Tensor:
        return images_of(self.problem, self._at(counter))

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
        p, self._counter = problem, counter
        self._per_epoch = p.batches_per_epoch
        d = next((w for w in p.discriminator.parameters() if w.dim() == 4), None)
        last = d is not None and d.is_contiguous(memory_format=torch.channels_last)
        last &= len(p.data.shape) == 3
        self._format = torch.channels_last if last else torch.contiguous_format
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
            size = (p.batch_size, *p.data.shape)
            self._fed = [
                torch.empty(size, dtype=torch.float32, device=p.device) for _ in range(p.d_steps)
            ]

    def prepare(self, step: int, count: int) -> None:
        """Lay the samples or their order ready for so many steps."""
        p = self.problem
        first, last = step * p.d_steps, (step + count) * p.d_steps - 1
        if not p.data.resident:
            for k, update in enumerate(range(first, last + 1)):
                images = images_of(p, update)
                self._fed[k][: len(images)].copy_(images)
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

    def _batch(self, counter: Counter, size: int) -> Tensor:
        p = self.problem
        if not p.data.resident:
            return self._fed[counter.offset][:size]
        out = torch.empty(
            (size, *p.data.shape),
            dtype=torch.float32,
            device=p.device,
            memory_format=self._format,
        )
        return ops.gather_normalize(
            self._samples,
            self._order.view(-1),
            self._counter,
            multiplier=counter.multiplier,
            offset=counter.offset,
            batch=p.batch_size,
            batches_per_epoch=self._per_epoch * len(self._epochs),
            out=out,
        )

    def _normal(self, stream: int, counter: Counter, shape: tuple[int, ...]) -> Tensor:
        p = self.problem
        out = torch.empty(shape, dtype=torch.float32, device=p.device)
        ops.philox_normal_at(out, p.seed, stream, self._counter, *counter)
        return out


def images_of(problem: Problem, update: int) -> Tensor:
    """The samples of D's update of that number; what came with them has no place in a step yet."""
    p = problem
    return p.data.batch(p.seed, update, p.batch_size, p.drop_last).images
