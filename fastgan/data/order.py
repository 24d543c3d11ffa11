"""The order of the images: a function of (seed, update), so a run continues from any update."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import random
from .stream import Key


class Order:
    """Batches of a data set of `count` images; each epoch is a permutation of its own."""

    def __init__(self, count: int):
        """Count is the number of images, at least 1."""
        self.count = count
        self._epochs: dict[str, tuple[tuple[int, int, torch.device], Tensor]] = {}

    def batches_per_epoch(self, batch_size: int) -> int:
        """ceil(count / batch_size)."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: expected an integer of at least 1")
        return -(-self.count // batch_size)

    def indices(self, seed: int, update: int, batch_size: int, device: torch.device) -> Tensor:
        """int64 [b]: the images of the update-th batch (counted from 0 over all epochs)."""
        epoch, span = self._place(update, batch_size)
        return self._of_epoch("order", seed, epoch, device)[span]

    def keys(self, seed: int, update: int, batch_size: int, seeded: bool) -> Iterator[Key]:
        """The batches from `update` on, without end; if seeded, with a seed for each image."""
        cpu = torch.device("cpu")
        while True:
            epoch, span = self._place(update, batch_size)
            indices = self._of_epoch("order", seed, epoch, cpu)[span]
            seeds = self._of_epoch("seeds", seed, epoch, cpu)[indices].tolist() if seeded else None
            yield indices.tolist(), seeds
            update += 1

    def _place(self, update: int, batch_size: int) -> tuple[int, slice]:
        per_epoch = self.batches_per_epoch(batch_size)
        if isinstance(update, bool) or not isinstance(update, int) or update < 0:
            raise ValueError(f"update={update!r}: expected an integer of at least 0")
        epoch, position = divmod(update, per_epoch)
        return epoch, slice(position * batch_size, (position + 1) * batch_size)

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
