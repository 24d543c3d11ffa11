"""RMSprop and SGD in the fused engine: torch's numbers, and torch's state."""

from functools import partial

import pytest
import torch
from fused_plans import (
    biases_before_norm,
    eager_run,
    problem,
    same_by_threads_calls_and_copies,
    tensors,
)

from fastgan import ops
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]


def rmsprop(**settings):
    return {"kind": partial(torch.optim.RMSprop, lr=1e-3, alpha=0.9, **settings)}


def sgd(**settings):
    return {"kind": partial(torch.optim.SGD, lr=0.05, **settings)}


CASES = {
    "rmsprop": ("wasserstein", {**rmsprop(), "weight_clip": 0.1}),
    "rmsprop, decay, several of each": ("several of G", rmsprop(weight_decay=0.1)),
    "rmsprop, clipped": ("deep", {**rmsprop(eps=1e-3), "grad_clip": 0.1}),
    "sgd": ("plain", {**sgd(), "penalties": "r1"}),
    "sgd, momentum, decay": ("deep", sgd(momentum=0.7, weight_decay=0.1)),
    "sgd, scheduled": ("norms", {**sgd(momentum=0.5), "lr_schedule": "linear:40"}),
}


def made(name, **changes):
    plan, options = CASES[name]
    if plan == "plain":
        plan = "least squares"
        options = {"weight_decay": 0.0, **options}
    return problem(plan, **{"betas": (0.5, 0.999), **options, **changes})


def weights(p):
    """And what optimisers keep of them; before a norm a bias has no gradient but rounding."""
    skip = tuple(
        f"{short}.{key}"
        for short, net in (("g", p.generator), ("ema", p.generator), ("d", p.discriminator))
        for key in biases_before_norm(net)
    )
    return {
        key: t
        for key, t in tensors(p).items()
        if t.is_floating_point() and not key.endswith("step") and not key.startswith(skip)
    }


@pytest.mark.parametrize("name", CASES)
def test_losses_follow_eager(name):
    fused, eager = FusedEngine(made(name)), EagerEngine(made(name))
    got, expected = fused.run(30), eager_run(eager, 30)
    assert ((got - expected).abs() / expected.abs().clamp(min=0.1)).max() < 1e-3


@pytest.mark.parametrize("name", CASES)
def test_weights_are_as_good_as_torch_in_float32(name):
    errors = []
    for draw in (1, 2, 3):
        exact = made(name, draw=draw, double=True)
        fused, eager = made(name, draw=draw), made(name, draw=draw)
        FusedEngine(fused).run(2)
        for p in (exact, eager):
            eager_run(EagerEngine(p), 2)
        found, torchs, wanted = (
            torch.cat([t.double().flatten() for t in weights(p).values()])
            for p in (fused, eager, exact)
        )
        errors.append((found - wanted).norm() / (torchs - wanted).norm())
    assert sorted(errors)[1] <= 3


@pytest.mark.parametrize("name", ["rmsprop, decay, several of each", "sgd, momentum, decay"])
def test_threads_and_calls_change_no_bit_and_a_copy_goes_on(name):
    same_by_threads_calls_and_copies(lambda: made(name))


@pytest.mark.parametrize("name", CASES)
def test_the_optimisers_have_torchs_state_and_pass_it_on(name):
    p, q = made(name), made(name)
    first = FusedEngine(p)
    first.run(4)
    eager_run(EagerEngine(q), 4)
    for a, b in ((p.optimizer_g, q.optimizer_g), (p.optimizer_d, q.optimizer_d)):
        a, b = a.state_dict()["state"], b.state_dict()["state"]
        assert {i: state.keys() for i, state in a.items()} == {i: s.keys() for i, s in b.items()}
    second = EagerEngine(p)
    second.step = 4
    eager_run(second, 4)
    first.step = 8
    first.run(4)
    eager = EagerEngine(q)
    eager.step = 4
    eager_run(eager, 8)
    ours, theirs = weights(p), weights(q)
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=2e-4, msg=key)
