"""`fastgan sweep`: an ensemble from the command line."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from many_runs import lines_of

from fastgan import Ensemble, Trainer
from fastgan.cli import main

pytestmark = pytest.mark.usefixtures("here")
QUICK = ("--data", "ring8", "--width", 16, "--batch-size", 32, "--device", "cpu", "--log-every", 10)


def run(*arguments):
    return main([str(a) for a in arguments])


def sweep(*arguments):
    return run("sweep", *QUICK, *arguments)


def test_a_sweep_is_every_combination_and_goes_on(here, capsys):
    assert (
        sweep("--seeds", 2, "--set", "lr=1e-3,1e-4", "--steps", 20, "--out", "s", "--by", "g_loss")
        == 0
    )
    out = capsys.readouterr().out
    table = out[out.index("member  ") :].splitlines()
    assert table[0].split()[:5] == ["member", "lr", "seed", "status", "step"]
    assert [line.split()[:5] for line in table[1:5]] == [
        ["0", "0.001", "0", "done", "20"], ["1", "0.001", "1", "done", "20"],
        ["2", "0.0001", "0", "done", "20"], ["3", "0.0001", "1", "done", "20"],
    ]  # fmt: skip
    assert table[5] == "mean over seeds:" and "best by g_loss: member " in out
    run_3 = Trainer.resume("s/3", console="none")
    assert (run_3.config.lr, run_3.config.seed, run_3.config.model) == (1e-4, 1, "points")

    # Every command for runs works on a member, and the whole goes on.
    assert run("sample", "s/3", "--n", 10) == 0
    assert run("sweep", "--resume", "s", "--steps", 30, "--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [m["step"] for m in summary["members"]] == [30] * 4 and len(summary["spread"]) == 2
    assert {line["step"] for line in lines_of(here / "s/ensemble.jsonl")} == {10, 20, 30}


def test_where_it_goes_and_what_it_says(here, capsys):
    assert sweep("--seeds", "3,9", "--steps", 10, "--quiet") == 0
    assert (
        sweep("--steps", 10, "--quiet", "--set", "loss=hinge,minimax", "--set", "ema=none,0.9") == 0
    )
    assert capsys.readouterr().out == ""
    first = Ensemble.resume("runs/ring8-sweep")
    assert [t.config.seed for t in first] == [3, 9]
    second = Ensemble.resume("runs/ring8-sweep-2")
    assert [(t.config.loss, t.config.ema) for t in second] == [
        ("hinge", None), ("hinge", 0.9), ("minimax", None), ("minimax", 0.9),
    ]  # fmt: skip


def test_values_of_several_parts_and_flags(here):
    values = (
        "--set",
        "betas=0.5 0.9,0 0.99",
        "--set",
        "drop-last=true,false",
        "--set",
        "data=grid25,moons",
    )
    arguments = [a for a in QUICK if a not in ("--data", "ring8")]
    assert run("sweep", *arguments, *values, "--steps", 5, "--out", "s", "--quiet") == 0
    found = [(t.config.betas, t.config.drop_last, t.config.data) for t in Ensemble.resume("s")]
    assert found[1] == ((0.5, 0.9), True, "moons") and found[6] == ((0.0, 0.99), False, "grid25")
    assert all(t.config.model == "points" for t in Ensemble.resume("s"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "bs=1"], "--set: there is no setting 'bs'; 'bs' is 'batch_size' here"),
        (["--set", "lrr=1"], "--set: there is no setting 'lrr'; did you mean 'lr'?"),
        (["--set", "lr"], "--set is 'lr'; expected NAME=VALUE,VALUE,..."),
        (["--set", "lr=1e-3,fast"], "--set lr is 'fast'; expected"),
        (["--set", "lr=1", "--set", "lr=2"], "--set names lr twice"),
        (["--set", "lr=1", "--lr", "2"], "lr is given by --lr and by --set"),
        (["--set", "seed=1,2", "--seeds", "2"], "--seeds and --set seed= both say the seeds"),
        (["--set", "out=a,b"], "members[0] has out, which is of the whole ensemble"),
        (["--set", "terms=x"], "terms is an object of a program"),
        (["--seeds", "0"], "--seeds is 0; expected an integer of at least 1, or seeds with commas"),
        (["--at-once", "0"], "--at-once is 0; expected"),
        (["--by", "g_los"], "--by is 'g_los'; expected one of fid, "),
        (["--lrr", "1"], "there is no option '--lrr'; did you mean '--lr'?"),
        (["--data-changed"], "--data-changed goes with --resume"),
        (["--resume", "s", "--seeds", "2"], "--seeds begins a new sweep"),
        (["--resume", "s", "--out", "b"], "--out begins a new sweep"),
        (["--resume", "nowhere"], "holds no ensemble: there is no ensemble.json"),
    ],
)  # fmt: skip
def test_wrong_words_are_one_line_and_status_2(arguments, said, capsys):
    ours = QUICK if "--resume" not in arguments else ()
    assert run("sweep", *ours, "--steps", 5, *arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("fastgan: ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize("given", [["--data", "nowhere"], ["--set", "model=points,dcgan"]])
def test_a_sweep_that_is_refused_leaves_nothing(given, here, capsys):
    # Of the second the first member is made.
    assert run("sweep", *QUICK, *given, "--steps", 5) == 2
    assert "member " in capsys.readouterr().err and not any(here.rglob("*-sweep*"))


def test_none_is_done(capsys):
    assert sweep("--lr", "1e30", "--steps", 20, "--out", "s") == 1
    assert "diverged" in capsys.readouterr().out


def test_a_signal_saves_all_and_the_sweep_goes_on(here):
    command = [sys.executable, "-m", "fastgan", "sweep", *QUICK, "--seeds", 3, "--out", "s"]
    process = subprocess.Popen(
        [str(word) for word in [*command, "--steps", 10**7]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    log = here / "s/ensemble.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 20:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "stopped by SIGTERM; 0 of 3 members done; all are saved." in err
    assert f"fastgan sweep --resume {here / 's'}" in err and "Traceback" not in err
    steps = [t.step for t in Ensemble.resume("s")]
    assert run("sweep", "--resume", "s", "--steps", max(steps) + 10, "--quiet") == 0
    assert [t.step for t in Ensemble.resume("s")] == [max(steps) + 10] * 3
