"""Tables: CSV and Parquet files and DataFrames as rows of numbers that networks train on, and back.

A row is first the numbers of the continuous columns, in [-1, 1], then their modes, then the
discrete columns, both as one-hot groups, narrow groups first: groups of one width are one block of
a network's output.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastgan import random
from fastgan.random import Stream
from fastgan.run import files

from . import cells
from . import columns as kinds
from .columns import Column, Constant, Continuous, Discrete
from .errors import DataError
from .mixture import modes_of

if TYPE_CHECKING:
    import pandas

log = logging.getLogger("fastgan")

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
FILE = "table.json"
"""Where a run keeps what its rows mean."""
_WIDE = 1000


def needs_pandas() -> Any:
    """The module pandas; DataError if it is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise DataError(
            "tables are read and written by pandas, which is not installed: pip install pandas "
            "(and pyarrow for Parquet)"
        ) from error
    return pandas


def is_table(source: Any) -> bool:
    """Whether this is the path of a table, or a DataFrame of pandas."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).suffix.lower() in SUFFIXES and not Path(source).expanduser().is_dir()
    return type(source).__name__ == "DataFrame" and type(source).__module__.startswith("pandas")


def read(source: Any) -> pandas.DataFrame:
    """The table in a CSV, TSV or Parquet file; a DataFrame is returned as it is.

    Raises:
        DataError: it cannot be read, is empty, or has two columns of one name.
    """
    pandas = needs_pandas()
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        try:
            if path.suffix.lower() in (".parquet", ".pq"):
                table = pandas.read_parquet(path)
            else:
                table = pandas.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else ",")
        except ImportError as error:
            raise DataError(
                f"{path}: pandas reads Parquet by pyarrow, which is not installed: pip install "
                "pyarrow"
            ) from error
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; check the path (from {Path.cwd()})") from error
        except Exception as error:  # parsers raise errors of many kinds on damaged files
            why = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path}: cannot be read as a table ({why}); check the file") from error
        what = str(path)
    else:
        table, what = source, "the table"
    if not isinstance(table, pandas.DataFrame):
        raise DataError(f"{what}: a {type(source).__name__}; pass a path or a pandas DataFrame")
    if not len(table.columns) or not len(table):
        raise DataError(
            f"{what}: {len(table)} rows and {len(table.columns)} columns; pass at least one of both"
        )
    if table.columns.nlevels > 1:
        raise DataError(
            f"{what}: the names of its columns have {table.columns.nlevels} levels, such as "
            f"{table.columns[0]}; make them texts: table.columns = ['_'.join(map(str, name)) for "
            "name in table.columns]"
        )
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise DataError(f"{what}: two columns are called {twice[0]!r}; rename one")
    for name in table.columns:
        if isinstance(name, bool) or not isinstance(name, (str, int, np.integer)):
            raise DataError(
                f"{what}: a column is called {name!r}, a {type(name).__name__}; expected a text or "
                "a whole number"
            )
    return table


@dataclass(frozen=True)
class Layout:
    """What the numbers of an encoded row are.

    Attributes:
        scalars: how many there are, the first of the row.
        modes: widths of the one-hot groups that follow, ascending: modes of continuous columns.
        categories: widths of those after them, ascending: discrete columns.
    """

    scalars: int
    modes: tuple[int, ...] = ()
    categories: tuple[int, ...] = ()

    @property
    def groups(self) -> tuple[int, ...]:
        """The widths of all groups."""
        return (*self.modes, *self.categories)

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.scalars + sum(self.groups)

    @property
    def heads(self) -> tuple[tuple[str, int], ...]:
        """What a generator's rows consist of, as `fastgan.models.CTGANGenerator` takes it."""
        return (("tanh", 1),) * self.scalars + tuple(("softmax", width) for width in self.groups)

    @property
    def conditions(self) -> int:
        """Numbers of the discrete columns, the last of a row."""
        return sum(self.categories)


class Table:
    """What the columns of a table are, learned from one; rows of it as numbers, and back.

    Attributes:
        columns: in their order.
    """

    def __init__(self, columns: Sequence[Column]):
        """Of columns."""
        self.columns = tuple(columns)

    @classmethod
    def learned(cls, table: pandas.DataFrame, discrete: Sequence[Any] | None = None) -> Table:
        """What the columns of a DataFrame are.

        Args:
            table: of `read`.
            discrete: names of the columns that are categories. Default: those that hold anything
                else than numbers and dates, and those of numbers with at most 10 different ones.

        Raises:
            DataError: a column cannot be learned; the message names it.
        """
        if discrete is not None:
            unknown = [name for name in discrete if name not in table.columns]
            if unknown:
                names = ", ".join(map(repr, table.columns[:8]))
                raise DataError(
                    f"discrete: the table has no column {unknown[0]!r}; its columns are {names}"
                    + (", ..." if len(table.columns) > 8 else "")
                )
        pandas = needs_pandas()
        found: list[Column | None] = []
        waiting: list[tuple[int, Any, cells.Numbers]] = []
        for i, name in enumerate(table.columns):
            series = table[name]
            cells.check(series)
            if (absent := bool(series.isna().all())) or _is_constant(series):
                value = None if absent else cells.plain(series.iloc[0])
                kept = cells.plain(name), str(series.dtype)
                found.append(Constant(*kept, value, cells.form_of(series)))
                continue
            told = None if discrete is None else name in discrete
            numbers = cells.numbers_of(series, told, pandas)
            if numbers is None or (told is None and _are_few(numbers)):
                found.append(_discrete(name, series))
            else:
                found.append(None)
                waiting.append((i, name, numbers))
        modes = modes_of([numbers.known for *_, numbers in waiting])
        for (i, name, numbers), m in zip(waiting, modes, strict=True):
            known = numbers.known
            found[i] = Continuous(
                cells.plain(name),
                str(table[name].dtype),
                *(tuple(part.tolist()) for part in m),
                low=float(known.min()),
                high=float(known.max()),
                digits=None if numbers.unit else cells.digits_of(known),
                missing=len(known) < len(numbers.values),
                form=numbers.form,
                unit=numbers.unit,
            )
        return cls(found)

    @cached_property
    def _order(self) -> tuple[list[int], list[int], list[int]]:
        """Numbers of the columns: with scalars, with modes, with categories, as rows have them."""
        where = range(len(self.columns))
        continuous = [i for i in where if isinstance(self.columns[i], Continuous)]
        discrete = [i for i in where if isinstance(self.columns[i], Discrete)]

        def by_width(numbers: list[int]) -> list[int]:
            return sorted(numbers, key=lambda i: self.columns[i].codes)

        return continuous, by_width(continuous), by_width(discrete)

    @cached_property
    def layout(self) -> Layout:
        """What the numbers of a row are."""
        continuous, modes, discrete = self._order
        if not continuous and not discrete:
            raise DataError("the table: every column is constant, so there is nothing to learn")
        widths = [tuple(self.columns[i].codes for i in part) for part in (modes, discrete)]
        return Layout(len(continuous), *widths)

    @cached_property
    def discrete(self) -> tuple[Discrete, ...]:
        """The discrete columns, as rows have them."""
        return tuple(self.columns[i] for i in self._order[2])

    @cached_property
    def _starts(self) -> dict[int, int]:
        """Where the group of a column begins in a row."""
        _, modes, discrete = self._order
        found, at = {}, self.layout.scalars
        for i in (*modes, *discrete):
            found[i] = at
            at += self.columns[i].codes
        return found

    def packed(self, table: pandas.DataFrame, seed: int = 0) -> Tensor:
        """The rows of a table in few numbers, float32 [n, scalars + groups].

        First the numbers of the continuous columns, then which of its group each choice is, as
        `Layout` has the groups.

        Args:
            table: with these columns.
            seed: which of the modes that a number may be from is drawn by it.

        Raises:
            DataError: a column is missing, or holds what it cannot.
        """
        pandas = needs_pandas()
        for column in self.columns:
            self.require(table, column)
        continuous, modes, discrete = self._order
        rows = torch.empty(len(table), len(continuous) + len(self.layout.groups), device="cpu")
        for k, i in enumerate(continuous):
            column = self.columns[i]
            series = table[column.name]
            cells.check(series)
            numbers = cells.numbers_of(series, False, pandas)
            if numbers is None:
                raise DataError(f"column {column.name!r}: holds other things than numbers")
            places = random.uniform(seed, Stream.ROWS, (1 << 63) + i, len(table)).double()
            rows[:, k], rows[:, len(continuous) + modes.index(i)] = column.encoded(
                numbers.values, places
            )
        for k, i in enumerate(discrete, len(continuous) + len(modes)):
            series = table[self.columns[i].name]
            cells.check(series)
            rows[:, k] = self.columns[i].encoded(series)
        return rows

    @staticmethod
    def require(table: pandas.DataFrame, column: Column) -> None:
        """DataError if a table has no such column."""
        if column.name not in table.columns:
            raise DataError(f"the table has no column {column.name!r}")

    def unpacked(self, packed: Tensor) -> Tensor:
        """The same rows as networks see them, float32 [n, width], with choices one-hot."""
        scalars = self.layout.scalars
        rows = packed.new_zeros(len(packed), self.layout.width)
        rows[:, :scalars] = packed[:, :scalars]
        if groups := self.layout.groups:
            widths = torch.tensor((scalars, *groups[:-1]), device=packed.device)
            rows.scatter_(1, packed[:, scalars:].long() + widths.cumsum(0), 1.0)
        return rows

    def encoded(self, table: pandas.DataFrame, seed: int = 0) -> Tensor:
        """The rows of a table as numbers, float32 [n, width]; see `packed`."""
        return self.unpacked(self.packed(table, seed))

    def codes(self, rows: Tensor, i: int) -> Tensor:
        """The choice of column i in rows [n, width]: the largest of its group, int64 [n]."""
        start = self._starts[i]
        return rows[:, start : start + self.columns[i].codes].argmax(1)

    def decoded(self, rows: Tensor) -> pandas.DataFrame:
        """Rows [n, width] as a table of the same columns and types."""
        pandas = needs_pandas()
        rows = rows.detach().cpu()
        places = {i: k for k, i in enumerate(self._order[0])}
        found = {}
        for i, column in enumerate(self.columns):
            if isinstance(column, Constant):
                values: Any = column.decoded(len(rows))
            elif isinstance(column, Discrete):
                values = column.decoded(self.codes(rows, i))
            else:
                values = column.cells(rows[:, places[i]], self.codes(rows, i))
            found[column.name] = cells.typed(pandas, values, column.dtype)
        return pandas.DataFrame(found, columns=[c.name for c in self.columns])

    # --- on disk ---------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"columns": [kinds.to_plain(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, written: Any) -> Table:
        """Of such plain values; DataError if they are none."""
        try:
            return cls([kinds.of_plain(column) for column in written["columns"]])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"no description of a table ({error!r}); learn it again") from error

    def write(self, directory: Path) -> None:
        """Into a run's directory."""
        text = json.dumps(self.to_dict()) + "\n"
        files.write(directory / FILE, lambda file: file.write(text.encode()))

    @classmethod
    def found(cls, directory: Path) -> Table | None:
        """The table of a run's directory; None if its data are none."""
        path = directory / FILE
        if not path.is_file():
            return None
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:  # not JSON, or no description
            raise DataError(f"{path}: damaged ({error}); resume the run, which writes it") from None


def _is_constant(series: Any) -> bool:
    return not series.isna().any() and bool((series == series.iloc[0]).all())


def _are_few(numbers: cells.Numbers) -> bool:
    known = numbers.known
    return numbers.unit is None and len(known.unique()) <= min(cells.FEW, len(known) // 2)


def _discrete(name: Any, series: Any) -> Discrete:
    where, values = cells.distinct(series)
    counts = np.bincount(where, minlength=len(values)).tolist()
    # Numbers by size, texts by the alphabet, and what is missing last.
    found = sorted(zip(values, counts, strict=True), key=lambda f: (f[0] is None, *_rank(f[0])))
    if len(found) > _WIDE:
        log.warning(
            f"column {name!r} has {len(found)} categories, one number each in every row; leave it "
            "out if it only names the rows, or give numbers"
        )
    form = cells.form_of(series)
    if form is None and (odd := cells.foreign(series)) is not None:
        log.warning(f"column {name!r} holds objects of type {odd}, which come back as texts")
    return Discrete(cells.plain(name), str(series.dtype), *zip(*found, strict=True), form)


def _rank(value: Any) -> tuple[str, Any]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return ("", value) if number else (type(value).__name__, str(value))


def conditions(table: Table, given: dict[Any, Any]) -> Tensor:
    """The condition [conditions] that some discrete columns have some values; one is usual.

    Raises:
        DataError: there is no such discrete column, or it has no such value.
    """
    found = torch.zeros(table.layout.conditions, device="cpu")
    starts = [0, *np.cumsum(table.layout.categories).tolist()]
    names = [column.name for column in table.discrete]
    for name, value in given.items():
        if name not in names:
            shown = ", ".join(map(repr, names)) or "none"
            raise DataError(f"conditions: {name!r} is no discrete column; these are: {shown}")
        i = names.index(name)
        found[starts[i] + table.discrete[i].number(value)] = 1
    return found
