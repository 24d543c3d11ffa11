"""The command line as a process: signals, a terminal, and the benchmark that it hands on to."""

import json
import os
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch

import fastgan
from fastgan.cli import main
from fastgan.run import checkpoint

pytestmark = pytest.mark.usefixtures("here")
QUICK = ["--engine", "eager", "--device", "cpu", "--batch-size", "16", "--latent-dim", "8"]


def run(*arguments):
    return main([str(a) for a in arguments])


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


# --- processes ---------------------------------------------------------------------------------


def start(*arguments, **options):
    command = [sys.executable, "-m", "fastgan", *map(str, arguments)]
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
    assert "stopped by SIGTERM" in err and f"fastgan train --resume {here / 'stopped'}" in err
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


def test_kill_leaves_a_run_that_goes_on(here):
    killed = start("train", "--steps", 10**7, *EVERY, "--out", "killed")
    wait_for(here / "killed/log.jsonl", 3, killed)
    killed.kill()
    killed.communicate(timeout=300)
    # In its first minute a run has saved nothing but its beginning.
    assert checkpoint.load("killed")["step"] == 0
    assert run("train", "--resume", "killed", "--steps", 30, "--quiet") == 0
    assert run("train", "--steps", 30, *EVERY, "--out", "whole", "--quiet") == 0
    a, b = checkpoint.load("whole"), checkpoint.load("killed")
    assert all(torch.equal(a["generator"][key], b["generator"][key]) for key in a["generator"])
    assert (here / "whole/log.jsonl").read_bytes() == (here / "killed/log.jsonl").read_bytes()


def test_two_runs_do_not_write_to_one_directory(here):
    first = start("train", "--steps", 10**7, *EVERY, "--out", "a")
    wait_for(here / "a/log.jsonl", 1, first)
    second = start("train", "--resume", "a", "--steps", 20)
    _, err = second.communicate(timeout=300)
    assert second.returncode == 2
    assert f"is in use by another run (process {first.pid} on host" in err
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=300)
    assert first.returncode == 143


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
