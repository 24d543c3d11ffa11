"""The one exception of this room, and the numbers that a caller passes."""

from __future__ import annotations

import operator
from typing import Any


class DataError(ValueError):
    """Data missing, damaged or not as asked for: one line with what, where, and the way out."""


def whole(value: Any, name: str, least: int, otherwise: str = "") -> int:
    """An integer of at least `least` from any integer type (numpy's too); DataError else.

    name: of the argument, for the message; otherwise: what else it may be, such as " or None".
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise DataError(f"{name}={value!r}: expected an integer of at least {least}{otherwise}")
    return number
