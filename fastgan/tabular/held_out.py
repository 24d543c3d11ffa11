"""Rows of a table that a run does not learn, and by whose score it ends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan import data as data_room
from fastgan import random
from fastgan.config import ConfigError
from fastgan.data import Data, DataError
from fastgan.data.columns import Constant, Discrete
from fastgan.data.table import Table, read
from fastgan.plain import real
from fastgan.until import Until

PLATEAU = "plateau:shapes:5"
"""The rule of a run that holds rows out and names none."""
_APART = (1 << 64) - 1
"""No epoch: whose order says which rows are held out."""
_ROW = re.compile(r"^row (\d+)")


class HeldOut:
    """Which rows are held out of a table, and the rule they are for.

    Attributes:
        rows: a DataFrame, a path, a share of the rows that are learned, or None.
        share: of the rows that are given to learn; None where the rows are others, or none.
        rule: as `fastgan.Until` reads it; None for a run without one.
    """

    def __init__(self, rows: Any = None, until: str | None = None):
        """Rows and rule.

        Raises:
            ConfigError: the share is none, or the rule is.
        """
        self.rows, self.share = rows, real(rows)
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(f"held_out is {rows!r}; expected rows, a path or a share in (0, 1)")
        self.rule = until if until is not None or rows is None else PLATEAU
        if self.rule is not None:
            Until(self.rule, held_out=rows)  # which refuses what is no rule

    @classmethod
    def of_run(cls, kept: Mapping[str, Any] | None, rows: Any, until: str | None) -> HeldOut:
        """That of a run that goes on, which holds out what it began with.

        Args:
            kept: of the run; see `kept`. None: it has no share of its own.
            rows: as they are given now, or None.
            until: likewise.

        Raises:
            ConfigError: another share is given, or other rows.
        """
        if kept is None:
            return cls(rows, until)
        if rows is not None and real(rows) != kept["share"]:
            given = repr(rows) if isinstance(rows, (str, int, float)) else "other rows"
            raise ConfigError(
                f"held_out is {given}, saved {kept['share']:g}: a resume cannot change which rows "
                "are learned; leave it out"
            )
        return cls(kept["share"], kept["rule"] if until is None else until)

    def kept(self, seed: int) -> dict[str, Any] | None:
        """What a checkpoint has of a share, so that the same rows are held out when it goes on."""
        if self.share is None:
            return None
        return {"share": self.share, "seed": seed, "rule": self.rule}

    def opened(self, path: str, seed: int, options: Mapping[str, Any]) -> tuple[Data, Any, Any]:
        """The data of a file that are learned, and what `parted` returns.

        They have the name and path of the whole file, so that other commands find it.
        """
        learned, others = self.parted(path, seed)
        with self.counting(path, seed):
            opened = data_room.open(learned, **options)
        if self.share is not None:
            file = Path(path).expanduser().absolute()
            opened.name, opened.source = file.stem, str(file)
            opened.origin = f"{file} without {len(others)} rows held out: {opened.origin}"
            opened.held_out = self.kept(seed)
        return opened, learned, others

    def parted(self, data: Any, seed: int) -> tuple[Any, Any]:
        """The rows to learn, and those that are held out; a share is drawn by the seed."""
        if self.share is None:
            return data, self.rows
        rows = read(data)
        apart = self.apart(len(rows), seed).numpy()
        return rows[~apart], rows[apart]

    def apart(self, n: int, seed: int) -> Tensor:
        """Which of n rows are held out, bool [n]."""
        if seed is None:
            raise ConfigError("held_out is a share, drawn by the seed, and seed is None; give one")
        count = round(self.share * n)
        if not 0 < count < n:
            raise ConfigError(f"held_out is {self.share:g}, of {n} rows; expected some of them")
        apart = torch.zeros(n, dtype=torch.bool, device="cpu")
        apart[random.permutation(seed, _APART, n)[:count]] = True
        return apart

    @contextmanager
    def counting(self, data: Any, seed: int) -> Iterator[None]:
        """Errors of rows that are learned number them as they are in what was given."""
        try:
            yield
        except DataError as error:
            if self.share is None:
                raise
            places = (~self.apart(len(read(data)), seed)).nonzero()[:, 0].tolist()
            told = _ROW.sub(lambda m: f"row {places[int(m[1])]}", str(error))
            raise DataError(told) from None

    def callbacks(self, table: Table, learned: Any, held_out: Any) -> tuple[Until, ...]:
        """The rule, with the rows that can be compared with; none without a rule.

        Args:
            table: what the columns are.
            learned: of `parted`.
            held_out: likewise.
        """
        if self.rule is None:
            return ()
        if self.share is not None:
            # What no row that is learned has is nothing to compare.
            for column in table.columns:
                own, other = learned[column.name], held_out[column.name]
                numbers = not isinstance(column, (Constant, Discrete))
                seen = other.notna() if numbers else other.isin(own)
                held_out = held_out[seen | (other.isna() & own.isna().any())]
            if not len(held_out):
                raise ConfigError("held_out: each of its rows has a category that no other row has")
        return (Until(self.rule, held_out=held_out),)
