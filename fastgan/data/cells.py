"""The cells of a table's columns: what each holds as numbers or as plain values, and back.

Numbers stay numbers, and times are seconds since 1970. Objects of Python (dates, Decimals) and
texts that write dates come back as they were, by the `form` of their column.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Hashable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

FEW = 10
"""Numbers with at most so many different ones are taken for categories."""
_DIGITS = 9
_LARGEST = 1e100
# A column of which so many cells are one thing is meant to be that thing.
_MOST = 0.95
_TEXTS = {
    "%Y-%m-%d": re.compile(r"\d{4}-\d\d-\d\d"),
    "%Y-%m-%d %H:%M:%S": re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"),
    "%Y-%m-%dT%H:%M:%S": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"),
}
"""How texts write dates."""
_OBJECTS = {
    "date": (datetime.date, datetime.date.fromisoformat),
    "datetime": (datetime.datetime, datetime.datetime.fromisoformat),
    "decimal": (Decimal, Decimal),
}
"""Objects of Python: their type, and what makes one of its text."""
_UNITS = {
    **{"D": 86_400 * 10**9, "h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9},
    **{"ms": 10**6, "us": 10**3, "ns": 1},
}
"""numpy's units of time in nanoseconds, the longest first."""


class Numbers(NamedTuple):
    """A column as numbers."""

    values: Tensor
    """float64 [n], NaN where missing."""
    form: str | None = None
    """What its cells are, if neither numbers nor times of pandas."""
    unit: str | None = None
    """Of times: the longest of numpy's, from days to nanoseconds, of which all are multiples."""

    @property
    def known(self) -> Tensor:
        """Those that are not missing."""
        return self.values[~self.values.isnan()]


def plain(value: Any) -> Any:
    """A value of a category as Python's own: a text, a number, a bool, or None if it is missing."""
    if value is None or value is np.nan or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value != value:
        return None
    return value if type(value) in (str, int, float, bool) else str(value)


def key(value: Any) -> tuple[bool, Any]:
    """What tells a plain value from others in a dict, where 1 and True are one."""
    return isinstance(value, bool), value


def distinct(series: Any) -> tuple[np.ndarray, list[Any]]:
    """Which of a column's different values each cell has, int64 [n], and these, plain."""
    # pandas takes 1 and True for one.
    if series.dtype == object and bool in set(map(type, series)):
        return _numbered([plain(value) for value in series.tolist()])
    where, found = series.factorize(use_na_sentinel=False)
    # What is plain may be one for several of them, such as None and NaN.
    same, values = _numbered([plain(value) for value in found.tolist()])
    return same[where], values


def _numbered(values: list[Any]) -> tuple[np.ndarray, list[Any]]:
    numbers: dict[tuple[bool, Any], int] = {}
    where = [numbers.setdefault(key(value), len(numbers)) for value in values]
    return np.array(where, dtype=np.int64), [value for _, value in numbers]


# --- columns as numbers --------------------------------------------------------------------------


def check(series: Any) -> None:
    """DataError that names the first cell which holds several things, such as a list."""
    if series.dtype != object or all(issubclass(t, Hashable) for t in set(map(type, series))):
        return
    row, value = next((i, v) for i, v in enumerate(series) if not isinstance(v, Hashable))
    raise _bad(
        series, row,
        f"a {type(value).__name__}, {_short(value)}; a cell holds one text, number, date or "
        "truth value, so give each part a column of its own",
    )  # fmt: skip


def numbers_of(series: Any, discrete: bool | None, pandas: Any) -> Numbers | None:
    """A column as numbers; None if it is one of categories.

    Args:
        series: the column.
        discrete: whether it is said to hold categories. Default: as its cells say.
        pandas: the module.

    Raises:
        DataError: a cell is none of what the others are; the message names its row.
    """
    types = pandas.api.types
    if discrete or isinstance(series.dtype, pandas.CategoricalDtype):
        return None
    if types.is_bool_dtype(series.dtype):
        return None
    if types.is_datetime64_any_dtype(series.dtype):
        # By the clock on the wall, so that whole days stay whole days.
        return _of_times(series.dt.tz_localize(None) if series.dt.tz is not None else series)
    if types.is_timedelta64_dtype(series.dtype):
        return _of_times(series)
    if types.is_numeric_dtype(series.dtype):
        if types.is_complex_dtype(series.dtype):
            raise DataError(f"column {series.name!r}: complex numbers; give their parts")
        values = series.to_numpy(np.float64, na_value=np.nan)
        return Numbers(_finite(series, torch.from_numpy(np.array(values))))
    return _of_objects(series, discrete)


def _of_times(series: Any) -> Numbers:
    times = series.to_numpy()
    if times.dtype.kind not in "mM":  # a type of pyarrow's
        times = times.astype("datetime64[ns]")
    return _seconds(times)


def _seconds(times: np.ndarray, form: str | None = None) -> Numbers:
    """Numbers of times of numpy, whatever their unit."""
    own = np.datetime_data(times.dtype)[0]
    absent = np.isnat(times)
    counts = times.view(np.int64)
    known = counts[~absent]
    each = _UNITS[own]
    unit = next(
        u for u, ns in _UNITS.items() if ns % each == 0 and not (known % (ns // each)).any()
    )
    values = torch.from_numpy(counts * (each / 1e9) if each > 10**9 else counts / (10**9 / each))
    return Numbers(values.masked_fill_(torch.from_numpy(absent), float("nan")), form, unit)


def _finite(series: Any, values: Tensor) -> Tensor:
    far = values.abs() > _LARGEST
    if bool(far.any()):
        row = int(far.nonzero()[0])
        if bool(values[row].isinf()):
            raise _bad(series, row, f"{float(values[row])}; replace it, or leave the row out")
        raise _bad(
            series, row,
            f"{float(values[row])}, and numbers are learned up to {_LARGEST:g}; give another unit, "
            "or its logarithm",
        )  # fmt: skip
    return values


def _of_objects(series: Any, discrete: bool | None) -> Numbers | None:
    # By their different values: a column of texts has few.
    where, found = series.factorize()
    found = found.tolist()

    def bad(i: int, why: str) -> DataError:
        return _bad(series, int(np.flatnonzero(where == i)[0]), f"{_short(found[i])} {why}")

    kinds = set(map(type, found))
    if bool in set(map(type, series)):
        kinds = {bool}
    elif kinds and all(issubclass(kind, (int, float, np.number, Decimal)) for kind in kinds):
        form = "decimal" if all(issubclass(kind, Decimal) for kind in kinds) else None
        values = np.array([_float(value) for value in found] + [np.nan])
        return Numbers(_finite(series, torch.from_numpy(values[where])), form)
    times = _of_texts(found, bad) if kinds == {str} else None
    if kinds == {datetime.date}:
        times = np.array([*found, None], dtype="datetime64[D]"), "date"
    elif kinds and all(issubclass(kind, datetime.datetime) for kind in kinds):
        zoned = next((i for i, value in enumerate(found) if value.tzinfo is not None), None)
        if zoned is not None:
            raise bad(
                zoned,
                "is an object with a time zone; make the column one of times: "
                "pandas.to_datetime(column, utc=True)",
            )
        times = np.array([*found, None], dtype="datetime64[us]"), "datetime"
    if times is not None:
        return _seconds(times[0][where], times[1])
    numbers = [not isinstance(value, bool) and _is_number(value) for value in found]
    odd = [i for i, fine in enumerate(numbers) if not fine]
    mixed = odd and len(found) > FEW + len(odd) and sum(numbers) > _MOST * len(found)
    if discrete is None and not mixed:
        return None
    # A text may be a number in quotation marks, which is none yet.
    i = next(iter(odd or [i for i, value in enumerate(found) if isinstance(value, str)]), 0)
    raise bad(i, "is no number; name the column in discrete, or mend the value")


def _of_texts(found: list[str], bad: Any) -> tuple[np.ndarray, str] | None:
    """Times of texts, NaT last, and how they are written; None if they are others."""
    for form, pattern in _TEXTS.items():
        odd = [i for i, text in enumerate(found) if not pattern.fullmatch(text)]
        if len(odd) > (1 - _MOST) * len(found):
            continue
        # numpy reads ISO 8601, of any year.
        odd += [i for i, text in enumerate(found) if not _is_time(text)]
        if odd:
            raise bad(
                min(odd), "is no date, as others are; mend it, or name the column in discrete"
            )
        return np.array([*found, "NaT"], dtype="datetime64[s]"), form
    return None


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _is_time(text: str) -> bool:
    try:
        np.datetime64(text)
    except ValueError:
        return False
    return True


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _bad(series: Any, row: int, why: str) -> DataError:
    return DataError(f"row {row}, column {series.name!r}: {why}")


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def digits_of(values: Tensor) -> int | None:
    """The least number of decimals that write all these numbers; None if none up to nine do."""
    array = values.numpy()
    slack = 1e-12 * np.abs(array).max(initial=0)
    for digits in range(_DIGITS + 1):
        if np.all(np.abs(np.round(array, digits) - array) <= slack):
            return digits
    return None


# --- and back ------------------------------------------------------------------------------------


def form_of(series: Any) -> str | None:
    """What objects the known cells of a column are; None of others than those that come back."""
    if series.dtype != object:
        return None
    kinds = set(map(type, series.dropna().tolist()))
    return next((form for form, (kind, _) in _OBJECTS.items() if kinds == {kind}), None)


def foreign(series: Any) -> str | None:
    """The type of the first objects of a column that come back as texts; None if there are none."""
    found = series.dropna().unique() if series.dtype == object else ()
    if hasattr(series.dtype, "categories"):
        found = series.dtype.categories
    kinds = (type(value) for value in found if not isinstance(value, np.generic))
    return next((k.__name__ for k in kinds if k not in (str, int, float, bool)), None)


def objects(values: Sequence[Any], form: str) -> list[Any]:
    """The objects that plain values were made of."""
    make = _OBJECTS[form][1]
    return [None if value is None else make(value) for value in values]


def times(values: np.ndarray, unit: str, duration: bool = False) -> np.ndarray:
    """Seconds, NaN where missing, as times of numpy that are multiples of a unit."""
    absent = np.isnan(values)
    counts = np.round(np.where(absent, 0.0, values) * (1e9 / _UNITS[unit])).astype(np.int64)
    found = counts.view(f"{'timedelta64' if duration else 'datetime64'}[{unit}]")
    found[absent] = "NaT"
    return found


def cells_of(values: np.ndarray, form: str, unit: str | None, digits: int | None) -> list[Any]:
    """Numbers, NaN where missing, as the cells of a form."""
    if form == "decimal":
        texts = (repr(v) if digits is None else f"{v:.{digits}f}" for v in values.tolist())
        return [None if text == "nan" else Decimal(text) for text in texts]
    found = times(values, unit)
    if form in _OBJECTS:
        return (
            found.astype(f"datetime64[{'D' if form == 'date' else 'us'}]").astype(object).tolist()
        )
    texts = np.datetime_as_string(found, unit="D" if form == "%Y-%m-%d" else "s")
    if " " in form:
        texts = np.char.replace(texts, "T", " ")
    return [None if text == "NaT" else text for text in texts.tolist()]


def typed(pandas: Any, values: Any, dtype: str) -> Any:
    """Values as a Series of a type, or, where that cannot hold them, as they are.

    Args:
        pandas: the module.
        values: a list, or an array of numbers or times.
        dtype: as pandas names it, of whichever version.
    """
    if dtype == "str" and int(pandas.__version__.split(".")[0]) < 3:
        dtype = "object"  # where "str" writes what is missing as a text
    if isinstance(values, np.ndarray) and values.dtype.kind in "mM":
        return _typed_times(pandas, values, dtype)
    if isinstance(values, np.ndarray) and re.fullmatch(r"u?int\d+", dtype):
        # float64 is coarser than the type, so that its nearest number may lie outside.
        info = np.iinfo(dtype)
        low, high = (
            np.nextafter(float(x), 0) if int(float(x)) != x else x for x in (info.min, info.max)
        )
        return pandas.Series(np.clip(values, low, high).astype(dtype))
    series = pandas.Series(values, dtype=object if isinstance(values, list) else None)
    try:
        return series.astype(dtype)
    except (TypeError, ValueError):
        return series


def _typed_times(pandas: Any, values: np.ndarray, dtype: str) -> Any:
    own = re.search(r"\[(\w+)", dtype)
    unit = own[1] if own and own[1] in _UNITS else "ns"
    series = pandas.Series(
        values.astype(f"{'datetime64' if values.dtype.kind == 'M' else 'timedelta64'}[{unit}]")
    )
    zone = re.search(r"\[\w+, (.+)\]", dtype)
    if zone:
        # An hour that a clock has twice is the first of both; one that it leaves out is the next.
        twice = np.ones(len(series), dtype=bool)
        series = series.dt.tz_localize(zone[1], ambiguous=twice, nonexistent="shift_forward")
    try:
        return series.astype(dtype)
    except (TypeError, ValueError):
        return series
