"""The conditions of the samples that the fused engine is given, and of those that it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan import conditions, random
from fastgan.engines.draws import CONDITION_STREAM
from fastgan.engines.scores import batch_sizes

if TYPE_CHECKING:
    from fastgan.problem import Problem


class Conditions:
    """What belongs to the samples of a problem, as the operator takes it.

    Attributes:
        entries: numbers that are drawn for a step.
    """

    def __init__(self, problem: Problem, fed: Conditions | None = None):
        """Hold those of all samples, where they are in memory, or those that another was fed."""
        self.problem = p = problem
        self._batch = batch_sizes(p)[0]
        self._updates = p.d_steps + p.g_steps
        self.entries = self._batch * self._updates
        self._drawn = conditions.is_drawn(p.config.fake_condition, p.data.blank(1).condition)
        self._held: Tensor | None = None
        self._sizes: list[int] = []
        if p.data.resident:
            self._held = _flat(p.data.condition)
        elif fed is not None:
            self._held, self._sizes = fed._held, fed._sizes

    def feed(self, step: int, batches: list[Tensor]) -> None:
        """Take this rank's rows of those of a step's batches, of data that are read as needed."""
        p = self.problem
        self._sizes = [self._size(step * p.d_steps + k) for k in range(p.d_steps)]
        if p.world.size > 1:
            # Without a draw no rank asks for the rows of others.
            place = p.world.whole if self._drawn else p.world.placed
            pairs = zip(batches, self._sizes, strict=True)
            batches = [place(_flat(batch), size) for batch, size in pairs]
        self._held = _flat(torch.cat(batches))

    def of_steps(self, first: int, n: int) -> tuple[Tensor, Tensor | None]:
        """Those of all samples or of the fed ones, and which of them the fake samples have.

        Returns:
            int64 [samples] of labels or float32 [samples, numbers]; int64 [n, d_steps + g_steps,
            batch], by the same draws as in the other engines, or None: the real batch's.
        """
        p = self.problem
        if not self._drawn:
            return self._held, None
        drawn = torch.zeros(n, self._updates, self._batch, dtype=torch.int64, device="cpu")
        for i, step in enumerate(range(first, first + n)):
            for k in range(p.d_steps):
                size = self._draw(drawn[i, k], CONDITION_STREAM, step * p.d_steps + k, k)
            for k in range(p.g_steps):
                to, number = drawn[i, p.d_steps + k], step * p.g_steps + k
                self._draw(to, CONDITION_STREAM + 1, number, p.d_steps - 1, size)
        return self._held, drawn

    def _draw(
        self, to: Tensor, stream: int, number: int, batch: int, size: int | None = None
    ) -> int:
        """The rows of one update; how many there are."""
        p = self.problem
        if size is None:
            size = self._size(number)
        count, start = len(self._held), 0
        if self._sizes:
            count, start = self._sizes[batch], sum(self._sizes[:batch])
        place = torch.special.ndtr(random.normal(p.seed, stream, number, (size,)))
        torch.add((place * count).long().clamp_max(count - 1), start, out=to[:size])
        return size

    def _size(self, update: int) -> int:
        """Samples in the batch of an update of D."""
        full, last = batch_sizes(self.problem)
        return last if (update + 1) % self.problem.batches_per_epoch == 0 else full


def _flat(condition: Tensor) -> Tensor:
    """Labels [n], int64, or numbers [n, k]."""
    if condition.is_floating_point():
        return condition.detach().reshape(len(condition), -1).contiguous()
    return condition.detach().reshape(-1).long().contiguous()
