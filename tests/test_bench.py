"""The benchmark harness: short real runs, and what it makes of them."""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import bench
import convolutions
import harness
import machine
import peers
import precision
import processes
import pytest
import report
import torch
from checkout import TINY, tiny
from plans import DCGAN, GRID, SWEEP, Plan, pair

from fastgan import ops

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


# Runs


def run(capfd, *arguments) -> tuple[int, dict]:
    code = bench.main(["--threads", "1", "--json", *arguments])
    return code, json.loads(capfd.readouterr().out)


def test_a_race_of_two_in_their_own_processes(tmp_path, capfd):
    code, record = run(
        capfd,
        *("--plan", TINY, "--peers", "eager,jax-scan", "--seconds", "0.1"),
        *("--out", str(tmp_path), "--picture", str(tmp_path / "race.png")),
    )
    assert code == 0
    results = record["races"][0]["results"]
    assert list(results) == ["eager", "jax-scan"]
    have_jax = all(importlib.util.find_spec(name) for name in ("jax", "optax"))
    for name in ["eager"] + ["jax-scan"] * have_jax:
        r = results[name]
        assert 0 < r["best"] <= r["q1"] <= r["median"] <= r["q3"]
        assert r["blocks"] >= 3 and r["steps"] >= 20 and r["cores_used"] > 0
        assert 0.1 < r["d_loss"] < 3
    if not have_jax:
        assert "jax" in results["jax-scan"]["missing"] or "optax" in results["jax-scan"]["missing"]
    for when in ("before", "after"):
        assert "roundtrip_ns" in record[when] or "roundtrip_missing" in record[when]
    (saved,) = tmp_path.glob("*.json")
    assert json.loads(saved.read_text()) == record
    assert saved.name.startswith(record["machine"]["date"][:10]) and "-1t-" in saved.name
    assert (tmp_path / "race.png").stat().st_size > 1000


@pytest.fixture
def no_compiler(monkeypatch):
    """Saves the seconds of the two native programs."""
    monkeypatch.setattr(machine, "compiler", lambda: None)


def test_a_missing_peer_is_named_with_its_reason(no_compiler, monkeypatch, tmp_path, capfd):
    absent = peers.Entry("absent", "absent:Absent", "fp32", "a peer whose package is missing")
    monkeypatch.setitem(peers.CATALOGUE, "absent", absent)
    arguments = ["--plan", TINY, "--peers", "eager,absent", "--seconds", "0.1", "--inline"]
    assert bench.main([*arguments, "--threads", "1", "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert "- missing: absent: No module named 'peers.absent'" in printed
    (saved,) = tmp_path.glob("*.json")
    results = json.loads(saved.read_text())["races"][0]["results"]
    assert "median" in results["eager"] and "missing" in results["absent"]


def test_overhead_contended_and_profile(no_compiler, monkeypatch, capfd):
    monkeypatch.setattr(harness, "ROUNDS", 2)
    monkeypatch.setattr(harness, "PAIRS", 3)
    monkeypatch.setattr(harness, "WARM_SECONDS", 0.05)
    monkeypatch.setattr(harness, "CALLS", 100)
    code, record = run(
        capfd,
        *("--plan", TINY, "--peers", "eager", "--no-record", "--inline", "--seconds", "0.1"),
        *("--overhead", "--contended", "--profile"),
    )
    assert code == 0 and "races" not in record
    cost = record["overhead"][0]["results"]["eager"]
    assert cost["single_ms"] > 0 and cost["pairs"] == 3
    low, high = cost["extra_us_quartiles"]
    assert low <= cost["extra_us"] <= high
    assert record["contended"][0]["results"]["eager"]["slowdown"] > 0
    assert "no profile" in record["profile"][0]["results"]["eager"]["missing"]
    text = report.render(record)
    assert "What one call costs" in text and "burning a core" in text
    assert "- missing: eager: this peer has no profile" in text


@LINUX
def test_only_the_peer_whose_turn_it_is_runs_and_a_dead_one_is_named():
    entries = peers.select("eager,amp")
    with harness.Field(entries, 1, say=lambda *_, **__: None) as field:
        first, second = field.peers.values()
        with first.turn():
            assert first.ask("close") is None
            assert _becomes(first, "RSD") and _becomes(second, "T")
        assert _becomes(first, "T")
        second.process.kill()
        second.process.wait()
        results = field.race(tiny(), 0.05)
        assert "median" in results["eager"]
        assert "SIGKILL" in results["amp"]["missing"]


def _becomes(peer, states: str) -> bool:
    # A signal takes effect a moment after it was sent, and that depends on who else is running.
    deadline = time.monotonic() + 60
    while True:
        stat = Path(f"/proc/{peer.process.pid}/stat").read_text()
        if stat.rpartition(")")[2].split()[0] in states:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peers", "nobody"], "nobody"),
        (["--batch", "many"], "--batch"),
        (["--plan", "depth=0"], "depth"),
        (["--threads", "100000"], "--threads"),
        (["--seconds", "0"], "--seconds"),
        (["--overhead", "--picture", "x.png"], "--picture"),
        (["--limit", "0"], "--limit"),
        (["--patience", "-1"], "--patience"),
        (["--plan", "network=dcgan,image=3x48x48"], "square images"),
        (["--plan", "penalty=r2"], "penalty"),
        (["--plan", "network=resnet,image=3x64x64"], "3x32x32"),
        (["--conv", "--only", "vit"], "DCGAN 64, batch 64"),
        (["--peers", "graph"], "graph does not run with --device cpu"),
        (["--device", "cuda", "--peers", "fused-avx2"], "fused-avx2 does not run"),
    ],
)
def test_bad_arguments_are_refused_with_the_reason(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_the_list_has_every_peer_and_plan(capsys):
    assert bench.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in peers.CATALOGUE)
    assert all(plan.title in text for plan in (*GRID, *SWEEP, *DCGAN))


def test_no_plan_begins_after_the_limit(no_compiler, capfd):
    arguments = ["--peers", "eager", "--inline", "--no-record", "--limit", "1e-9"]
    code, record = run(capfd, *arguments, "--batch", "64,256")
    assert code == 0 and "races" not in record
    assert record["left_out"] == [plan.title for plan in pair()]
    assert "left out when the time was over: reference pair, batch 64" in report.render(record)


def test_an_interrupted_run_keeps_what_it_has(no_compiler, monkeypatch, tmp_path, capfd):
    race, calls = harness.Field.race, []

    def interrupted(field, plan, seconds):
        calls.append(plan)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return race(field, plan, seconds)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(harness.Field, "race", interrupted)
    try:
        code, record = run(
            capfd,
            *("--plan", TINY, "--plan", TINY, "--plan", TINY, "--peers", "eager", "--inline"),
            *("--seconds", "0.05", "--out", str(tmp_path)),
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 1 and len(record["races"]) == 1 and len(record["left_out"]) == 2
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_an_interrupted_race_keeps_its_turns(no_compiler, monkeypatch, tmp_path, capfd):
    turn, turns = harness.Field._turn, []

    def interrupted(field, name, *rest):
        turns.append(name)
        if len(turns) == 4:
            raise KeyboardInterrupt
        turn(field, name, *rest)

    monkeypatch.setattr(harness.Field, "_turn", interrupted)
    # What is drawn of a record comes after it is safe.
    monkeypatch.setattr(report, "render", lambda record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench.main(
            ["--plan", TINY, "--plan", TINY, "--peers", "eager,fastgan-eager", "--inline"]
            + ["--seconds", "0.05", "--out", str(tmp_path)]
        )
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    results = record["races"][0]["results"]
    assert sorted(r["turns"] for r in results.values()) == [1, 2]
    assert all(r["median"] > 0 and "interrupted" in r["error"] for r in results.values())
    assert len(record["races"]) == len(record["left_out"]) == 1


@LINUX
def test_a_peer_that_does_not_answer_is_ended_and_named():
    with harness.Field(peers.select("eager"), 1, patience=300, say=lambda _: None) as field:
        field.prepare(tiny())
        stuck = field.peers["eager"]
        stuck.patience = 0.3
        with stuck.turn(), pytest.raises(processes.Dead, match="blocks took more than 0.3 s"):
            stuck.ask("blocks", 10**9, 1)
        assert stuck.process.returncode is not None
        assert "its process ended" in field.race(tiny(), 0.05)["eager"]["missing"]


# Reports


def test_records_are_never_overwritten(tmp_path):
    facts = machine.facts(1, native=False)
    paths = {report.save({"machine": facts, "n": n}, tmp_path, "a topic") for n in range(3)}
    assert len(paths) == 3
    assert sorted(json.loads(p.read_text())["n"] for p in paths) == [0, 1, 2]


def test_table_columns_line_up():
    lines = report.table(["name", "ms"], [["a", "1.25"], ["longer name", "10"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].endswith(":|") and lines[2].endswith(" 1.25 |")


def test_profile_is_read_against_the_peak():
    facts = machine.facts(2 if len(machine.usable_cpus()) > 1 else 1, native=False)
    facts["peak"] = {"fp32": {"avx2": {"one": 100.0, "all": 100.0}}, "bf16": {}}
    flops = 50e9 * facts["threads"]
    phases = [("products", flops, 1.0, 0.5), ("the rest", 0.0, 0.5, 0.0)]
    item = {
        "plan": Plan().to_json(),
        "results": {"fused": {"phases": phases, "seconds": 2.1, "steps": 10}},
    }
    lines = report._profile(item, facts).splitlines()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in lines
        if line.startswith("| ")
    }
    assert cells["products"] == [
        "1000000.0",
        "500000.0",
        "75.0%",
        f"{flops / 1e6:.1f}",
        "50",
        "50%",
    ]
    assert cells["the step"][4:] == ["25", "25%"] and cells["the rest"][3:] == ["-", "-", "-"]


def test_ratios_are_peer_over_engine():
    entries = peers.select("eager,fused")
    results = {"eager": {"best": 2.0, "median": 6.0}, "fused": {"best": 1.0, "median": 2.0}}
    assert harness.ratios(results, entries) == {
        "fused": {"eager": {"best": 2, "median": 3}, "fused": {"best": 1, "median": 1}}
    }


def test_turns_beside_other_processes_are_set_aside_unless_too_few_are_calm():
    def result(*turns):
        return harness.summary(
            {"turns": list(turns), "steps": 10, "cpu": 1.0, "wall": 1.0, "seconds": 1.0}
        )

    calm, disturbed = ([1.0, 1.2, 1.1], 0.0), ([9.0, 8.0, 9.5], 1.0)
    mixed = result(calm, disturbed, calm, disturbed, calm)
    assert mixed["median"] == 1.1 and (mixed["turns"], mixed["turns_kept"]) == (5, 3)
    mostly = result(calm, disturbed, disturbed, disturbed)
    assert mostly["median"] > 8 and mostly["best"] == 1.0
    assert (mostly["turns_kept"], mostly["turns_calm"]) == (4, 1)
    unknown = result(([1.0, 1.0], None), ([2.0, 2.0], None))
    assert unknown["turns_kept"] == 2 and unknown["others"] is None


def test_what_bf16_costs_beside_fp32(no_compiler, tmp_path, capfd):
    arguments = ["--plan", TINY, "--threads", "1", "--seconds", "0.05", "--inline"]
    assert precision.main([*arguments, "--out", str(tmp_path)]) == 0
    said = capfd.readouterr().out
    (path,) = tmp_path.glob("*-precision.json")
    (race,) = json.loads(path.read_text())["races"]
    exact, rounded = (race["results"][n] for n in ("fastgan-eager", "fastgan-eager-bf16"))
    factor = race["factors"]["fastgan-eager"]
    assert factor["median"] == rounded["median"] / exact["median"]
    assert f"{factor['median']:.2f}" in said
    for name in ("fused", "fused-bf16"):
        if reason := race["results"][name].get("missing"):
            assert f"{name}: {reason}" in race["factors"]["fused"]["missing"]


# Convolutions


@pytest.mark.skipif(not ops.has_kernels(torch.device("cpu")), reason="the operators are timed")
def test_convolutions_are_timed_in_every_way_and_told_in_gflops():
    assert len(set(convolutions.GRID)) == len(convolutions.GRID) >= 60
    asked = []
    pace = {"turns": 2, "turn_seconds": 1e-6}
    found = convolutions.cells((4, 3, 32, 32, 16), pace, lambda cell: asked.append(cell) or True)
    assert [c["way"] for c in found] == [*convolutions.WAYS] * 2
    taken = [c for c in found if c["taken"]]
    # What the operators take and seems slower is timed once more, for longer.
    assert len(asked) == len(taken) > 0 and all(c["turns"] == 6 for c in taken)
    assert all(c["gflop"] == 2 * 3 * 32 * 32 * 256 * 16 / 1e9 for c in found)
    cell = {**found[0], "gflop": 2.0, "ours_best_us": 10_000.0, "torch_best_us": 40_000.0}
    for untaken in (False, True):
        cell["taken"] = not untaken
        told = convolutions.table([cell | {"way": way} for way in convolutions.WAYS])
        assert "| 4x4 32 to 32 at 16, batch 3 | channels last | 200 / 50" in told
        assert (told.count("(torch) |") == 3) == untaken
