"""Networks of the fused engine whose layers take sums and concatenations of others."""

import copy

import pytest
import torch
from fused_plans import eager_run, same
from residual_plans import ACTIVATIONS, drawn

from fastgan import ops
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]


def first_step(engine, p):
    """Gradients of the first step's updates, from Adam's first moments, of D and of G."""
    eager_run(engine(p), 1)
    return [
        torch.cat([2 * optimizer.state[w]["exp_avg"].detach().double().flatten() for w in w_of])
        for optimizer, w_of in (
            (p.optimizer_d, list(p.discriminator.parameters())),
            (p.optimizer_g, list(p.generator.parameters())),
        )
    ]


@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("number", range(10))
def test_gradients_are_as_good_as_torchs_in_float32(kind, number, penalised):
    exact, torchs, ours = (
        first_step(engine, drawn(kind, number, dtype, penalised))
        for engine, dtype in (
            (EagerEngine, torch.float64),
            (EagerEngine, torch.float32),
            (FusedEngine, torch.float32),
        )
    )
    for of_exact, of_torch, of_ours in zip(exact, torchs, ours, strict=True):
        error = (of_ours - of_exact).norm()
        assert error <= 3 * (of_torch - of_exact).norm() + 2e-7 * of_exact.norm()
    if penalised:  # and the penalty is not lost
        without = first_step(EagerEngine, drawn(kind, number, torch.float64, True, penalties=None))
        assert (exact[0] - without[0]).norm() > 1e3 * (ours[0] - exact[0]).norm()


@pytest.mark.parametrize(
    ("kind", "number", "changes"),
    [
        ("straight", 1, {"penalised": True, "d_steps": 2}),
        ("curved", 3, {"penalised": True, "grad_clip": 0.05}),
        ("curved", 4, {"d_steps": 2, "g_steps": 2}),
        ("straight", 5, {"precision": "bf16"}),
    ],
)
def test_threads_and_calls_change_no_bit_and_a_copy_goes_on(kind, number, changes):
    found = []
    for threads, parts in ((1, [7]), (2, [1, 6]), (3, [7]), (7, [2, 0, 5])):
        torch.set_num_threads(threads)
        p = drawn(kind, number, **changes)
        engine = FusedEngine(p)
        found.append((torch.cat([engine.run(n) for n in parts]), p))
    for statistics, p in found[1:]:
        assert torch.equal(statistics, found[0][0])
        assert same(p, found[0][1]) == []
    q = copy.deepcopy(p)
    other = FusedEngine(q)
    other.step = engine.step
    assert torch.equal(engine.run(5), other.run(5)) and same(p, q) == []
