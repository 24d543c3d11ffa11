"""The columns of a table: what each holds, as numbers that networks train on, and back.

Every column knows its `scalars` (numbers in [-1, 1]) and `codes` (how many values its choice has;
0 for no choice), makes them of values, and values of them. It is written down as plain values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from . import cells
from .errors import DataError
from .mixture import Modes

if TYPE_CHECKING:
    import pandas

_REACH = 0.99
"""How far a number may lie from its mode's mean, in units of four deviations."""


@dataclass(frozen=True)
class Constant:
    """A column with one value throughout, which networks need not learn."""

    name: Any
    dtype: str
    value: Any
    """Plain; None is a missing one."""
    form: str | None = None
    """Of objects of Python."""
    scalars: ClassVar[int] = 0
    codes: ClassVar[int] = 0

    def decoded(self, n: int) -> list[Any]:
        """n values."""
        made = cells.objects([self.value], self.form) if self.form else [self.value]
        return made * n


@dataclass(frozen=True)
class Discrete:
    """A column of categories, a missing value among them: a one-hot choice."""

    name: Any
    dtype: str
    categories: tuple[Any, ...]
    """Plain values; None is a missing one."""
    counts: tuple[int, ...]
    """How often each occurs."""
    form: str | None = None
    """Of objects of Python."""
    scalars: ClassVar[int] = 0

    def __post_init__(self):
        """A file has lists."""
        for name in ("categories", "counts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def codes(self) -> int:
        """How many categories there are."""
        return len(self.categories)

    @cached_property
    def _numbers(self) -> dict[tuple[bool, Any], int]:
        return {cells.key(category): i for i, category in enumerate(self.categories)}

    def number(self, value: Any) -> int:
        """Which category a value is.

        Raises:
            DataError: none.
        """
        value = cells.plain(value)
        if (number := self._numbers.get(cells.key(value))) is not None:
            return number
        # As one writes a number on a command line.
        texts = [str(category) for category in self.categories]
        if isinstance(value, str) and texts.count(value) == 1:
            return texts.index(value)
        shown = ", ".join(map(repr, self.categories[:6])) + (", ..." if self.codes > 6 else "")
        raise DataError(f"column {self.name!r}: {value!r} is none of its categories: {shown}")

    def encoded(self, series: pandas.Series) -> Tensor:
        """int64 [n], the categories of a column.

        Raises:
            DataError: a cell is none of them; the message has its row.
        """
        where, found = cells.distinct(series)
        numbers = np.empty(len(found), dtype=np.int64)
        for i, value in enumerate(found):
            try:
                numbers[i] = self.number(value)
            except DataError as error:
                row = int((where == i).argmax())
                raise DataError(f"row {row}, {error}") from None
        return torch.from_numpy(numbers[where])

    def decoded(self, codes: Tensor) -> list[Any]:
        """The values of categories."""
        values = cells.objects(self.categories, self.form) if self.form else self.categories
        return [values[i] for i in codes.tolist()]


@dataclass(frozen=True)
class Continuous:
    """A column of numbers or times: a choice of a mode, and where in it the number lies.

    Mode-specific normalisation, L. Xu et al., "Modeling Tabular Data using Conditional GAN",
    NeurIPS 2019. A missing value is a further mode.
    """

    name: Any
    dtype: str
    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    low: float
    high: float
    digits: int | None
    """Decimals that the values have; None: any."""
    missing: bool
    form: str | None = None
    """Of objects of Python, and of texts that write dates."""
    unit: str | None = None
    """Of times: the longest of numpy's of which all are multiples."""
    scalars: ClassVar[int] = 1

    def __post_init__(self):
        """A file has lists."""
        for name in ("weights", "means", "stds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def codes(self) -> int:
        """How many modes there are."""
        return len(self.means) + self.missing

    @property
    def _modes(self) -> Modes:
        parts = (self.weights, self.means, self.stds)
        return Modes(*(torch.tensor(part, dtype=torch.float64, device="cpu") for part in parts))

    def encoded(self, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers as (where in the mode, float64 [n]; which mode, int64 [n]).

        Args:
            values: float64 [n], NaN where missing.
            places: uniform numbers [n], by which one of the modes that a number may be from is
                drawn.

        Raises:
            DataError: one is missing, and none was in the table that the column is of.
        """
        absent = values.isnan()
        if bool(absent.any()) and not self.missing:
            row = int(absent.nonzero()[0])
            raise DataError(
                f"row {row}, column {self.name!r}: missing, and the table that was learned from "
                "has no missing value there; fill it, or learn from a table that has some"
            )
        known = torch.where(absent, self._modes.means[0], values)
        codes = torch.empty(len(values), dtype=torch.int64, device="cpu")
        for at in range(0, len(values), 1 << 16):
            rows = slice(at, at + (1 << 16))
            bounds = self._modes.chances(known[rows]).cumsum(1)[:, :-1]
            codes[rows] = (places[rows, None] >= bounds).sum(1)
        where = (known - self._modes.means[codes]) / (4 * self._modes.stds[codes])
        where = where.clamp(-_REACH, _REACH)
        if self.missing:
            where[absent], codes[absent] = 0.0, len(self.means)
        return where, codes

    def decoded(self, where: Tensor, codes: Tensor) -> Tensor:
        """Numbers, float64 [n], NaN where missing."""
        absent = codes == len(self.means)
        codes = codes.clamp_max(len(self.means) - 1)
        values = self._modes.means[codes] + where.double() * 4 * self._modes.stds[codes]
        values = values.clamp(self.low, self.high)
        if self.digits is not None:
            values = torch.from_numpy(np.round(values.numpy(), self.digits))
        return values.masked_fill_(absent, float("nan"))

    def cells(self, where: Tensor, codes: Tensor) -> Any:
        """The same as the column has them: an array of numbers or times, or a list of cells."""
        values = self.decoded(where, codes).numpy()
        if self.form is not None:
            return cells.cells_of(values, self.form, self.unit, self.digits)
        if self.unit is not None:
            return cells.times(values, self.unit, self.dtype.startswith(("timedelta", "duration")))
        return values


Column = Constant | Discrete | Continuous
KINDS = {kind.__name__.lower(): kind for kind in (Constant, Discrete, Continuous)}


def to_plain(column: Column) -> dict[str, Any]:
    """A column as a file has it."""
    written = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(column).items()}
    return {"kind": type(column).__name__.lower(), **written}


def of_plain(written: dict[str, Any]) -> Column:
    """The column of such plain values; KeyError or TypeError if they are none."""
    arguments = dict(written)
    return KINDS[arguments.pop("kind")](**arguments)
