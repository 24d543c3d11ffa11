"""The processes that train one pair together, as the training step sees them.

A step's batch, noise and masks are those of the whole batch, whatever the number of processes;
each process (a rank) takes its own rows of them. Its loss, a mean over its rows, is weighted by its
share of the batch, and gradients are summed over the ranks before they are used. So a run has one
course, whatever the number of ranks, up to the rounding of sums.

The ranks are those of torch.distributed: of a process group that the program has made, or of the
one that a launcher's environment (torchrun, accelerate) describes, which is then made here: gloo
between CPUs, NCCL between GPUs.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets."""


class RankLostError(RuntimeError):
    """Another process of the run has ended, or cannot be reached any more."""


@dataclass(frozen=True)
class World:
    """Which of how many ranks this process is. Default: the only one."""

    rank: int = 0
    size: int = 1

    def __post_init__(self):
        """Refuse what is no place in a world."""
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank is {self.rank} of {self.size}; expected 0 <= rank < size")

    @classmethod
    def here(cls) -> World:
        """That of this process; joins the process group that a launcher has prepared.

        Raises:
            RankLostError: the others did not come.
        """
        if "torch.distributed" in sys.modules and _ready():
            there = cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
            if there.size > 1 and torch.distributed.get_backend() == "gloo":
                _leave_at_exit()
            return there
        if any(name not in os.environ for name in ENVIRONMENT):
            return cls()
        if int(os.environ["WORLD_SIZE"]) == 1:
            return cls()
        from torch import distributed

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with _told(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])):
            distributed.init_process_group(backend)
        _leave_at_exit()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """The GPU that a launcher means for this rank."""
        return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank))}"

    def rows(self, batch: int) -> range:
        """The rows of a batch of that size that are this rank's: contiguous, nearly equal parts."""
        return range(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def share(self, batch: int) -> float:
        """This rank's part of a batch of that size."""
        return len(self.rows(batch)) / batch

    def parts(self, batch: int, most: int) -> list[World]:
        """What passes through the networks one after the other: at most so many parts.

        Each is as the ranks of a larger world, whose rows together are this rank's. None is
        without rows, if this rank is not.
        """
        count = max(1, min(most, batch // self.size))
        if count == 1:
            return [self]
        return [World(self.rank * count + i, self.size * count) for i in range(count)]

    def total_(self, tensors: Sequence[Tensor], batch: int) -> None:
        """Sums over the ranks of what each has computed from its rows of a batch, in place.

        Every rank calls this with tensors of the same shapes in the same order. A rank without rows
        counts for nothing, whatever its tensors hold. With one rank nothing is done. Tensors of one
        dtype travel as one.
        """
        if self.size == 1:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            some = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in some])
            # What is computed from no rows is not a number.
            self.sum_(flat if self.share(batch) else flat.zero_())
            for t, part in zip(some, flat.split([t.numel() for t in some]), strict=True):
                t.copy_(part.view_as(t))

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            with _told(self.rank, self.size):
                torch.distributed.all_reduce(tensor)
        return tensor

    def means(self, mine: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        """Means over the ranks, by their rows of a batch, of numbers that any of them may have.

        Every rank calls this; a number that only some have is the mean over those.
        """
        if self.size == 1:
            return dict(mine)
        told: list = [None] * self.size
        with _told(self.rank, self.size):
            own = {name: float(value) for name, value in mine.items()}
            torch.distributed.all_gather_object(told, (self.share(batch), own))
        told = [(share, own) for share, own in told if share]
        out = {}
        for name in dict.fromkeys(name for _, own in told for name in own):
            parts = [(share, own[name]) for share, own in told if name in own]
            total = sum(share * value for share, value in parts)
            out[name] = torch.tensor(total / sum(share for share, _ in parts), device="cpu")
        return out

    def placed(self, mine: Tensor, batch: int) -> Tensor:
        """This rank's rows of a batch of that size, among zeros for those of the others."""
        rows, rest = self.rows(batch), mine.shape[1:]
        before = mine.new_zeros((rows.start, *rest))
        return torch.cat([before, mine, mine.new_zeros((batch - rows.stop, *rest))])

    def whole(self, mine: Tensor, batch: int) -> Tensor:
        """All rows of a batch of that size, of which each rank has its own."""
        kind = torch.uint8 if mine.dtype == torch.bool else mine.dtype
        return self.sum_(self.placed(mine.to(kind), batch)).to(mine.dtype)

    def gather_(self, rows: Tensor) -> Tensor:
        """Every rank's row of a contiguous [size, ...], of which each has its own; in place."""
        if self.size > 1:
            with _told(self.rank, self.size):
                torch.distributed.all_gather(list(rows.unbind()), rows[self.rank].clone())
        return rows

    def spread_(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank what the first has, in place."""
        if self.size > 1:
            for t in tensors:
                with _told(self.rank, self.size):
                    torch.distributed.broadcast(t.detach(), 0)

    def joined(self, mine: Sequence[Any]) -> list[Any]:
        """What the ranks have made in turn, in the order in which one rank would have made it.

        Args:
            mine: this rank's: of all items those with the numbers rank, rank + size, and so on.
                Tensors travel by way of the CPU, and keep no gradient.
        """
        if self.size == 1:
            return list(mine)
        of_all: list[list[Any]] = [[] for _ in range(self.size)]
        with _told(self.rank, self.size):
            torch.distributed.all_gather_object(of_all, list(mine))
        count = sum(map(len, of_all))
        return [of_all[i % self.size][i // self.size] for i in range(count)]

    @contextmanager
    def named(self):
        """An error of the network, from sums that torch does by itself, is one of ours."""
        try:
            yield
        except RankLostError:
            raise
        except RuntimeError as error:
            if not _of_network(error):
                raise
            raise _lost(self.rank, self.size, error) from error

    def meet(self) -> None:
        """Go on when all ranks have come here."""
        if self.size > 1:
            self.sum_(torch.zeros(1, device=_meeting()))

    def first(self, number: int) -> int:
        """The first rank's number, below 2**63 in size."""
        if self.size == 1:
            return number
        told = torch.tensor([number if self.leads else 0], dtype=torch.int64, device=_meeting())
        return int(self.sum_(told))

    def agree(self, number: int, stop: bool) -> tuple[int, bool]:
        """The first rank's number, and whether any rank wants to stop."""
        if self.size == 1:
            return number, stop
        told = torch.tensor([number if self.leads else 0, stop], device=_meeting())
        number, stops = self.sum_(told).tolist()
        return number, stops > 0


def leave() -> None:
    """Leave the process group, if this program is in one."""
    if "torch.distributed" in sys.modules and _ready():
        with suppress(RuntimeError):
            torch.distributed.destroy_process_group()


@cache
def _leave_at_exit() -> None:
    """Leave the process group when the program ends, if it has not done so itself.

    Gloo's threads of a group that is left standing may end the process by abort() when it exits
    (pytorch#190489): the run is done and saved, and its launcher reports a failure.
    """
    atexit.register(_leave_in_peace)


def _leave_in_peace() -> None:
    leave()
    # What still holds the group, as divided networks do, holds its threads. To let go of the
    # tensors of the last sum they need the interpreter, which is about to end.
    time.sleep(0.1)


def _ready() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _meeting() -> torch.device:
    """Where tensors must lie to travel."""
    backend = torch.distributed.get_backend()
    return torch.device("cuda" if backend == "nccl" else "cpu")


@contextmanager
def _told(rank: int, size: int):
    """An error of the network is one of ours."""
    try:
        yield
    except RuntimeError as error:
        raise _lost(rank, size, error) from error


def _of_network(error: RuntimeError) -> bool:
    return "gloo/transport" in str(error) or (
        "torch.distributed" in sys.modules and isinstance(error, torch.distributed.DistError)
    )


def _lost(rank: int, size: int, error: RuntimeError) -> RankLostError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RankLostError(
        f"rank {rank} of {size} has lost another one ({first}); this run cannot go on, and can be "
        "resumed from its last checkpoint by any number of ranks"
    )
