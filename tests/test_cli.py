"""The command line: what it prints, writes and returns; wrong input; signals."""

import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

import fastgan
from fastgan.cli import _parser, main
from fastgan.run import checkpoint

QUICK = ["--engine", "eager", "--device", "cpu", "--batch-size", "16", "--latent-dim", "8"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Runs go to a temporary directory, and --threads does not outlive a test."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def run(*arguments):
    return main([str(a) for a in arguments])


def test_train_sample_resume(here, capsys):
    assert run("train", "--steps", 40, "--log-every", 20, "--ema", 0.9, *QUICK) == 0
    out, err = capsys.readouterr()
    assert not err and "digits" in out and "engine eager" in out and "runs/digits" in out
    names = {p.name for p in (here / "runs/digits").iterdir()}
    assert names == {
        "samples.png", "loss.png", "log.jsonl", "timing.jsonl", "config.json", "checkpoint.pt",
        "checkpoint-40.pt", "generator.pth", "discriminator.pth",
    }  # fmt: skip

    assert run("sample", "runs/digits", "--n", 6, "--columns", 3) == 0
    assert capsys.readouterr().out.strip() == "runs/digits/grid.png"
    assert Image.open("runs/digits/grid.png").size == (3 * 58 + 2, 2 * 58 + 2)
    assert run("sample", "runs/digits/checkpoint-40.pt", "--n", 6, "--out", "a.png") == 0
    assert run("sample", "runs/digits", "--n", 6, "--seed", 1, "--out", "b.png") == 0
    names = ("runs/digits/grid.png", "a.png", "b.png")
    grid, same, other = ((here / name).read_bytes() for name in names)
    assert grid == same != other

    capsys.readouterr()
    assert run("train", "--resume", "runs/digits") == 0
    assert "nothing left to do: give --steps above 40" in capsys.readouterr().out
    assert run("train", "--resume", "runs/digits", "--steps", 60) == 0
    assert checkpoint.load("runs/digits")["step"] == 60
    assert len((here / "runs/digits/log.jsonl").read_text().splitlines()) == 3

    assert run("train", "--steps", 1, *QUICK) == 0
    assert (here / "runs/digits-2/checkpoint.pt").exists(), "a run is never overwritten"


def test_json_is_one_line_on_stdout(here, capsys):
    arguments = ("--steps", 25, "--out", "deep/run", "--d-steps", 2, "--threads", 1)
    assert run("train", "--json", *arguments, *QUICK) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "digits" in err
    summary = json.loads(out)
    names = "steps seconds ms_per_step engine device precision d_loss g_loss out"
    assert list(summary) == [*names.split(), "wall_seconds", "start_seconds", "step_seconds"]
    assert summary["steps"] == 25 and summary["engine"] == "eager" and summary["device"] == "cpu"
    assert summary["out"] == "deep/run" and summary["ms_per_step"] > 0 < summary["g_loss"]
    assert checkpoint.load("deep/run")["threads"] == 1


def test_a_run_says_what_it_trains_with(here, capsys):
    assert run("train", "--steps", 1, *QUICK) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        "learning rates 0.001 (generator) and 0.0005 (discriminator), running average: decay "
        "0.9995 (fastgan.Trainer's defaults: 0.0002 for both, none)"
    )
    assert run("train", "--steps", 1, "--lr", 3e-4, "--ema", 0, *QUICK) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "0.0003 (generator) and 0.0003 (discriminator), running average: none" in first
    config = fastgan.Trainer(None, None, "digits", device="cpu", engine="eager").config
    assert config["lr"] == [2e-4, 2e-4] and config["ema"] is None, "as the line says"
    with pytest.raises(SystemExit):
        run("train", "--help")
    assert "fastgan.Trainer, made for any pair, has its own" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_wall_time_and_what_of_it_went_into_steps(here, capsys):
    began = time.perf_counter()
    assert run("train", "--steps", 20, "--json", "--out", "a", *QUICK) == 0
    outside = time.perf_counter() - began
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["start_seconds"] == 0, "only a process of its own has a start"
    times = [0, *(summary[name] for name in ("step_seconds", "seconds", "wall_seconds")), outside]
    assert all(a < b + 2e-3 for a, b in itertools.pairwise(times)), "each is a part of the next"
    # Resumed, the steps of this call count, not those of the run.
    assert run("train", "--resume", "a", "--steps", 22, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["step_seconds"] == pytest.approx(2 * again["ms_per_step"] / 1e3, abs=2e-3)

    # A shell puts a command in its own place, so that the process is older than the program.
    shell, waits = ("sh", "-c", 'sleep 3; exec "$@"', "sh"), 3
    began = time.perf_counter()
    process = start("train", "--steps", 20, "--json", "--out", "b", *QUICK, before=shell)
    out, err = process.communicate(timeout=300)
    outside = time.perf_counter() - began
    summary = json.loads(out)
    assert 0 < summary["start_seconds"] < summary["wall_seconds"] <= outside - waits + 0.02
    wall = summary["wall_seconds"]
    steps, begin = summary["step_seconds"] / wall, summary["start_seconds"] / wall
    assert err.splitlines()[-1] == (
        f"wall time {wall:.1f} s: {steps:.1%} in steps, {begin:.1%} in starting Python and "
        f"PyTorch, {1 - steps - begin:.1%} in all else"
    )


def test_training_imports_nothing_that_it_does_not_need(here):
    code = (
        "import sys, torch; before = set(sys.modules); from fastgan import cli; "
        f"status = cli.main(['train', '--steps', '3', '--quiet', *{QUICK}]); "
        "new = set(sys.modules) - before; "
        "print(status, sorted({'matplotlib', 'torchvision', 'torch._dynamo'} & new))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Each takes half a second or more: as much as 500 steps.
    assert done.stdout == "0 []\n", done.stderr


def test_quiet_says_nothing(capsys):
    assert run("train", "--quiet", "--steps", 3, *QUICK) == 0
    assert capsys.readouterr() == ("", "")


def test_every_setting_arrives(here):
    assert run(
        "train", "--epochs", 1, "--name", "x", "--batch-size", 500, "--latent-dim", 7, "--loss",
        "minimax", "--d-steps", 2, "--lr", 1e-3, 3e-3, "--betas", 0.1, 0.9, "--precision", "bf16",
        "--engine", "eager", "--device", "cpu", "--seed", 9, "--ema", 0, "--label-smoothing", 0.1,
        "--optimizer", "adamw", "--weight-decay", 0.01, "--eps", 1e-7,
        "--penalty", "r1", "--penalty-weight", 2, "--penalty-every", 4,
        "--log-every", 3, "--image-size", 14, "--checkpoint-every", 4, "--keep", 1, "--quiet",
    ) == 0  # fmt: skip
    config = json.loads((here / "runs/x/config.json").read_text())
    expected = {
        "batch_size": 500, "latent_dim": 7, "loss": "minimax", "d_steps": 2, "lr": [1e-3, 3e-3],
        "betas": [0.1, 0.9], "precision": "bf16", "engine": "eager", "device": "cpu", "seed": 9,
        "ema": None, "label_smoothing": 0.1, "log_every": 3, "image_shape": [1, 14, 14],
        "optimizer": "adamw", "weight_decay": 0.01, "eps": 1e-7,
        "penalty": "r1", "penalty_weight": 2.0, "penalty_every": 4,
        "checkpoint_every": 4, "keep": 1, "data": {"source": "digits", "image_size": 14},
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert checkpoint.load("runs/x")["step"] == 5  # 10 batches, two to a step
    assert run("train", "--resume", "runs/x", "--epochs", 2, "--quiet") == 0
    assert checkpoint.load("runs/x")["step"] == 10
    group = checkpoint.load("runs/x")["optimizer_d"]["param_groups"][0]
    assert (group["weight_decay"], group["eps"]) == (0.01, 1e-7)


@pytest.mark.parametrize("loss", ["hinge", "least-squares", "wasserstein"])
def test_games_on_raw_scores_get_a_discriminator_without_sigmoid(loss):
    assert run("train", "--loss", loss, "--steps", 4, "--quiet", *QUICK) == 0
    assert run("train", "--resume", "runs/digits", "--steps", 6, "--quiet") == 0
    assert run("sample", "runs/digits") == 0


def test_a_folder_of_images(here):
    (here / "my pictures").mkdir()
    for i in range(5):
        Image.new("RGB", (9, 7), (i * 40, 0, 0)).save(here / "my pictures" / f"{i}.png")
    arguments = ("--data", "my pictures", "--image-size", 8, "--steps", 2, "--quiet")
    assert run("train", *arguments, *QUICK) == 0
    assert Image.open("runs/my pictures/samples.png").mode == "RGB"
    assert run("train", "--resume", "runs/my pictures", "--steps", 3, "--quiet") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--data", "nothing"], "nothing"),
        (["train", "--steps", "0"], "steps is 0"),
        (["train", "--epochs", "-1"], "epochs is -1"),
        (["train", "--batch-size", "0"], "batch_size is 0"),
        (["train", "--lr", "1", "2", "3"], "--lr takes one number, or two"),
        (["train", "--threads", "0"], "--threads is 0"),
        (["train", "--eps", "0"], "eps is 0.0"),
        (["train", "--weight-decay", "-1"], "weight_decay is -1.0"),
        (["train", "--penalty-weight", "2"], "penalty_weight is 2.0, but there is no penalty"),
        (["train", "--penalty", "r1", "--penalty-every", "0"], "penalty_every is 0"),
        (["train", "--device", "warp"], "device 'warp'"),
        (["train", "--loss", "hinge", "--label-smoothing", "0.1"], "label_smoothing"),
        (["train", "--name", "a", "--out", "b"], "give one of them"),
        (["train", "--name", "taken"], "already holds a run"),
        (["train", "--resume", "nowhere"], "there is no checkpoint"),
        (["train", "--resume", "nowhere", "--lr", "1"], "--lr cannot be changed by --resume"),
        (["train", "--resume", "nowhere", "--weight-decay", "1"], "--weight-decay cannot be"),
        (["train", "--resume", "damaged"], "damaged or not a checkpoint"),
        (["sample", "nowhere"], "there is no checkpoint"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(here, capsys, arguments, words):
    (here / "runs/taken").mkdir(parents=True)
    (here / "runs/taken/log.jsonl").touch()
    (here / "damaged").mkdir()
    (here / "damaged/checkpoint.pt").write_bytes(b"PK\3\4")
    quick = QUICK[:4] if arguments[0] == "train" and "--resume" not in arguments else []
    if "--device" in arguments:
        quick = []
    assert run(*arguments, *quick) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("fastgan: ") and err.count("\n") == 1 and words in err


@pytest.mark.parametrize(
    "arguments", [["train", "--loss", "nice"], ["train", "--optimizer", "sgd"], ["dance"], []]
)
def test_options_that_do_not_exist(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "usage: fastgan" in capsys.readouterr().err


def test_losses_that_break_down_are_status_1(capsys):
    arguments = ("--lr", 1e30, "--steps", 50, "--log-every", 5, *QUICK)
    assert run("train", *arguments) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "training stopped: at step" in err and "lr is 1e+30" in err


def test_every_option_is_explained():
    commands = next(a for a in _parser()._actions if a.choices).choices
    assert set(commands) == {"train", "sample", "info", "bench"}
    for command in commands.values():
        assert all(action.help for action in command._actions)
        command.format_help()


def test_info(capsys):
    assert run("info") == 0
    assert "fastgan" in capsys.readouterr().out
    assert run("info", "--json") == 0
    assert "engine" in json.loads(capsys.readouterr().out)


BENCH = """
import argparse
import dataclasses

@dataclasses.dataclass
class Seen:
    arguments: list

def main(argv):
    parser = argparse.ArgumentParser(prog="stand-in")
    parser.add_argument("--plan", action="append", help="what the stand-in times")
    options, rest = parser.parse_known_args(argv)
    print(Seen(argv), options.plan)
    return 5
"""


@pytest.fixture
def checkout(here, monkeypatch):
    """A checkout in the current directory, whose benchmark tells what reached it."""
    (here / "benchmarks").mkdir()
    (here / "benchmarks/bench.py").write_text(BENCH)
    monkeypatch.setitem(sys.modules, "bench", None)
    return here


def test_bench_hands_every_argument_on(checkout, capsys):
    arguments = ["--plan", "hidden=8", "--json", "word", "--version", "-x=1"]
    assert run("bench", *arguments) == 5
    assert capsys.readouterr().out == f"Seen(arguments={arguments}) ['hidden=8']\n"
    assert run("bench") == 5
    assert capsys.readouterr().out == "Seen(arguments=[]) None\n"
    with pytest.raises(SystemExit) as caught:
        run("bench", "--help")
    assert caught.value.code == 0 and "what the stand-in times" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("--help")
    assert "bench" in capsys.readouterr().out


def test_bench_is_found_beside_the_package(checkout, capsys, monkeypatch):
    (checkout / "elsewhere").mkdir()
    monkeypatch.chdir(checkout / "elsewhere")
    monkeypatch.setattr(fastgan, "__file__", str(checkout / "fastgan/__init__.py"))
    assert run("bench", "--list") == 5
    assert "--list" in capsys.readouterr().out


def test_bench_outside_a_checkout_is_one_line_and_status_2(here, capsys, monkeypatch):
    monkeypatch.setattr(fastgan, "__file__", str(here / "site-packages/fastgan/__init__.py"))
    assert run("bench", "--list") == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(
        "fastgan: bench runs benchmarks/bench.py of a source checkout"
    )
    assert err.count("\n") == 1 and str(here) in err
    monkeypatch.setitem(sys.modules, "bench", None)
    (here / "benchmarks").mkdir()
    (here / "benchmarks/bench.py").write_text("print")
    assert run("bench") == 2
    assert "bench.py is not fastgan's benchmark: it has no main()" in capsys.readouterr().err


# --- processes ------------------------------------------------------------------------------------


def start(*arguments, before=(), **options):
    command = [*before, sys.executable, "-m", "fastgan", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, text=True, **pipes)


def wait_for(path, lines, process):
    deadline = time.monotonic() + 300
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


EVERY = ("--log-every", 7, "--threads", 1, *QUICK)


def test_a_run_stopped_by_signals_ends_like_one_that_was_not(here):
    # More steps than any machine does before the signals come.
    endless = ("--steps", 10**7)
    stopped = start("train", *endless, *EVERY, "--out", "stopped")
    wait_for(here / "stopped/log.jsonl", 10, stopped)
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=300)
    assert stopped.returncode == 143
    assert "stopped by SIGTERM" in err and "fastgan train --resume stopped" in err
    assert "Traceback" not in err

    lines = len((here / "stopped/log.jsonl").read_text().splitlines())
    resumed = start("train", "--resume", "stopped", *endless)
    wait_for(here / "stopped/log.jsonl", lines + 10, resumed)
    resumed.send_signal(signal.SIGINT)
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 130
    assert "stopped by Ctrl-C" in err and "Traceback" not in err

    steps = checkpoint.load("stopped")["step"] + 100
    last = start("train", "--resume", "stopped", "--steps", steps, "--json")
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0, err
    assert json.loads(out)["steps"] == steps
    assert run("train", "--steps", steps, *EVERY, "--out", "whole", "--quiet") == 0

    a, b = checkpoint.load("whole"), checkpoint.load("stopped")
    for name in ("generator", "discriminator", "ema"):
        assert all(torch.equal(a[name][key], b[name][key]) for key in a[name])
    for name in ("optimizer_g", "optimizer_d"):
        for key, state in a[name]["state"].items():
            for part in ("exp_avg", "exp_avg_sq", "step"):
                assert torch.equal(state[part], b[name]["state"][key][part])
    assert (here / "whole/log.jsonl").read_bytes() == (here / "stopped/log.jsonl").read_bytes()
    assert (here / "whole/samples.png").read_bytes() == (here / "stopped/samples.png").read_bytes()


def test_a_bar_on_a_terminal():
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = start("train", "--steps", 30, *QUICK, stdout=subprocess.DEVNULL, stderr=child)
    os.close(child)
    seen = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        seen += part
    os.close(parent)
    assert process.wait() == 0
    assert b"30/30" in seen and b"step/s" in seen
