"""What a report draws of a real and a synthetic table, in plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastgan.data.columns import Constant
from fastgan.data.table import Table
from fastgan.metrics.tables import Compared, shares_of

if TYPE_CHECKING:
    import pandas


def plots_of_table(
    real: pandas.DataFrame | str, fake: pandas.DataFrame | str, table: Table, bins: int = 30
) -> dict[str, Any]:
    """What a report draws of two tables, in plain values.

    Args:
        real: real rows.
        fake: synthetic ones.
        table: what the columns are.
        bins: of the histograms. Default 30.

    Returns:
        "columns": for each its "name", "score" and shares of "real" and "fake": of numbers between
        "edges", with "times" true where these count units of time, of categories by "labels";
        "pairs": "names", the "scores" of each pair [n][n], and how two columns belong together in
        the "real" and the "fake" rows [n][n], see `Compared.associations`; "distances": "edges" and
        the shares of "fake" rows by the distance to the nearest real one and of "real" ones to
        another; "numbers": the metrics but efficacy.

    Raises:
        DataError: a column is missing or holds what it cannot.
    """
    compared = Compared(real, fake, table)
    columns = []
    for i, column in enumerate(c for c in table.columns if not isinstance(c, Constant)):
        one: dict[str, Any] = {"name": column.name, "score": compared.columns[column.name]}
        a, b = compared.real[:, i], compared.fake[:, i]
        if compared.numbers[i]:
            one |= _histograms(a[~a.isnan()], b[~b.isnan()], bins)
            one["times"] = bool(column.unit)
        else:
            one["labels"] = ["missing" if c is None else str(c) for c in column.categories]
            one["real"], one["fake"] = (shares_of(x, column.codes).tolist() for x in (a, b))
        columns.append(one)
    n = len(compared.names)
    scores = [[1.0] * n for _ in range(n)]
    for (a, b), score in compared.pairs.items():
        i, k = compared.names.index(a), compared.names.index(b)
        scores[i][k] = scores[k][i] = score
    of_real, of_fake = (one.tolist() for one in compared.associations)
    made, own = compared.distances
    return {
        "columns": columns,
        "pairs": {"names": compared.names, "scores": scores, "real": of_real, "fake": of_fake},
        "distances": _histograms(own, made, bins),
        "numbers": compared.shapes() | compared.trends() | compared.privacy(),
    }


def _histograms(real: Tensor, fake: Tensor, bins: int) -> dict[str, list[float]]:
    both = [*real.tolist(), *fake.tolist()]
    low, high = (min(both), max(both)) if both else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + max(abs(low), 1.0), bins + 1)
    shares = [np.histogram(x.numpy(), edges)[0] / max(len(x), 1) for x in (real, fake)]
    return {"edges": edges.tolist(), "real": shares[0].tolist(), "fake": shares[1].tolist()}
