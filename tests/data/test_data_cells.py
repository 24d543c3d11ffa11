"""What the cells of a table hold: each kind comes back as it was, and what cannot be is named."""

import datetime
from decimal import Decimal

import numpy as np
import pytest
import torch

from fastgan import data
from fastgan.data import DataError, cells
from fastgan.data.table import Table

pandas = pytest.importorskip("pandas")
N = 60


def column(values, discrete=(), **options):
    """What a column is learned as, and its own rows back."""
    frame = pandas.DataFrame({"x": pandas.Series(values, **options), "other": range(len(values))})
    known = Table.learned(frame, None if discrete is None else discrete)
    packed = known.packed(frame)
    return known.columns[0], frame["x"], known.decoded(known.unpacked(packed))["x"]


def days(unit, start="2021-01-01"):
    return np.datetime64(start, unit) + np.arange(N).astype(f"timedelta64[{unit}]") * 3


# Times


@pytest.mark.parametrize("unit", ["D", "h", "m", "s"])
@pytest.mark.parametrize("held", ["s", "ms", "us", "ns"])
def test_times_stay_multiples_of_the_unit_they_are_in(unit, held):
    values = days(unit).astype(f"datetime64[{held}]")
    known, was, back = column(values)
    assert known.unit == unit and back.dtype == was.dtype
    pandas.testing.assert_series_equal(back, was)


def test_a_generators_times_are_multiples_too():
    frame = pandas.DataFrame({"x": pandas.Series(days("D")), "n": range(N)})
    known = Table.learned(frame)
    rows = known.encoded(frame)
    rows[:, : known.layout.scalars] += 0.013
    made = known.decoded(rows)["x"]
    assert not made.equals(frame["x"].astype(made.dtype))
    assert (made == made.dt.normalize()).all()


def test_times_beyond_those_of_nanoseconds():
    values = days("D", "9000-01-01").astype("datetime64[s]")
    values[3] = "NaT"
    known, was, back = column(values)
    assert known.unit == "D" and known.missing and back.dtype == "datetime64[s]"
    pandas.testing.assert_series_equal(back, was)
    texts = [str(v) for v in days("D", "9000-01-01")]
    known, was, back = column(texts)
    assert known.form == "%Y-%m-%d" and back.tolist() == texts


def test_whole_days_of_a_place_are_whole_days_there():
    values = pandas.Series(days("D")).dt.tz_localize("Europe/Berlin")
    known, was, back = column(values)
    assert known.unit == "D"
    pandas.testing.assert_series_equal(back, was)


def test_durations():
    known, was, back = column(pandas.to_timedelta(np.arange(N) * 90, unit="s"))
    assert known.unit == "s" or known.unit == "m"
    pandas.testing.assert_series_equal(back, was)


# Objects of Python


@pytest.mark.parametrize("discrete", [(), ("x",)], ids=["numbers", "categories"])
@pytest.mark.parametrize(
    "make",
    [
        lambda i: datetime.date(2020, 1, 1) + datetime.timedelta(i),
        lambda i: datetime.datetime(2020, 1, 1, i % 24, 5 * (i % 12), i),
        lambda i: Decimal(i) / 8,
    ],
    ids=["date", "datetime", "decimal"],
)
def test_objects_come_back_as_they_were(make, discrete):
    values = [make(i) for i in range(N)]
    values[7] = None
    known, was, back = column(values, discrete, dtype=object)
    assert isinstance(known.form, str) and [v if v == v else None for v in back] == values
    assert type(back[0]) is type(values[0])


def test_a_date_throughout_is_a_date():
    known, was, back = column([datetime.date(2020, 5, 1)] * N, dtype=object)
    assert type(known).__name__ == "Constant" and back[0] == datetime.date(2020, 5, 1)


def test_objects_that_are_numbers_are_learned_as_numbers():
    values = [0.5 * i if i % 2 else i for i in range(N)]
    known, was, back = column(values, None, dtype=object)
    assert type(known).__name__ == "Continuous" and back.tolist() == values
    known, _, back = column([*range(N - 1), None], None, dtype=object)
    assert known.missing and back.tolist()[:-1] == list(range(N - 1))


def test_other_objects_come_back_as_texts_and_that_is_said(caplog):
    values = [datetime.time(i % 5) for i in range(N)]
    known, was, back = column(values, None, dtype=object)
    assert back.tolist() == list(map(str, values))
    assert "column 'x' holds objects of type time, which come back as texts" in caplog.text
    caplog.clear()
    known, was, back = column(pandas.cut(range(N), 3))
    assert back.tolist() == list(map(str, was)) and "type Interval" in caplog.text


def test_missing_beside_one_value_is_no_constant():
    known, was, back = column([1, None] * (N // 2), None, dtype="Int64")
    assert type(known).__name__ == "Discrete" and known.categories == (1, None)
    pandas.testing.assert_series_equal(back, was)


def test_a_type_that_pandas_has_since_version_3_is_read_by_earlier_ones():
    texts = cells.typed(pandas, ["a", None], "str")
    assert texts[0] == "a" and texts.isna()[1]


# Numbers


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int8", "uint8"])
def test_integers_stay_in_their_type(dtype):
    info = np.iinfo(dtype)
    values = np.linspace(float(info.min), float(info.max), N)
    values = np.array([min(int(v), info.max) for v in values], dtype=dtype)
    known, was, back = column(values)
    assert back.dtype == dtype
    apart = [abs(int(a) - int(b)) for a, b in zip(back, was, strict=True)]
    assert max(apart) <= 1e-6 * (int(info.max) - int(info.min))


@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1.0, 1e90])
def test_numbers_of_any_size_are_learned_alike(scale):
    one, _, _ = column(np.linspace(-1, 2, N) ** 3)
    known, was, back = column(np.linspace(-1, 2, N) ** 3 * scale)
    assert np.allclose(np.array(known.stds) / scale, one.stds, rtol=1e-6)
    assert np.allclose(back / scale, was / scale, atol=1e-5)


# What cannot be


def texts(bad, at=11, of=str):
    return [bad if i == at else of(i) for i in range(N)]


BAD = {
    "infinite": (texts(float("inf"), of=float), "row 11, column 'x': inf; replace it"),
    "minus infinite": (texts(float("-inf"), of=float), "row 11, column 'x': -inf; replace it"),
    "huge": (texts(1e300, of=float), "row 11, column 'x': 1e.300, and numbers are learned up to"),
    "huge integer": (texts(10**400, of=int), "row 11, column 'x': inf"),
    "complex": ([1j * i for i in range(N)], "column 'x': complex numbers"),
    "list": (texts([1, 2]), "row 11, column 'x': a list, .1, 2.; a cell holds one"),
    "dict": (texts({"a": 1}), "row 11, column 'x': a dict, "),
    "set": (texts({1}), "row 11, column 'x': a set, "),
    "array": (texts(np.zeros(3)), "row 11, column 'x': a ndarray, "),
    "word among numbers": (texts("12 apples", of=int), "row 11, column 'x': '12 apples' is no num"),
    "word among texts of numbers": (texts("?"), "row 11, column 'x': '.' is no number; name"),
    "no such day": (
        texts("2024-02-31", of=lambda i: f"2024-01-{1 + i % 28:02d}"),
        "row 11, column 'x': '2024-02-31' is no date",
    ),
    "date of another form": (
        texts("31.1.2024", of=lambda i: f"2024-01-{1 + i % 28:02d}"),
        "row 11, column 'x': '31.1.2024' is no date",
    ),
    "time with a zone": (
        texts(
            datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
            of=lambda i: datetime.datetime(2024, 1, 1) + datetime.timedelta(i),
        ),
        "row 11, column 'x': .* is an object with a time zone",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_cell_is_named_by_row_and_column(name):
    values, told = BAD[name]
    series = pandas.Series(values, dtype=None if name == "complex" else object)
    if name == "array":
        series = pandas.Series([None] * N, dtype=object)
        for i, value in enumerate(values):
            series.at[i] = value
    with pytest.raises(DataError, match=told) as caught:
        data.open(pandas.DataFrame({"x": series, "y": range(N)}))
    assert "\n" not in str(caught.value)


def named(*names):
    frame = pandas.DataFrame(np.arange(2.0 * len(names)).reshape(2, -1))
    frame.columns = names
    return frame


TABLES = {
    "two levels": (
        lambda: pandas.DataFrame([[1, 2]], columns=pandas.MultiIndex.from_tuples([("a", 1), "bc"])),
        "the names of its columns have 2 levels, such as .'a', 1.; make them texts",
    ),
    "one name twice": (lambda: named("a", "a"), "two columns are called 'a'"),
    "a number as name": (lambda: named("a", 1.5), "a column is called 1.5, a float"),
    "a date as name": (
        lambda: named("a", pandas.Timestamp("2024-01-01")), "a column is called .*, a Timestamp"
    ),
    "a truth value as name": (lambda: named(True, "b"), "a column is called True, a bool"),
    "no rows": (lambda: pandas.DataFrame({"a": []}), "0 rows and 1 columns"),
    "no columns": (lambda: pandas.DataFrame(index=range(3)), "3 rows and 0 columns"),
    "nothing to learn": (lambda: named("a", "b")[:1], "every column is constant"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TABLES))
def test_a_bad_table_is_told_in_a_line(name):
    make, told = TABLES[name]
    with pytest.raises(DataError, match=told) as caught:
        data.open(make())
    assert "\n" not in str(caught.value)


FILES = {
    "not UTF-8": (b"a,b\n1,\xff\xfe\n", "cannot be read as a table .*codec"),
    "too many cells": (b"a,b\n1,2\n1,2,3,4\n", "line 3"),
    "no end of a quotation": (b'a,b\n1,"2\n', "cannot be read as a table"),
    "empty": (b"", "cannot be read as a table"),
    "zeros": (b"\0" * 100, "cannot be read as a table|rows and 1 columns|constant"),
}


@pytest.mark.parametrize("name", list(FILES))
def test_a_bad_file_is_told_in_a_line(name, tmp_path):
    written, told = FILES[name]
    (tmp_path / "t.csv").write_bytes(written)
    with pytest.raises(DataError, match=told) as caught:
        data.open(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)


def test_a_later_table_is_held_to_the_first():
    frame = pandas.DataFrame({"x": pandas.Series(days("D")), "c": list("ab") * (N // 2)})
    known = Table.learned(frame)
    other = frame.copy()
    other.loc[5, "c"] = "z"
    with pytest.raises(DataError, match="row 5, column 'c': 'z' is none of its categories"):
        known.packed(other)
    other = frame.astype({"x": object})
    other["x"] = [[1]] * N
    with pytest.raises(DataError, match="row 0, column 'x': a list"):
        known.packed(other)


def test_rows_in_few_numbers_and_one_hot_are_the_same_rows():
    frame = pandas.DataFrame({"x": np.arange(N) ** 2, "c": list("abc") * (N // 3), "k": [7] * N})
    known = Table.learned(frame)
    packed = known.packed(frame)
    layout = known.layout
    assert packed.shape == (N, layout.scalars + len(layout.groups))
    rows = known.unpacked(packed)
    at = layout.scalars
    for k, width in enumerate(layout.groups):
        codes = packed[:, layout.scalars + k].long()
        assert torch.equal(
            rows[:, at : at + width], torch.nn.functional.one_hot(codes, width).float()
        )
        at += width
