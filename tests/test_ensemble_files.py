"""An ensemble on disk: members are runs of their own, and the whole goes on after any end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from many_runs import POINTS, Draws, alone, assert_same, fused, lines_of, plain, table_of
from small_runs import assert_same_bits, every_bit, pixels

from fastgan import Callback, Ensemble, Trainer, grid
from fastgan.config import ConfigError
from fastgan.run.checkpoint import CheckpointError
from fastgan.run.lock import InUseError

# Files, kills, resume


@fused
def test_members_are_runs_of_their_own(tmp_path):
    whole = Ensemble(members=grid(seed=[0, 1], lr=[1e-3, 1e-4]), out=tmp_path / "e", **POINTS)
    results = whole.fit(steps=25)
    assert sorted(p.name for p in (tmp_path / "e").iterdir() if p.is_dir()) == list("0123")
    run = Trainer.resume(tmp_path / "e" / "2", console="none")
    assert (run.config.seed, run.config.lr, run.step) == (1, 1e-3, 25)
    assert_same_bits(every_bit(run), every_bit(whole[2]))
    run.fit(steps=45)
    assert_same(run, alone(seed=1, lr=1e-3))

    lines = lines_of(tmp_path / "e" / "ensemble.jsonl")
    shutil.rmtree(tmp_path / "e" / "2")
    for i in (0, 1, 3):
        own = [{**line} for line in lines if line["member"] == str(i)]
        assert all(line.pop("member") for line in own)
        assert own == lines_of(tmp_path / "e" / str(i) / "log.jsonl")[:3]
    table = table_of(tmp_path / "e" / "results.csv")
    assert [row["lr"] for row in table] == [str(row["lr"]) for row in results]
    assert [row["status"] for row in table] == ["done"] * 4


class KillAt(Callback):
    """Ends the process in the middle of all."""

    def __init__(self, step):
        self.step = step

    def chunk(self, trainer, statistics):
        if trainer.config.seed == 2 and trainer.step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def exit_code(function, out):
    """Of a new process, not a fork: that would wait for ever for the threads of torch's that it
    has not; nor one that multiprocessing spawns: that goes to where pytest was started."""
    tests = os.path.dirname(os.path.abspath(__file__))
    code = f"import sys; sys.path.insert(0, {tests!r}); import test_ensemble_files as t; "
    code += f"t.{function.__name__}({str(out)!r})"
    return subprocess.run([sys.executable, "-c", code]).returncode


def train_until_killed(out):
    settings = {**POINTS, "checkpoint_every": 10, "at_once": 1}
    Ensemble(members=4, out=out, callbacks=lambda: KillAt(30), **settings).fit(steps=45)


@fused
def test_a_kill_loses_nothing_that_was_saved(tmp_path):
    """Done members stay done, the one in the middle goes on exactly, the others begin."""
    assert exit_code(train_until_killed, tmp_path / "e") == -signal.SIGKILL
    done = (tmp_path / "e" / "0" / "checkpoint.pt").stat().st_mtime_ns
    whole = Ensemble.resume(tmp_path / "e", console="none")
    assert [t.step for t in whole] == [45, 45, 20, 0]
    whole.fit()
    assert (tmp_path / "e" / "0" / "checkpoint.pt").stat().st_mtime_ns == done
    for seed, (member, row) in enumerate(zip(whole, whole.results(), strict=True)):
        other = alone(seed=seed)
        assert_same_bits(every_bit(member), every_bit(other))
        last = other.history[-1]
        assert {name: row[name] for name in last} == last
    lines = lines_of(tmp_path / "e" / "ensemble.jsonl")
    assert [x["step"] for x in lines if x["member"] == "2"] == [10, 20, 30, 40, 45]

    # And on, past what was the end.
    more = Ensemble.resume(tmp_path / "e", steps=60, console="none")
    assert [row["step"] for row in more.fit()] == [60] * 4
    assert_same(more[3], alone(60, seed=3))


class KillAtFirst(Callback):
    """Ends the process while the members are being saved for the first time."""

    def state_dict(self):
        if (self.out / "1" / "checkpoint.pt").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


FIVE = grid(seed=range(4)) + [{"lr": 0.25, "ema": 0.5}]


def begin_until_killed(out):
    KillAtFirst.out = Path(out)
    Ensemble(plain, members=FIVE, out=out, callbacks=KillAtFirst, **POINTS).fit(steps=20)


def test_a_kill_before_all_were_saved(tmp_path):
    assert exit_code(begin_until_killed, tmp_path / "e") == -signal.SIGKILL
    assert not (tmp_path / "e" / "2" / "checkpoint.pt").exists()
    shutil.rmtree(tmp_path / "e" / "0")
    with pytest.raises(CheckpointError, match="member 0: its networks are your own"):
        Ensemble.resume(tmp_path / "e")
    whole = Ensemble.resume(tmp_path / "e", plain, console="none")
    assert [t.config.seed for t in whole] == [0, 1, 2, 3, 0] and whole[4].config.ema == 0.5
    assert [row["step"] for row in whole.fit()] == [20] * 5
    for i in (0, 4):
        torch.manual_seed(0)
        pair = plain(whole[i].config)
        assert_same(whole[i], alone(20, pair=pair, **FIVE[i]))


@pytest.mark.parametrize("engine", [pytest.param("fused", marks=fused), "eager"])
def test_ctrl_c_saves_all(engine, tmp_path, caplog):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sent = []

    class Interrupts(Callback):
        def chunk(self, trainer, statistics):
            if trainer.step >= 20 and not sent:
                sent.append(True)
                os.kill(os.getpid(), signal.SIGINT)

    settings = {**POINTS, "engine": engine}
    whole = Ensemble(members=3, at_once=2, out=tmp_path / "e", callbacks=Interrupts, **settings)
    with pytest.raises(KeyboardInterrupt, match="stopped by Ctrl-C; 0 of 3 members done"):
        whole.fit(steps=10**6)
    assert f"fastgan sweep --resume {tmp_path / 'e'}" in caplog.text
    assert whole.members[2].status in ("waiting", "begun")
    told = [json.loads((tmp_path / "e" / "ensemble.json").read_text())["members"][2]["status"]]
    assert told == [whole.members[2].status]
    saved = [torch.load(tmp_path / "e" / str(i) / "checkpoint.pt")["step"] for i in range(3)]
    assert saved == [t.step for t in whole] and max(saved) >= 20
    whole = Ensemble.resume(tmp_path / "e", console="none")
    whole.fit(steps=max(saved) + 5)
    for seed, member in enumerate(whole):
        threads = torch.get_num_threads()
        assert_same(member, alone(max(saved) + 5, seed=seed, engine=engine, threads=threads))


def test_what_a_program_made_must_be_passed_again(tmp_path):
    points = torch.randn(60, 2)
    members = [{"data": points[:30]}, {"data": points[30:]}]
    settings = {k: v for k, v in POINTS.items() if k != "data"}
    Ensemble(plain, members=members, out=tmp_path / "e", **settings).fit(steps=10)
    with pytest.raises(CheckpointError, match=r"member 0: .*pass the make_pair"):
        Ensemble.resume(tmp_path / "e")
    with pytest.raises(CheckpointError, match="member 0: .*data"):
        Ensemble.resume(tmp_path / "e", plain)
    with pytest.raises(ConfigError, match="members has 1 entries, and the ensemble in .* 2"):
        Ensemble.resume(tmp_path / "e", plain, members=members[:1])
    with pytest.raises(CheckpointError, match="member 0"):
        Ensemble.resume(tmp_path / "e", plain, members=members[::-1])
    whole = Ensemble.resume(tmp_path / "e", plain, members=members, console="none")
    whole.fit(steps=20)
    assert [t.step for t in whole] == [20, 20]


def test_who_is_done_by_a_rule_stays_done(tmp_path):
    def rule(state):
        return state.step >= 20

    whole = Ensemble(members=2, out=tmp_path / "e", **POINTS)
    assert [row["step"] for row in whole.fit(steps=100, until=rule)] == [20, 20]
    assert [row["step"] for row in whole.fit(steps=100, until=rule)] == [20, 20]
    again = Ensemble.resume(tmp_path / "e", console="none")
    assert [row["step"] for row in again.fit(steps=100, until=rule)] == [20, 20]
    assert [row["step"] for row in whole.fit(until=lambda state: state.step >= 30)] == [30, 30]
    assert [row["step"] for row in whole.fit(until="d_loss>0")] == [40, 40]
    assert [row["step"] for row in whole.fit(until="d_loss>0")] == [40, 40]
    assert {row["status"] for row in whole.results()} == {"done"}


# Members that fail


class Fails(Callback):
    def chunk(self, trainer, statistics):
        if trainer.config.seed == 1 and trainer.step >= 20:
            raise OSError("the disk is full\nof what")


@fused
@pytest.mark.filterwarnings("ignore")
def test_a_member_that_fails_is_marked_and_the_others_go_on(tmp_path, caplog):
    members = [{}, {"seed": 1}, {"lr": 1e30, "seed": 2}]
    whole = Ensemble(members=members, out=tmp_path / "e", callbacks=Fails, **POINTS)
    results = whole.fit(steps=45)
    assert [row["status"] for row in results] == ["done", "failed", "diverged"]
    assert results[1]["reason"] == "OSError: the disk is full" and results[1]["step"] == 20
    assert results[2]["reason"].startswith("training stopped: at step")
    assert "member 1 failed: OSError: the disk is full" in caplog.text
    assert_same(whole[0], alone())
    assert "diverged" in str(results) and len(results.spread()) == 1

    # The error is mended: that one goes on; one that diverged would do so again.
    again = Ensemble.resume(tmp_path / "e", console="none")
    assert [row["status"] for row in again.fit()] == ["done", "done", "diverged"]
    assert_same(again[1], alone(seed=1))
    assert again.members[2].reason == results[2]["reason"]


def test_a_callback_that_ends_the_program_ends_all():
    class Leaves(Callback):
        def chunk(self, trainer, statistics):
            raise SystemExit(5)

    whole = Ensemble(members=3, callbacks=Leaves, **POINTS)
    with pytest.raises(SystemExit) as caught:
        whole.fit(steps=10)
    assert caught.value.code == 5 and whole[2].step == 0


# The table


@pytest.fixture(scope="module")
def trained():
    whole = Ensemble(members=grid(lr=[1e-3, 1e-4], seed=range(3)), **POINTS)
    return whole, whole.fit(steps=20)


def test_results_are_a_table(trained, tmp_path):
    whole, results = trained
    assert [(row["member"], row["lr"], row["seed"]) for row in results][3] == ("3", 1e-4, 0)
    assert results.varied == ("lr", "seed")
    assert results[4]["d_loss"] == whole[4].history[-1]["d_loss"]
    path = results.to_csv(tmp_path / "table.csv")
    rows = table_of(path)
    assert len(rows) == 6 and float(rows[4]["g_loss"]) == results[4]["g_loss"]
    text = str(results).splitlines()
    assert text[0].split()[:5] == ["member", "lr", "seed", "status", "step"] and len(text) == 7
    pandas = pytest.importorskip("pandas")
    frame = results.to_frame()
    assert isinstance(frame, pandas.DataFrame) and frame["lr"].nunique() == 2


def test_the_spread_is_over_seeds(trained):
    _, results = trained
    spread = results.spread()
    assert [row["lr"] for row in spread] == [1e-3, 1e-4]
    values = torch.tensor([row["d_loss"] for row in results[:3]], dtype=torch.float64)
    row = spread[0]
    assert row["members"] == 3 and row["d_loss"] == pytest.approx(float(values.mean()))
    assert row["d_loss_std"] == pytest.approx(float(values.std()))
    assert (row["d_loss_min"], row["d_loss_max"]) == (float(values.min()), float(values.max()))
    assert "d_loss_std" in str(spread)


def test_best_of(trained):
    whole, results = trained
    losses = [row["d_loss"] for row in results]
    assert whole.best("d_loss") is whole[losses.index(min(losses))]
    assert whole.best("d_loss", higher=True) is whole[losses.index(max(losses))]
    whole.evaluate("coverage", n=100)  # of which more is better
    scores = [row["coverage"] for row in whole.results()]
    assert whole.best("coverage") is whole[scores.index(max(scores))]
    best = whole.best("swd")  # not measured yet
    scores = [row["swd"] for row in whole.results()]
    assert best is whole[scores.index(min(scores))] and whole.results().scores[1] == "swd"
    with pytest.raises(ConfigError, match="no column 'dloss'; did you mean 'd_loss'"):
        whole.best("dloss")
    undone = Ensemble(members=1, callbacks=Fails, seed=1, **POINTS)
    undone.fit(steps=30)
    with pytest.raises(ConfigError, match="no member that is done has a value of 'd_loss'"):
        undone.best("d_loss")


# Words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"members": 0}, "members is 0; expected an integer of at least 1"),
        ({"members": []}, "members is empty"),
        ({"members": [3]}, r"members\[0\] is a int; expected a dict of settings"),
        ({"members": [{}, {"learning_rate": 1}]}, r"members\[1\]: .*'learning_rate' is 'lr' here"),
        ({"members": [{"lr": -1}]}, r"members\[0\]: lr is -1"),
        ({"members": [{"out": "a"}]}, r"members\[0\] has out, which is of the whole"),
        ({"members": 2, "make_pair": (plain, plain)}, "make_pair is a tuple; expected a function"),
        ({"members": 2, "make_pair": lambda c: 3}, "member 0: make_pair gave a int"),
        ({"members": 2, "callbacks": Draws()}, "callbacks: expected a function that makes"),
        ({"members": 2, "at_once": 0}, "at_once is 0"),
        ({"members": 2, "data": pixels(), "discrete": ["a"]}, "member 0: discrete"),
    ],
)
def test_wrong_words(arguments, said):
    with pytest.raises(ConfigError, match=said):
        Ensemble(**{**POINTS, **arguments})


@fused
def test_threads_of_members_that_are_at_once():
    with pytest.raises(ConfigError, match="threads is 2, .* say how many with at_once="):
        Ensemble(members=2, threads=2, **POINTS)


def test_limits_are_given_by_name():
    whole = Ensemble(members=1, **POINTS)
    with pytest.raises(TypeError, match=r"it is a setting: Ensemble\(\.\.\., lr="):
        whole.fit(lr=1)
    with pytest.raises(TypeError, match=r"takes its arguments by name: fit\(epochs=20\)"):
        whole.fit(20)


def test_a_grid_is_every_combination():
    pair = (1e-4, 4e-4)
    found = grid(lr=[pair, 2e-4], seed=range(2), loss="hinge")
    assert found[1] == {"lr": pair, "seed": 1, "loss": "hinge"} and len(found) == 4
    numpy = pytest.importorskip("numpy")
    assert grid(lr=numpy.array([0.5, 0.25])) == [{"lr": 0.5}, {"lr": 0.25}]
    with pytest.raises(ConfigError, match="lr has no values"):
        grid(lr=[])


def test_the_directory_of_the_whole(tmp_path):
    settings = {**POINTS, "steps": 10}
    out = tmp_path / "e"
    whole = Ensemble(members=12, out=out, **settings)
    whole.fit()
    assert (out / "11").is_dir() and repr(whole) == f"<fastgan.Ensemble: 12 done, out {out}>"
    with pytest.raises(FileExistsError, match="already holds an ensemble; continue it"):
        Ensemble(members=2, out=out, **settings)
    with pytest.raises(CheckpointError, match="it is a single run, which Trainer.resume"):
        Ensemble.resume(out / "11")
    with pytest.raises(CheckpointError, match="holds no ensemble: there is no ensemble.json"):
        Ensemble.resume(tmp_path)
    other = Ensemble(members=2, out=out, if_exists="count", **settings)
    assert other.out == tmp_path / "e-2"
    fresh = Ensemble(members=2, out=out, if_exists="overwrite", **settings)
    assert not (out / "11" / "checkpoint.pt").exists() and not (out / "ensemble.json").exists()
    fresh.fit()

    class Second(Callback):
        def start(self, trainer):
            with pytest.raises(InUseError):
                fresh.fit(steps=30)
            with pytest.raises(ConfigError, match="is being trained already"):
                again.fit(steps=30)

    again = Ensemble.resume(out, callbacks=Second, steps=20, console="none")
    assert [row["status"] for row in again.fit()] == ["done", "done"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole.update(format="x"),
        lambda whole: whole.update(version=2),
        lambda whole: whole.update(version="1"),
        lambda whole: whole.pop("members"),
        lambda whole: whole["members"][0].update(name="../elsewhere"),
        lambda whole: whole["members"][0].update(name=".."),
        lambda whole: whole["members"][0].update(status="fine"),
        lambda whole: whole["members"][0].update(scores=[1]),
        lambda whole: whole["members"].clear(),
        lambda whole: whole["members"][0].update(own_pair=None),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, damage):
    Ensemble(members=1, out=tmp_path, steps=5, **POINTS).fit()
    file = tmp_path / "ensemble.json"
    whole = json.loads(file.read_text())
    damage(whole)
    file.write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match=r"ensemble.json is damaged \(.*\); each") as caught:
        Ensemble.resume(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bar_for_the_whole(capsys):
    Ensemble(members=3, **{**POINTS, "console": "bar"}).fit(steps=20)
    assert "60/60" in (err := capsys.readouterr().err) and "3 of 3 members done" in err


def test_one_line_for_the_whole(capsys):
    settings = {**POINTS, "console": "lines"}
    Ensemble(members=3, **settings).fit(steps=20)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("3 members") and out[-1].startswith(
        "3 of 3 members done, steps of all 60"
    )
    assert not any("D loss" in line for line in out)
