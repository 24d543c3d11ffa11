"""What a log line tells of its step, held against plain sums, on every engine that runs here."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from pairs import images, problem, same, weights
from recordings import Again
from torch import nn

from fastgan import Trainer, engines, losses, random, statistics
from fastgan.engines.base import CannotRun
from fastgan.engines.eager import EagerEngine
from fastgan.engines.graph import GraphEngine
from fastgan.random import Stream
from fastgan.statistics import MEASURE_NAMES

ENGINES = ("eager", "graph", "fused")
RATES = {"lr": 2e-4, "betas": (0.5, 0.999)}


def by_hand(p, steps):
    """The measures of the last of some steps in plain PyTorch, from what the setting means."""
    g, d, config = p.generator, p.discriminator, p.config
    adam_g, adam_d = (torch.optim.Adam(m.parameters(), **RATES) for m in (g, d))
    per_epoch, found = p.batches_per_epoch, {}

    def move(which, network, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        every = list(network.parameters())
        grads = torch.cat([w.grad.double().flatten() for w in every])
        before = torch.cat([w.detach().double().flatten() for w in every])
        if config.grad_clip_value is not None:
            for w in every:
                w.grad.clamp_(-config.grad_clip_value, config.grad_clip_value)
        if config.grad_clip is not None:
            nn.utils.clip_grad_norm_(every, config.grad_clip)
        optimizer.step()
        if which == "d" and config.weight_clip is not None:
            with torch.no_grad():
                for w in every:
                    w.clamp_(-config.weight_clip, config.weight_clip)
        after = torch.cat([w.detach().double().flatten() for w in every])
        found[f"{which}_grad_norm"] = float(grads.norm())
        found[f"{which}_update_ratio"] = float((after - before).norm() / before.norm())
        found[f"{which}_bad"] = int((~grads.isfinite()).sum() + (~after.isfinite()).sum())

    for t in range(steps):
        for k in range(p.d_steps):
            u = t * p.d_steps + k
            order = random.permutation(p.seed, u // per_epoch, len(p.data))
            order = order[u % per_epoch * p.batch_size :][: p.batch_size]
            real = p.data.samples[order].float() * (2 / 255) - 1
            z = random.normal(p.seed, Stream.LATENT_D, u, (len(real), *p.latent.shape))
            real.requires_grad_()
            on_real, on_fake = d(real).flatten(), d(g(z).detach()).flatten()
            total = p.loss.d_loss(on_real, on_fake)
            for penalty in p.penalties:
                if u % penalty.every == 0:
                    (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
                    square = slope.square().flatten(1).sum(1).mean()
                    total = total + 0.5 * penalty.weight * penalty.every * square
            move("d", d, adam_d, total)
        for name, scores, sign in (("real", on_real, 1), ("fake", on_fake, -1)):
            scores = scores.detach().double()
            middle = {"hinge": 0.0, "least-squares": 0.5, "non-saturating": 0.0}
            right = sign * (scores - middle.get(p.loss.name, math.nan)) > 0
            known = p.loss.name in middle
            found[f"d_{name}_accuracy"] = float(right.double().mean()) if known else math.nan
            found[f"d_{name}_spread"] = float(scores.std(correction=0))
        z = random.normal(p.seed, Stream.LATENT_G, t, (len(real), *p.latent.shape))
        move("g", g, adam_g, p.loss.g_loss(d(g(z)).flatten()))
    found["nonfinite"] = found.pop("d_bad") + found.pop("g_bad")
    return torch.tensor([found[name] for name in MEASURE_NAMES], dtype=torch.float64)


def wide(count=38, **options):
    """A pair with more than one piece of everything, and a last batch of another size."""
    torch.manual_seed(3)
    g = nn.Sequential(
        nn.Linear(5, 70), nn.LeakyReLU(0.2), nn.Linear(70, 36), nn.Tanh(),
        nn.Unflatten(1, (1, 6, 6)),
    )  # fmt: skip
    d = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 70), nn.Tanh(), nn.Linear(70, 40), nn.LeakyReLU(0.2),
        nn.Linear(40, 1),
    )  # fmt: skip
    return problem(g, d, images(count), **{"batch_size": 16, **options})


CASES = {
    "as it is": {},
    "a ragged last batch": {"steps": 3},
    "updates of D": {"d_steps": 3},
    "a lazy penalty, due": {"penalties": "r1:5:2", "steps": 3},
    "a lazy penalty, not due": {"penalties": "r1:5:2", "steps": 2},
    "clipped by the norm": {"grad_clip": 0.01},
    "clipped by value": {"grad_clip_value": 1e-3},
    "clipped both ways": {"grad_clip_value": 1e-3, "grad_clip": 0.01, "d_steps": 2},
    "bounded weights": {"weight_clip": 0.05},
    "hinge": {"loss": "hinge"},
    "least squares": {"loss": "least-squares"},
    "no middle": {"loss": "wasserstein"},
}


def made(engine, p):
    if engine == "graph":
        return GraphEngine(p, Again())
    kind = engines.load(engine)
    if reason := kind.unsupported(p):
        pytest.skip(f"{engine}: {reason}")
    try:
        return kind(p)
    except CannotRun as reason:
        pytest.skip(str(reason))


def measured(engine, p, steps):
    one = made(engine, p)
    one.measuring = True
    one.run(steps)
    found = one.measured
    assert found.shape == (len(MEASURE_NAMES),)
    return found.double()


def check(engine, steps=2, tolerance=2e-5, **options):
    expected = by_hand(wide(**{**options, "precision": "fp32"}), steps)
    found = measured(engine, wide(**options), steps)
    told = {n: both for n, *both in zip(MEASURE_NAMES, found, expected, strict=True)}
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=1e-9, equal_nan=True, msg=str(told)
    )
    if options.get("loss") != "wasserstein":
        assert not found.isnan().any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_measures_are_those_of_plain_sums(engine, case):
    check(engine, **CASES[case])


def test_measures_of_compiled_steps():
    check("compile", count=32, d_steps=2, grad_clip=0.01)


@pytest.mark.parametrize("engine", [one for one in ENGINES if one != "graph"])
def test_measures_in_bfloat16(engine):
    check(engine, precision="bf16", tolerance=0.05)


def test_parts_of_a_batch_are_measured_as_the_whole():
    check("eager", accumulate=3, tolerance=1e-4)


def state(p):
    moments = [s[key] for o in (p.optimizer_g, p.optimizer_d) for s in o.state.values()
               for key in ("exp_avg", "exp_avg_sq")]  # fmt: skip
    return [*weights(p.generator), *weights(p.discriminator), *moments]


@pytest.mark.parametrize("options", [{}, {"d_steps": 2, "grad_clip": 0.02, "penalties": "r1:5:2"},
                                     {"weight_clip": 0.05}, {"precision": "bf16"}])  # fmt: skip
@pytest.mark.parametrize("engine", ENGINES)
def test_measuring_changes_no_bit(engine, options):
    if engine == "graph" and options.get("precision"):
        pytest.skip("the graph engine's narrowed weights are CUDA's")
    found = []
    for often in (False, True):
        p = wide(**options)
        one = made(engine, p)
        rows = []
        for _ in range(4):
            one.measuring = often
            rows.append(one.run(2))
            assert (one.measured is not None) == often
        found.append([*rows, *state(p)])
    assert same(*found)


def test_only_the_last_step_of_a_call_is_measured():
    one = EagerEngine(wide())
    assert one.measured is None and not one.measuring
    one.run(1)
    assert one.measured is None
    one.measuring = True
    one.run(0)
    assert one.measured is None
    one.run(3)
    assert torch.equal(one.measured.double(), measured("eager", wide(), 4))
    one.measuring = False
    one.run(1)
    assert one.measured is None


def test_what_is_not_finite_is_counted():
    p = wide()
    with torch.no_grad():
        p.generator[0].weight[3, 2] = math.inf
    expected = by_hand(wide(), 1)
    found = dict(zip(MEASURE_NAMES, measured("eager", p, 1).tolist(), strict=True))
    bad = sum(int((~w.isfinite()).sum()) for w in state(p)[: len(weights(p.generator))])
    assert bad and found["nonfinite"] >= bad and expected[-1] == 0


def test_a_network_that_waits_has_no_measures():
    found = measured("eager", wide(g_start=3), 2)
    found = dict(zip(MEASURE_NAMES, found.tolist(), strict=True))
    unknown = {name for name, value in found.items() if math.isnan(value)}
    assert unknown == {"g_grad_norm", "g_update_ratio"} and found["nonfinite"] == 0


class Joint:
    """Both losses, and one of both networks."""

    def d_loss(self, step):
        on_real, on_fake = step.D(step.real), step.D(step.fake.detach())
        return F.softplus(-on_real).mean() + F.softplus(on_fake).mean()

    def g_loss(self, step):
        return F.softplus(-step.D(step.fake)).mean()

    def joint_loss(self, step):
        return 3.0 * step.D(step.fake).square().mean()


def test_a_joint_update_is_the_last_of_both_networks():
    p = wide(method=Joint())
    found = dict(zip(MEASURE_NAMES, measured("eager", p, 1).tolist(), strict=True))
    # The same step without its joint update.
    plain = wide()
    EagerEngine(plain).run(1)
    z = random.normal(plain.seed, Stream.LATENT_JOINT, 0, (16, *plain.latent.shape))
    (3.0 * plain.discriminator(plain.generator(z)).square().mean()).backward()
    for which, m in (("d", plain.discriminator), ("g", plain.generator)):
        norm = torch.cat([w.grad.flatten() for w in m.parameters()]).norm()
        assert found[f"{which}_grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert math.isnan(found["d_real_accuracy"]), "a method of one's own has no middle"
    assert found["d_real_spread"] > 0


def test_the_middle_of_scores():
    known = {"minimax": 0.0, "non-saturating": 0.0, "hinge": 0.0, "least-squares": 0.5}
    for name, loss in losses.LOSSES.items():
        assert loss.threshold == known[name] if name in known else math.isnan(loss.threshold)
    own = losses.Loss("own", F.mse_loss, torch.mean, "probabilities")
    assert own.threshold == 0.5
    with pytest.raises(ValueError, match="'own': middle is 'high'; expected a finite score"):
        losses.Loss("own", F.mse_loss, torch.mean, middle="high")
    assert losses.Loss("own", F.mse_loss, torch.mean, middle=2).threshold == 2.0


def test_sums_make_measures():
    sums = [0.5, 2.0, 13.0, 1.0, -1.0, 1.0, 9.0, 4.0, 16.0, 1.0, 0.25, 1.0, 4.0, 2.0]
    found = statistics.measures_of(torch.tensor(sums, dtype=torch.float64))
    assert found.tolist() == [0.5, 1.0, 3.0, 0.0, 3.0, 0.5, 0.5, 0.5, 3.0]
    assert len(sums) == len(statistics.SUMS)


def small_run(**options):
    torch.manual_seed(3)
    g = nn.Sequential(nn.Linear(5, 70), nn.LeakyReLU(0.2), nn.Linear(70, 36), nn.Tanh())
    d = nn.Sequential(nn.Linear(36, 70), nn.LeakyReLU(0.2), nn.Linear(70, 1))
    options = {"latent_dim": 5, "batch_size": 16, "log_every": 2, "device": "cpu", **options}
    drawn = torch.rand(38, 36, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Trainer(g, d, drawn, seed=4, console="none", **options)


def test_a_line_tells_the_measures_of_its_step(tmp_path):
    t = small_run(engine="eager", out=tmp_path / "run")
    summary = t.fit(steps=5)
    written = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert written == t.history and [line["step"] for line in written] == [2, 4, 5]
    for line in written:
        other = small_run(engine="eager", log_every=100)
        other.fit(steps=line["step"])
        expected = other.history[-1]
        for name in MEASURE_NAMES:
            assert line[name] == expected[name] is not None
            assert f"{name}_mean" not in line
    assert {name: summary[name] for name in MEASURE_NAMES} == {
        name: written[-1][name] for name in MEASURE_NAMES
    }


def test_a_run_that_is_measured_more_often_is_the_same_run():
    for engine in ("eager", "fused"):
        found = []
        for every in (1, 50):
            t = small_run(engine=engine, log_every=every)
            t.fit(steps=12)
            found.append(state(t.problem))
        assert same(*found)


def test_a_line_of_a_step_that_was_not_measured_has_no_numbers():
    t = small_run(engine="eager")
    t.fit(seconds=1e-9)  # ends after a step that nobody knew to be the last
    assert t.history[-1]["step"] == 1
    assert [t.history[-1][name] for name in MEASURE_NAMES] == [None] * len(MEASURE_NAMES)
    assert t.history[-1]["d_loss"] is not None


def test_a_run_ends_by_a_measure():
    t = small_run(engine="eager", loss="wasserstein")
    t.fit(steps=6, until="d_real_accuracy>0.1")
    assert t.step == 6, "there is none"
    t = small_run(engine="eager")
    t.fit(steps=6, until="g_grad_norm>0")
    assert t.step == 2 and "g_grad_norm is" in t.stopped


def test_a_method_cannot_log_under_the_name_of_a_measure():
    class Loud(Joint):
        def d_loss(self, step):
            step.log("d_grad_norm", 1.0)
            return super().d_loss(step)

    with pytest.raises(ValueError, match=r"log\('d_grad_norm'\): log lines have that already"):
        EagerEngine(wide(method=Loud())).run(1)
