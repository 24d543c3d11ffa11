"""Bounds of gradients and weights in the fused engine: against eager, float64, and itself."""

import math

import pytest
import torch
import written_plans as plans
from fused_plans import biases_before_norm, eager_run, problem, same, tensors
from native import emulator, fused_cuda

from fastgan import ops
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]

BOUNDS = {
    "norm": {"grad_clip": 0.05},
    "numbers": {"grad_clip_value": 1e-3},
    "both": {"grad_clip": 0.02, "grad_clip_value": 2e-3},
    "weights": {"weight_clip": 0.03},
    "all": {"grad_clip": 0.02, "grad_clip_value": 2e-3, "weight_clip": 0.05, "weight_decay": 0.1},
    "loose": {"grad_clip": 1e6, "grad_clip_value": 1e6, "weight_clip": 1e6},
}


def moments(p):
    skip = {
        f"{short}.{key}.exp_avg"
        for short, net in (("g", p.generator), ("d", p.discriminator))
        for key in biases_before_norm(net)
    }
    found = tensors(p)
    return torch.cat(
        [
            t.double().flatten()
            for key, t in found.items()
            if key.endswith("exp_avg") and key not in skip
        ]
    )


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", ["reference, ragged", "deep", "wasserstein"])
def test_updates_are_as_good_as_torch_in_float32(name, bounds):
    exact = problem(name, double=True, **BOUNDS[bounds])
    eager, fused, free = (
        problem(name, **BOUNDS[bounds]),
        problem(name, **BOUNDS[bounds]),
        problem(name),
    )
    for engine, p in (
        (EagerEngine, exact),
        (EagerEngine, eager),
        (FusedEngine, fused),
        (FusedEngine, free),
    ):
        eager_run(engine(p), 2)
    wanted = moments(exact)
    assert (moments(fused) - wanted).norm() <= 3 * (moments(eager) - wanted).norm()
    if bounds not in ("loose", "weights"):
        assert (moments(free) - wanted).norm() > 0.1 * wanted.norm()


def test_weights_stay_within_their_bound():
    p = problem("deep", weight_clip=0.02, lr=0.05)
    FusedEngine(p).run(3)
    largest = [w.abs().max().item() for w in p.discriminator.parameters()]
    assert max(largest) == pytest.approx(0.02) and largest.count(max(largest)) > 5
    assert max(w.abs().max() for w in p.generator.parameters()) > 0.04


@pytest.mark.parametrize("name", ["deep", "norms"])
def test_threads_and_calls_change_no_bit(name):
    found = []
    for threads, parts in ((1, [7]), (2, [1, 6]), (5, [7])):
        torch.set_num_threads(threads)
        p = problem(name, **BOUNDS["all"])
        engine = FusedEngine(p)
        found.append((torch.cat([engine.run(n) for n in parts]), p))
    for statistics, p in found[1:]:
        assert torch.equal(statistics, found[0][0])
        assert same(p, found[0][1]) == []


def test_a_bound_that_is_not_reached_changes_no_bit():
    p, q = problem("deep"), problem("deep", grad_clip_value=1e6, weight_clip=1e6)
    assert torch.equal(FusedEngine(p).run(5), FusedEngine(q).run(5)) and same(p, q) == []


@pytest.mark.parametrize("clips", [(1.0, math.inf), (math.inf, 1.0)])
def test_a_gradient_that_is_no_number_is_not_hidden(clips):
    case = plans.Case(clips=clips)
    case.values[1][0][0][0, 0] = math.nan  # one of D's first layer: all scores are NaN
    case.run(1)
    for layer in case.values[1]:
        assert all(t.isnan().all() for t in layer if t is not None)


@pytest.mark.parametrize("bad", [math.nan, -1.0])
@pytest.mark.parametrize("i", [0, 1])
def test_a_bad_bound_is_an_error(bad, i):
    clips = [math.inf, math.inf]
    clips[i] = bad
    with pytest.raises(RuntimeError, match=("largest number of a", "longest")[i] + " gradient is"):
        plans.Case(clips=clips).run(1)


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"no emulator: {emulator.why_not()}")
@pytest.mark.parametrize(
    "options",
    [
        {"networks": ([plans.Layer(12, row_norm=True)], [plans.Layer(1)])},
        {"networks": ([plans.Layer(12)], [plans.Layer(4, "gelu"), plans.Layer(1)])}
        | {"penalties": ((0, 1, 1, 1.0),)},
    ],
)
def test_layers_that_the_kernels_of_a_gpu_do_not_know_are_an_error(options):
    fused_cuda.load()
    case = plans.Case(**options)
    with pytest.raises(RuntimeError, match="which the fused step on CUDA does not know"):
        torch.ops.fastgan.fused_cuda_length(case.plan, case.settings)
