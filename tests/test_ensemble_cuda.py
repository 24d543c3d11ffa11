"""Members in one launch on CUDA, in the emulator: each has the bits of the same run alone."""

import pytest
import torch
from fused_emulated import Emulated, needs_emulator
from fused_plans import problem, same
from many_runs import POINTS, alone, assert_same
from torch import nn

from fastgan import Ensemble, engines, grid
from fastgan.config import ConfigError
from fastgan.engines import fused
from fastgan.engines.fused.cuda import FusedCudaEngine

pytestmark = [needs_emulator, pytest.mark.usefixtures("one_thread")]
STEPS = 12
SMALL = POINTS | {"batch_size": 8, "log_every": 5}


class Launched(Emulated):
    """In the launches of a GPU, which the persistent kernel needs no graphs for."""

    _launch = FusedCudaEngine._launch


@pytest.fixture
def launches(kernels, monkeypatch):
    """Ensembles take the emulated engine; how many jobs and steps each common launch had."""
    kernels.device(6)
    monkeypatch.setattr(fused, "FusedEngine", Launched)
    found, launch = [], torch.ops.fastgan.fused_cuda_run_together.default

    def noted(*arguments):
        found.append((len(arguments[0]), arguments[-2]))
        return launch(*arguments)

    monkeypatch.setattr(torch.ops.fastgan.fused_cuda_run_together, "default", noted)
    return found


def by_itself(steps=STEPS, **settings):
    return alone(steps, threads=None, **{**SMALL, **settings})


def test_members_side_by_side_are_the_same_runs_alone(launches):
    members = [
        {"seed": 3, "lr": 1e-3},
        {"seed": 4, "lr": 2e-4, "ema": 0.9},
        # Of other shapes, phases and data.
        {"width": 24, "batch_size": 17, "latent_dim": 3},
        {"d_steps": 2, "loss": "hinge", "lr_schedule": "cosine:20"},
        {"data": torch.randn(23, 2, generator=torch.Generator().manual_seed(1))},
    ]
    whole = Ensemble(members=members, **SMALL)
    assert all(isinstance(t.engine, Launched) and t.engine.persistent for t in whole)
    assert whole[0].engine.most_at_once == 3  # of 6 multiprocessors, each with room for 4 tiles
    assert [row["status"] for row in whole.fit(steps=STEPS)] == ["done"] * 5
    # Two launches' worth of five are three and two at a time, and who is done makes room.
    assert launches[0] == (3, 1) and {count for count, _ in launches} <= {1, 2, 3}
    assert sum(count * n for count, n in launches) == 5 * STEPS
    for member, settings in zip(whole, members, strict=True):
        assert_same(member, by_itself(**settings))


def test_a_member_that_ends_early_makes_room(launches):
    whole = Ensemble(members=3, **SMALL)
    enough = by_itself(5, seed=1).history[0]["d_loss"]
    whole.fit(steps=15, until=lambda state: abs(state.d_loss - enough) < 1e-6)
    assert [t.step for t in whole] == [15, 5, 15]
    assert {count for count, _ in launches} == {3, 2}
    for seed, member in enumerate(whole):
        assert_same(member, by_itself(member.step, seed=seed))


def test_an_ensemble_that_is_continued(launches, tmp_path):
    members = grid(seed=[0, 5], lr=[1e-3])
    whole = Ensemble(members=members, out=tmp_path / "e", **SMALL)
    whole.fit(steps=7)
    again = Ensemble.resume(tmp_path / "e")
    again.fit(steps=STEPS)
    assert {count for count, _ in launches} == {2}
    for member, settings in zip(again, members, strict=True):
        assert_same(member, by_itself(**settings))


def normed(config):
    g = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    return g, nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))


def test_what_the_kernel_does_not_take_goes_one_after_the_other(launches, monkeypatch, capsys):
    monkeypatch.setattr(Launched, "_launch", Emulated._launch)  # without graphs
    whole = Ensemble(normed, members=2, **{**SMALL, "console": "lines"})
    assert not any(member.beside for member in whole.members)
    whole.fit(steps=3)
    assert not launches
    said = "".join(capsys.readouterr())
    assert said.count("2 members one after the other") == said.count("BatchNorm1d") == 1


def test_networks_that_two_members_share_are_refused(launches):
    pair = nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(2, 1))
    whole = Ensemble(lambda config: pair, members=2, **SMALL)
    results = whole.fit(steps=3)
    assert [row["status"] for row in results] == ["failed"] * 2
    assert all("share memory" in row["reason"] for row in results)


def test_as_many_as_are_asked_for_and_fit(launches):
    whole = Ensemble(members=4, at_once=2, **SMALL)
    whole.fit(steps=2)
    assert {count for count, _ in launches} == {2}
    launches.clear()
    Ensemble(members=4, at_once=9, **SMALL).fit(steps=2)
    assert launches[0][0] == 3
    with pytest.raises(ConfigError, match="at_once is 0"):
        Ensemble(members=2, at_once=0, **SMALL)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_size_of_the_device_changes_no_bit(kernels, precision):
    """Nor the kind of tile, which follows it."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    options = {"precision": "bf16" if precision == "bf16" else "fp32"}
    runs = []
    for blocks in (4, 25):
        kernels.device(blocks)
        runs.append(problem("wasserstein", **options))
        engine = Emulated(runs[-1])
        assert engine.persistent
        engine.run(2)
    assert same(*runs) == []


def jobs(count=2):
    """The lists of a launch of so many, of engines that are kept alive beside them."""
    made = [engines.load("fused")(problem("hinge")) for _ in range(count)]
    for engine in made:
        engine._order_table.copy_(torch.arange(len(engine._order_table)) % 24)
        engine._clock.zero_()
    of_all = [
        list(part) for part in zip(*(e._job(e.problem.data.samples) for e in made), strict=True)
    ]
    plans, settings, states, *rest = of_all
    flat = [t for state in states for t in state]
    return made, [plans, settings, flat, [len(state) for state in states], *rest, 1, False]


@pytest.mark.parametrize(
    ("at", "change", "message"),
    [
        (0, lambda plans: [], "plan is an empty list"),
        (5, lambda images: images[:1], "images has 1 entries, and plan 2"),
        (3, lambda sizes: [sizes[0], sizes[1] + 1], r"sizes\[1\] is .* tensors left"),
        (2, lambda state: [*state, torch.zeros(1)], r"\d+ tensors, which are more than sizes says"),
        (4, lambda memory: [memory[0], memory[0]], "memory and memory share memory"),
        (10, lambda steps: 10**6, "steps is 1000000"),
    ],
)
def test_bad_arguments_of_a_common_launch_name_themselves(launches, at, change, message):
    _, arguments = jobs()
    arguments[at] = change(arguments[at])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.fused_cuda_run_together(*arguments)


def test_more_than_fit_are_refused(launches, kernels):
    _, arguments = jobs(3)
    kernels.device(4)
    with pytest.raises(RuntimeError, match=r"plan has 3 jobs, and a launch takes \d like plan"):
        torch.ops.fastgan.fused_cuda_run_together(*arguments)
