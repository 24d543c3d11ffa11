"""Images: a data set as the engines see it."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import stream
from .order import Order

log = logging.getLogger("fastgan")

# Images per read when a whole data set is brought into memory
_CHUNK = 256
# Below this number of images, starting worker processes takes longer than reading
_WORTH_WORKERS = 2048
_SAMPLED = 16
_FALLBACK_BUDGET = 2 << 30


def default_budget(device: torch.device) -> int:
    """Bytes images may take on a device: a quarter of its free memory; 2 GiB where unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    if device.type != "cpu":
        return _FALLBACK_BUDGET
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        # a container's own limit is not in /proc/meminfo
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(free)) // 4 if free else _FALLBACK_BUDGET


class Batch(NamedTuple):
    """Samples, and what came with them."""

    images: Tensor
    condition: Any = None


class Images:
    """A data set of N images [C, H, W], all of one shape. Made by data.open.

    name: str.
    shape: (C, H, W).
    origin: a sentence that says where the images are from.
    device: where batches go.
    pixels: uint8 (0..255) or float32 ([-1, 1]) tensor [N, C, H, W]; None if read as needed.
    dataset: in that case the torch Dataset yielding uint8 or float32 [C, H, W]; else None.
    dtype: of the pixels as stored: torch.uint8 or torch.float32.
    workers: processes that read ahead where dataset is set; None chooses.
    """

    def __init__(
        self,
        name: str,
        origin: str,
        *,
        pixels: Tensor | None = None,
        dataset: Any = None,
        device: torch.device | None = None,
        workers: int | None = None,
    ):
        """Exactly one of pixels and dataset; device defaults to that of the pixels, or the CPU."""
        if (pixels is None) == (dataset is None):
            raise ValueError("Images: expected either pixels or dataset")
        held = dataset if pixels is None else pixels[0]
        self.name = name
        self.origin = origin
        self.pixels = pixels
        self.dataset = dataset
        self.shape: tuple[int, int, int] = tuple(held.shape)
        self.dtype: torch.dtype = held.dtype
        self.device = device or (torch.device("cpu") if pixels is None else pixels.device)
        self.workers = workers
        self._order = Order(len(dataset if pixels is None else pixels))
        self._stream: Iterator[Tensor] | None = None
        self._expected: tuple[int, int, int] | None = None
        self._warned = False

    def __len__(self) -> int:
        """Number of images."""
        return self._order.count

    def __repr__(self) -> str:
        """Name, number, shape, and where the pixels are."""
        kind = str(self.dtype).removeprefix("torch.")
        where = f"on {self.device}" if self.resident else f"read for {self.device} as needed"
        return f"Images({self.name!r}, {len(self)} x {self.shape}, {kind} {where})"

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels as stored."""
        return len(self) * _bytes_each(self)

    @property
    def resident(self) -> bool:
        """Whether all pixels lie on the device."""
        return self.pixels is not None and self.pixels.device == self.device

    def to(self, device: torch.device | str, budget_bytes: int | None = None) -> Images:
        """These images with batches on a device; the pixels move there if they fit the budget.

        budget_bytes: how much they may take; default a quarter of the memory free on the device now
        (2 GiB where it cannot be asked). What does not fit is said once in the log and crosses
        batch by batch, with the same values. Pixels already in the memory of that device stay
        there.
        """
        device = _with_index(torch.device(device))
        if self.device == device and (self.resident or budget_bytes is None):
            return self
        return self.placed(device, budget_bytes)

    def placed(self, device: torch.device, budget_bytes: int | None) -> Images:
        """As `to`, but also for the device they are meant for already: decide anew if they fit."""
        if self.pixels is not None and self.pixels.device == device:
            return self._with(device, pixels=self.pixels)
        if self.dataset is not None and self.dataset.random:
            log.warning(
                f"{self.name}: an item differs from one reading to the next, so all are read anew "
                f"in every epoch{self._hint}"
            )
            return self._with(device, dataset=self.dataset)
        budget = default_budget(device) if budget_bytes is None else budget_bytes
        if self.nbytes > budget:
            log.warning(
                f"{self.name}: {len(self)} images take {_mb(self.nbytes)} and the budget on "
                f"{device} is {_mb(budget)}, so they cross batch by batch; a smaller image_size= "
                f"or a larger budget_bytes= avoids this{self._hint}"
            )
            if self.pixels is None:
                return self._with(device, dataset=self.dataset)
            return self._with(device, pixels=self.pixels)
        if self.pixels is not None:
            return self._with(device, pixels=self.pixels.to(device))
        return self._with(device, pixels=self._read_all(device))

    @property
    def _hint(self) -> str:
        if self.dataset is None or self.dataset.fork_safe or self.workers is not None:
            return ""
        return "; data.open(..., workers=N) lets N processes read ahead"

    def _with(self, device: torch.device, **held: Any) -> Images:
        return Images(self.name, self.origin, device=device, workers=self.workers, **held)

    def _read_all(self, device: torch.device) -> Tensor:
        pixels = torch.empty(len(self), *self.shape, dtype=self.dtype, device=device)
        starts = range(0, len(self), _CHUNK)
        keys = [(list(range(at, min(at + _CHUNK, len(self)))), None) for at in starts]
        workers = self._workers(_CHUNK) if len(self) >= _WORTH_WORKERS else 0
        for at, chunk in zip(
            starts, stream.read(self.dataset, keys, workers, pin=False), strict=True
        ):
            pixels[at : at + len(chunk)] = chunk
        return pixels

    def _workers(self, batch_size: int) -> int:
        if self.workers is not None:
            return self.workers
        return stream.workers_for(self.dataset, batch_size * _bytes_each(self))

    source = None
    drawable = property(lambda self: len(self.shape) == 3)
    identity = lambda self: {"name": self.fingerprint()}
    differs = lambda self, saved: (
        None if saved == self.identity() else f"{self.identity()}, saved {saved}"
    )

    samples = property(lambda self: self.pixels)

    def batches_per_epoch(self, batch_size: int, drop_last: bool = False) -> int:
        """ceil(N / batch_size): the last batch of an epoch may be short.

        A batch_size larger than N is allowed: each epoch is then one batch of all N images.
        """
        if drop_last:
            return max(1, len(self) // batch_size)
        return self._order.batches_per_epoch(batch_size)

    def batch_indices(self, seed: int, update: int, batch_size: int) -> Tensor:
        """int64 [b] on the pixels' device: the images of one batch.

        update counts batches from 0 over all epochs. With p = batches_per_epoch, this is slice
        update % p of random.permutation(seed, update // p, N). b is batch_size, or less in the last
        batch of an epoch.
        """
        device = torch.device("cpu") if self.pixels is None else self.pixels.device
        indices = self._order.indices(seed, update, batch_size, device)
        if batch_size > len(self) and not self._warned:
            self._warned = True
            log.warning(
                f"{self.name}: batch_size={batch_size} is more than its {len(self)} images, so "
                "each batch is all of them once"
            )
        return indices

    def batch(self, seed: int, update: int, batch_size: int, drop_last: bool = False) -> Batch:
        """float32 [b, C, H, W] in [-1, 1] on the device: the images of batch_indices.

        Bytes are mapped as x * (2/255) - 1. Images that are not in memory are read ahead from the
        update asked for; asking for another than the next one starts over there, which is allowed
        but slow.
        """
        if self.pixels is not None:
            images = self.pixels.index_select(0, self.batch_indices(seed, update, batch_size))
            if self._pins and not self.resident:
                images = images.pin_memory()
        else:
            images = self._streamed(seed, update, batch_size)
        return Batch(_normalise(images.to(self.device, non_blocking=self._pins)))

    @property
    def _pins(self) -> bool:
        return self.device.type == "cuda"

    def _streamed(self, seed: int, update: int, batch_size: int) -> Tensor:
        if self._expected != (seed, update, batch_size):
            self.close()
            # also checks the three arguments, before a worker meets them
            self.batch_indices(seed, update, batch_size)
            keys = self._order.keys(seed, update, batch_size, self.dataset.random)
            self._stream = stream.read(self.dataset, keys, self._workers(batch_size), self._pins)
        # forgotten until the batch is here: after an error the stream is not where it should be
        self._expected = None
        images = next(self._stream)
        self._expected = (seed, update + 1, batch_size)
        return images

    def close(self) -> None:
        """End the worker processes, if any; they start again when another batch is asked for."""
        if self._stream is not None:
            self._stream.close()
        self._stream = self._expected = None

    def fingerprint(self) -> str:
        """A short identity: name, number, shape and a checksum over 16 of the images.

        It does not depend on where they are held. A checkpoint stores it, and a resumed run
        compares it, to notice that the data have changed.
        """
        chosen = sorted({i * (len(self) - 1) // (_SAMPLED - 1) for i in range(_SAMPLED)})
        if self.pixels is not None:
            sample = self.pixels[torch.tensor(chosen, device=self.pixels.device)].cpu()
        else:
            seeds = [0] * len(chosen) if self.dataset.random else None
            sample = next(stream.read(self.dataset, [(chosen, seeds)], 0, pin=False))
        crc = zlib.crc32(sample.numpy().tobytes())
        size = "x".join(map(str, (len(self), *self.shape)))
        return f"{self.name}-{size}-{crc:08x}"


def _normalise(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8:
        return images
    return images.to(torch.float32).mul_(2 / 255).sub_(1)


def _bytes_each(images: Images) -> int:
    channels, height, width = images.shape
    return channels * height * width * images.dtype.itemsize


def _with_index(device: torch.device) -> torch.device:
    # torch.device("cuda") and the device of a tensor there, cuda:0, do not compare equal
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _mb(size: int) -> str:
    return f"{size / 2**20:,.1f} MB"
