"""Rows that a synthesizer holds out: which they are, what ends by them, resume, command line."""

import pytest
import torch
from small_tables import SMALL, table

import fastgan
from fastgan import Until, metrics
from fastgan.cli import main
from fastgan.config import ConfigError
from fastgan.data import DataError
from fastgan.run.checkpoint import CheckpointError
from fastgan.tabular import Synthesizer

pandas = pytest.importorskip("pandas")


def test_a_run_ends_by_rows_that_are_held_out(monkeypatch):
    compared = []
    own = metrics.evaluate_table
    monkeypatch.setattr(
        metrics, "evaluate_table", lambda *a, **k: compared.append(a[0]) or own(*a, **k)
    )
    whole = table()
    learned, held_out = whole[30:], whole[:30]

    def until(rule, rows=held_out, every=2):
        stop = Until(rule, every=every, n=50, held_out=rows)
        return Synthesizer(20, log_every=1, callbacks=stop, **SMALL).fit(learned).trainer

    t = until("shapes>0")
    assert t.step == 2 and t.stopped.startswith("until 'shapes>0': shapes is")
    assert len(compared) == 1 and compared[0].equals(held_out)
    again = own(held_out, t.data.table.decoded(t.sample(50)), t.data.table, "shapes")
    assert t.history[-1]["shapes"] == pytest.approx(again["shapes"], rel=1e-5)
    # What it does moves nothing.
    plain = Synthesizer(20, **SMALL)._begun(learned, None)
    plain.fit(steps=2)
    for a, b in zip(plain.generator.parameters(), t.generator.parameters(), strict=True):
        assert torch.equal(a, b)
    held_out = held_out.copy()
    held_out.loc[3, "kind"] = "z"
    with pytest.raises(DataError, match="row 3, column 'kind': 'z' is none of its categories"):
        until("shapes>0", held_out)
    for rule, told in (("d_loss<0", "expected a run on a table and one of shapes"),):
        with pytest.raises(ConfigError, match=told):
            until(rule)
    with pytest.raises(ConfigError, match="leave held_out out"):
        Until(lambda state: True, held_out=held_out)


def test_a_run_ends_by_a_share_of_the_rows_that_is_held_out(tmp_path, monkeypatch):
    compared = []
    own = metrics.evaluate_table
    monkeypatch.setattr(
        metrics, "evaluate_table", lambda *a, **k: compared.append(a[0]) or own(*a, **k)
    )
    whole = table(100)
    # Of "z" there is one row: learned or not, it is no row to compare with.
    whole.loc[17, "kind"] = "z"
    settings = {"log_every": 1, "out": tmp_path / "run", "held_out": 0.3, **SMALL}
    short = Synthesizer(30, until="shapes>0", **settings).fit(whole)
    assert short.trainer.step == 10 and short.trainer.stopped.startswith("until 'shapes>0'")
    (held,) = compared
    learned = whole.drop(held.index)
    assert 28 <= len(held) <= 30 and "z" not in set(held["kind"])
    assert len(short.trainer.data) == 70 and len(learned) + len(held) == 100
    # The same rows are held out when the run goes on, and its rule counts on.
    more = Synthesizer(32, until="plateau:shapes:99", **settings).fit(whole, resume=True)
    assert more.trainer.step >= 32 and len(compared) > 1 and compared[-1].equals(held)
    # So they are when nobody says which, and by the seed that the run began with.
    later = {**settings, "held_out": None, "seed": 7}
    looks = len(compared)
    again = Synthesizer(44, **later).fit(whole, resume=True).trainer
    assert again.step >= 44 and len(again.data) == 70
    assert len(compared) > looks and compared[-1].equals(held)
    for rows, told in ((0.2, "held_out is 0.2, saved 0.3"), (whole[:9], "held_out is other rows")):
        with pytest.raises(ConfigError, match=told):
            Synthesizer(50, **{**later, "held_out": rows}).fit(whole, resume=True)
    with pytest.raises(CheckpointError, match="0.3 of the rows is held out .* these 100 are"):
        fastgan.Trainer.resume(tmp_path / "run", data=whole)
    other = Synthesizer(30, until="shapes>0", **{**settings, "seed": 1, "out": None}).fit(whole)
    assert not compared[-1].equals(held) and other.trainer.step == 10


def test_rows_that_are_held_out_are_given_as_they_are():
    whole = table(100)
    s = Synthesizer(20, held_out=whole[:30], until="shapes>0", log_every=1, **SMALL)
    assert s.fit(whole[30:]).trainer.step == 10
    # Without a rule of its own a run ends where the columns become no more alike.
    assert Synthesizer(held_out=0.2)._held_out.rule == "plateau:shapes:5"
    assert Synthesizer()._held_out.rule is None


def test_a_cell_that_is_bad_is_named_by_its_row_among_all_that_were_given():
    # A cell may speak of a row as well, which is none of these.
    for cell in ("unknown", "row 900"):
        bad = table(100).astype({"x": object})
        bad.loc[71, "x"] = cell
        for share in (0.1, 0.5, 0.9):
            s = Synthesizer(1, held_out=share, **SMALL)
            if not s._held_out.apart(100, 0)[71]:
                with pytest.raises(DataError, match=f"row 71, column 'x': '{cell}' is no number"):
                    s.fit(bad)
    with pytest.raises(DataError, match="the table has no column 'row 900'"):
        Synthesizer(1, held_out=0.5, **SMALL).fit(table(100), ["row 900"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"held_out": 1.5}, "held_out is 1.5; expected rows, a path or a share"),
        ({"held_out": 0.001}, "held_out is 0.001, of 100 rows"),
        ({"until": "shapes"}, "until is 'shapes'; expected"),
        ({"until": lambda state: True, "held_out": 0.2}, "leave held_out out"),
    ],
)
def test_a_bad_rule_or_share_is_an_error(settings, told):
    with pytest.raises(ConfigError, match=told):
        Synthesizer(1, **settings, **SMALL).fit(table(100))


def test_the_command_line_holds_rows_out(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, run = tmp_path / "t.csv", tmp_path / "run"
    table(100).to_csv(path, index=False)
    small = ["--batch-size", "40", "--latent-dim", "6", "--width", "8", "--device", "cpu"]
    small += ["--discrete", "kind,y", "--quiet", "--engine", "eager", "--log-every", "1"]
    small = ["table", str(path), *small, "--epochs", "30"]
    held = ["--held-out", "0.3", "--until", "shapes>0"]
    assert main([*small, *held, "--out", str(run)]) == 0
    s = Synthesizer(
        30, batch_size=40, embedding_dim=6, width=8, engine="eager", device="cpu", log_every=1,
        held_out=0.3, until="shapes>0",
    ).fit(path, ["kind", "y"])  # fmt: skip
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert state["step"] == s.trainer.step == 10 and state["config"]["data"] == str(path)
    theirs, _ = fastgan.sampling.load_generator(run)
    for name, weight in s.trainer.generator.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], weight), name
    resume = ["table", "--resume", str(run), "--quiet"]
    assert main([*resume, "--held-out", "0.3", "--until", "plateau:shapes:9"]) == 0
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] > 10
    capsys.readouterr()
    # A run knows its share, its rule and its rows.
    small_run = tmp_path / "knows"
    assert main([*small, *held, "--out", str(small_run)]) == 0
    t = fastgan.Trainer.resume(small_run)
    assert len(t.data) == 70 and t.data.held_out == {"share": 0.3, "seed": 0, "rule": "shapes>0"}
    tuned = fastgan.Trainer.from_checkpoint(small_run, steps=1)
    assert torch.equal(tuned.data.samples, t.data.samples)
    resumed = ["table", "--resume", str(small_run), "--quiet", "--epochs", "40"]
    assert main(resumed) == 0
    # At the tenth line after that which it had stopped at, and not at its last epoch.
    assert torch.load(small_run / "checkpoint.pt", weights_only=True)["step"] == 20
    capsys.readouterr()
    others = tmp_path / "others.csv"
    table(40).to_csv(others, index=False)
    assert main([*small, "--held-out", str(others), "--until", "shapes>0", "--out", "x"]) == 0
    for words, told in (
        ([*resume, "--held-out", "0.2"], "held_out is 0.2, saved 0.3: a resume cannot change"),
        ([*resume, "--held-out", str(others)], f"held_out is {str(others)!r}, saved 0.3"),
        ([*small, "--held-out", "1.5"], "held_out is 1.5; expected rows, a path or a share"),
        ([*small, "--held-out", "0.3", "--until", "shapes"], "until is 'shapes'; expected"),
        ([*small, "--held-out", "0.3", "--seed", "none"], "seed is None; give one"),
        ([*small, "--held-out", "no.csv"], "no.csv: no such file"),
        (["train", "--held-out", "0.3"], "--held-out is of tables, and data is 'digits'"),
        (["train", "--start-from", str(run), "--held-out", "0.3"], "leave it or --start-from out"),
    ):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    # A file that has grown is told of as such: nobody has passed data.
    table(110).to_csv(path, index=False)
    assert main(resume) == 2
    error = capsys.readouterr().err
    assert "77" in error and "leave data out" not in error and error.count("\n") == 1
    Synthesizer(1, held_out=0.3, out=tmp_path / "own", **SMALL).fit(table(100))
    assert main(["train", "--resume", str(tmp_path / "own")]) == 2
    assert "pass data= to resume it" in capsys.readouterr().err
