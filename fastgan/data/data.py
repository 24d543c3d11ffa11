"""Data: a data set as the engines see it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import identity, stream
from .batch import Batch, map_condition, tensors_of
from .budget import default_budget, megabytes
from .errors import whole
from .order import Order, own_rows
from .tensors import kind_of

if TYPE_CHECKING:
    from .table import Table

log = logging.getLogger("fastgan")

# Samples per read when a whole data set is brought into memory
_CHUNK = 256
# Below this number of samples, starting worker processes takes longer than reading
_WORTH_WORKERS = 2048


class Data:
    """A data set of N samples, all of one shape. Made by data.open.

    Attributes:
        name: what it is called.
        origin: a sentence that says where the data are from and what they were taken for.
        shape: of a sample: (C, H, W) of an image, (F,) of a vector, (C, T) of a signal, or any
            other.
        kind: "image", "vector", "signal" or "tensor".
        samples: uint8 (0..255) or float32 tensor [N, *shape]; None if read as needed.
        condition: what belongs to the samples: a tensor [N, ...], a tuple or dict of such, or None
            if there is none or the data are read as needed (`conditional` tells which).
        classes: names of the classes 0, 1, ... that a label stands for, or None.
        device: where batches go.
        dataset: where samples is None, the Dataset yielding (uint8 or float32 [*shape], condition).
        dtype: of the samples as stored: torch.uint8 or torch.float32.
        workers: processes that read ahead where dataset is set; None chooses.
        source: what data.open takes to open these data again, from any working directory: the name
            of a set or an absolute path; None for what lives in this process only (a tensor, a
            Dataset).
        options: the other arguments of data.open that decide what is read, in plain values.
        table: what the numbers of a sample mean, where the samples are rows of a table, or None.
        held_out: how rows of the source were chosen that these data are without, as
            `fastgan.tabular.held_out.HeldOut.kept` has it, or None.
    """

    def __init__(
        self,
        name: str,
        origin: str,
        *,
        samples: Tensor | None = None,
        dataset: Any = None,
        condition: Any = None,
        classes: tuple[str, ...] | None = None,
        kind: str | None = None,
        device: torch.device | None = None,
        workers: int | None = None,
        source: str | None = None,
        options: dict[str, Any] | None = None,
        table: Table | None = None,
    ):
        """Exactly one of samples and dataset; device defaults to the samples' own, or the CPU."""
        if (samples is None) == (dataset is None):
            raise ValueError("Data: expected either samples or dataset")
        if dataset is not None:
            self.shape: tuple[int, ...] = tuple(dataset.shape)
            self.dtype: torch.dtype = dataset.dtype
            self._no_condition = dataset.no_condition
        else:
            self.shape, self.dtype = tuple(samples.shape[1:]), samples.dtype
            self._no_condition = map_condition(
                lambda part: torch.empty((0, *part.shape[1:]), dtype=part.dtype, device="cpu"),
                condition,
            )
        self.name, self.origin = name, origin
        self.samples, self.dataset, self.condition = samples, dataset, condition
        self.classes = classes
        self.kind = kind_of(self.shape) if kind is None else kind
        self.device = device or (torch.device("cpu") if samples is None else samples.device)
        self.workers = workers
        self.source, self.options, self.table = source, options or {}, table
        self.held_out: dict[str, Any] | None = None
        self._order = Order(len(dataset if samples is None else samples))
        self._stream: Iterator[tuple[Tensor, Any]] | None = None
        self._expected: tuple | None = None
        # shared with the copies on other devices: what was said once is said
        self._told: set[str] = set()

    def __len__(self) -> int:
        """Number of samples."""
        return self._order.count

    def __repr__(self) -> str:
        """Name, number, shape, condition, and where the samples are."""
        kind = str(self.dtype).removeprefix("torch.")
        where = f"on {self.device}" if self.resident else f"read for {self.device} as needed"
        condition = ""
        if self.classes is not None and self.conditional:
            condition = f", {len(self.classes)} classes"
        elif self.conditional:
            condition = f", condition {identity.form_of(self._no_condition)}"
        return f"Data({self.name!r}, {len(self)} x {self.shape}, {kind} {where}{condition})"

    @property
    def nbytes(self) -> int:
        """Bytes of all samples and conditions as stored."""
        return len(self) * self._bytes_each

    @property
    def _bytes_each(self) -> int:
        parts = [(self.shape, self.dtype)]
        parts += [(part.shape[1:], part.dtype) for part in tensors_of(self._no_condition)]
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in parts)

    @property
    def resident(self) -> bool:
        """Whether all samples lie on the device."""
        return self.samples is not None and self.samples.device == self.device

    @property
    def conditional(self) -> bool:
        """Whether batches have a condition."""
        return self._no_condition is not None

    @property
    def drawable(self) -> bool:
        """Whether a sample is a picture that can be drawn, an image of 1 or 3 channels."""
        return self.kind == "image" and len(self.shape) == 3 and self.shape[0] in (1, 3)

    @property
    def plane(self) -> bool:
        """Whether a sample is a point that can be drawn, a vector of two numbers."""
        return self.kind == "vector" and self.shape == (2,)

    def blank(self, batch_size: int) -> Batch:
        """A Batch of zeros on the device, with the shapes and dtypes that batches have."""
        batch_size = whole(batch_size, "batch_size", 1)

        def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.zeros((batch_size, *shape), dtype=dtype, device=self.device)

        return Batch(
            zeros(self.shape, torch.float32),
            map_condition(lambda part: zeros(part.shape[1:], part.dtype), self._no_condition),
        )

    def to(self, device: torch.device | str, budget_bytes: int | None = None) -> Data:
        """These data with batches on a device; samples and conditions move there if they fit.

        budget_bytes: how much they may take; default a quarter of the memory free on the device now
        (2 GiB where it cannot be asked). What does not fit is said once in the log and crosses
        batch by batch, with the same values. Samples already in the memory of that device stay
        there.
        """
        device = _with_index(torch.device(device))
        if self.device == device and (self.resident or budget_bytes is None):
            return self
        return self.placed(device, budget_bytes)

    def placed(self, device: torch.device, budget_bytes: int | None) -> Data:
        """As `to`, but also for the device they are meant for already: decide anew if they fit."""
        if self.samples is not None and self.samples.device == device:
            return self._with(device, samples=self.samples, condition=self.condition)
        if self.dataset is not None and self.dataset.random:
            self._tell(
                "anew",
                f"an item differs from one reading to the next, so all are read anew in every epoch"
                f"{self._hint}; augmented=False says that they do not",
            )
            return self._with(device, dataset=self.dataset)
        budget = default_budget(device) if budget_bytes is None else int(budget_bytes)
        if self.nbytes > budget:
            smaller = "a smaller image_size= or " if self.kind == "image" else ""
            self._tell(
                f"budget on {device}",
                f"{len(self)} samples take {megabytes(self.nbytes)} and the budget on "
                f"{device} is {megabytes(budget)}, so they cross batch by batch; {smaller}"
                f"a larger budget_bytes= avoids this{self._hint}",
            )
            if self.samples is None:
                return self._with(device, dataset=self.dataset)
            return self._with(device, samples=self.samples, condition=self.condition)
        if self.samples is not None:
            condition = map_condition(lambda part: part.to(device), self.condition)
            return self._with(device, samples=self.samples.to(device), condition=condition)
        samples, condition = self._read_all(device)
        return self._with(device, samples=samples, condition=condition)

    @property
    def _hint(self) -> str:
        if self.dataset is None or self.workers is not None:
            return ""
        if self.dataset.fork_safe and stream.start_method() == "fork":
            return ""
        guard = ""
        if stream.start_method() != "fork":
            guard = ", which here takes if __name__ == '__main__': around the work of your script"
        return f"; data.open(..., workers=N) lets N processes read ahead{guard}"

    def _tell(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning(f"{self.name}: {message}")

    def _with(self, device: torch.device, **held: Any) -> Data:
        moved = type(self)(
            self.name,
            self.origin,
            classes=self.classes,
            kind=self.kind,
            device=device,
            workers=self.workers,
            source=self.source,
            options=self.options,
            table=self.table,
            **held,
        )
        moved._told, moved.held_out = self._told, self.held_out
        return moved

    def _read_all(self, device: torch.device) -> tuple[Tensor, Any]:
        def room(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.empty((len(self), *shape), dtype=dtype, device=device)

        samples = room(self.shape, self.dtype)
        condition = map_condition(lambda p: room(p.shape[1:], p.dtype), self._no_condition)
        starts = range(0, len(self), _CHUNK)
        keys = [(list(range(at, min(at + _CHUNK, len(self)))), None) for at in starts]
        workers = 0
        if len(self) >= _WORTH_WORKERS:
            workers = self._workers(_CHUNK)
            if self.dataset.fork_safe and self._hint:
                self._tell(
                    "one process", f"{len(self)} samples are read in this process{self._hint}"
                )
        chunks = stream.read(self.dataset, keys, workers, pin=False)
        for at, (chunk, part) in zip(starts, chunks, strict=True):
            end = at + len(chunk)
            samples[at:end] = chunk
            map_condition(lambda all_, some: all_[at:end].copy_(some), condition, part)  # noqa: B023
        return samples, condition

    def first(self, n: int) -> Batch | None:
        """The first samples, n or as many as there are, as a batch has them.

        None where a Dataset's items differ from one reading to the next: to read them would move
        what they draw.
        """
        if self.dataset is not None and self.dataset.random:
            return None
        n = min(n, len(self))
        if self.samples is not None:
            held = map_condition(lambda part: part[:n], (self.samples, self.condition))
        else:
            with torch.random.fork_rng(devices=[]):  # a loader draws a seed
                held = next(stream.read(self.dataset, [(list(range(n)), None)], 0, pin=False))
        samples, condition = map_condition(lambda part: part.to(self.device), tuple(held))
        return Batch(_normalise(samples), condition)

    def rows_at(self, rows: Tensor) -> Tensor:
        """Some of the samples in memory as batches have them, without their conditions."""
        return _normalise(self.samples.index_select(0, rows.to(self.samples.device)))

    def first_conditions(self, n: int) -> Any:
        """The conditions of the first n samples, on the device, from the beginning again after all.

        None without conditions, and where a Dataset's items differ from one reading to the next: to
        read them would move what they draw.
        """
        if not self.conditional or (self.dataset is not None and self.dataset.random):
            return None
        rows = [i % len(self) for i in range(n)]
        if self.condition is not None:
            at = torch.tensor(rows, device="cpu")
            first = map_condition(lambda part: part[at.to(part.device)], self.condition)
        else:
            with torch.random.fork_rng(devices=[]):  # a loader draws a seed
                _, first = next(stream.read(self.dataset, [(rows, None)], 0, pin=False))
        return map_condition(lambda part: part.to(self.device), first)

    def _workers(self, batch_size: int) -> int:
        if self.workers is not None:
            return self.workers
        return stream.workers_for(self.dataset, batch_size * self._bytes_each)

    def batches_per_epoch(self, batch_size: int, drop_last: bool = False) -> int:
        """ceil(N / batch_size), the last of an epoch may be short; with drop_last, whole ones only.

        A batch_size larger than N is allowed: each epoch is then one batch of all N samples, which
        the log says once; with drop_last it is a DataError. Every engine asks this first.
        """
        batches = self._order.batches_per_epoch(batch_size, drop_last)
        if batch_size > len(self):
            self._tell(
                "batch_size",
                f"batch_size={batch_size} is more than its {len(self)} samples, so each batch is "
                "all of them once",
            )
        return batches

    def batch_sizes(self, batch_size: int, drop_last: bool = False) -> tuple[int, int]:
        """Samples in a batch, and in the last batch of an epoch."""
        full = min(batch_size, len(self))
        batches = self.batches_per_epoch(batch_size, drop_last)
        return full, full if drop_last else len(self) - (batches - 1) * batch_size

    def batch_indices(
        self, seed: int, update: int, batch_size: int, drop_last: bool = False
    ) -> Tensor:
        """int64 [b] on the samples' device: the samples of one batch.

        update counts batches from 0 over all epochs. With p = batches_per_epoch, this is slice
        update % p of random.permutation(seed, update // p, N). b is batch_size, or less in the last
        batch of an epoch; with drop_last that one is left out.
        """
        self.batches_per_epoch(batch_size, drop_last)
        device = torch.device("cpu") if self.samples is None else self.samples.device
        seed = whole(seed, "seed", 0)
        return self._order.indices(seed, update, batch_size, bool(drop_last), device)

    def batch(
        self,
        seed: int,
        update: int,
        batch_size: int,
        drop_last: bool = False,
        rows: Callable[[int], range] | None = None,
    ) -> Batch:
        """The samples of batch_indices, float32 [b, *shape] on the device, and their condition.

        With `rows`, a function of b such as `World.rows`, only those of them, and no others are
        read.

        Bytes are mapped as x * (2/255) - 1, floats are as they are held; a condition is never
        mapped. Data that are not in memory are read ahead from the update asked for; asking for
        another than the next one starts over there, which is allowed but slow.
        """
        if self.samples is not None:
            indices = own_rows(self.batch_indices(seed, update, batch_size, drop_last), rows)
            batch = Batch(self.samples, self.condition)
            batch = map_condition(lambda part: part.index_select(0, indices), batch)
            if self._pins and not self.resident:
                batch = map_condition(Tensor.pin_memory, batch)
        else:
            batch = self._streamed(seed, update, batch_size, bool(drop_last), rows)
        images, condition = map_condition(self._crossed, batch)
        return Batch(_normalise(images), condition)

    def _crossed(self, part: Tensor) -> Tensor:
        return part.to(self.device, non_blocking=self._pins)

    @property
    def _pins(self) -> bool:
        return self.device.type == "cuda"

    def _streamed(
        self,
        seed: int,
        update: int,
        batch_size: int,
        drop_last: bool,
        rows: Callable[[int], range] | None,
    ) -> tuple[Tensor, Any]:
        # also checks the arguments, before a worker meets them
        whole_batch = len(self.batch_indices(seed, update, batch_size, drop_last))
        if self._expected != (seed, update, batch_size, drop_last, rows):
            self.close()
            keys = self._order.keys(
                int(seed), int(update), int(batch_size), drop_last, self.dataset.random, rows
            )
            self._stream = stream.read(self.dataset, keys, self._workers(batch_size), self._pins)
        # forgotten until the batch is here: after an error the stream is not where it should be
        self._expected = None
        batch = next(self._stream)
        self._expected = (seed, update + 1, batch_size, drop_last, rows)
        if rows is not None and not rows(whole_batch):
            return map_condition(lambda part: part[:0], tuple(batch))
        return batch

    def close(self) -> None:
        """End the worker processes, if any; they start again when another batch is asked for."""
        if self._stream is not None:
            self._stream.close()
        self._stream = self._expected = None

    def identity(self) -> dict[str, Any]:
        """What tells these data from others, in plain values: for a checkpoint, and for `differs`.

        {"name", "kind", "count", "shape", "dtype", "condition": the form of the conditions or None,
        "checksum": of up to 16 samples spread over the data, and "condition_checksum" of their
        conditions, "whole": the two of all that is held in memory, up to 256 MB}. The checksums are
        None where a sample differs from one reading to the next. Only the name depends on where the
        data are from, and nothing on where they are held but whether "whole" is known.
        """
        return identity.of(self)

    def differs(self, saved: Any) -> str | None:
        """What differs from a saved `identity()`, as a sentence with the way out; None if nothing.

        Number and shape are compared, and dtype and content where both are fixed; names are not, so
        that a folder may be renamed, an archive unpacked, and a tensor become an array.
        """
        return identity.difference(saved, self.identity())


def _normalise(samples: Tensor) -> Tensor:
    if samples.dtype != torch.uint8:
        return samples
    return samples.to(torch.float32).mul_(2 / 255).sub_(1)


def _with_index(device: torch.device) -> torch.device:
    # torch.device("cuda") and the device of a tensor there, cuda:0, do not compare equal
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
