"""How a network is trained besides its loss: batches in parts, averages, schedules, late starts."""

import math
from types import SimpleNamespace

import pytest
import torch
from methods import Conditional, D, G, labelled, plain_d, plain_g
from pairs import discriminator, generator, problem, same, weights
from recordings import Again
from small_runs import QUICK, assert_same_bits, every_bit, pixels
from torch import nn

from fastgan import Config, Trainer, data, engines, schedules, terms
from fastgan.config import ConfigError
from fastgan.distributed import World
from fastgan.engines.eager import EagerEngine
from fastgan.engines.graph import GraphEngine
from fastgan.engines.updates import Update, together
from fastgan.problem import make_problem

# --- a batch in parts -----------------------------------------------------------------------------


class NoNorm(G):
    """A conditional generator without BatchNorm, with a Dropout."""

    def __init__(self):
        super().__init__()
        self.body[1] = nn.Dropout(0.2)


class Weighted(Conditional):
    """Asks for what a step draws."""

    def d_loss(self, step):
        noise = 0.1 * step.normal(1, 6, 6) * step.uniform(1, 1, 1)
        step.log("noise", noise.mean())
        extra = step.D(step.real + noise, step.cond).square().mean()
        return super().d_loss(step) + extra + step.penalty("wgan-gp") + step.penalty("r1:1:2")


PARTS = {
    "plain": {"d": nn.Dropout(0.3)},
    "penalties": {"loss": "wasserstein", "penalties": ["wgan-gp", "r1", "r2"], "d_steps": 2},
    "pairs": {"loss": "relativistic", "terms": {"l2": (0.5, terms.l2)}, "g_steps": 2},
    "clipped": {"grad_clip": 0.1, "grad_clip_value": 0.01, "weight_clip": 0.05},
    "method": {"method": Weighted(), "source": True},
    "augmented": {"augment": "ada:geom", "loss": "hinge"},
}


def pair(accumulate, d=None, source=None, **options):
    torch.manual_seed(2)
    if source:
        networks = NoNorm(), D(), labelled()
    else:
        middle = (d,) if d is not None else ()
        networks = generator(*middle), discriminator(middle=middle), data.open(pixels())
    options = {"latent_dim": 5, "device": "cpu", "lr": 0.01, **options}
    p = make_problem(*(n.double() for n in networks[:2]), networks[2], batch_size=16,
                     accumulate=accumulate, **options)  # fmt: skip
    if p.augmentation is not None:
        p.augmentation.state[0] = 0.7
    return p


@pytest.mark.parametrize("name", PARTS)
def test_four_parts_are_one_batch(name):
    """Epochs of 16, 16, 16 and 2, in which a part is a row."""
    whole, parts = (pair(n, **PARTS[name]) for n in (1, 4))
    found = [EagerEngine(p).run(9) for p in (whole, parts)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    for one in ("generator", "discriminator"):
        a, b = (weights(getattr(p, one)) for p in (whole, parts))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_four_times_sixteen_are_sixty_four_in_float32():
    found = []
    for n in (1, 4):
        torch.manual_seed(2)
        p = make_problem(
            generator(), discriminator(), data.open(pixels(192)), batch_size=64, accumulate=n,
            latent_dim=5, device="cpu", optimizer="sgd", lr=0.05, precision="fp32",
        )  # fmt: skip
        EagerEngine(p).run(20)
        found.append([*weights(p.generator), *weights(p.discriminator)])
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_parts_go_through_the_networks_one_by_one_and_others_refuse_them():
    sizes = []
    p = pair(3)
    p.discriminator.register_forward_hook(lambda m, x, out: sizes.append(len(x[0])))
    EagerEngine(p).run(1)
    assert sizes == [5] * 2 + [5] * 2 + [6] * 2 + [5, 5, 6]
    assert "accumulate=3 has no fused form" in engines.load("fused").unsupported(p)


def test_parts_with_batchnorm_are_normalised_by_themselves():
    whole, parts = (
        problem(generator(nn.BatchNorm1d(16)), batch_size=16, accumulate=n) for n in (1, 4)
    )
    for p in (whole, parts):
        EagerEngine(p).run(1)
    norms = [p.generator.body[2] for p in (whole, parts)]
    assert [int(m.num_batches_tracked) for m in norms] == [2, 8]
    assert not torch.equal(norms[0].running_var, norms[1].running_var)


def test_graph_replays_parts():
    options = {"loss": "wasserstein", "penalties": "wgan-gp", "ema": 0.9}
    p, q = (pair(2, **options) for _ in range(2))
    found, expected = GraphEngine(p, Again()).run(5), EagerEngine(q).run(5)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(weights(p.generator), weights(q.generator))


def test_the_parts_of_a_ranks_rows_are_its_rows():
    for size in range(1, 40):
        for ranks in (1, 2, 3):
            for most in (1, 2, 5):
                for rank in range(ranks):
                    world = World(rank, ranks)
                    parts = world.parts(size, most)
                    rows = [row for part in parts for row in part.rows(size)]
                    assert rows == [*world.rows(size)] and len(parts) <= most
                    assert all(len(part.rows(size)) for part in parts) or len(parts) == 1
                    assert len(parts) == len(World(0, ranks).parts(size, most))


# --- the average ----------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [None, 0.5])
def test_an_average_is_half_after_its_half_life_and_warms_up(warmup):
    options = {"ema_half_life": 32.0, "ema_warmup": warmup, "lr": 0.05}
    p = problem(**options)
    kept = [w.detach().clone() for w in p.generator.parameters()]
    engine = EagerEngine(p)
    for t in range(12):
        engine.run(1)
        half_life = 32.0 if warmup is None else min(32.0, warmup * t * 8)
        decay = 0.5 ** (8 / half_life) if half_life else 0.0
        now = p.generator.parameters()
        kept = [decay * a + (1 - decay) * w.detach() for a, w in zip(kept, now, strict=True)]
        torch.testing.assert_close(weights(p.ema), kept)
    if warmup:
        q = problem(**options)
        GraphEngine(q, Again()).run(12)
        torch.testing.assert_close(weights(q.ema), kept, rtol=1e-4, atol=1e-5)


def test_a_half_life_is_a_decay_on_fused_too():
    p, q = problem(ema_half_life=32.0), problem(ema=0.5 ** (8 / 32))
    assert p.ema_decay == q.ema_decay and p.ema_new(7) == 1 - p.ema_decay


# --- schedules ------------------------------------------------------------------------------------


def test_schedules_are_their_definitions():
    linear, cosine, warm = map(schedules.read, ("linear:20:10", "cosine:10", "warmup:4+linear:8"))
    assert [linear(t) for t in (0, 10, 15, 20, 99)] == [1, 1, 0.5, 0, 0]
    for t in range(10):
        assert cosine(t) == pytest.approx(0.5 * (1 + math.cos(math.pi * t / 10)))
    assert cosine(10) == cosine(50) == 0
    assert [warm(t) for t in range(9)] == [
        min(1, (t + 1) / 4) * max(0, 1 - t / 8) for t in range(9)
    ]
    both = schedules.read(["none", "cosine"])
    assert both[0] is None and schedules.needs_end(both)
    assert schedules.with_end(both, 7)[1] == schedules.read("cosine:7")


def needs_fused():
    p = fits_fused()
    if reason := engines.load("fused").unsupported(p):
        pytest.skip(reason)


def fits_fused(**options):
    torch.manual_seed(1)
    g = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 36), nn.Unflatten(1, (1, 6, 6)))
    d = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    return problem(g, d, lr=(1e-2, 5e-3), **options)


def test_each_network_has_its_schedule_on_every_engine():
    given = {"lr_schedule": (None, lambda t: float(t < 2))}
    p = fits_fused(**given)
    engine = EagerEngine(p)
    engine.run(2)
    d, g = weights(p.discriminator), weights(p.generator)
    engine.run(4)
    assert same(weights(p.discriminator), d) and not same(weights(p.generator), g)
    assert [p.optimizer_g.param_groups[0]["lr"], p.optimizer_d.param_groups[0]["lr"]] == [
        1e-2,
        5e-3,
    ]
    q = fits_fused(**given)
    GraphEngine(q, Again()).run(6)
    torch.testing.assert_close(weights(q.generator), weights(p.generator), rtol=1e-4, atol=1e-5)
    needs_fused()
    q = fits_fused(**given)
    engines.load("fused")(q).run(6)
    torch.testing.assert_close(weights(q.generator), weights(p.generator), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(q.discriminator), weights(p.discriminator))


def test_a_schedule_ends_where_the_run_was_to_end_and_keeps_to_it(tmp_path):
    def trainer(out, **options):
        torch.manual_seed(3)
        options = {**QUICK, "lr_schedule": "cosine", "ema": 0.9, **options}
        return Trainer(plain_g(), plain_d(), labelled(), out=tmp_path / out, **options)

    whole = trainer("whole", epochs=3)
    assert whole.config.lr_schedule == schedules.read("cosine:21")
    whole.fit()
    trainer("half", epochs=3).fit(steps=9)
    half = Trainer.resume(tmp_path / "half", plain_g(), plain_d(), labelled(), epochs=5)
    half.fit(epochs=3)
    assert_same_bits(every_bit(half), every_bit(whole))
    with pytest.raises(ConfigError, match="nothing says where it ends; give the step.*epochs="):
        trainer("other")


# --- starts, clips --------------------------------------------------------------------------------


def test_d_starts_late_and_until_then_g_minimises_its_terms():
    class Close:
        def __call__(self, step):
            return step.fake.square().mean()

    p = problem(d_start=3, terms={"close": (2.0, Close())}, lr=0.01)
    q = problem(method=Alone(), lr=0.01)
    d = weights(p.discriminator)
    engine = EagerEngine(p)
    rows = engine.run(3)
    assert same(weights(p.discriminator), d)
    assert (rows[:, 0] == 0).all() and rows[:, 2:].isnan().all() and (rows[:, 1] > 0).all()
    EagerEngine(q).run(3)
    torch.testing.assert_close(weights(p.generator), weights(q.generator))
    assert engine.run(2).isfinite().all() and not same(weights(p.discriminator), d)


class Alone:
    def d_loss(self, step):
        return step.D(step.real).sum() * 0

    def g_loss(self, step):
        return 2.0 * step.fake.square().mean()


def test_g_starts_late():
    p = problem(g_start=3)
    g, d = weights(p.generator), weights(p.discriminator)
    engine = EagerEngine(p)
    rows = engine.run(3)
    assert same(weights(p.generator), g) and not same(weights(p.discriminator), d)
    assert (rows[:, 1] == 0).all()
    engine.run(1)
    assert not same(weights(p.generator), g)
    assert "g_start=3 has no fused form" in engines.load("fused").unsupported(p)
    with pytest.raises(engines.CannotRun, match="g_start=3: it counts on every step"):
        GraphEngine(problem(g_start=3), Again())


def test_gradients_are_clipped_by_value_before_the_norm():
    p = problem(optimizer="sgd", lr=1.0, grad_clip_value=1e-3)
    q = problem(optimizer="sgd", lr=1.0, grad_clip_value=1e-3, grad_clip=1e-4)
    before = weights(p.discriminator)
    for one in (p, q):
        EagerEngine(one).run(1)
    moved, less = (
        nn.utils.parameters_to_vector(weights(one.discriminator))
        - nn.utils.parameters_to_vector(before)
        for one in (p, q)
    )
    assert moved.abs().max() == pytest.approx(1e-3, rel=1e-3) and (moved.abs() > 9e-4).sum() > 1
    assert less.norm() == pytest.approx(1e-4, rel=1e-2)


def test_gradients_of_weights_that_both_hold_are_summed_over_the_ranks_once():
    class Counting(World):
        def total_(self, tensors, batch):
            for t in tensors:
                t.mul_(2)

    shared, first, second = (nn.Parameter(torch.ones(3)) for _ in range(3))
    p = SimpleNamespace(world=Counting(0, 2), config=Config())
    updates = tuple(Update(p, torch.optim.SGD([shared, own], 0.1), None) for own in (first, second))
    updates[0].add((shared * first * second).sum())
    together(updates, 8)
    torch.testing.assert_close(first, torch.full((3,), 0.8))
    torch.testing.assert_close(second, torch.full((3,), 0.8))
    torch.testing.assert_close(shared, torch.full((3,), 0.6))
