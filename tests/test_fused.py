"""The fused engine's numbers: against the eager engine, against float64, and against itself."""

from collections import Counter, defaultdict

import pytest
import torch
from fused_plans import (
    PLANS,
    Read,
    biases_before_norm,
    eager_run,
    problem,
    same,
    same_from_a_copy,
    tensors,
)

from fastgan import data, ops
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]


@pytest.mark.parametrize("name", PLANS)
def test_losses_follow_eager_for_50_steps(name):
    fused, eager = FusedEngine(problem(name)), EagerEngine(problem(name))
    got, expected = fused.run(50), eager_run(eager, 50)
    assert (fused.step, eager.step) == (50, 50)
    # relative to the size of what a loss is the difference of
    assert ((got - expected).abs() / expected.abs().clamp(min=0.1)).max() < 1e-4
    a, b = tensors(fused.problem), tensors(eager.problem)
    for key, value in a.items():
        if "num_batches" in key or key.endswith(".step"):
            assert torch.equal(value, b[key]), key


@pytest.mark.parametrize("name", PLANS)
def test_updates_are_as_good_as_torch_in_float32(name):
    # The median of five draws: in one an activation may round to the other side of its kink.
    ratios = defaultdict(list)
    for draw in range(1, 6):
        fused, eager = problem(name, draw=draw), problem(name, draw=draw)
        exact = problem(name, draw=draw, double=True)
        steps = 3
        FusedEngine(fused).run(steps)
        eager_run(EagerEngine(eager), steps)
        eager_run(EagerEngine(exact), steps)
        skip = {
            f"{short}.{key}.{state}"
            for short, net in (("g", fused.generator), ("d", fused.discriminator))
            for key in biases_before_norm(net)
            for state in ("exp_avg", "exp_avg_sq")
        }
        got, expected = tensors(fused), tensors(eager)
        ours, torchs = Counter(), Counter()
        for key, value in tensors(exact).items():
            if not key.endswith(("exp_avg", "exp_avg_sq")) or key in skip:
                continue
            kind = key[0], key.rsplit(".")[-1]
            ours[kind] += (got[key].double() - value).square().sum().item()
            torchs[kind] += (expected[key].double() - value).square().sum().item()
        for kind, error in ours.items():
            ratios[kind].append((error / torchs[kind]) ** 0.5)
    for kind, found in ratios.items():
        assert sorted(found)[2] <= 3, (kind, found)


@pytest.mark.parametrize(
    "name",
    [
        *("reference, ragged", "deep", "norms", "several of G", "rows normed", "smooth"),
        *("heads", "added", "shared fakes"),
    ],
)
def test_threads_change_no_bit(name):
    results = []
    for n in (1, 2, 3, 7):
        torch.set_num_threads(n)
        p = problem(name)
        losses_of = FusedEngine(p).run(9)
        results.append((losses_of, p))
    for other, p in results[1:]:
        assert torch.equal(results[0][0], other)
        assert same(results[0][1], p) == []


@pytest.mark.parametrize("name", ["reference, ragged", "deep", "several of G", "shared fakes"])
def test_one_call_or_many(name):
    p, q = problem(name), problem(name)
    whole, parts = FusedEngine(p), FusedEngine(q)
    expected = whole.run(13)
    got = torch.cat([parts.run(n) for n in (1, 1, 5, 0, 6)])
    assert torch.equal(got, expected)
    assert same(p, q) == []


@pytest.mark.parametrize(
    "name",
    [
        *("reference", "reference, ragged", "deep", "norms", "single layers", "rows normed"),
        *("smooth", "heads", "added", "concatenated", "shared fakes"),
    ],
)
def test_bf16_is_as_good_as_autocast(name):
    ours, torchs = Counter(), Counter()
    for draw in (1, 2, 3):
        fused, eager = (problem(name, draw=draw, precision="bf16") for _ in range(2))
        exact = problem(name, draw=draw, double=True)
        FusedEngine(fused).run(3)
        eager_run(EagerEngine(eager), 3)
        eager_run(EagerEngine(exact), 3)
        skip = biases_before_norm(fused.generator) | biases_before_norm(fused.discriminator)
        got, expected = tensors(fused), tensors(eager)
        for key, value in tensors(exact).items():
            if key.endswith("exp_avg") and key[2:].removesuffix(".exp_avg") not in skip:
                ours[key[0]] += (got[key].double() - value).square().sum().item()
                torchs[key[0]] += (expected[key].double() - value).square().sum().item()
    assert ours["g"] ** 0.5 < 1.5 * torchs["g"] ** 0.5
    assert ours["d"] ** 0.5 < 1.5 * torchs["d"] ** 0.5


@pytest.mark.parametrize("name", ["reference, ragged", "deep", "norms", "smooth", "heads", "added"])
def test_bf16_bits_do_not_depend_on_threads_or_calls(name):
    runs = []
    for threads, parts in ((1, [8]), (2, [1, 2, 5]), (3, [8])):
        torch.set_num_threads(threads)
        p = problem(name, precision="bf16")
        engine = FusedEngine(p)
        runs.append((torch.cat([engine.run(n) for n in parts]), p))
    for losses_of, p in runs[1:]:
        assert torch.equal(runs[0][0], losses_of)
        assert same(runs[0][1], p) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.data.mul_(0.5),
        lambda w: setattr(w, "data", w.data * 0.5),
        lambda w: w.requires_grad_(False).mul_(0.5).requires_grad_(True),
        lambda w: w.data[3, 5].add_(1.0),
    ],
)
def test_bf16_sees_changed_weights(change):
    p, q = (problem("reference", precision="bf16") for _ in range(2))
    a = FusedEngine(p)
    a.run(2)
    FusedEngine(q).run(2)
    change(p.discriminator.model[0].weight)
    change(q.discriminator.model[0].weight)
    b = FusedEngine(q)
    b.step = 2
    assert torch.equal(a.run(2), b.run(2))


@pytest.mark.parametrize("name", ["deep", "several of G"])
def test_resume_from_a_copy(name):
    engine = FusedEngine(problem(name))
    engine.run(6)
    same_from_a_copy(engine, 7)


def test_many_short_epochs_in_one_call(monkeypatch):
    monkeypatch.setattr("fastgan.engines.fused.cpu.KEPT_ORDER", 250)
    p, q = (problem("deep", count=100, batch_size=64, d_steps=3) for _ in range(2))
    got, expected = FusedEngine(p).run(11), eager_run(EagerEngine(q), 11)
    assert (got - expected).abs().max() < 1e-4


def test_images_that_are_not_in_memory():
    p = problem("deep")
    q = problem("deep", source=data.open(Read(p.data.samples), budget_bytes=0))
    assert not q.data.resident
    try:
        expected, got = FusedEngine(p).run(5), FusedEngine(q).run(5)
    finally:
        q.data.close()
    # bytes are mapped with one rounding less inside the engine
    assert (got - expected).abs().max() < 1e-5


def test_learning_rate_schedule():
    schedule = [1.0, 0.5, 0.0, 2.0, 0.1].__getitem__
    p, q = (problem("hinge", lr_schedule=schedule) for _ in range(2))
    got, expected = FusedEngine(p).run(5), eager_run(EagerEngine(q), 5)
    assert (got - expected).abs().max() < 1e-5
    assert p.optimizer_g.param_groups[0]["lr"] == 2e-4
    p = problem("hinge", lr_schedule=lambda t: float("nan"))
    with pytest.raises(ValueError, match="lr_schedule"):
        FusedEngine(p).run(1)


def test_the_average_is_the_average_of_the_steps():
    p = problem("reference")
    engine = FusedEngine(p)
    weight, average = p.generator.fc[0].weight, p.ema.fc[0].weight
    expected = average.detach().double()
    for _ in range(4):
        engine.run(1)
        expected = 0.9 * expected + 0.1 * weight.detach().double()
    assert (average - expected).abs().max() < 1e-6


def test_no_average():
    p, q = problem("deep", ema=None), problem("deep")
    assert torch.equal(FusedEngine(p).run(4), FusedEngine(q).run(4))


def test_autograd_notices_the_change():
    p = problem("reference")
    out = p.generator(torch.randn(2, 100)).sum()
    FusedEngine(p).run(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize("name", ["reference, ragged", "deep"])
def test_dropping_the_last_batch(name):
    p, q = (problem(name, drop_last=True) for _ in range(2))
    assert len(p.data) % p.batch_size
    got, expected = FusedEngine(p).run(20), eager_run(EagerEngine(q), 20)
    assert ((got - expected).abs() / expected.abs().clamp(min=0.1)).max() < 1e-4
    r = problem(name, drop_last=True)
    parts = FusedEngine(r)
    assert torch.equal(torch.cat([parts.run(n) for n in (1, 7, 12)]), got)
    assert same(p, r) == []


def test_a_call_of_no_step_and_a_bad_number():
    engine = FusedEngine(problem("hinge"))
    assert engine.run(0).shape == (0, 4) and engine.step == 0
    with pytest.raises(ValueError, match="n is -1"):
        engine.run(-1)
