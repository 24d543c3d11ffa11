"""The processes that train one pair together, as the training step sees them.

A step's batch, noise and masks are those of the whole batch, whatever the number of processes;
each process (a rank) takes its own rows of them, and what it computes as a mean over its rows is
averaged over the ranks before it is used, each weighted by its share of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class World:
    """Which of how many ranks this process is. Default: the only one."""

    rank: int = 0
    size: int = 1

    def __post_init__(self):
        """Refuse what is no place in a world."""
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank is {self.rank} of {self.size}; expected 0 <= rank < size")

    def rows(self, batch: int) -> range:
        """The rows of a batch of that size that are this rank's: contiguous, nearly equal parts."""
        return range(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def mean_(self, tensors: Sequence[Tensor], batch: int) -> None:
        """Make means over this rank's rows means over the whole batch, in place.

        Every rank calls this with tensors of the same shapes in the same order. A rank without rows
        counts for nothing, whatever its tensors hold. With one rank nothing is done.

        Args:
            tensors: means over the rows of `rows(batch)`.
            batch: rows of the whole batch.
        """
        if self.size == 1:
            return
        from torch import distributed

        rows = len(self.rows(batch))
        for tensor in tensors:
            if rows:
                tensor.mul_(rows / batch)
            else:
                tensor.zero_()  # a mean over nothing is not a number
            distributed.all_reduce(tensor)
