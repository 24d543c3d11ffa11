"""The programs for a borrowed GPU, as far as a machine without one can run them."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import bench
import contact
import device
import device_parts
import device_runner
import exercise
import gpu
import harness
import machine
import peers
import pytest
import report
import sanitize
import torch
import worker
from checkout import ROOT, tiny
from plans import DCGAN, Plan

from fastgan import ops

# The GPU


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@NO_GPU
def test_without_a_gpu_everything_says_so(capfd):
    assert bench.main(["--device", "cuda", "--no-record"]) == 3
    assert "SKIPPED: --device cuda: torch" in capfd.readouterr().err
    assert exercise.main(["chain"]) == 3
    assert gpu.main() == 1
    assert "finds no GPU" in json.loads(capfd.readouterr().out.partition("GPU\n")[2])["missing"]
    with pytest.raises(machine.Missing):
        gpu.capability()


@NO_GPU
@pytest.mark.parametrize("name", ["eager", "compile", "jax-scan", "graph"])
def test_a_peer_without_a_gpu_is_missing_with_the_reason(name):
    if name.startswith("jax") and not all(map(importlib.util.find_spec, ("jax", "optax"))):
        pytest.skip("no JAX")
    host = worker.Host(name, "cuda")
    assert "GPU" in host.setup(tiny().to_fields(), 1)["missing"]


def test_exercise_without_a_gpu_runs_what_a_cpu_can(capsys):
    assert exercise.main(["operators", "--device", "cpu"]) == 0
    if ops.has_kernels(torch.device("cpu")):
        exercise.curved("cpu")
        assert capsys.readouterr().out.count("penalties and bounds: ") == 2


@pytest.mark.parametrize("share", [0.99, 0.5])
def test_a_block_on_a_gpu_is_between_events_unless_they_miss_work(monkeypatch, share):
    from peers.torchpeer import TorchPeer

    did = []

    class Peer(TorchPeer):
        def run(self, n):
            did.append(n)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            did.append("event")

        def synchronize(self):
            did.append("wait")

        def elapsed_time(self, end):
            return 1e3 * share

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: did.append("wait"))
    times = iter((10.0, 11.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    assert Peer("cuda").block(7, calls=2) == (share if share > 0.95 else 1.0)
    assert did == ["wait", "event", 7, 7, "event", "wait", "wait"]


def test_kernels_of_a_step():
    from peers.torchpeer import kernels_of_a_step

    name = "void fastgan::cuda::(anonymous namespace)::gemm<float, 4>(int, float*)"
    spans = [(name, 10.0, 14.0), ("copy", 16.0, 17.0), (name, 16.5, 20.0), ("copy", 20.0, 21.0)]
    rows = kernels_of_a_step(spans, 2)
    assert [row[0] for row in rows] == ["gemm x 1", "copy x 1", "nothing runs"]
    assert [row[2] * 2e6 for row in rows] == pytest.approx([7.5, 2.0, 2.0])
    many = [(f"k{i}", float(i), i + 1.0) for i in range(40)]
    rows = kernels_of_a_step(many, 1)
    assert rows[-2][0] == "other kernels x 16"
    assert sum(row[2] for row in rows) == pytest.approx(40e-6)
    assert kernels_of_a_step([], 1) == [("nothing runs", 0.0, 0.0, 0.0)]


def gpu_record(plan: Plan, **medians: float) -> dict:
    """As if it had been measured: microseconds a step."""
    facts = machine.facts(1, native=False)
    facts["gpu"] = {
        "name": "NVIDIA Example",
        "capability": "9.0",
        "sms": 132,
        "l2_mib": 50.0,
        "memory_gib": 140.0,
        "cuda": "13.0",
        "cudnn": 91000,
        "copy_gbs": 4000.0,
        "matmul_tflops": {"fp32": 50.0, "tf32": 400.0, "bf16": 800.0},
        "launch_us": 4.0,
        "node_us": 1.5,
    }
    results = {}
    for name, us in medians.items():
        seconds = us * 1e-6
        turns = [([0.9 * seconds, seconds, 1.1 * seconds], 0.0)] * 3
        raw = {"turns": turns, "steps": 9, "cpu": 1.0, "wall": 1.0, "seconds": 1.0}
        results[name.replace("_", "-")] = harness.summary(raw) | {"d_loss": 1.3, "g_loss": 0.7}
    entries = [peers.CATALOGUE[name] for name in results]
    race = {"plan": plan.to_json(), "results": results}
    race["ratios"] = harness.ratios(results, entries)
    when = {"load": [0.0] * 3, "gpu": {"clocks.sm": 1980.0, "temperature.gpu": 40.0}}
    return {
        "topic": "pair",
        "command": "bench.py",
        "machine": facts,
        "before": when,
        "after": when,
        "races": [race, race],
    }


def test_a_record_of_a_gpu_is_shown_in_its_own_units(tmp_path):
    medians = {"eager": 900.0, "jax_scan": 200.0, "jax_scan_graph": 150.0, "fused_chain": 75.0}
    record = gpu_record(Plan(), **medians, auto=30.0, fused=30.0)
    text = report.render(record)
    assert "NVIDIA Example, compute capability 9.0, 132 SMs" in text
    assert "copy 4000 GB/s" in text and "1980 MHz" in text
    (row,) = {line for line in text.splitlines() if line.startswith("| fused  ")}
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    speed = Plan().flops / 27e-6 / 1e12
    assert cells[2:7] == ["27.00", "30.00", "6.00", f"{speed:.3g}", f"{speed / 50:.0%}"]
    (row,) = {line for line in text.splitlines() if line.startswith("| reference pair")}
    assert "150.00 jax-scan-graph |  5.00" in row
    assert report.save(record, tmp_path, "pair").name.endswith("-nvidia-example-pair.json")
    record["before"]["gpu"] = {"clocks.sm": "[N/A]", "temperature.gpu": 40.0}
    assert "before / after: [N/A] MHz, 40 C" in report.render(record)
    report.picture(record, tmp_path / "race.png")
    assert (tmp_path / "race.png").stat().st_size > 1000
    assert device.goals(record)[:3] == [
        ["reference pair: eager over fused-chain", "10", "12.00"],
        ["reference pair: jax-scan-graph over fused-chain", "2", "2.00"],
        ["reference pair: eager over fused", "25", "30.00"],
    ]
    assert "30.00" in device.show([], [record])


# The script for a borrowed machine


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(gpu, "capability", lambda: (9, 0))


@pytest.mark.parametrize("call", device_parts.CALLS)
def test_every_call_prints_its_plan_and_fits_its_time(hopper, tmp_path, capsys, call):
    assert device.main([call, "--dry-run", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    known = device_parts.parts(tmp_path, 1)
    chosen = [part for name in device_parts.CALLS[call] for part in known[name]]
    limit = device_parts.limit_of(call)
    assert f"limit {limit:.0f} s" in text and limit < (180 if call == "first" else 600)
    groups = device_parts.groups(chosen)
    # What is kept for later parts leaves the build its 160 s, but in the first call.
    assert limit - device_parts.kept(groups[1:]) >= (110 if call == "first" else 160)
    assert all(len(group) <= device_parts.MOST_AT_ONCE for group in groups)
    for part in chosen:
        assert f"| {part.name} " in text and " ".join(part.command) in text
        assert part.seconds <= limit
    assert not list(tmp_path.iterdir())
    # What comes back: a record of each benchmark, two profiles, the card, a summary and the logs.
    words = [word for part in chosen for word in part.command]
    records = [w for w in words if w.startswith("--topic=") or "operators.py" in w]
    tables = [w for w in words if "operators.py" in w]
    exports = [Path(w.partition("=")[2]) for w in words if w.startswith("--export=")]
    card = [w for w in words if w.endswith("card.json")]
    assert len(records) + len(tables) + len(exports) + len(set(card)) + 2 <= 8
    assert all(path.parent == tmp_path for path in exports)


def test_every_part_is_in_a_call_and_every_command_is_there(hopper, tmp_path):
    known = device_parts.parts(tmp_path, 1)
    assert {name for call in device_parts.CALLS.values() for name in call} == set(known)
    for part in (part for group in known.values() for part in group):
        for word in part.command:
            if word.endswith(".py"):
                assert (ROOT / word.removeprefix("--ignore=")).is_file(), word


def test_the_first_call_builds_loads_captures_and_agrees(hopper, tmp_path):
    known = device_parts.parts(tmp_path, 1)
    (build,) = known["build"]
    assert build.seconds == 160
    assert build.env["TORCH_CUDA_ARCH_LIST"] == "9.0" and build.env["FASTGAN_BUILD"] == "auto"
    assert device_parts.CALLS["first"] == ("build", "load", "capture", "agree")
    asked = {part.name for name in ("load", "capture", "agree") for part in known[name]}
    assert asked == {"load", "capture"} | {f"agree {engine}" for engine in contact.AGREE}
    groups = device_parts.groups(known["agree"])
    # A grid that waits for ever holds the device: it must not hold those beside it.
    assert [part.name for part in groups[-1]] == ["agree persistent"]


def test_our_own_engines_are_timed_before_the_full_race(hopper, tmp_path):
    known = device_parts.parts(tmp_path, 1)
    race = device_parts.CALLS["race"]
    assert race.index("pair-ours") < race.index("pair")
    (ours,), (full,) = known["pair-ours"], known["pair"]
    first, every = (
        next(w.partition("=")[2] for w in part.command if w.startswith("--peers=")).split(",")
        for part in (ours, full)
    )
    assert set(first) < set(every) and "eager" in first
    assert all(peers.CATALOGUE[name].ours for name in first if name != "eager")


def test_tests_run_alone_and_by_the_marker(hopper, tmp_path):
    groups = device_parts.groups(device_parts.parts(tmp_path, 1)["tests"])
    assert all(len(group) == 1 for group in groups)
    named = set()
    for (part,) in groups[:-1]:
        words = part.command
        assert words[words.index("-m", 3) + 1] == "gpu" and "-k" not in words
        files = [Path(word) for word in words if word.endswith(".py")]
        assert files and all(file.exists() for file in files)
        named |= {file.name for file in files}
    assert {"test_ops_linear.py", "test_fused_cuda.py", "test_graph_cuda.py"} <= named
    rest = groups[-1][0].command
    assert {Path(w.partition("=")[2]).name for w in rest if w.startswith("--ignore=")} == named


def test_profiles_are_of_the_reference_pair(hopper, tmp_path):
    chain, persistent = device_parts.parts(tmp_path, 1)["ncu"]
    for part in (chain, persistent):
        assert "--pair" in part.command
        for section in ("WarpStateStats", "MemoryWorkloadAnalysis", "SourceCounters"):
            assert f"--section={section}" in part.command
    assert "--steps=50" in persistent.command and "--launch-count=1" in persistent.command
    assert "--kernel-name=regex:persistent" in persistent.command


def test_every_plan_and_peer_of_the_parts_is_known(hopper, tmp_path):
    known = device_parts.parts(tmp_path, 1)
    plans = [w.partition("=")[2] for part in known["dcgan"] for w in part.command if "--plan" in w]
    assert [Plan.parse(text) for text in plans] == DCGAN
    for part in (part for group in known.values() for part in group):
        for word in part.command:
            if word.startswith("--peers="):
                assert peers.select(word.partition("=")[2], device="cuda")


INITCHECK = """\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void fastgan::cuda::adam<float>(float *, int)+0x50 in adam.cu:12
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x7f0000000000
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: fastgan::adam_ [0x10] in _C_cuda.abi3.so
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<4, float>(int)+0x90
=========     by thread (1,0,0) in block (0,0,0)
=========         Host Frame: fastgan::something [0x10] in _C_cuda.abi3.so
=========
said by the program
========= ERROR SUMMARY: 2 errors
"""


def test_initcheck_sees_every_kernel_and_counts_ours():
    words = sanitize.command("initcheck", "chain")
    assert "--kernel-name" not in words and "--error-exitcode" not in words
    for tool in ("memcheck", "racecheck", "synccheck"):
        words = sanitize.command(tool, "chain")
        assert words[words.index("--kernel-name") + 1] == "kernel_substring=fastgan"
        assert words[words.index("--error-exitcode") + 1] == "9"
    assert sanitize.count(INITCHECK) == (1, 1)
    assert sanitize.count("========= ERROR SUMMARY: 0 errors\n") == (0, 0)


@pytest.mark.parametrize(("text", "status"), [(INITCHECK, 9), ("========= fine\n", 0)])
def test_initcheck_is_judged_by_the_kernel_that_read(monkeypatch, tmp_path, capfd, text, status):
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert sanitize.main(["initcheck", "chain"]) == status
    said = capfd.readouterr().out
    assert f"{int(status > 0)} reports of initcheck are about our kernels" in said
    assert sanitize.main(["memcheck", "chain"]) == 0


@pytest.fixture
def threads():
    """What a peer sets for its own process does not outlive a test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("engine", "device"),
    [
        *((engine, "cpu") for engine in ("eager", "persistent")),
        *(pytest.param(engine, "cuda", marks=pytest.mark.gpu) for engine in contact.AGREE),
    ],
)
def test_engines_agree(engine, device, threads, capsys):
    status = contact.main(["agree", engine, "--device", device])
    said = capsys.readouterr().out
    if engine in ("chain", "persistent") and not ops.has_kernels(torch.device(device)):
        assert status == 1 and "does not run" in said
        return
    assert status == 0 and said.count(": ok") == len(contact.MLPS)


def test_engines_that_differ_are_named(threads, monkeypatch, capsys):
    monkeypatch.setattr(contact, "MLPS", contact.MLPS[-1:])
    run = contact._run

    def off(name, plan, device):
        peer = run(name, plan, device)
        if name == "graph":
            with torch.no_grad():
                next(peer.engine.problem.generator.parameters()).view(-1)[3] += 2e-5
        return peer

    monkeypatch.setitem(peers.CATALOGUE, "graph", peers.CATALOGUE["fastgan-eager"])
    monkeypatch.setattr(contact, "_run", off)
    assert contact.main(["agree", "graph", "--device", "cpu"]) == 1
    assert "2e-05 apart after 40 steps, at most 1e-05: DIFFERS" in capsys.readouterr().out


def test_loading_and_capturing_are_questions_of_their_own(threads, monkeypatch, capsys):
    loaded = ops.library_status()["cpu"] == "loaded"
    assert contact.main(["load", "--device", "cpu"]) == (0 if loaded else 1)
    monkeypatch.setattr(contact, "CALLS", (1, 1))
    assert contact.main(["capture", "--device", "cpu"]) == 0
    assert "dcgan, penalty r1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        contact.main(["agree"])
    with pytest.raises(SystemExit):
        contact.main(["load", "chain"])


def test_a_part_that_hangs_or_fails_costs_the_others_nothing(tmp_path):
    said = []
    runner = device_runner.Runner(tmp_path, 600, has_gpu=False, say=said.append)

    def part(name, code, seconds=100.0, **options):
        return device_parts.Part(name, [sys.executable, "-c", code], seconds, gpu=False, **options)

    chosen = [
        device_parts.Part("hangs", ["sh", "-c", "echo begun; exec sleep 600"], 3.0, gpu=False),
        part("beside", "print('here'); raise SystemExit(7)", beside=True),
        part("absent", "raise SystemExit(3)"),
        device_parts.Part("needs one", [sys.executable], 5),
        device_parts.Part("no program", ["no-such-program"], 5, gpu=False),
        part("after", "import os; print(os.environ['PYTHONPATH'])"),
    ]
    groups = device_parts.groups(chosen)
    assert [len(group) for group in groups] == [2, 1, 1, 1, 1]
    assert device_parts.longest(chosen) == 100 + 100 + 5 + 5 + 100
    runner.run(chosen)
    outcomes = {o["part"]: o for o in runner.outcomes}
    assert outcomes["hangs"]["outcome"] == "TIMED OUT" and outcomes["hangs"]["last"] == "begun"
    assert outcomes["beside"]["outcome"] == "FAILED (7)" and outcomes["beside"]["last"] == "here"
    assert outcomes["absent"]["outcome"] == "SKIPPED: no GPU"
    assert outcomes["needs one"]["outcome"] == "SKIPPED: no GPU"
    assert "no-such-program is not on the path" in outcomes["no program"]["outcome"]
    assert outcomes["after"]["outcome"] == "ok"
    assert str(ROOT) in outcomes["after"]["last"]
    assert json.loads((tmp_path / "summary.json").read_text()) == runner.outcomes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logs.txt", "summary.json"]
    assert "===== hangs: TIMED OUT" in (tmp_path / "logs.txt").read_text()
    runner.end = 0.0
    runner.run([part("late", "")])
    assert runner.outcomes[-1]["outcome"] == "SKIPPED: no time left"


def test_what_ignores_the_signal_is_ended_and_a_flood_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(device_runner, "GRACE", 3.0)
    runner = device_runner.Runner(tmp_path, 600, has_gpu=False, say=lambda _: None)
    deaf = "trap '' TERM; while :; do sleep 0.1; done"
    flood = "head -c 600000 /dev/zero | tr '\\0' x; echo; echo saved; exit 1"
    saves = f"trap '{flood.replace(chr(39), chr(34))}' TERM; while :; do sleep 0.1; done"
    runner.run(
        [
            device_parts.Part(name, ["sh", "-c", code], 2.0, gpu=False, beside=name != "deaf")
            for name, code in (("deaf", deaf), ("deaf too", deaf), ("saves", saves))
        ]
    )
    outcomes = {o["part"]: o for o in runner.outcomes}
    assert {o["outcome"] for o in outcomes.values()} == {"TIMED OUT"}
    # Neither of the two waited for the other's time to be over.
    assert abs(outcomes["deaf"]["seconds"] - outcomes["deaf too"]["seconds"]) < 3
    assert outcomes["saves"]["last"] == "saved"
    assert 500_000 < (tmp_path / "logs.txt").stat().st_size < 510_000


def test_what_is_kept_for_later_parts_is_not_spent_before(tmp_path, monkeypatch):
    runner = device_runner.Runner(tmp_path, 100, has_gpu=True, say=lambda _: None)
    ends = {}
    monkeypatch.setattr(
        runner, "run_group", lambda group, end: ends.update({group[0].name: runner.end - end})
    )
    runner.run(
        [
            device_parts.Part("long", [], 500),
            device_parts.Part("later", [], 50, kept=8),
            device_parts.Part("beside", [], 50, beside=True, kept=12),
            device_parts.Part("last", [], 50, kept=5),
        ]
    )
    assert ends == {"long": 17, "later": 5, "last": 0}


def test_unknown_parts_are_refused(hopper, capsys):
    with pytest.raises(SystemExit):
        device.main(["--parts", "everything"])
    assert "no part is called 'everything'" in capsys.readouterr().err
