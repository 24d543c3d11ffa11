"""Tables: what columns are taken for, rows of numbers and back, and what is said of bad ones."""

import json
import math

import pytest
import torch

from fastgan import data, random
from fastgan.data import DataError, columns, mixture
from fastgan.data.rows import Rows, frequent
from fastgan.data.table import Table, conditions, read

pandas = pytest.importorskip("pandas")


def numbers(n, stream):
    return random.normal(5, stream, 0, n).double()


def table(n=400):
    z = numbers(n, 100)
    where = torch.arange(n)
    kind = ["a", "b", None, "c"]
    return pandas.DataFrame(
        {
            "price": (torch.where(where % 3 == 0, 20 + z, 100 + 5 * z)).numpy().round(2),
            "count": (where % 37).numpy(),
            "kind": [kind[i % 4 if i % 5 else 0] for i in range(n)],
            "gap": [None if i % 7 == 0 else float(z[i]) for i in range(n)],
            "day": [f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in range(n)],
            "flag": [i % 3 == 0 for i in range(n)],
            "same": 7,
            "empty": [None] * n,
            "time": pandas.date_range("2020-01-01", periods=n, freq="min"),
            "level": pandas.Categorical(["low", "high"][i % 2] for i in range(n)),
        }
    )


# Modes


def test_modes_of_a_mixture_are_its_own():
    n = 6000
    z = numbers(n, 101)
    part = torch.arange(n) % 6
    values = torch.where(part == 0, z, torch.where(part < 3, 20 + z / 2, 60 + 4 * z))
    few = torch.tensor([1.0, 2.0]).double().repeat(50)
    found, of_few = mixture.modes_of([values, few])
    # A prior of one mode for the whole column widens each by a little, and splits none far.
    for centre, std, share in ((0, 1, 1 / 6), (20, 0.5, 1 / 3), (60, 4, 1 / 2)):
        near = (found.means - centre).abs() < 10
        weights = found.weights[near]
        assert abs(float(weights.sum()) - share) < 0.01
        mean = (weights * found.means[near]).sum() / weights.sum()
        square = (weights * (found.stds[near] ** 2 + (found.means[near] - mean) ** 2)).sum()
        assert abs(float(mean) - centre) < 0.2
        assert std - 0.1 < float(square / weights.sum()) ** 0.5 < std + 0.8
    torch.testing.assert_close(of_few.means, torch.tensor([1.0, 2.0]).double(), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("of", "theirs"),
    [
        (torch.exp, -0.6039),
        (lambda z: torch.where(z > 1, z + 9, z / 9), 0.7096),
        (torch.special.ndtr, 0.8378),
    ],
)
def test_a_column_fits_as_well_as_with_scikit_learn(of, theirs):
    """What its BayesianGaussianMixture 1.9.1 reaches, with CTGAN's prior and seed 0."""
    values = of(numbers(600, 102))
    (own,) = mixture.modes_of([values])
    at = (values[:, None] - own.means) / own.stds
    likelihood = (own.weights.log() - own.stds.log() - at * at / 2).logsumexp(1).mean()
    assert theirs - 0.02 < likelihood < theirs + 0.02


def test_values_of_many_rows_are_summed_up_without_loss(monkeypatch):
    z = numbers(5000, 103)
    values = torch.cat([z[:2000], 30 + 2 * z[2000:], torch.zeros(3000).double()])
    (exact,) = mixture.modes_of([values])
    monkeypatch.setattr(mixture, "_POINTS", 250)
    at, count, spread = mixture._summed_up(values)
    assert len(at) <= 250 and float(count.sum()) == 8000 and float(count[at == 0]) >= 3000
    assert float(spread.max()) > 0
    torch.testing.assert_close((at * count).sum(), values.sum())
    square = ((at * at + spread) * count).sum()
    torch.testing.assert_close(square, values.square().sum())
    (few,) = mixture.modes_of([values])
    grid = torch.linspace(-2, 36, 50).double()[:, None]
    a, b = (
        (m.weights / m.stds * (-(((grid - m.means) / m.stds) ** 2) / 2).exp()).sum(1)
        for m in (exact, few)
    )
    assert float((a - b).abs().max()) < 0.1 * float(a.max())


# Columns


def test_columns_are_found_and_can_be_told():
    known = Table.learned(table())
    assert [type(c).__name__ for c in known.columns] == [
        *("Continuous", "Continuous", "Discrete", "Continuous", "Continuous", "Discrete"),
        *("Constant", "Constant", "Continuous", "Discrete"),
    ]
    kind = known.columns[2]
    assert kind.categories == ("a", "b", "c", None) and sum(kind.counts) == 400
    told = Table.learned(table(), ["count", "kind", "flag", "level"])
    assert told.columns[1].codes == 37
    with pytest.raises(DataError, match="discrete: the table has no column 'knd'"):
        Table.learned(table(), ["knd"])
    few = pandas.DataFrame({"x": [0, 1] * 20, "y": [0.5, 2.5] * 20})
    assert [type(c).__name__ for c in Table.learned(few).columns] == ["Discrete"] * 2
    assert [type(c).__name__ for c in Table.learned(few, []).columns] == ["Continuous"] * 2


def test_rows_come_back_as_they_were():
    frame = table()
    known = Table.learned(frame)
    rows = known.encoded(frame)
    layout = known.layout
    assert rows.shape == (400, layout.width) and rows.dtype == torch.float32
    assert rows[:, : layout.scalars].abs().max() <= 0.99
    at = layout.scalars
    for width in layout.groups:
        assert torch.equal(rows[:, at : at + width].sum(1), torch.ones(400))
        at += width
    assert at == layout.width and list(layout.modes) == sorted(layout.modes)
    back = known.decoded(rows)
    assert list(back.columns) == list(frame.columns)
    for name in ("count", "kind", "flag", "same", "day", "level"):
        pandas.testing.assert_series_equal(back[name], frame[name])
    assert list(back.dtypes) == list(frame.dtypes)
    assert back["empty"].isna().all() and (back["gap"].isna() == frame["gap"].isna()).all()
    for name in ("price", "gap"):
        close = (back[name] - frame[name]).abs() < 0.02
        assert close[frame[name].notna()].mean() > 0.98
    assert (back["time"] - frame["time"]).abs().max() < pandas.Timedelta(seconds=2)


def test_a_table_is_written_down_and_the_seed_draws_the_modes(tmp_path):
    frame = table(100)
    known = Table.learned(frame)
    known.write(tmp_path)
    again = Table.found(tmp_path)
    assert again.columns == known.columns
    assert torch.equal(again.encoded(frame, 3), known.encoded(frame, 3))
    assert not torch.equal(known.encoded(frame, 4), known.encoded(frame, 3))
    assert Table.found(tmp_path / "none") is None
    (tmp_path / "table.json").write_text(json.dumps({"columns": [{"kind": "odd"}]}))
    with pytest.raises(DataError, match="table.json: damaged"):
        Table.found(tmp_path)


def test_values_that_the_table_did_not_have_are_named():
    frame = table(60)
    known = Table.learned(frame)
    other = frame.copy()
    other.loc[41, "kind"] = "z"
    with pytest.raises(DataError, match="row 41, column 'kind': 'z' is none of its categories"):
        known.encoded(other)
    other = frame.astype({"price": float})
    other.loc[5, "price"] = math.nan
    with pytest.raises(DataError, match="row 5, column 'price': missing"):
        known.encoded(other)
    with pytest.raises(DataError, match="has no column 'price'"):
        known.encoded(frame.drop(columns="price"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1.0, math.inf, 2.0] * 10, "row 1, column 'x': inf"),
        ([1, 2, "three"] * 10, "row 2, column 'x': 'three' is no number"),
        ([1 + 2j] * 9 + [3j], "column 'x': complex numbers"),
    ],
)
def test_bad_values_are_named_by_row_and_column(values, told):
    with pytest.raises(DataError, match=told):
        Table.learned(pandas.DataFrame({"x": values}), [])


def test_bad_tables_are_told_in_a_line(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "head.csv").write_text("a,b\n")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n1,2,3,4\n")
    (tmp_path / "noise.parquet").write_bytes(b"PAR1 no")
    for name, told in (
        ("empty.csv", "cannot be read as a table"),
        ("head.csv", "0 rows"),
        ("ragged.csv", "line 3"),
        ("noise.parquet", "cannot be read|pip install"),
        ("none.csv", "no such file"),
    ):
        with pytest.raises(DataError, match=told) as caught:
            data.open(tmp_path / name)
        assert "\n" not in str(caught.value)
    twice = pandas.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(DataError, match="two columns are called 'a'"):
        read(twice)
    with pytest.raises(DataError, match="every column is constant"):
        data.open(pandas.DataFrame({"a": [1, 1]}))
    with pytest.raises(DataError, match="image_size=8: .* is of vectors"):
        data.open(twice, image_size=8)
    with pytest.raises(DataError, match="discrete=.*is no table"):
        data.open(torch.zeros(3, 2), discrete=["a"])


def test_pandas_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(DataError, match="pip install pandas"):
        data.open("some.csv")


# Data


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_file_is_data(tmp_path, suffix):
    path, frame = tmp_path / f"t{suffix}", table(50).drop(columns=["empty"])
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    opened = data.open(path, discrete=["kind", "flag", "level"])
    assert opened.kind == "vector" and len(opened) == 50 and opened.resident
    assert opened.options == {"discrete": ["kind", "flag", "level"]}
    again = data.open(opened.source, **opened.options)
    assert opened.differs(again.identity()) is None
    back = opened.table.decoded(opened.samples)
    assert (back["count"] == frame["count"]).all()


def rows_of(frame, discrete):
    known = Table.learned(frame, discrete)
    return Rows("t", "of a test", samples=known.packed(frame), table=known, kind="vector")


def test_rows_are_drawn_by_the_logarithm_of_how_frequent_a_category_is():
    frame = pandas.DataFrame(
        {"x": numbers(1000, 104), "c": ["rare" if i % 100 == 0 else "often" for i in range(1000)]}
    )
    rows = rows_of(frame, ["c"])
    batch = rows.batch(0, 3, 5000)
    assert torch.equal(batch.images[:, -2:], batch.condition)
    share = batch.condition[:, 1].mean()
    expected = math.log(11) / (math.log(11) + math.log(991))
    assert abs(float(share) - expected) < 0.03
    assert torch.equal(batch.images, rows.batch(0, 3, 5000).images)
    assert not torch.equal(batch.images, rows.batch(0, 4, 5000).images)
    # Every row of a category is drawn.
    assert len(batch.images[batch.condition[:, 1] == 1].unique(dim=0)) == 10
    natural = rows.first_conditions(20_000)[:, 1].mean()
    assert abs(float(natural) - 0.01) < 0.003


def test_rows_without_categories_have_no_condition_and_a_batch_may_be_larger():
    rows = rows_of(pandas.DataFrame({"x": numbers(30, 105)}), [])
    assert not rows.conditional and rows.batch(0, 0, 100).condition is None
    assert rows.batches_per_epoch(100) == 1 and rows.batch_sizes(100) == (100, 100)
    assert rows.batches_per_epoch(10) == 3 and len(rows.batch(0, 0, 10).images) == 10


def test_conditions_are_asked_for_by_value():
    known = Table.learned(table(100))
    asked = conditions(known, {"kind": "b", "flag": "True"})
    assert int(asked.sum()) == 2
    names = [c.name for c in known.discrete]
    start = sum(c.codes for c in known.discrete[: names.index("kind")])
    assert asked[start + 1] == 1
    with pytest.raises(DataError, match="'price' is no discrete column"):
        conditions(known, {"price": 3})
    with pytest.raises(DataError, match="column 'kind': 'x' is none of its categories"):
        conditions(known, {"kind": "x"})
    drawn = frequent(known, 3000, 1)
    assert torch.equal(drawn.sum(1), torch.ones(3000))


def test_true_and_one_are_two_categories():
    column = columns.Discrete("x", "object", (1, True, None), (1, 1, 1))
    mixed = pandas.Series([True, 1, None], dtype=object)
    assert column.encoded(mixed).tolist() == [1, 0, 2]
    assert column.decoded(torch.tensor([1, 0, 2])) == [True, 1, None]
