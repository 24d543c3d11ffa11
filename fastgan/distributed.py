"""The processes that train one pair together, as the training step sees them.

A step's batch, noise and masks are those of the whole batch, whatever the number of processes;
each process (a rank) takes its own rows of them, and gradients are averaged over the ranks before
an optimiser uses them.
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
        """Refuse what is no place in a world; several ranks do not train together yet."""
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank is {self.rank} of {self.size}; expected 0 <= rank < size")

    def rows(self, batch: int) -> range:
        """The rows of a batch of that size that are this rank's: contiguous, nearly equal parts."""
        return range(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks; with one rank they are that already."""
        if self.size > 1:
            import torch.distributed as dist

            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.size)
