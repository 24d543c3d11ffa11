"""The rows of a run on a table beside the real ones: columns, pairs, distances, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fastgan import random
from fastgan.config import ConfigError
from fastgan.metrics import TABLE_METRICS, evaluate_table, plots_of_table
from fastgan.random import Stream
from fastgan.report import charts
from fastgan.report.charts import Curve
from fastgan.report.drawn import Maker
from fastgan.report.markup import Markup, table, tag

_COLUMNS, _PAIRED, _LABELS = 8, 12, 10
_REAL, _FAKE = 50_000, 5000
"""Rows at most that are compared; of the real ones as many as of the synthetic teach a forest."""
_SIDES = ("real", "synthetic")
_HELP = {
    "too_near": "surplus of synthetic rows nearer to a real one than one real row in twenty is",
    "copies": "share of synthetic rows that are a real one",
    "efficacy_of_real": "the same of a forest that learned from other real rows",
}


def plots(name: str, maker: Maker) -> Markup:
    """Real and synthetic rows of a run of this name; a sentence where they cannot be compared."""
    try:
        real = maker.real()
        whole = len(real)
        order = random.uniform(maker.seed, Stream.ESTIMATE, 0, whole).argsort().numpy()
        real = real.iloc[order[:_REAL]]
        fake = maker.rows(min(whole, _FAKE))
        found = plots_of_table(real, fake, maker.table)
        numbers, why = found["numbers"], None
        try:
            some = real.iloc[: 2 * _FAKE]
            numbers = numbers | evaluate_table(some, fake, maker.table, "efficacy")
        except ConfigError as error:
            why = str(error)
    except (ValueError, OSError) as error:  # a file that is gone, or holds other rows by now
        return tag("p", f"{name}: its rows could not be compared with real ones. {error}.")
    worst = sorted(found["columns"], key=lambda column: column["score"])[:_COLUMNS]
    return Markup("").join(
        [
            tag("h3", f"Rows of {name} beside real ones"),
            tag("p", f"{len(fake):,} synthetic rows, {len(real):,} of {whole:,} real ones. Columns "
                "that differ most come first.", class_="help"),
            tag("div", [_column(column) for column in worst], class_="charts"),
            _pairs(found["pairs"]),
            _distances(found["distances"]),
            _numbers(numbers),
            tag("p", f"There is no efficacy: {why}.", class_="help") if why else Markup(""),
        ]
    )  # fmt: skip


def _column(column: dict[str, Any]) -> Markup:
    likeness = f"likeness {column['score']:.3f}"
    if "labels" in column:
        return _bars(str(column["name"]), column, likeness)
    if column["times"]:
        likeness += "; times, counted in their unit"
    return _outlines(str(column["name"]), column, likeness)


def _outlines(title: str, found: dict[str, list[float]], help: str) -> Markup:
    """Two histograms as outlines over the same bins."""
    edges = found["edges"]
    curves = []
    for slot, (side, shares) in enumerate(zip(_SIDES, (found["real"], found["fake"]), strict=True)):
        tops = zip(pairwise(edges), shares, strict=True)
        points = [(x, share) for ends, share in tops for x in ends]
        curves.append(Curve(side, [(edges[0], 0.0), *points, (edges[-1], 0.0)], slot))
    help = f"Share of rows in each bin; {help}"
    return charts.chart(title, curves, span=(edges[0], edges[-1]), help=help, follows=False)


def _bars(title: str, column: dict[str, Any], help: str) -> Markup:
    """The categories that are most frequent, a bar for each side."""
    rows = [*zip(column["labels"], column["real"], column["fake"], strict=True)]
    rows.sort(key=lambda row: -max(row[1:]))
    if left := rows[_LABELS:]:
        many = f"{len(left):,} others"
        rows = [*rows[:_LABELS], (many, *(sum(row[i] for row in left) for i in (1, 2)))]
    most = max((share for row in rows for share in row[1:]), default=0.0) or 1.0
    legend = [
        tag("li", tag("span", class_=f"key c{slot}", aria_hidden="true"), tag("span", side))
        for slot, side in enumerate(_SIDES)
    ]
    items = [
        tag("div", tag("dt", label),
            [tag("dd", tag("span", class_=f"bar c{slot}", style=f"width:{70 * share / most:.1f}%",
                           aria_hidden="true"),
                 tag("span", f"{share:.1%}"), title=side)
             for slot, (side, share) in enumerate(zip(_SIDES, shares, strict=True))])
        for label, *shares in rows
    ]  # fmt: skip
    caption = tag("figcaption", tag("strong", title), tag("span", help, class_="help"),
                  tag("ul", legend, class_="legend"))  # fmt: skip
    return tag("figure", caption, tag("dl", items, class_="bars"), class_="chart")


def _pairs(pairs: dict[str, Any]) -> Markup:
    """How columns belong together, of each side, for those whose pairs differ most."""
    names = pairs["names"]
    if len(names) < 2:
        return Markup("")
    worst = sorted(range(len(names)), key=lambda i: sum(pairs["scores"][i]))[:_PAIRED]
    chosen = sorted(worst)
    sides = [
        tag("div", _matrix([str(names[i]) for i in chosen],
                           [[pairs[key][i][k] for k in chosen] for i in chosen],
                           f"Associations of {side} rows"), class_="matrix")
        for key, side in zip(("real", "fake"), _SIDES, strict=True)
    ]  # fmt: skip
    help = "Correlations of numbers; Cramér's V, from 0 to 1, where one column is of categories."
    return Markup("").join(
        [
            tag("h4", "Pairs of columns"),
            tag("p", help, class_="help"),
            tag("div", sides, class_="charts"),
        ]
    )


def _matrix(names: Sequence[str], values: Sequence[Sequence[float]], caption: str) -> Markup:
    rows = [
        (f"{i} {name}", *(
            tag("span", f"{value:.2f}", class_=f"cell c{int(value < 0)}",
                style=f"--share:{min(abs(value), 1) * 60:.0f}%")
            for value in row
        ))
        for i, (name, row) in enumerate(zip(names, values, strict=True), 1)
    ]  # fmt: skip
    return table(["", *range(1, len(names) + 1)], rows, caption)


def _distances(found: dict[str, list[float]]) -> Markup:
    help = "of synthetic rows, and of real rows to another; synthetic ones far left are copies"
    return _outlines("Distance to the nearest real row", found, help)


def _numbers(numbers: dict[str, float]) -> Markup:
    rows = [
        (name, charts.short(value), _HELP.get(name) or TABLE_METRICS[name].help)
        for name, value in numbers.items()
    ]
    return table(["measure", "value", "what it is"], rows, "The rows in numbers")
