"""How good synthetic rows of a table are, in numbers: columns, pairs, privacy, use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastgan import random
from fastgan.config import ConfigError
from fastgan.data import cells
from fastgan.data.columns import Constant, Continuous
from fastgan.data.table import Table, needs_pandas, read
from fastgan.random import Stream
from fastgan.words import nearest as nearest_word

if TYPE_CHECKING:
    import pandas

_BINS = 10
"""Into how many a column of numbers is divided beside one of categories."""
_ROWS, _NEAR = 5000, 2000
"""Rows of each table that pairs are taken of, and those whose nearest real one is looked for, among
all; columns are of all rows."""


class Compared:
    """A real and a synthetic table, column by column as numbers.

    Attributes:
        names: of the columns that are not constant.
        numbers: which of them hold numbers or times.
        real, fake: float64 [rows, names]: numbers, NaN where missing; numbers of categories.
    """

    def __init__(self, real: Any, fake: Any, table: Table, target: Any = None, seed: int = 0):
        """Of two tables with the columns that were learned.

        Args:
            real: a DataFrame, or the path of a file.
            fake: likewise.
            table: what the columns are.
            target: the column that classifiers are to know. Default: the last one of categories.
            seed: of what is drawn.

        Raises:
            DataError: a column is missing or holds what it cannot.
            ConfigError: the target is none of the columns of categories.
        """
        real, fake = read(real), read(fake)
        columns = [c for c in table.columns if not isinstance(c, Constant)]
        self.names = [c.name for c in columns]
        self.numbers = [isinstance(c, Continuous) for c in columns]
        self.codes = [c.codes for c in columns]
        self.seed = seed
        both = [[], []]
        for column in columns:
            for frame, found in zip((real, fake), both, strict=True):
                table.require(frame, column)
                found.append(_values(frame[column.name], column))
        self.real, self.fake = (torch.stack(found, 1) for found in both)
        discrete = [
            name for name, number in zip(self.names, self.numbers, strict=True) if not number
        ]
        if target is not None and target not in discrete:
            shown = ", ".join(map(repr, discrete)) or "none"
            raise ConfigError(f"target is {target!r}; expected a column of categories: {shown}")
        self.target = target if target is not None else discrete[-1] if discrete else None

    @cached_property
    def some(self) -> tuple[Tensor, Tensor]:
        """As many rows of each as distances take, drawn by the seed."""
        return tuple(
            rows[self._drawn(i, len(rows))[:_ROWS]] for i, rows in enumerate((self.real, self.fake))
        )

    def _drawn(self, number: int, n: int) -> Tensor:
        """An order of n rows."""
        return random.uniform(self.seed, Stream.ESTIMATE, number, n).argsort()

    @cached_property
    def columns(self) -> dict[Any, float]:
        """How like each column is, in [0, 1]."""
        found = {}
        for i, name in enumerate(self.names):
            a, b = self.real[:, i], self.fake[:, i]
            if self.numbers[i]:
                absent = float((a.isnan().double().mean() - b.isnan().double().mean()).abs())
                found[name] = (1 - _kolmogorov(a[~a.isnan()], b[~b.isnan()])) * (1 - absent)
            else:
                shares = [shares_of(x, self.codes[i]) for x in (a, b)]
                found[name] = 1 - float((shares[0] - shares[1]).abs().sum()) / 2
        return found

    @cached_property
    def pairs(self) -> dict[tuple[Any, Any], float]:
        """How like two columns belong together, in [0, 1]."""
        real, fake = self.some
        # Numbers beside categories by tenths of the real ones.
        tenths = [self._tenths(i, real, fake) for i in range(len(self.names))]
        ranked = [real[:, self._of_numbers], fake[:, self._of_numbers]]
        correlations = [_correlations(part) for part in ranked]
        place = {i: k for k, i in enumerate(self._of_numbers)}
        found = {}
        for i, k in combinations(range(len(self.names)), 2):
            if self.numbers[i] and self.numbers[k]:
                a, b = (float(c[place[i], place[k]]) for c in correlations)
                score = 1 - abs(a - b) / 2
            else:
                (a, b, n), (c, d, m) = tenths[i], tenths[k]
                shares = [shares_of(x * m + y, n * m) for x, y in ((a, c), (b, d))]
                score = 1 - float((shares[0] - shares[1]).abs().sum()) / 2
            found[self.names[i], self.names[k]] = score
        return found

    @cached_property
    def associations(self) -> tuple[Tensor, Tensor]:
        """How two columns belong together in the real and in the synthetic rows, each [n, n].

        Of two columns of numbers their correlation, in [-1, 1]; else Cramer's V, in [0, 1], of
        numbers by tenths.
        """
        n = len(self.names)
        tenths = [self._tenths(i, *self.some) for i in range(n)]
        at, found = self._of_numbers, []
        for side, rows in enumerate(self.some):
            of = torch.eye(n, dtype=torch.float64, device="cpu")
            if at:
                places = torch.tensor(at, device="cpu")
                of[places[:, None], places] = _correlations(rows[:, at])
            for i, k in combinations(range(n), 2):
                if not (self.numbers[i] and self.numbers[k]):
                    a, b = tenths[i], tenths[k]
                    of[i, k] = of[k, i] = _cramer(a[side], b[side], a[2], b[2])
            found.append(of.fill_diagonal_(1.0))
        return found[0], found[1]

    @property
    def _of_numbers(self) -> list[int]:
        return [i for i, number in enumerate(self.numbers) if number]

    def _tenths(self, i: int, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, int]:
        a, b = real[:, i].contiguous(), fake[:, i].contiguous()
        if not self.numbers[i]:
            return a.long(), b.long(), self.codes[i]
        known = a[~a.isnan()]
        edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64, device="cpu")[1:-1]
        edges = known.quantile(edges).unique() if len(known) else edges
        last = len(edges) + 1
        found = []
        for x in (a, b):
            bins = torch.searchsorted(edges, x)
            found.append(torch.where(x.isnan(), last, bins))
        return *found, last + 1

    @cached_property
    def distances(self) -> tuple[Tensor, Tensor]:
        """From each synthetic row to the nearest real one; from each real one to another."""
        real, fake = self._points(self.real), self._points(self.some[1][:_NEAR])
        drawn = self._drawn(0, len(real))[:_NEAR]
        return _nearest(fake, real), _nearest(real[drawn], real, drawn)

    def _points(self, rows: Tensor) -> Tensor:
        """Rows where a number counts by its spread, and a category is or is not another."""
        parts = []
        for i, number in enumerate(self.numbers):
            column = rows[:, i]
            if number:
                known = self.real[:, i][~self.real[:, i].isnan()]
                spread = known.std(correction=0).clamp_min(1e-300)
                scaled = ((column - known.mean()) / spread).clamp(-10, 10)
                parts += [scaled.nan_to_num(0.0)[:, None], column.isnan().double()[:, None]]
            else:
                hot = torch.nn.functional.one_hot(column.long(), self.codes[i])
                parts.append(hot.double() / 2**0.5)
        return torch.cat(parts, 1).float()

    # --- scores ----------------------------------------------------------------------------------

    def shapes(self) -> dict[str, float]:
        """The mean over the columns."""
        return {"shapes": float(np.mean([*self.columns.values()]))}

    def trends(self) -> dict[str, float]:
        """The mean over the pairs of columns."""
        return {"pairs": float(np.mean([*self.pairs.values()])) if self.pairs else 1.0}

    def privacy(self) -> dict[str, float]:
        """Distances to the nearest real row."""
        made, own = self.distances
        close = own.quantile(0.05)
        return {
            "nearest": float(made.median() / own.median().clamp_min(1e-12)),
            "too_near": float((made < close).double().mean() - (own < close).double().mean()),
            "copies": float((made == 0).double().mean()),
        }

    def efficacy(self) -> dict[str, float]:
        """How well classifiers know real rows, taught by synthetic and by other real ones.

        Raises:
            ConfigError: scikit-learn is not installed, or there is no column of categories.
        """
        if self.target is None:
            raise ConfigError("efficacy needs a column of categories to predict, and there is none")
        forest, score = _learners()
        at = self.names.index(self.target)
        order = self._drawn(2, len(self.real))
        half = len(order) // 2
        known, test = self.real[order[:half]], self.real[order[half:]]
        found = {}
        for name, rows in (("efficacy", self.fake[:half]), ("efficacy_of_real", known)):
            x, y = (_split(part, at) for part in (rows, test))
            found[name] = float(score(y[1], forest().fit(*x).predict(y[0]), average="macro"))
        return found


@dataclass(frozen=True)
class TableMetric:
    """One measure of synthetic rows: what it is, and its numbers."""

    help: str
    of: Callable[[Compared], dict[str, float]]
    needs: str = ""


TABLE_METRICS: dict[str, TableMetric] = {
    "shapes": TableMetric(
        "likeness of columns: 1 - Kolmogorov-Smirnov or total variation distance", Compared.shapes
    ),
    "pairs": TableMetric(
        "likeness of pairs: correlations of numbers, shares of pairs of values", Compared.trends
    ),
    "nearest": TableMetric(
        "distance of synthetic rows to the nearest real one over that of real rows to another "
        "(medians; far below 1: learned by heart), the surplus of rows nearer than one in twenty "
        "real ones is (too_near), and the share of copies",
        Compared.privacy,
    ),
    "efficacy": TableMetric(
        "macro F1 on real rows of a forest that learned from synthetic ones, and of one that "
        "learned from other real ones (efficacy_of_real)",
        Compared.efficacy, "sklearn",
    ),
}  # fmt: skip
"""What can be asked for of the rows of a table."""


def evaluate_table(
    real: pandas.DataFrame | str,
    fake: pandas.DataFrame | str,
    table: Table,
    metrics: str | Sequence[str] | None = None,
    *,
    target: Any = None,
    seed: int = 0,
) -> dict[str, float]:
    """Compare a synthetic table with a real one.

    Args:
        real: the real rows; best such as the generator has not seen.
        fake: synthetic ones.
        table: what the columns are.
        metrics: names, of `TABLE_METRICS`. Default: all that can be computed here.
        target: the column of categories that classifiers are to know. Default: the last one.
        seed: of the rows that are drawn where not all are taken.

    Returns:
        numbers by name, of each metric one or more.

    Raises:
        ConfigError: a name that is none, or something that a metric needs is not here.
    """
    compared = Compared(real, fake, table, target, seed)
    found = {}
    for name in _asked(metrics, compared):
        found |= TABLE_METRICS[name].of(compared)
    return found


def asked_for(
    metrics: str | Sequence[str] | None, known: Collection[str], wanted: str
) -> list[str]:
    """The names of metrics that were given, each once.

    Raises:
        ConfigError: one is not known; the message has `wanted` before those that are.
    """
    names = [metrics] if isinstance(metrics, str) else list(metrics or ())
    for name in names:
        if name not in known:
            raise ConfigError(
                f"metrics: {name!r}; {wanted} {', '.join(known)}{nearest_word(str(name), known)}"
            )
    return list(dict.fromkeys(names))


def _asked(metrics: str | Sequence[str] | None, compared: Compared) -> list[str]:
    names = asked_for(metrics, TABLE_METRICS, "of the rows of a table expected")
    if names:
        return names
    able = compared.target is not None and _has_learners()
    return [name for name, metric in TABLE_METRICS.items() if able or not metric.needs]


def _has_learners() -> bool:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return False
    return True


def _learners() -> tuple[Any, Any]:
    try:
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.metrics import f1_score
    except ImportError as error:
        others = ", ".join(name for name, metric in TABLE_METRICS.items() if not metric.needs)
        raise ConfigError(
            "efficacy trains classifiers of scikit-learn, which is not here: pip install "
            f"'fastgan[table]', or ask for {others}"
        ) from error
    return lambda: RandomForestClassifier(100, min_samples_leaf=2, random_state=0), f1_score


def _values(series: Any, column: Any) -> Tensor:
    cells.check(series)
    if not isinstance(column, Continuous):
        return column.encoded(series).double()
    found = cells.numbers_of(series, False, needs_pandas())
    return found.values


def _split(rows: Tensor, at: int) -> tuple[np.ndarray, np.ndarray]:
    others = torch.cat([rows[:, :at], rows[:, at + 1 :]], 1)
    # A missing number is beside all others.
    return others.nan_to_num(-1e30).numpy(), rows[:, at].long().numpy()


def shares_of(codes: Tensor, count: int) -> Tensor:
    """The share of each of so many categories among the codes of rows, float64 [count]."""
    return codes.long().bincount(minlength=count).double() / max(len(codes), 1)


def _kolmogorov(a: Tensor, b: Tensor) -> float:
    """The largest distance of two distribution functions; 1 if one is of nothing."""
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    both = torch.cat([a, b])
    shares = [torch.searchsorted(x.sort().values, both, right=True) / len(x) for x in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


def _correlations(rows: Tensor) -> Tensor:
    """Of columns of numbers, missing ones at their mean."""
    centred = rows - rows.nanmean(0)
    centred = centred.nan_to_num(0.0)
    scaled = centred / centred.norm(dim=0).clamp_min(1e-300)
    return scaled.T @ scaled


def _cramer(a: Tensor, b: Tensor, n: int, m: int) -> float:
    """Cramer's V of two columns of so many categories; 0 where one has a single one."""
    shares = shares_of(a * m + b, n * m).view(n, m)
    shares = shares[shares.sum(1) > 0][:, shares.sum(0) > 0]
    least = min(shares.shape, default=0) - 1
    if least < 1:
        return 0.0
    alone = shares.sum(1, keepdim=True) * shares.sum(0)
    return float(((shares - alone).square() / alone).sum() / least) ** 0.5


def _nearest(points: Tensor, among: Tensor, own: Tensor | None = None) -> Tensor:
    """The distance of each point to the nearest of others, float64 [n].

    Args:
        points: [n, d].
        among: [m, d].
        own: which of those each point is itself, which does not count.
    """
    lengths, found = among.square().sum(1), []
    for at in range(0, len(points), 256):
        rows = points[at : at + 256]
        # Up to the squared length of the point itself, and roundings.
        far = lengths - 2 * rows @ among.T
        if own is not None and len(among) > 1:
            far.scatter_(1, own[at : at + 256, None], float("inf"))
        found.append((rows - among[far.argmin(1)]).double().norm(dim=1))
    return torch.cat(found)
