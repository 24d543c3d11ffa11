"""What a report draws of a table: each part stands in the page, whatever columns are called."""

from types import SimpleNamespace

import numpy as np
import pytest
from report_pages import read

from fastgan import random
from fastgan.data import DataError
from fastgan.data.table import Table
from fastgan.report import of_table

pandas = pytest.importorskip("pandas")


def frame(n=60, stream=0):
    z = random.normal(1, 700 + stream, 0, (2, n)).double().numpy()
    return pandas.DataFrame(
        {"<x>": z[0], "y&": np.where(z[1] > 1, np.nan, z[1]), "same": 5,
         "<k>": np.where(z[0] > 0, "a<b", None)}
    )  # fmt: skip


def drawn(real, fake, monkeypatch):
    monkeypatch.setattr(of_table, "evaluate_table", lambda *a: {"efficacy": 0.25})
    source = (lambda: real) if not isinstance(real, Exception) else None

    def rows():
        if source is None:
            raise real
        return source()

    learned = Table.learned(frame())
    maker = SimpleNamespace(seed=0, table=learned, rows=lambda n: fake[:n], real=rows)
    return of_table.plots("<run>", maker)


def test_every_part_stands_in_the_page_and_names_are_escaped(monkeypatch):
    text = drawn(frame(), frame(stream=1), monkeypatch)
    found = read(text)
    words = ["<x>", "y&", "<k>", "a<b", "missing", "Rows of <run>", "Associations of real"]
    words += ["Associations of synthetic", "Distance to the nearest", "copies", "0.25"]
    for word in words:
        assert word in found.words, word
    assert "<k>" not in text and len(found.all("svg")) == 3 and len(found.all("dl")) == 1


def test_columns_that_are_all_one_value_or_missing_break_nothing(monkeypatch):
    fake = frame(stream=1).assign(**{"<x>": 0.5, "y&": np.nan})
    assert "nan" not in read(drawn(frame(), fake, monkeypatch)).words


def test_rows_that_cannot_be_had_are_told(monkeypatch):
    words = read(drawn(DataError("<gone>"), frame(), monkeypatch)).words
    assert "<run>: its rows could not be compared with real ones. <gone>." in words
