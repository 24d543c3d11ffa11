"""A user's own Dataset, brought to the form of the others."""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
    default_convert,
)

from . import batch, pictures, ranges, tensors
from .errors import DataError

log = logging.getLogger("fastgan")

# Items read at opening, to learn shape, dtype and range, and twice to learn whether the set
# augments: one that changes an item in fifty is then overlooked in one opening of 30,000
_PROBED = 256
# These, and none of their subclasses, hold what they give and cannot change it, so nothing has to
# be said about it
_HOLDS = (TensorDataset, list, tuple)


class _Glance(NamedTuple):
    """What is kept of an item that was looked at."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    low: float
    high: float
    forms: dict[batch.Path, tuple]
    left: list[str]
    checksum: int


class Items(Dataset):
    """Any map-style Dataset as one of (sample, condition).

    A sample is uint8 or float32 of `shape`; a condition is a tree of tensors as in Batch, or None.
    `random` tells whether the set augments as it reads, so that an item is another at each reading:
    such a set is never held in memory, because that would freeze its first draws.
    """

    # an open file handle of the user's (h5py, lmdb) gives wrong bytes in a forked worker, so
    # workers are for the user to ask for
    fork_safe = False

    def __init__(
        self,
        source: Any,
        form: pictures.Form,
        value_range: tuple[float, float] | None,
        kind: str | None = None,
        layout: str | None = None,
        augmented: bool | None = None,
    ):
        """Read some items to learn what the set yields; the arguments are those of data.open."""
        self._source, self._form, self._range = source, form, value_range
        self._asked = (kind, layout)
        self.name = type(source).__name__
        self._what = f"data set {self.name}"
        try:
            self._count = len(source)
        except TypeError as error:
            raise DataError(
                f"{self._what}: has no length; batches are drawn by number, so pass "
                "a map-style Dataset (with __len__ and __getitem__), or all its samples as a tensor"
            ) from error
        if self._count == 0:
            raise DataError(f"{self._what}: is empty; pass at least one sample")
        self._paths: list[batch.Path] = []
        self._key: Any = None
        probed = spread(self._count, _PROBED)
        # opening a set that augments moves no generator, and finds the same each time
        with generators_kept():
            seed_generators(0)
            self._learn_depth(probed)
            first = [self._glance(i) for i in probed]
            self._learn(probed, first)
            if augmented is None:
                # a small set is read more often instead of a larger part of it
                times = 1 + max(1, min(16, _PROBED // len(probed)))
                augmented = any(
                    self._glance(i).checksum != seen.checksum
                    for _ in range(times - 1)
                    for i, seen in zip(probed, first, strict=True)
                )
                self._say(augmented, len(probed), times)
        self.random = bool(augmented)
        self.conclusion = "read anew in every epoch" if augmented else "taken for fixed"
        self.classes = _classes(source)
        self.no_condition = batch.nest(
            {
                path: torch.empty((0, *shape), dtype=dt, device="cpu")
                for path, (shape, dt) in self._forms.items()
            }
        )

    def _learn_depth(self, probed: list[int]) -> None:
        """Find out how many of 16 bits the pictures use, where they have 16 and nothing says it."""
        if not pictures.is_picture(picture := self._split(self._source[0], 0)[0]):
            return
        if self._range is not None and pictures.is_deep(picture):
            self._form, self._range = replace(self._form, span=self._range), None
        elif picture.mode.startswith("I;16"):
            shown = (self._split(self._source[i], i)[0] for i in probed)
            deep = [p for p in shown if pictures.is_picture(p) and pictures.is_deep(p)]
            span = pictures.span_of_bits(max(int(np.asarray(p).max()) for p in deep))
            self._form = replace(self._form, span=span)
            pictures.tell_depth(self._what, span)

    def _learn(self, probed: list[int], seen: list[_Glance]) -> None:
        first = seen[0]
        self.shape, self.dtype, self.kind = first.shape, first.dtype, first.kind
        if self.dtype == torch.uint8:
            ranges.check_bytes_range(self._range, self._what)
        else:
            self.dtype = torch.float32
        for i, item in zip(probed, seen, strict=True):
            self._check(i, item.shape, item.dtype)
        if self.dtype != torch.uint8 and self._range is None and self.kind == "image":
            low, high = min(s.low for s in seen), max(s.high for s in seen)
            self._range = ranges.guess_range(low, high, self._what)
        self._paths = [p for p, f in first.forms.items() if all(s.forms.get(p) == f for s in seen)]
        self._forms = {path: first.forms[path] for path in self._paths}
        uneven = {p: None for s in seen for p in s.forms if p not in self._forms}
        left = [f"{'.'.join(map(str, p))} (its form differs from item to item)" for p in uneven]
        left += dict.fromkeys(name for s in seen for name in s.left)
        batch.tell_left(self._what, left)
        if self._key is not None:
            batch.tell_key(self._what, self._key)

    def _say(self, augmented: bool, count: int, times: int) -> None:
        if augmented or type(self._source) in _HOLDS:
            return  # what is read anew says so itself
        log.warning(
            f"{self._what}: taken for fixed, as {count} of its {self._count} items were the same "
            f"in {times} readings; if it augments, pass augmented=True, and if not, "
            "augmented=False saves these readings"
        )

    def _where(self, index: int) -> str:
        return f"item {index} of {self._what}"

    def _split(self, item: Any, index: int) -> tuple[Any, list[tuple[str | int, Any]]]:
        """The sample of an item and what comes with it."""
        if isinstance(item, Mapping):
            key = batch.sample_key(
                item, self._where(index), lambda v: tensors.is_array(v) or pictures.is_picture(v)
            )
            self._key = key
            return item[key], [(str(k), v) for k, v in item.items() if k != key]
        if isinstance(item, (tuple, list)) and len(item) > 0:
            return item[0], list(enumerate(item))[1:]
        return item, []

    def _read(self, index: int) -> tuple[Tensor, str, dict[batch.Path, Tensor], list[str]]:
        """The sample as it comes, its kind, what comes with it, and what of that is not taken."""
        where = self._where(index)
        value, parts = self._split(self._source[index], index)
        taken, left = batch.flatten(parts)
        taken = {path: batch.settle(part, 1) for path, part in taken.items()}
        if pictures.is_picture(value):
            if self._asked[0] not in (None, "image") or self._asked[1] is not None:
                raise DataError(
                    f"{where}: a picture, whose kind and layout are known; leave kind= and layout= "
                    "out"
                )
            try:
                return pictures.from_pil(value, self._form), "image", taken, left
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
        sample, kind = tensors.arrange(
            tensors.as_tensor(value, where)[None], where, *self._asked, one=True
        )
        return reformed(sample, kind, self._form, where)[0], kind, taken, left

    def _glance(self, index: int) -> _Glance:
        sample, kind, taken, left = self._read(index)
        low, high = 0.0, 255.0
        if sample.dtype != torch.uint8:
            low, high = ranges.extremes(sample, self._where(index))
        forms = {path: (tuple(part.shape), part.dtype) for path, part in taken.items()}
        return _Glance(
            tuple(sample.shape),
            sample.dtype,
            kind,
            low,
            high,
            forms,
            left,
            checksum([sample, *taken.values()]),
        )

    def _check(self, index: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        same_kind = (dtype == torch.uint8) == (self.dtype == torch.uint8)
        if shape != self.shape or not same_kind:
            way_out = "convert all to one dtype"
            if same_kind:
                way_out = "bring all to one shape"
                if self.kind == "image":
                    way_out = "image_size=... and channels=... bring 8-bit images to one form"
            raise DataError(
                f"{self._where(index)}: {shape} of {_name(dtype)}, but item 0 is "
                f"{self.shape} of {_name(self.dtype)}; {way_out}"
            )

    def __len__(self) -> int:
        """Number of samples."""
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """Read one item: uint8 or float32 of `shape`, and its condition."""
        sample, _, taken, _ = self._read(index)
        self._check(index, tuple(sample.shape), sample.dtype)
        for path in self._paths:
            part = taken.get(path)
            found = None if part is None else (tuple(part.shape), part.dtype)
            if found != self._forms[path]:
                raise DataError(
                    f"{self._where(index)}: its condition {'.'.join(map(str, path))} is "
                    f"{_form(found)}, but that of item 0 is {_form(self._forms[path])}; bring all "
                    "to one form, or leave it out of the items"
                )
        if self.dtype != torch.uint8:
            sample = ranges.as_floats(sample, self._range, self._where(index))
        return sample, batch.nest({path: taken[path] for path in self._paths})


def instead_of(loader: DataLoader) -> str:
    """What to say of a DataLoader: what to pass, and what of it is not taken."""
    passed = ["its data set, loader.dataset"]
    sizes = loader if loader.batch_size is not None else loader.batch_sampler
    for name in ("batch_size", "drop_last"):
        if value := getattr(sizes, name, None):
            passed.append(f"{name}={value}")
    known = SequentialSampler, RandomSampler
    own = {
        "batch_sampler": loader.batch_size is None and loader.batch_sampler is not None,
        "sampler": type(loader.sampler) not in known and loader.batch_size is not None,
        "collate_fn": loader.collate_fn not in (default_collate, default_convert),
    }
    names = [name for name in own if own[name] and not isinstance(loader.dataset, IterableDataset)]
    left = f"; its {' and '.join(names)} would not be used: let the data set do it" if names else ""
    return (
        f"source: a DataLoader; the batches are drawn here, so pass {', and '.join(passed)}{left}"
    )


def reformed(samples: Tensor, kind: str, form: pictures.Form, what: str) -> Tensor:
    """Samples [N, *shape] in the asked size and channels, which only images have."""
    if form.given and kind != "image":
        raise DataError(
            f"{what}: image_size and channels are of images, these are of kind {kind!r} and shape "
            f"{tuple(samples.shape[1:])}; leave them out, or pass kind='image'"
        )
    return pictures.reform(samples, form, what) if form.given else samples


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below count, evenly spread, with the first and the last."""
    most = min(count, most)
    return sorted({i * (count - 1) // max(1, most - 1) for i in range(most)})


def checksum(parts: list[Tensor]) -> int:
    """CRC-32 over the bytes of tensors."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), crc)
    return crc


def _classes(source: Any) -> tuple[str, ...] | None:
    """The names of the classes, if the set has them as torchvision's do; a Subset has them, too."""
    while isinstance(source, torch.utils.data.Subset):
        source = source.dataset
    names = getattr(source, "classes", None) or _features(source)
    if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
        return tuple(names)
    return None


def _features(source: Any) -> Any:
    """The names of the classes of a Hugging Face data set that has one label."""
    features = getattr(source, "features", None)
    if not isinstance(features, Mapping):
        return None
    named = [names for f in features.values() if (names := getattr(f, "names", None))]
    return named[0] if len(named) == 1 else None


def _form(found: tuple | None) -> str:
    return "missing" if found is None else f"{found[0]} of {_name(found[1])}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put torch's, numpy's and Python's CPU generators back to where they were before."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def seed_generators(seed: int) -> None:
    """Start these generators from a seed below 2**32."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
