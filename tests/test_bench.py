"""The benchmark harness: its arithmetic, its records, and short real runs."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if not (BENCHMARKS / "bench.py").exists():
    pytest.skip("benchmarks are part of a checkout only", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import bench  # noqa: E402
import device  # noqa: E402
import exercise  # noqa: E402
import gpu  # noqa: E402
import harness  # noqa: E402
import machine  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import worker  # noqa: E402
from plans import DCGAN, GRID, SWEEP, Plan, pair  # noqa: E402

TINY = "hidden=16,depth=2,image=1x8x8,latent=8,batch=8,images=100"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def tiny(**changes) -> Plan:
    return Plan(
        **{
            "hidden": 16,
            "depth": 3,
            "image": (1, 8, 8),
            "latent": 8,
            "batch": 8,
            "images": 100,
            **changes,
        }
    )


# Machine


def test_facts_are_plain_data_and_name_what_is_absent():
    facts = machine.facts(1, native=False)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["threads"] == 1 and len(facts["cpus"]) == 1
    assert facts["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert facts["cpu"] and facts["usable_cores"] >= 1


@pytest.mark.skipif(machine.compiler() is None, reason="no C++ compiler")
def test_native_programs_measure_something():
    facts = machine.facts()
    rates = [isa["all"] for isa in facts["peak"]["fp32"].values()]
    assert rates and all(0.1 < rate < 10_000 for rate in rates)
    assert facts["peak_fp32_gflops"] == max(rates)
    if facts["usable_cores"] > 1:
        assert 1 < facts["roundtrip_ns"] < 1e6


def test_without_a_compiler_the_reason_is_recorded(monkeypatch):
    monkeypatch.setattr(machine, "compiler", lambda: None)
    facts = machine.facts()
    assert facts["roundtrip_ns"] is None and facts["peak_fp32_gflops"] is None
    assert all("no C++ compiler" in reason for reason in facts["missing"].values())
    assert "peak" in facts["missing"]


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no cross compiler")
@pytest.mark.parametrize("name", ["core_roundtrip", "fma_peak"])
def test_native_programs_compile_for_arm64(name, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "aarch64-linux-gnu-g++ -Wall -Wextra -Werror -static")
    monkeypatch.setattr(machine, "_build_dir", lambda: tmp_path)
    program = machine.native(name)
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    cpus = machine.pick_cpus(2)
    if name == "core_roundtrip" and emulator and len(cpus) == 2:
        command = [emulator, program, *map(str, cpus)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(done.stdout)["best"] > 0


def test_one_cpu_of_every_core_comes_first():
    usable = machine.usable_cpus()
    assert sorted(machine.pick_cpus(len(usable))) == usable
    assert machine.pick_cpus(1) == machine.pick_cpus(len(usable))[:1]


# Plans


def test_operations_of_the_reference_pair():
    # G 100-256-784 forward three times' worth, D 784-256-1 six, and the gradients between layers.
    g, d = 100 * 256 + 256 * 784, 784 * 256 + 256
    assert Plan(batch=64).flops == 2 * 64 * (3 * g + 6 * d + 2 * 256 + 256 * 784)


SMALL_DCGAN = [
    Plan("dcgan", hidden=2, image=(3, size, size), latent=5, batch=2, network="dcgan")
    for size in (16, 64)
]


@pytest.mark.parametrize("plan", [*pair(), *GRID, *SMALL_DCGAN], ids=lambda plan: plan.title)
def test_operations_match_what_autograd_does(plan):
    """Counts the products that a step of clean eager really performs."""
    from peers import eager, networks
    from torch.utils.flop_counter import FlopCounterMode

    generator, discriminator = networks.build(plan)
    d_loss_of, g_loss_of = eager.losses_of(plan, generator, discriminator)
    real = torch.zeros(plan.batch, *plan.image)
    with FlopCounterMode(display=False) as counted:
        torch.autograd.grad(d_loss_of(real), list(discriminator.parameters()))
        torch.autograd.grad(g_loss_of(), list(generator.parameters()))
    assert counted.get_total_flops() == plan.flops


@pytest.mark.parametrize("network", ["mlp", "dcgan"])
def test_operations_of_r1_match_what_autograd_does(network):
    from peers import eager, networks
    from torch.utils.flop_counter import FlopCounterMode

    image = (3, 16, 16)
    plan = Plan(hidden=4, image=image, batch=2, network=network, penalty="r1", latent=5)
    generator, discriminator = networks.build(plan)
    counted = FlopCounterMode(display=False)
    # Its hooks on modules cannot see a gradient of an input.
    counted.mod_tracker = NoModules()
    with counted:
        loss = eager.losses_of(plan, generator, discriminator)[0](torch.zeros(2, *image))
        torch.autograd.grad(loss, list(discriminator.parameters()))
    without = Plan(hidden=4, image=image, batch=2, network=network, latent=5)
    g_step = without.flops - _d_step(without)
    # A convolution's second derivative is taken with respect to the constant above it as well.
    more = 2 * plan.batch * plan.products("d")[-1] if network == "dcgan" else 0
    assert counted.get_total_flops() == plan.flops - g_step + more


class NoModules(contextlib.nullcontext):
    parents = ("Global",)


def _d_step(plan) -> int:
    g, d = plan.products("g"), plan.products("d")
    return 2 * plan.batch * (sum(g) + 4 * sum(d) + 2 * sum(d[1:]))


def test_sweep_and_dcgan_are_the_plans_of_the_gpu():
    assert {(p.batch, p.hidden) for p in SWEEP} >= {(b, h) for b in (64, 8192) for h in (256, 2048)}
    assert [p.penalty for p in DCGAN] == ["none", "r1"]
    assert all((p.batch, p.image, p.network) == (128, (3, 64, 64), "dcgan") for p in DCGAN)
    assert all(p.steps_per_epoch >= p.chunk_on_gpu >= 1 for p in (*SWEEP, *pair()))


def test_the_grid_covers_what_it_should():
    assert len(GRID) >= 8
    assert {2, 3, 4, 5} <= {p.depth for p in GRID}
    assert min(p.hidden for p in GRID) == 64 and max(p.hidden for p in GRID) == 2048
    assert min(p.batch for p in GRID) == 16 and max(p.batch for p in GRID) == 1024
    assert any(p.image == (3, 32, 32) for p in GRID)
    assert {"none", "g", "both"} == {p.batchnorm for p in GRID}
    assert all(p.steps_per_epoch >= p.chunk >= 1 for p in GRID)


def test_pixels_are_whole_batches_and_the_same_for_every_peer():
    plan = tiny()
    pixels = plan.pixels()
    assert pixels.dtype == np.uint8 and pixels.shape == (96, 64)
    assert (pixels == plan.pixels()).all()
    assert pixels.min() < 64 and pixels.max() > 192 and pixels.std(0).min() > 1


def test_parse_reads_and_refuses():
    plan = Plan.parse("hidden=512,depth=3,image=3x32x32,batchnorm=g,dropout=0.1,batch=128")
    assert (plan.hidden, plan.depth, plan.image, plan.batch) == (512, 3, (3, 32, 32), 128)
    assert plan.batchnorm == "g" and plan.dropout == 0.1
    for text, said in [
        ("width=3", "width=3"),
        ("hidden=x", "'x'"),
        ("image=28x28", "channels"),
        ("depth=1", "depth"),
        ("batchnorm=yes", "batchnorm"),
        ("dropout=1", "dropout"),
    ]:
        with pytest.raises(ValueError, match=said):
            Plan.parse(text)


# Peers


def test_every_entry_names_a_file_and_selection_finds_it():
    for entry in peers.CATALOGUE.values():
        assert (BENCHMARKS / "peers" / f"{entry.file}.py").exists()
        assert all(peers.select(entry.name, device=device) == [entry] for device in entry.devices)
    assert {e.name for e in peers.select("jax")} >= {"jax-scan", "jax-jit"}
    assert [e.name for e in peers.select("eager")] == ["eager"]
    with pytest.raises(ValueError, match="nobody"):
        peers.select("eager,nobody")


def test_merged_and_separate_passes_give_the_same_loss():
    from peers import eager, networks

    plan = tiny(dropout=0.0)
    generator, discriminator = networks.build(plan)
    real = torch.rand(plan.batch, *plan.image) * 2 - 1
    torch.manual_seed(1)
    merged = eager.losses_of(plan, generator, discriminator)[0](real)
    torch.manual_seed(1)
    fake = generator(torch.randn(plan.batch, plan.latent))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    ones = torch.ones(plan.batch, 1)
    separate = bce(discriminator(real), ones) + bce(discriminator(fake), 0 * ones)
    torch.testing.assert_close(merged, separate)


def test_adam_for_the_compiler_is_adam():
    from peers.compile import Adam

    torch.manual_seed(0)
    plan = tiny()
    mine = torch.randn(7, 5).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    ours = Adam([mine], plan)
    adam = torch.optim.Adam([theirs], lr=plan.lr, betas=plan.betas, eps=plan.eps)
    for _ in range(5):
        grad = torch.randn(7, 5)
        ours.update([grad])
        theirs.grad = grad
        adam.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_order_visits_everything_once_an_epoch():
    from peers import networks

    order = networks.Order(tiny())
    for _ in range(2):
        seen = torch.cat([order.next() for _ in range(12)])
        assert sorted(seen.tolist()) == list(range(96))


@pytest.mark.parametrize("name", ["reference", "eager", "amp", "fastgan-eager"])
@pytest.mark.parametrize("batchnorm", ["none", "both"])
def test_twenty_steps(name, batchnorm):
    threads = torch.get_num_threads()
    host = worker.Host(name)
    try:
        answer = host.setup(tiny(batchnorm=batchnorm).to_fields(), 1)
        assert "missing" not in answer, answer
        before = [p.detach().clone() for p in _parameters(host.peer)]
        times, cpu = host.blocks(10, 2)
        assert len(times) == 2 and min(times) > 0 and cpu > 0
        after = _parameters(host.peer)
        assert all((a != b).any() for a, b in zip(after, before, strict=True))
        said = host.check()
        # Both losses start near 2 ln 2 and ln 2; twenty steps leave them in this neighbourhood.
        assert 0.8 < said["d_loss"] < 2.5 and 0.2 < said["g_loss"] < 1.5
    finally:
        host.close()
        torch.set_num_threads(threads)


def _parameters(peer) -> list[torch.Tensor]:
    if hasattr(peer, "engine"):
        generator, discriminator = peer.engine.problem.generator, peer.engine.problem.discriminator
    else:
        generator, discriminator = peer.generator, peer.discriminator
    # A bias before BatchNorm has no gradient but rounding.
    return [p for m in (generator, discriminator) for p in m.parameters() if p.ndim == 2]


def test_losses_that_are_not_finite_are_an_error():
    class Broken(peers.Peer):
        def losses(self):
            return 1.0, float("nan")

    with pytest.raises(FloatingPointError, match="nan"):
        Broken().check()


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
            assert _state(first) in "RSD" and _state(second) == "T"
        assert _state(first) == "T"
        second.process.kill()
        second.process.wait()
        results = field.race(tiny(), 0.05)
        assert "median" in results["eager"]
        assert "SIGKILL" in results["amp"]["missing"]


def _state(peer) -> str:
    # A signal takes effect a moment after it was sent.
    for _ in range(100):
        state = Path(f"/proc/{peer.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            break
        os.sched_yield()
    return state


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
    with harness.Field(peers.select("eager"), 1, patience=20, say=lambda _: None) as field:
        field.prepare(tiny())
        stuck = field.peers["eager"]
        stuck.patience = 0.3
        with stuck.turn(), pytest.raises(harness.Dead, match="blocks took more than 0.3 s"):
            stuck.ask("blocks", 10**9, 1)
        assert stuck.process.returncode is not None
        assert "its process ended" in field.race(tiny(), 0.05)["eager"]["missing"]


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


def test_exercise_without_a_gpu_runs_what_a_cpu_can():
    assert exercise.main(["operators", "--device", "cpu"]) == 0


@pytest.mark.parametrize("penalty", ["none", "r1"])
@pytest.mark.parametrize("name", ["reference", "eager", "fastgan-eager"])
def test_dcgan_steps(name, penalty):
    plan = Plan(
        *("dcgan", 8, 4, 2, (3, 16, 16), "none", 0.0, 4, 20), network="dcgan", penalty=penalty
    )
    threads = torch.get_num_threads()
    host = worker.Host(name)
    try:
        answer = host.setup(plan.to_fields(), 1)
        if name == "reference" and penalty == "r1":
            assert "no gradient penalty" in answer["missing"]
            return
        assert "missing" not in answer, answer
        host.calls(2)
        said = host.check()
        assert 0.8 < said["d_loss"] < 2.5 and 0.2 < said["g_loss"] < 1.5
    finally:
        host.close()
        torch.set_num_threads(threads)


def test_r1_of_the_eager_peer_is_that_of_fastgan():
    from peers import eager, networks

    from fastgan import losses

    plans = [
        Plan(image=(1, 4, 4), hidden=8, latent=3, batch=5, dropout=0.0, penalty=penalty)
        for penalty in ("none", "r1")
    ]
    generator, discriminator = networks.build(plans[0])
    real = torch.rand(5, 1, 4, 4)
    totals = []
    for plan in plans:
        torch.manual_seed(0)
        totals.append(eager.losses_of(plan, generator, discriminator)[0](real))
    images = real.clone().requires_grad_()
    wanted = losses.penalty("r1").value(discriminator(images), images)
    torch.testing.assert_close(totals[1] - totals[0], wanted)


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

        def elapsed_time(self, end):
            return 1e3 * share

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: did.append("wait"))
    times = iter((10.0, 11.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    assert Peer("cuda").block(7, calls=2) == (share if share > 0.95 else 1.0)
    assert did == ["wait", "event", 7, 7, "event", "wait"]


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


def test_the_plan_of_the_device_fits_ten_minutes(hopper, tmp_path, capsys):
    assert device.main(["--dry-run", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for name in ("build", "memcheck operators", "racecheck persistent", "pair", "dcgan-r1", "ncu"):
        assert f"| {name} " in text
    known = device.parts(tmp_path, 1)
    build, _ = known["build"]
    assert build.env["TORCH_CUDA_ARCH_LIST"] == "9.0" and build.env["FASTGAN_BUILD"] == "auto"
    first = [part for name in device.FIRST for part in known[name]]
    sure = [part for name in device.SURE for part in known[name]]
    assert device.longest(sure) + 30 <= device.LIMIT < 600
    assert {"card", "build", "checks", "pair", "dcgan"} == set(device.SURE) < set(device.FIRST)
    assert all(device.longest(part) <= device.LIMIT for part in known.values())
    # All comes back in eight files: a record of each benchmark, the card, a summary and the logs.
    assert sum(any("--topic" in word for word in part.command) for part in first) <= 5
    plans = [w.partition("=")[2] for part in known["dcgan"] for w in part.command if "--plan" in w]
    assert [Plan.parse(text) for text in plans] == DCGAN
    for part in (part for group in known.values() for part in group):
        peers_asked = [w.partition("=")[2] for w in part.command if w.startswith("--peers=")]
        for text in peers_asked:
            assert peers.select(text, device="cuda")
    assert not list(tmp_path.iterdir())


def test_a_part_that_hangs_or_fails_costs_the_others_nothing(tmp_path):
    said = []
    runner = device.Runner(tmp_path, 60, has_gpu=False, say=said.append)

    def part(name, code, seconds=20.0, **options):
        return device.Part(name, [sys.executable, "-c", code], seconds, gpu=False, **options)

    chosen = [
        part("hangs", "import time; print('begun', flush=True); time.sleep(60)", 1.0),
        part("beside", "print('here'); raise SystemExit(7)", beside=True),
        part("absent", "raise SystemExit(3)"),
        device.Part("needs one", [sys.executable], 5),
        device.Part("no program", ["no-such-program"], 5, gpu=False),
        part("after", "import os; print(os.environ['PYTHONPATH'])"),
    ]
    groups = device.groups(chosen)
    assert [len(group) for group in groups] == [2, 1, 1, 1, 1]
    assert device.longest(chosen) == 20 + 20 + 5 + 5 + 20
    for group in groups:
        runner.run(group)
    outcomes = {o["part"]: o for o in runner.outcomes}
    assert outcomes["hangs"]["outcome"] == "TIMED OUT" and outcomes["hangs"]["last"] == "begun"
    assert outcomes["hangs"]["seconds"] < 10
    assert outcomes["beside"]["outcome"] == "FAILED (7)" and outcomes["beside"]["last"] == "here"
    assert outcomes["absent"]["outcome"] == "SKIPPED: no GPU"
    assert outcomes["needs one"]["outcome"] == "SKIPPED: no GPU"
    assert "no-such-program is not on the path" in outcomes["no program"]["outcome"]
    assert outcomes["after"]["outcome"] == "ok"
    assert str(BENCHMARKS.parent) in outcomes["after"]["last"]
    assert json.loads((tmp_path / "summary.json").read_text()) == runner.outcomes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logs.txt", "summary.json"]
    assert "===== hangs: TIMED OUT" in (tmp_path / "logs.txt").read_text()
    runner.end = 0.0
    runner.run([part("late", "")])
    assert runner.outcomes[-1]["outcome"] == "SKIPPED: no time left"


def test_what_ignores_the_signal_is_ended_and_a_flood_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "GRACE", 0.5)
    runner = device.Runner(tmp_path, 60, has_gpu=False, say=lambda _: None)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    saves = (
        "import signal, time\n"
        "try:\n    signal.signal(signal.SIGTERM, signal.default_int_handler); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('x' * 600_000); print('saved')"
    )
    runner.run(
        [
            device.Part(name, [sys.executable, "-c", code], 3.0, gpu=False)
            for name, code in (("deaf", deaf), ("deaf too", deaf), ("saves", saves))
        ]
    )
    outcomes = {o["part"]: o for o in runner.outcomes}
    assert {o["outcome"] for o in outcomes.values()} == {"TIMED OUT"}
    assert all(o["seconds"] < 4.5 for o in outcomes.values())
    assert outcomes["saves"]["last"] == "saved"
    assert 500_000 < (tmp_path / "logs.txt").stat().st_size < 510_000


def test_unknown_parts_are_refused(hopper, capsys):
    with pytest.raises(SystemExit):
        device.main(["--parts", "everything"])
    assert "no part is called 'everything'" in capsys.readouterr().err


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
