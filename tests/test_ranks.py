"""Runs of several processes: the same course as one, an end on all, a resume by another number."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from compilers import counted, traced_only
from methods import Conditional, D, G
from torch import nn

import fastgan
from fastgan import Trainer, data, ops, terms
from fastgan.engines.compiled_step import CompiledStep
from fastgan.run import checkpoint

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
needs_kernels = pytest.mark.skipif(
    not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
)
TESTS = os.path.dirname(os.path.abspath(__file__))
PACKAGE = str(Path(fastgan.__file__).resolve().parents[1])


def pair():
    torch.manual_seed(1)
    g = nn.Sequential(
        nn.Linear(5, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 36), nn.Tanh(),
        nn.Unflatten(1, (1, 6, 6)),
    )  # fmt: skip
    d = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(64, 1),
    )  # fmt: skip
    return g, d


def samples():
    return data.open(torch.rand(43, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def run(out, steps):
    """A batch of 9 and a last one of 7: unequal parts for two ranks and for three."""
    trainer = Trainer(
        *pair(), samples(), out=out, batch_size=9, latent_dim=5, device="cpu", optimizer="sgd",
        lr=0.05, penalties="r1:1:2", ema=0.9, log_every=10, checkpoint_every=20, console="none",
    )  # fmt: skip
    trainer.fit(steps=steps)
    return trainer


def resume(out, steps):
    trainer = Trainer.resume(out, *pair(), samples(), optimizer="sgd")
    trainer.fit(steps=steps)
    return trainer


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 43

    def __getitem__(self, i):
        return samples().samples[i].flatten()


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 43

    def __getitem__(self, i):
        return samples().samples[i], i % 3


def run_pairs(out, steps):
    """Labels read as needed, of which fake samples get others, and a weight by slopes."""
    torch.manual_seed(1)
    trainer = Trainer(
        G(), D(), data.open(Pairs(), augmented=False), out=out, method=Conditional(),
        terms={"l2": ("adaptive", terms.l2), "m": (0.5, terms.moments)}, batch_size=9,
        latent_dim=5, device="cpu", optimizer="sgd", lr=0.05, ema=0.9, budget_bytes=1,
        console="none",
    )  # fmt: skip
    trainer.fit(steps=steps)
    return trainer


def run_compiled(out, steps):
    CompiledStep.compiler = staticmethod(traced_only)
    torch.manual_seed(1)
    g = nn.Sequential(nn.Linear(5, 36), nn.Tanh(), nn.Unflatten(1, (1, 6, 6)))
    d = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))
    trainer = Trainer(
        g, d, samples(), out=out, engine="compile", batch_size=9, latent_dim=5, device="cpu",
        optimizer="sgd", lr=0.05, penalties="r1:1:2", ema=0.9, console="none",
    )  # fmt: skip
    trainer.fit(steps=steps)
    assert trainer.engine.name == "compile"


def fused_pair():
    torch.manual_seed(1)
    g = nn.Sequential(nn.Linear(5, 36), nn.LeakyReLU(0.2), nn.Linear(36, 36), nn.Tanh())
    d = nn.Sequential(nn.Linear(36, 17), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(17, 1))
    return g, d, data.open(samples().samples.flatten(1))


def run_fused(out, steps, **settings):
    """Masks of dropout, two updates of D, points between, a clipped norm, an average."""
    trainer = Trainer(
        *fused_pair(), out=out, engine="fused", batch_size=9, latent_dim=5, device="cpu",
        d_steps=2, loss="hinge", penalties="wgan-gp:1:2", grad_clip=1.0, ema=0.9,
        lr_schedule="linear:60", log_every=10, console="none", **settings,
    )  # fmt: skip
    trainer.fit(steps=steps)


def run_normed(out, steps):
    """BatchNorms in both networks, fused; the ranks agree in every bit."""
    torch.manual_seed(1)
    # Without biases: what a norm takes away again has a gradient of rounding, and Adam follows it.
    g = nn.Sequential(
        nn.Linear(5, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 36, bias=False),
        nn.BatchNorm1d(36, momentum=None), nn.Tanh(),
    )  # fmt: skip
    d = nn.Sequential(
        nn.Linear(36, 17, bias=False), nn.BatchNorm1d(17), nn.LeakyReLU(0.2), nn.Dropout(0.3),
        nn.Linear(17, 1),
    )  # fmt: skip
    trainer = Trainer(
        g, d, data.open(samples().samples.flatten(1)), out=out, engine="fused", batch_size=9,
        latent_dim=5, device="cpu", d_steps=2, ema=0.9, console="none",
    )  # fmt: skip
    trainer.fit(steps=steps)
    states = [module.state_dict().values() for module in (g, d, trainer.ema)]
    own = torch.cat([t.double().flatten() for state in states for t in state])
    of_all = torch.zeros(trainer.world.size, len(own)).double()
    of_all[trainer.world.rank] = own
    assert trainer.world.gather_(of_all).eq(own).all()


class Labelled(nn.Module):
    """A label through an embedding, joined to what a body takes."""

    def __init__(self, body, width):
        super().__init__()
        self.embed, self.body = nn.Embedding(5, width), body

    def forward(self, x, y):
        return self.body(torch.cat([x, self.embed(y)], 1))


class Rows5(Rows):
    """Rows with labels."""

    def __getitem__(self, i):
        return super().__getitem__(i), i % 5


def run_labelled(out, steps, read=False, engine="fused"):
    """Tables of labels, drawn anew for fakes, heads that they ask for, moments of columns."""
    torch.manual_seed(1)
    heads = fastgan.nn.Heads([("tanh", 29), ("softmax", 2), ("gumbel", 5)])
    g = nn.Sequential(
        nn.Linear(9, 24, bias=False),
        nn.BatchNorm1d(24),
        nn.LeakyReLU(0.2),
        nn.Linear(24, 36),
        heads,
    )
    d = nn.Sequential(nn.Linear(39, 17), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(17, 1))
    rows = samples().samples.flatten(1), torch.arange(43) % 5
    source = data.open(Rows5(), augmented=False) if read else data.open(rows)
    trainer = Trainer(
        Labelled(g, 4), Labelled(d, 3), source, out=out, engine=engine, batch_size=9, latent_dim=5,
        device="cpu", d_steps=2, g_steps=2, ema=0.9, log_every=10, console="none",
        budget_bytes=1 if read else None,
        terms={"c": (0.5, terms.Conditional()), "m": (0.3, terms.moments)},
    )  # fmt: skip
    trainer.fit(steps=steps)
    assert trainer.engine.name == engine


def run_read(out, steps):
    """Samples that are read as needed."""
    torch.manual_seed(1)
    g, d = (
        nn.Sequential(nn.Linear(n, 20), nn.Tanh(), nn.Linear(20, m)) for n, m in ((5, 36), (36, 1))
    )
    trainer = Trainer(
        g, d, data.open(Rows(), augmented=False), out=out, engine="fused", batch_size=9,
        latent_dim=5, device="cpu", d_steps=2, ema=0.9, budget_bytes=1, console="none",
    )  # fmt: skip
    trainer.fit(steps=steps)


def resume_fused(out, steps):
    Trainer.resume(out, *fused_pair()).fit(steps=steps)


def run_several(out):
    """Runs that have nothing to do with each other, in one start of the processes."""
    # What was registered first is done last, at the end of the program.
    atexit.register(lambda: print("there" if torch.distributed.is_initialized() else "left"))
    run_pairs(f"{out}/pairs", 10)
    if ops.has_kernels(torch.device("cpu")):
        run_read(f"{out}/read", 10)


def start(size, code, tmp_path, **environment):
    code = f"import sys; sys.path[:0] = [{TESTS!r}, {PACKAGE!r}]; import test_ranks as t; {code}"
    port = str(20000 + os.getpid() % 20000 + len(list(tmp_path.iterdir())))
    return [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
                **environment,
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def finished(ranks):
    told = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), told
    assert not any("Warning" in err for _, err in told), told
    return told


def close(a, b):
    for name in ("generator", "discriminator", "ema"):
        for key, value in a[name].items():
            torch.testing.assert_close(value, b[name][key], rtol=1e-4, atol=1e-5, msg=key)


def took_one_course(one, other, lines):
    close(*(checkpoint.load(checkpoint.find(run)) for run in (one, other)))
    told = [(run / "log.jsonl").read_text().splitlines() for run in (one, other)]
    assert len(told[0]) == len(told[1]) == lines
    for a, b in zip(*(map(json.loads, part) for part in told), strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        assert all(a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4) for key in a)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Where two ranks have run several, and what they printed."""
    out = tmp_path_factory.mktemp("several")
    return out, finished(start(2, f"t.run_several({str(out)!r})", out))


def test_a_program_leaves_the_group_that_the_trainer_has_made(several):
    assert [out.split() for out, _ in several[1]] == [["left"]] * 2


def test_two_ranks_then_three_then_one_take_the_course_of_one(tmp_path):
    one, some = tmp_path / "one", tmp_path / "some"
    run(one, 40)
    finished(start(2, f"t.run({str(some)!r}, 20)", tmp_path))
    finished(start(3, f"t.resume({str(some)!r}, 30)", tmp_path))
    resume(some, 40)
    took_one_course(one, some, 4)


def test_labels_of_fakes_and_adaptive_weights_are_those_of_the_whole_batch(several, tmp_path):
    run_pairs(tmp_path, 10)
    close(*(checkpoint.load(checkpoint.find(run)) for run in (tmp_path, several[0] / "pairs")))


@needs_kernels
def test_fused_steps_of_two_ranks_then_three_then_one_take_the_course_of_one(tmp_path):
    one, some = tmp_path / "one", tmp_path / "some"
    run_fused(one, 50)
    finished(start(2, f"t.run_fused({str(some)!r}, 20)", tmp_path))
    finished(start(3, f"t.resume_fused({str(some)!r}, 35)", tmp_path))
    resume_fused(some, 50)
    took_one_course(one, some, 5)


@needs_kernels
def test_fused_steps_of_two_ranks_on_samples_that_are_read(several, tmp_path):
    run_read(tmp_path, 10)
    close(*(checkpoint.load(checkpoint.find(run)) for run in (tmp_path, several[0] / "read")))


@needs_kernels
def test_labels_and_terms_of_fused_steps_are_those_of_the_whole_batch(tmp_path):
    runs = {"one": ("fused", False), "two": ("fused", True), "eager": ("eager", True)}
    for name, (engine, several) in runs.items():
        call = f"run_labelled({str(tmp_path / name)!r}, 20, engine={engine!r})"
        finished(start(1 + several, f"t.{call}", tmp_path))
    took_one_course(tmp_path / "one", tmp_path / "two", 2)
    took_one_course(tmp_path / "one", tmp_path / "eager", 2)


@needs_kernels
def test_labels_that_are_read_are_drawn_from_those_of_all_ranks(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run_labelled(one, 10, read=True)
    finished(start(2, f"t.run_labelled({str(two)!r}, 10, read=True)", tmp_path))
    close(*(checkpoint.load(checkpoint.find(run)) for run in (one, two)))


@needs_kernels
def test_a_rank_of_fused_steps_that_dies_ends_the_others_and_the_run_is_continued(tmp_path):
    out = tmp_path / "run"
    ranks = start(3, f"t.run_fused({str(out)!r}, 10**7, checkpoint_every=50)", tmp_path)
    wait_for_lines(out, ranks)
    ranks[2].send_signal(signal.SIGKILL)
    told = [ranks[i].communicate(timeout=60)[1] for i in (0, 1)]
    assert all(f"rank {i} of 3 has lost another one" in told[i] for i in (0, 1))
    step = checkpoint.load(checkpoint.find(out))["step"]
    finished(start(2, f"t.resume_fused({str(out)!r}, {step + 7})", tmp_path))
    assert checkpoint.load(checkpoint.find(out))["step"] == step + 7


def run_engines(out, steps=50):
    run(f"{out}/eager", steps)
    run_compiled(f"{out}/compile", steps)
    if ops.has_kernels(torch.device("cpu")):
        run_fused(f"{out}/fused", steps)
        run_normed(f"{out}/fused with BatchNorms", steps)
        run_labelled(f"{out}/fused with labels and terms", steps)


def test_two_and_three_ranks_have_the_weights_of_one_after_fifty_steps(tmp_path, monkeypatch):
    counted(monkeypatch, traced_only)
    places, started = [], []
    for size in (1, 2, 3):
        places.append(tmp_path / f"{size}")
        places[-1].mkdir()
        if size > 1:
            started += start(size, f"t.run_engines({str(places[-1])!r})", tmp_path)
    run_engines(places[0])
    finished(started)
    for engine in sorted(p.name for p in places[0].iterdir()):
        one, *others = (checkpoint.load(checkpoint.find(p / engine)) for p in places)
        assert one["engine"] == engine.split()[0] and one["step"] == 50
        for other in others:
            for network in ("generator", "discriminator", "ema"):
                torch.testing.assert_close(other[network], one[network], rtol=0, atol=1e-5)


def wait_for_lines(out, ranks):
    while not (out / "log.jsonl").exists() or not (out / "log.jsonl").read_text().count("\n") > 3:
        assert all(rank.poll() is None for rank in ranks), ranks[0].communicate()
        time.sleep(0.05)


def test_a_rank_that_dies_ends_the_others_soon_and_the_run_is_continued(tmp_path):
    out = tmp_path / "run"
    ranks = start(3, f"t.run({str(out)!r}, 10**6)", tmp_path)
    wait_for_lines(out, ranks)
    ranks[1].send_signal(signal.SIGKILL)
    told = [ranks[i].communicate(timeout=60)[1] for i in (0, 2)]
    for i, text in zip((0, 2), told, strict=True):
        assert f"rank {i} of 3 has lost another one" in text
    assert all(ranks[i].returncode not in (0, None) for i in (0, 2))
    state = checkpoint.load(checkpoint.find(out))
    assert state["step"] >= 20 or state["step"] == 0
    resumed = resume(out, state["step"] + 5)
    assert resumed.step == state["step"] + 5


def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path):
    out = tmp_path / "run"
    ranks = start(2, f"t.run({str(out)!r}, 10**6)", tmp_path)
    wait_for_lines(out, ranks)
    ranks[1].send_signal(signal.SIGTERM)
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 143]
    state = checkpoint.load(checkpoint.find(out))
    assert state["step"] > 30


def test_torchrun_starts_the_command_line(tmp_path):
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "fastgan", "train", "--data", "digits", "--batch-size", "256", "--steps", "20",
         "--engine", "eager", "--out", str(out), "--log-every", "10"],
        env={**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("engine eager") == 1 and (out / "samples.png").exists()
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
