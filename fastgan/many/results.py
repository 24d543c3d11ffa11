"""What became of the members of an ensemble, as a table."""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgan.config import ConfigError
from fastgan.run import files
from fastgan.words import nearest

if TYPE_CHECKING:
    import pandas

_SHOWN = ("member", "status", "step", "d_loss", "g_loss")


class Results(list):
    """One dict for each member.

    A row has "member", the settings in which members differ, "status" (waiting, begun, done,
    diverged, failed), "step", "seconds" (of training, beside the others), what the run's last log
    line says, what `Ensemble.evaluate` has measured, and "reason": why a member failed.

    Attributes:
        varied: the settings in which members differ.
        scores: the metrics that were measured.
    """

    def __init__(
        self, rows: Iterable[dict[str, Any]], varied: Sequence[str], scores: Sequence[str] = ()
    ):
        """Take the rows as they are."""
        super().__init__(rows)
        self.varied, self.scores = tuple(varied), tuple(scores)

    @property
    def columns(self) -> list[str]:
        """The names of what the rows have, in their order."""
        return list(dict.fromkeys(name for row in self for name in row))

    def column(self, name: str) -> list[Any]:
        """One value of each row, None where it has none; ConfigError if no row has one."""
        if name not in self.columns:
            raise ConfigError(
                f"there is no column {name!r}{nearest(name, self.columns)}; there are "
                f"{', '.join(self.columns)}"
            )
        return [row.get(name) for row in self]

    def spread(self) -> Results:
        """Mean and spread of the members that are done, over their seeds.

        Returns:
            a row for each set of settings that differ in more than the seed: these, "members" (how
            many), and of each number its mean under its name, and its standard deviation (of a
            sample; None for one member), least and greatest under ``<name>_std``, ``_min`` and
            ``_max``. Values that are not finite are left out.
        """
        by = [name for name in self.varied if name != "seed"]
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in self:
            if row["status"] == "done":
                groups.setdefault(repr([row.get(name) for name in by]), []).append(row)
        left = {"member", "status", "reason", *self.varied}
        numbers = [name for name in self.columns if name not in left]
        spread = []
        for rows in groups.values():
            line = {name: rows[0].get(name) for name in by} | {"members": len(rows)}
            for name in numbers:
                values = [row[name] for row in rows if is_number(row.get(name))]
                if values:
                    line |= {
                        name: statistics.fmean(values),
                        f"{name}_std": statistics.stdev(values) if len(values) > 1 else None,
                        f"{name}_min": min(values),
                        f"{name}_max": max(values),
                    }
            spread.append(line)
        return Results(spread, by, self.scores)

    def to_csv(self, path: str | os.PathLike) -> Path:
        """Write the table, a line for each row and one with the names, and return its path."""
        path = Path(path).expanduser()

        def fill(file: Any) -> None:
            # The module writes texts.
            lines = _Lines()
            writer = csv.DictWriter(lines, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self)
            file.write("".join(lines).encode())

        files.write(path, fill)
        return path

    def to_frame(self) -> pandas.DataFrame:
        """The same as a DataFrame; ImportError with a way out where pandas is missing."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "a DataFrame needs pandas, which is not here: pip install pandas; the rows "
                "themselves are dicts, and to_csv() writes them"
            ) from error
        return pandas.DataFrame(list(self), columns=self.columns)

    def __str__(self) -> str:
        """What a person looks at first, in columns."""
        names = [*_SHOWN[:1], "members", *self.varied, *_SHOWN[1:], *self.scores, "reason"]
        spreads = [f"{name}_std" for name in ("d_loss", "g_loss", *self.scores)]
        names = [name for name in (*names, *spreads) if name in self.columns]
        cells = [names, *([_cell(row.get(name)) for name in names] for row in self)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        )

    __repr__ = __str__


class _Lines(list):
    """Where csv writes to."""

    write = list.append


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
