"""What the values of samples span, and their way to [-1, 1]."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from .errors import DataError

log = logging.getLogger("fastgan")

# A float image may miss its range by rounding (0.1 + 0.2 > 0.3); this share of the range is
# forgiven and clamped
_SLACK = 1e-5


def check_range(value_range: Any) -> tuple[float, float] | None:
    """The argument value_range of data.open, checked."""
    if value_range is None:
        return None
    try:
        low, high = (float(side) for side in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(
            f"value_range={value_range!r}: expected two finite numbers (lo, hi) with lo < hi"
        )
    return low, high


def check_bytes_range(value_range: tuple[float, float] | None, what: str) -> None:
    """Bytes have one range; refuse another instead of ignoring it."""
    if value_range not in (None, (0.0, 255.0)):
        raise DataError(
            f"{what}: 8-bit values always span (0, 255); leave value_range={value_range} out"
        )


def extremes(samples: Tensor, what: str) -> tuple[float, float]:
    """The least and the largest value; DataError if one is not finite."""
    low, high = (side.item() for side in torch.aminmax(samples))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(
            f"{what}: holds NaN or infinite values; replace them first (torch.nan_to_num)"
        )
    return low, high


def guess_range(low: float, high: float, what: str) -> tuple[float, float]:
    """What float images span of which the extremes are known: (-1, 1) if any value is negative,
    else (0, 1), which the log then says."""
    if low < 0 and low >= -1 - 2 * _SLACK and high <= 1 + 2 * _SLACK:
        return (-1.0, 1.0)
    if low >= 0 and high <= 1 + _SLACK:
        log.warning(
            f"{what}: taken as values in [0, 1] and mapped to [-1, 1]; value_range=(lo, hi) "
            "overrides this"
        )
        return (0.0, 1.0)
    raise DataError(
        f"{what}: values from {low:g} to {high:g}; expected [-1, 1] or [0, 1] of images; else say "
        "what they span with value_range=(lo, hi), such as (0, 255), or that these are no images "
        "with kind='signal' or kind='tensor', whose floats are taken as they are"
    )


def as_floats(samples: Tensor, value_range: tuple[float, float] | None, what: str) -> Tensor:
    """Floats as float32: mapped to [-1, 1] if value_range says what they span, else as they are."""
    if value_range is None:
        samples = samples.to(torch.float32)
        extremes(samples, what)
        return samples
    low, high = value_range
    least, most = extremes(samples, what)
    # beside that share, what float32 cannot resolve at this distance from zero
    slack = _SLACK * (high - low) + 2.0**-22 * max(abs(low), abs(high))
    if least < low - slack or most > high + slack:
        raise DataError(
            f"{what}: values from {least:g} to {most:g} leave the range ({low:g}, {high:g}); "
            "pass the value_range=(lo, hi) that they span"
        )
    samples = samples.to(torch.float32)
    if (low, high) != (-1.0, 1.0):
        samples = (samples - low) * (2.0 / (high - low)) - 1.0
    elif least >= low and most <= high:
        return samples
    return samples.clamp(-1.0, 1.0)
