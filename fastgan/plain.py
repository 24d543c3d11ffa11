"""Numbers of any library as Python's own."""

from __future__ import annotations

import numbers
from typing import Any


def item(value: Any) -> Any:
    """The Python number in a number, array or tensor of numpy, torch or the like; else the value.

    Raises:
        ValueError, RuntimeError: it holds several, or none.
    """
    return value.item() if hasattr(value, "item") else value


def items(value: Any) -> Any:
    """A list of the numbers in a list, tuple, array or tensor; one number as `item` gives it."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if getattr(value, "ndim", 0):
        return value.tolist()
    return item(value)


def real(value: Any) -> float | None:
    """A number as a float; None if it is none."""
    value = item(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value)


def whole(value: Any) -> int | None:
    """A whole number as an int; None if it is none."""
    value = item(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return None
    return int(value)


def in_words(number: float) -> str:
    """A float as a short text that `float` takes for the same number."""
    return min(f"{number:g}", repr(number), key=lambda text: (float(text) != number, len(text)))
