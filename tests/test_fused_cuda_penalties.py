"""Penalties and bounds in the fused engine on CUDA: its kernels in the emulator, against float64,
against the CPU, against themselves."""

import math

import pytest
import torch
import written_plans as plans
from fused_emulated import Emulated, EmulatedChain, close, needs_emulator, off_by
from fused_plans import problem, same
from test_fused_clipping import BOUNDS
from test_fused_penalties import ACTIVATIONS, drawn, first_update

from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine

# Slopes through the others are refused on CUDA.
KINDS = [kind for kind in ACTIVATIONS if kind not in ("rows normed", "falling and rising")]

pytestmark = [needs_emulator, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(18))
def test_gradients_are_as_good_as_torchs_in_float32(kernels, kind, number):
    kernels.seed(number)
    kernels.device(3 + number)
    exact = first_update(EagerEngine, drawn(kind, number, torch.float64))
    torchs = (first_update(EagerEngine, drawn(kind, number)) - exact).norm()
    ours = (first_update(EmulatedChain, drawn(kind, number)) - exact).norm()
    assert ours <= 3 * torchs + 1e-7 * exact.norm()


RUNS = {
    "wasserstein": {"penalties": "wgan-gp", "d_steps": 5, "batch_size": 20, "count": 50},
    "hinge": {"penalties": "r1:5:4"},
    "least squares": {"penalties": ["wgan-gp:2:2", "r1:1:3", "r2:1:5"], "d_steps": 2},
    "floats": {"penalties": ["r2:2", "wgan-gp:1:2"]},
    "single layers": {"penalties": ["r1", "wgan-gp"]},
}


@pytest.mark.parametrize("name", RUNS)
def test_steps_are_those_of_the_cpu(kernels, name):
    p, q = (problem(name, **RUNS[name]) for _ in range(2))
    engine = Emulated(p)
    assert "not one kernel: it takes no penalties" in engine.describe()
    assert off_by(engine.run(12), FusedEngine(q).run(12)) < 1e-4
    close(p, q, 1e-3)


@pytest.mark.parametrize("number", range(4))
def test_curved_steps_are_those_of_the_cpu(kernels, number):
    # In Wasserstein's loss the last bias has no gradient but rounding.
    options = {"d_steps": 2, "penalties": ["wgan-gp:3:2", "r1:2:3", "r2:1:5"], "lr": 1e-4}
    options["loss"] = ("hinge", "least-squares")[number % 2]
    p, q = (drawn("curved", number, **options) for _ in range(2))
    assert off_by(Emulated(p).run(9), FusedEngine(q).run(9)) < 1e-3
    close(p, q, 1e-2)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", ["deep", "wasserstein"])
def test_bounded_steps_are_those_of_the_cpu(kernels, name, bounds):
    p, q, free = problem(name, **BOUNDS[bounds]), problem(name, **BOUNDS[bounds]), problem(name)
    engine = Emulated(p)
    assert engine._why_chain
    assert off_by(engine.run(6), FusedEngine(q).run(6)) < 1e-4
    close(p, q, 1e-3)
    FusedEngine(free).run(6)
    assert bounds == "loose" or any(key.startswith("d.") for key in same(p, free))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_bounds_with_products_on_tensor_cores(kernels, precision):
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    options = {"precision": "bf16" if precision == "bf16" else "fp32", "lr": 1e-5}
    p, q = (problem("hinge", grad_clip=0.05, **o) for o in (options, {"lr": 1e-5}))
    assert 0 < off_by(Emulated(p).run(3), FusedEngine(q).run(3)) < 4e-2


def test_penalties_with_products_in_tf32(kernels):
    torch.backends.cuda.matmul.allow_tf32 = True
    gradients = first_update(Emulated, drawn("curved", 6))
    exact = first_update(EagerEngine, drawn("curved", 6, torch.float64))
    assert 1e-6 < (gradients - exact).norm() / exact.norm() < 5e-3


ALL = {"penalties": ["wgan-gp:1:2", "r1", "r2:1:3"], "grad_clip": 0.5, "weight_clip": 0.3}


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_threads_and_the_calls_change_no_bit(kernels, kind):
    found = []
    for seed, parts in ((0, [7]), (1, [1, 2, 0, 4]), (2, [7]), (3, [3, 4])):
        kernels.seed(seed)
        p = drawn(kind, 4, **ALL)
        engine = Emulated(p)
        found.append((torch.cat([engine.run(n) for n in parts]), p))
    for statistics, p in found[1:]:
        assert torch.equal(statistics, found[0][0])
        assert same(p, found[0][1]) == []


def test_a_lazy_penalty_leaves_the_other_updates_alone(kernels):
    lazy, never = (drawn("straight", 1, penalties=p) for p in ("r1:10:7", None))
    a, b = Emulated(lazy), EmulatedChain(never)
    a.step = b.step = 1
    assert torch.equal(a.run(6), b.run(6)) and same(lazy, never) == []
    a.run(1), b.run(1)
    assert any(name.startswith("d.") for name in same(lazy, never))


def test_a_bound_that_is_not_reached_changes_no_bit(kernels):
    p, q = problem("deep"), problem("deep", grad_clip_value=1e6, weight_clip=1e6, grad_clip=1e6)
    assert torch.equal(Emulated(p).run(5), Emulated(q).run(5)) and same(p, q) == []


def test_a_run_moves_between_the_devices(kernels):
    options = {**ALL, "d_steps": 2}
    p, q = problem("least squares", **options), problem("least squares", **options)
    here, there = FusedEngine(p), Emulated(p)
    got = [here.run(3)]
    there.step = 3
    got.append(there.run(3))
    assert off_by(torch.cat(got), FusedEngine(q).run(6)) < 1e-4
    close(p, q, 1e-3)


@pytest.mark.parametrize("bound", ["grad_clip", "grad_clip_value"])
def test_a_gradient_that_is_no_number_is_not_hidden(kernels, bound):
    p = problem("floats", **{bound: 1.0})
    engine = Emulated(p)
    with torch.no_grad():
        p.discriminator[1].weight[0, 0] = math.nan
    engine.run(1)
    assert all(w.isnan().all() for w in p.discriminator.parameters())


def length(case):
    return torch.ops.fastgan.fused_cuda_length(case.plan, case.settings)


def test_the_kernels_of_a_step(kernels):
    plain = length(plans.Case())
    assert plain == 11
    # Two more for each network.
    assert length(plans.Case(clips=(math.inf, 1.0))) == plain + 4
    assert length(plans.Case(clips=(1.0, math.inf))) == plain
    # Slope, direction, a tangent; points between besides.
    assert length(plans.Case(penalties=((0, 1, 16, 1.0),))) == plain + 3
    assert length(plans.Case(penalties=((1, 0, 1, 1.0), (0, 1, 1, 1.0)))) == plain + 4
