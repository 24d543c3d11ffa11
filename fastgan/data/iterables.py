"""Data that can only be read from the beginning: WebDataset, Hugging Face's streams, generators.

The order of a run is a permutation of all samples, so that it can be resumed at any step; these are
therefore read once, as far as memory allows.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .pictures import is_picture

log = logging.getLogger("fastgan")

_OBJECT = 500
"""Bytes of a tensor, an array, a picture or a dict beside what is in it."""


def is_iterable(source: Any) -> bool:
    """Whether this can be gone through, and not be read by number."""
    if isinstance(source, torch.utils.data.IterableDataset):
        return True
    return hasattr(source, "__iter__") and not hasattr(source, "__getitem__")


def gathered(source: Any, budget: int) -> list[Any]:
    """Its items, as they come.

    Raises:
        DataError: there is none, or they take more than `budget` bytes.
    """
    name, items, taken = type(source).__name__, [], 0
    for item in source:
        items.append(item)
        taken += _bytes(item)
        if taken > budget:
            raise DataError(
                f"source: {name} can only be read from the beginning, so it is held in memory, and "
                f"its first {len(items)} items take more than {budget / 2**20:,.0f} MB; pass a "
                "larger budget_bytes=, fewer items, or a data set that can be read by number"
            )
    if not items:
        raise DataError(f"source: {name} gave no item; check its source and its filters")
    log.warning(
        f"{name} can only be read from the beginning: its {len(items)} items are read once and "
        f"held in memory ({taken / 2**20:,.1f} MB)"
    )
    return items


def _bytes(item: Any) -> int:
    if isinstance(item, Tensor):
        return _OBJECT + item.numel() * item.element_size()
    if isinstance(item, np.ndarray):
        return _OBJECT + item.nbytes
    if is_picture(item):
        return _OBJECT + item.width * item.height * len(item.getbands())
    if isinstance(item, Mapping):
        item = item.values()
    elif not isinstance(item, (list, tuple)):
        return sys.getsizeof(item)
    return _OBJECT + sum(map(_bytes, itertools.islice(item, 1 << 20)))
