"""The order of the samples: a function of (seed, update), so a run continues from any update."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import random
from .errors import DataError, whole
from .stream import Key


class Order:
    """Batches of a data set of `count` samples; each epoch is a permutation of its own."""

    def __init__(self, count: int):
        """Count is the number of samples, at least 1."""
        self.count = count
        self._epochs: dict[str, tuple[tuple[int, int, torch.device], Tensor]] = {}

    def batches_per_epoch(self, batch_size: int, drop_last: bool = False) -> int:
        """ceil(count / batch_size), or with drop_last floor(count / batch_size), at least 1."""
        batch_size = whole(batch_size, "batch_size", 1)
        if not drop_last:
            return -(-self.count // batch_size)
        if batch_size > self.count:
            raise DataError(
                f"drop_last with batch_size={batch_size} leaves no batch of {self.count} samples; "
                f"make batch_size at most {self.count}, or leave drop_last out"
            )
        return self.count // batch_size

    def indices(
        self, seed: int, update: int, batch_size: int, drop_last: bool, device: torch.device
    ) -> Tensor:
        """int64 [b]: the samples of the update-th batch (counted from 0 over all epochs)."""
        epoch, span = self._place(update, batch_size, drop_last)
        return self._of_epoch("order", seed, epoch, device)[span]

    def keys(
        self,
        seed: int,
        update: int,
        batch_size: int,
        drop_last: bool,
        seeded: bool,
        rows: Callable[[int], range] | None = None,
    ) -> Iterator[Key]:
        """The batches from `update` on, without end; if seeded, with a seed for each sample.

        With `rows`, only those of a batch of a size; where it has none, the first all the same.
        """
        cpu = torch.device("cpu")
        while True:
            epoch, span = self._place(update, batch_size, drop_last)
            indices = self._of_epoch("order", seed, epoch, cpu)[span]
            if rows is not None:
                indices = own_rows(indices, rows) if rows(len(indices)) else indices[:1]
            seeds = self._of_epoch("seeds", seed, epoch, cpu)[indices].tolist() if seeded else None
            yield indices.tolist(), seeds
            update += 1

    def _place(self, update: int, batch_size: int, drop_last: bool) -> tuple[int, slice]:
        per_epoch = self.batches_per_epoch(batch_size, drop_last)
        epoch, position = divmod(whole(update, "update", 0), per_epoch)
        start = position * int(batch_size)
        return epoch, slice(start, start + int(batch_size))

    def _of_epoch(self, kind: str, seed: int, epoch: int, device: torch.device) -> Tensor:
        # only the current epoch is kept: the order of 60,000 images takes longer to draw than a
        # whole step
        place = (seed, epoch, device)
        kept = self._epochs.get(kind)
        if kept is None or kept[0] != place:
            if kind == "order":
                drawn = random.permutation(seed, epoch, self.count, device=device)
            else:
                drawn = random.words(seed, random.Stream.AUGMENT, epoch, self.count, device=device)
            kept = self._epochs[kind] = (place, drawn)
        return kept[1]


def own_rows(part: Tensor, rows: Callable[[int], range] | None) -> Tensor:
    """Of a whole batch's tensor those rows that a function of their number names; None: all."""
    if rows is None:
        return part
    own = rows(len(part))
    return part[own.start : own.stop]
