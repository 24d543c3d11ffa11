"""Numbers of synthetic rows: each against what it is by hand, and how they are asked for."""

import json

import numpy as np
import pytest
import torch

from fastgan import random
from fastgan.cli import main
from fastgan.config import ConfigError
from fastgan.data import DataError
from fastgan.data.table import Table
from fastgan.metrics import TABLE_METRICS, evaluate_table, plots_of_table, tables
from fastgan.tabular import Synthesizer

pandas = pytest.importorskip("pandas")
SMALL = {"batch_size": 40, "pac": 4, "embedding_dim": 6, "width": 8, "engine": "eager"}
LIGHT = ["shapes", "pairs", "nearest"]


def frame(n=300, stream=0, together=True):
    z = random.normal(1, 400 + stream, 0, (4, n)).double().numpy()
    kind = z[0] > 0.3
    return pandas.DataFrame(
        {
            "x": z[1] + 3 * kind * together,
            "y": z[1] * together + 0.3 * z[2],
            "kind": np.where(kind, "b", "a"),
            "same": 5,
            "gap": np.where(z[3] > 1, np.nan, z[3]),
        }
    )


def scores(real, fake, metrics=LIGHT, **options):
    return evaluate_table(real, fake, Table.learned(real, ["kind"]), metrics, **options)


def test_other_rows_of_the_same_kind_score_high_and_scrambled_ones_low():
    real = frame()
    same, other = scores(real, frame(stream=5)), scores(real, frame(stream=5, together=False))
    assert same["shapes"] > 0.9 and same["pairs"] > 0.85
    assert other["pairs"] < same["pairs"] - 0.1 and other["shapes"] < same["shapes"]
    assert 0.7 < same["nearest"] < 1.4 and abs(same["too_near"]) < 0.06 and same["copies"] == 0
    assert scores(real, real)["shapes"] == scores(real, real)["pairs"] == 1.0


def test_columns_by_hand():
    real = pandas.DataFrame({"x": [1.0, 2, 3, 4] * 10, "c": ["a", "b", "b", "b"] * 10})
    fake = pandas.DataFrame({"x": [1.0, 2, 9, 9] * 10, "c": ["a", "a", "b", "b"] * 10})
    table = Table.learned(real, ["c"])
    found = evaluate_table(real, fake, table, "shapes")
    assert found["shapes"] == pytest.approx(((1 - 0.5) + (1 - 0.25)) / 2)
    # One of four pairs is there in both.
    pairs = evaluate_table(real, fake, table, "pairs")["pairs"]
    assert pairs == pytest.approx(0.25)


def test_a_correlation_counts_by_its_difference():
    x = np.arange(100.0)
    real, fake = ({"x": x, "y": sign * x + 7} for sign in (1, -1))
    table = Table.learned(pandas.DataFrame(real), [])
    assert evaluate_table(
        pandas.DataFrame(real), pandas.DataFrame(fake), table, "pairs"
    ) == pytest.approx({"pairs": 0.0})


def test_copies_are_found():
    real = frame(200)
    found = scores(real, pandas.concat([real[:50], frame(50, stream=7)]))
    assert found["copies"] == pytest.approx(0.5) and found["too_near"] > 0.4
    # The nearest by hand, of numbers alone.
    points = real[["x", "y"]]
    fake = frame(30, stream=8)[["x", "y"]]
    table = Table.learned(points, [])
    scaled = [((f - points.mean()) / points.std(ddof=0)).to_numpy() for f in (fake, points)]
    far = np.linalg.norm(scaled[0][:, None] - scaled[1][None], axis=2).min(1)
    own = np.linalg.norm(scaled[1][:, None] - scaled[1][None], axis=2)
    own = np.sort(own, 1)[:, 1]
    ratio = evaluate_table(points, fake, table, "nearest")["nearest"]
    middle = [float(torch.from_numpy(d).median()) for d in (far, own)]
    assert ratio == pytest.approx(middle[0] / middle[1], rel=1e-3)


def test_classifiers_that_learn_from_synthetic_rows():
    pytest.importorskip("sklearn")
    real = frame(400)
    good = scores(real, frame(400, stream=3), "efficacy")
    bad = scores(real, frame(400, stream=3, together=False), "efficacy", target="kind")
    assert good["efficacy_of_real"] == bad["efficacy_of_real"] > 0.8
    assert good["efficacy"] > 0.8 > 0.7 > bad["efficacy"]
    with pytest.raises(ConfigError, match="target is 'x'; expected a column of categories: 'kind'"):
        scores(real, real, "efficacy", target="x")


def test_what_cannot_be_is_said(monkeypatch):
    real = frame(60)
    with pytest.raises(ConfigError, match="'fid'; of the rows of a table expected shapes, pairs"):
        scores(real, real, "fid")
    with pytest.raises(DataError, match="the table has no column 'y'"):
        scores(real, real.drop(columns="y"))
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.ensemble", None)
    assert "efficacy" not in scores(real, real, None)
    with pytest.raises(ConfigError, match="pip install 'fastgan.table.'"):
        scores(real, real, "efficacy")


def test_what_a_report_draws_is_plain():
    real = frame(120)
    drawn = json.loads(json.dumps(plots_of_table(real, frame(90, stream=2), Table.learned(real))))
    assert [column["name"] for column in drawn["columns"]] == ["x", "y", "kind", "gap"]
    for column in drawn["columns"]:
        ends = len(column["edges"]) - 1 if "edges" in column else len(column["labels"])
        assert len(column["real"]) == len(column["fake"]) == ends
        assert sum(column["real"]) == pytest.approx(1.0)
    assert drawn["columns"][2]["labels"] == ["a", "b"]
    assert np.array(drawn["pairs"]["scores"]).shape == (4, 4)
    assert sum(drawn["distances"]["fake"]) == pytest.approx(1.0)


def test_a_run_is_evaluated_from_python_and_the_command_line(tmp_path, capsys):
    run, path = tmp_path / "run", tmp_path / "t.csv"
    frame().to_csv(path, index=False)
    s = Synthesizer(2, out=run, **SMALL).fit(path, ["kind"])
    found = s.evaluate(frame(stream=1), LIGHT)
    assert set(found) == {"shapes", "pairs", "nearest", "too_near", "copies"}
    assert found == Synthesizer.load(run).evaluate(frame(stream=1), LIGHT)
    in_training = s.trainer.evaluate(["shapes", "pairs"], 200)
    assert 0 < in_training["shapes"] <= 1 and in_training["n"] == 200
    assert main(["evaluate", str(run), "--metrics", "shapes,pairs", "--json"]) == 0
    of_command = json.loads(capsys.readouterr().out)
    assert of_command["shapes"] == pytest.approx(in_training["shapes"], abs=0.1)
    frame(stream=1).to_csv(tmp_path / "held.csv", index=False)
    held = ["--data", str(tmp_path / "held.csv"), "--metrics", "shapes"]
    assert main(["evaluate", str(run), *held]) == 0
    assert capsys.readouterr().out.startswith("shapes 0.")
    assert main(["evaluate", str(run), "--metrics", "fid"]) == 2
    assert "of the rows of a table expected shapes" in capsys.readouterr().err


def test_a_run_ends_when_its_columns_are_good_enough():
    s = Synthesizer(50, log_every=1, **SMALL)
    t = s._begun(frame(), ["kind"])
    from fastgan import Until

    t.own_callbacks = ()
    summary = t.fit(until="shapes>0.01")
    assert t.history[-1]["shapes"] > 0.01 and summary["steps"] < 50 * t.steps_per_epoch
    assert Until("plateau:pairs:3")
    assert set(TABLE_METRICS) == {"shapes", "pairs", "nearest", "efficacy"}


# How columns belong together


def tables_of_counts(*shape, stream=0):
    """Counts of pairs of categories, and two columns that have them."""
    counts = (random.uniform(3, 500 + stream, 0, shape) * 20).long()
    cells = counts.flatten().nonzero()[:, 0].repeat_interleave(counts[counts > 0])
    return counts, cells // shape[1], cells % shape[1]


def test_cramers_v_of_two_categories_each_is_the_phi_coefficient():
    # phi = |ad - bc| / root of the product of the four sums.
    counts = torch.tensor([[10, 20], [30, 5]])
    cells = torch.arange(4).repeat_interleave(counts.flatten())
    phi = abs(10 * 5 - 20 * 30) / (30 * 35 * 40 * 25) ** 0.5
    assert tables._cramer(cells // 2, cells % 2, 2, 2) == pytest.approx(phi, rel=1e-12)
    # A category that no row has is none, and one alone tells nothing of the other column.
    assert tables._cramer(cells // 2 + 1, cells % 2, 4, 3) == pytest.approx(phi, rel=1e-12)
    assert tables._cramer(cells * 0, cells % 2, 1, 2) == 0.0
    assert tables._cramer(cells[:0], cells[:0], 2, 2) == 0.0
    assert tables._cramer(cells, cells, 4, 4) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(2, 5), (3, 3), (7, 4)])
def test_cramers_v_is_that_of_another_library(shape):
    contingency = pytest.importorskip("scipy.stats.contingency")
    for stream in range(3):
        counts, a, b = tables_of_counts(*shape, stream=stream)
        expected = contingency.association(counts.numpy(), method="cramer")
        assert tables._cramer(a, b, *shape) == pytest.approx(expected, rel=1e-12)


def test_associations_by_hand():
    x = np.repeat([1.0, 2, 3, 4], 10)
    kind = np.array(["a", "b"] * 20)
    real = pandas.DataFrame({"x": x, "y": -2 * x + 1, "kind": kind, "of_x": (x > 2).astype(str)})
    fake = real.assign(y=x**2, of_x=np.where(kind == "a", "False", "True"))
    found = tables.Compared(real, fake, Table.learned(real, ["kind", "of_x"]), None, 0)
    of_real, of_fake = (dict(zip(found.names, one, strict=True)) for one in found.associations)
    names = list(found.names)

    def of(rows, a, b):
        return float(rows[a][names.index(b)])

    # Numbers by their correlation.
    assert of(of_real, "x", "y") == pytest.approx(-1.0)
    assert of(of_fake, "x", "y") == pytest.approx(np.corrcoef(x, x**2)[0, 1])
    # Categories, and numbers by tenths, by Cramer's V.
    assert of(of_real, "kind", "of_x") == pytest.approx(0.0, abs=1e-7)
    assert of(of_fake, "kind", "of_x") == pytest.approx(1.0)
    assert of(of_real, "x", "of_x") == pytest.approx(1.0)
    assert of(of_real, "x", "kind") == of(of_fake, "x", "of_x") == pytest.approx(0.0, abs=1e-7)
    for rows in found.associations:
        assert torch.equal(rows, rows.T) and rows.diagonal().eq(1).all()
