"""A user's own Dataset, brought to the form of the others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import convert
from .errors import DataError

# Items read at opening, to learn shape, dtype, range, and whether two readings differ
_PROBED = 16


class Items(Dataset):
    """Any map-style Dataset of images or (image, ...) as one of uint8 or float32 [C, H, W].

    `random` tells whether reading an item twice gave two values, that is, whether the set augments
    as it reads: such a set is never held in memory, because that would freeze its first draws.
    """

    # an open file handle of the user's (h5py, lmdb) gives wrong bytes in a forked worker, so
    # workers are for the user to ask for
    fork_safe = False

    def __init__(self, source: Any, form: convert.Form, value_range: tuple[float, float] | None):
        """Read the first items to learn what the set yields."""
        self._source = source
        self._form = form
        self._range = value_range
        self.name = type(source).__name__
        try:
            self._count = len(source)
        except TypeError as error:
            raise DataError(
                f"data set {self.name}: has no length; batches are drawn by number, so pass "
                "a map-style Dataset (with __len__ and __getitem__), or all its images as a tensor"
            ) from error
        if self._count == 0:
            raise DataError(f"data set {self.name}: is empty; pass at least one image")
        # opening a set that augments moves no generator, and finds the same each time
        with generators_kept():
            seed_generators(0)
            probed = range(min(_PROBED, self._count))
            probe = [self._read(i) for i in probed]
            again = [self._read(i) for i in probed]
        self.shape, self.dtype = tuple(probe[0].shape), probe[0].dtype
        if self.dtype == torch.uint8:
            convert.check_bytes_range(value_range, f"data set {self.name}")
        else:
            self.dtype = torch.float32
        for i, item in enumerate(probe):
            self._check(i, item)
        if self.dtype != torch.uint8 and value_range is None:
            self._range = convert.guess_range(torch.stack(probe), f"data set {self.name}")
        self.random = not all(map(torch.equal, probe, again))

    def _where(self, index: int) -> str:
        return f"item {index} of data set {self.name}"

    def _read(self, index: int) -> Tensor:
        item = self._source[index]
        if isinstance(item, (tuple, list)) and len(item) > 0:
            item = item[0]
        if hasattr(item, "getexif"):
            try:
                return convert.from_pil(item, self._form)
            except DataError as error:
                raise DataError(f"{self._where(index)}: {error}") from error
        item = convert.as_tensor(item, self._where(index))
        item = convert.as_chw(item, self._where(index))
        return convert.reform(item[None], self._form, self._where(index))[0]

    def _check(self, index: int, item: Tensor) -> None:
        same_kind = (item.dtype == torch.uint8) == (self.dtype == torch.uint8)
        if tuple(item.shape) != self.shape or not same_kind:
            way_out = "convert all to one dtype"
            if same_kind:
                way_out = "image_size=... and channels=... bring 8-bit images to one form"
            raise DataError(
                f"{self._where(index)}: {tuple(item.shape)} of {_name(item.dtype)}, but item 0 is "
                f"{self.shape} of {_name(self.dtype)}; {way_out}"
            )

    def __len__(self) -> int:
        """Number of images."""
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        """Read one image: uint8, or float32 in [-1, 1], [C, H, W]."""
        item = self._read(index)
        self._check(index, item)
        if self.dtype == torch.uint8:
            return item
        return convert.to_signed(item, self._range, self._where(index))


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
