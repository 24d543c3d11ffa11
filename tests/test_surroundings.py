"""What a program does around its networks, as a plain loop would have it."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from pairs import SHAPE, discriminator, generator, images, problem, same, weights
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastgan import engines, random
from fastgan.engines.base import CannotRun
from fastgan.engines.eager import EMULATED, EagerEngine
from fastgan.random import Stream

ENGINES = ["auto", "eager"]


def mlps():
    """A pair that has a fused form."""
    torch.manual_seed(4)
    return (
        nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 36), nn.Unflatten(1, SHAPE)),
        nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)),
    )


# --- switched on around everything ----------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_autocast_around_everything_changes_nothing(engine, precision):
    if engine == "auto" and precision == "bf16":
        pytest.skip("bf16 in the fused engine has tests of its own")
    p, q = (problem(*mlps(), precision=precision) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p.generator(torch.ones(2, 5))  # casts weights, which autocast keeps
        inside = engines.choose(p, engine)[0]
        found = torch.cat([inside.run(2), inside.run(2)])
        assert torch.is_autocast_enabled("cpu")
    outside = engines.choose(q, engine)[0]
    assert torch.equal(found, torch.cat([outside.run(2), outside.run(2)]))
    assert same(weights(p.generator), weights(q.generator))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_no_grad_around_everything_changes_nothing(around):
    p, q = problem(), problem()
    q.generator.load_state_dict(p.generator.state_dict())
    q.discriminator.load_state_dict(p.discriminator.state_dict())
    with around():
        found = engines.choose(p, "eager")[0].run(3)
    torch.testing.assert_close(found.clone(), EagerEngine(q).run(3), rtol=0, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("made", ["before", "after"])
def test_another_default_dtype(engine, made):
    if made == "before":
        p = problem(*mlps())
    torch.set_default_dtype(torch.float64)
    try:
        if made == "after":
            p = problem(*mlps())
        chosen, said = engines.choose(p, engine)
        found = torch.cat([chosen.run(1), chosen.run(2)])
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and found.isfinite().all()
    kind = next(p.generator.parameters()).dtype
    assert kind == (torch.float64 if made == "after" else torch.float32)
    if engine == "auto":
        assert ("not fused" in said) == (made == "after")


# --- weights of both, of none ---------------------------------------------------------------------


class Tied(nn.Module):
    """D whose last map is G's embedding."""

    def __init__(self, shared):
        super().__init__()
        self.shared, self.own = shared, nn.Linear(36, 16)

    def forward(self, x):
        return F.linear(torch.tanh(self.own(x.flatten(1))), self.shared.weight.mean(1)[None])


def tied(**options):
    torch.manual_seed(3)
    shared = nn.Linear(5, 16)
    g = nn.Sequential(shared, nn.Tanh(), nn.Linear(16, 36), nn.Tanh(), nn.Unflatten(1, SHAPE))
    return problem(g, Tied(shared), loss="hinge", **options)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_of_both_networks_are_trained_by_both_optimisers(engine):
    p, q = tied(), tied()
    found = engines.choose(p, engine)[0].run(4)
    g, d, rows = q.generator, q.discriminator, []
    for t in range(4):
        order = random.permutation(q.seed, t // 3, 22)[t % 3 * 8 :][:8]
        real = q.data.samples[order].float() * (2 / 255) - 1
        z = random.normal(q.seed, Stream.LATENT_D, t, (len(real), 5))
        d_loss = F.relu(1 - d(real)).mean() + F.relu(1 + d(g(z).detach())).mean()
        q.optimizer_d.zero_grad()
        d_loss.backward()
        q.optimizer_d.step()
        g_loss = -d(g(random.normal(q.seed, Stream.LATENT_G, t, (len(real), 5)))).mean()
        q.optimizer_g.zero_grad()
        g_loss.backward()
        q.optimizer_g.step()
        rows.append(torch.stack([d_loss, g_loss]))
    torch.testing.assert_close(found[:, :2], torch.stack(rows).detach())
    for a, b in zip(weights(p.discriminator), weights(d), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["generator", "discriminator"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_frozen_as_a_whole_is_told_in_a_sentence(name, engine):
    expected = f"all weights of the {name} are frozen"
    p = problem(*mlps())
    getattr(p, name).requires_grad_(False)
    with pytest.raises(ValueError, match=expected):
        engines.choose(p, engine)
    p = problem(*mlps())
    chosen = engines.choose(p, engine)[0]
    chosen.run(1)
    getattr(p, name).requires_grad_(False)
    with pytest.raises(ValueError, match=expected):
        engines.advance(chosen, 1)


# --- activation checkpointing ---------------------------------------------------------------------


class Checkpointed(nn.Module):
    """A discriminator whose middle is done again in the backward pass, or not."""

    def __init__(self, *middle, reentrant, used=True):
        super().__init__()
        self.start, self.middle = nn.Linear(36, 16), nn.Sequential(*middle)
        self.end, self.reentrant, self.used = nn.Linear(16, 1), reentrant, used

    def forward(self, x):
        h = torch.tanh(self.start(x.flatten(1)))
        if self.used:
            h = checkpoint(self.middle, h, use_reentrant=self.reentrant)
        else:
            h = self.middle(h)
        return self.end(h)


@pytest.mark.parametrize(
    ("reentrant", "penalties"),
    [(True, None), (False, None), (False, "r1"), (True, "approximate-r1")],
)
def test_activation_checkpointing_changes_no_number(reentrant, penalties):
    def make(used):
        torch.manual_seed(2)
        middle = nn.Linear(16, 16), nn.Tanh()
        return problem(
            generator(), Checkpointed(*middle, reentrant=reentrant, used=used), penalties=penalties
        )

    p, q = make(True), make(False)
    found = engines.choose(p, "eager")[0].run(3)
    torch.testing.assert_close(found, EagerEngine(q).run(3))
    for a, b in zip(weights(p.discriminator), weights(q.discriminator), strict=True):
        torch.testing.assert_close(a, b)


NOTED = []


class Noted(nn.Module):
    """Notes what a dropout layer kept."""

    def forward(self, x):
        NOTED.append((x != 0).detach())
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_mask_is_that_of_the_call_when_checkpointing_does_it_again(reentrant):
    middle = nn.Linear(16, 16), nn.Dropout(0.5), Noted(), nn.Linear(16, 16)
    p = problem(generator(), Checkpointed(*middle, reentrant=reentrant))
    engine = EagerEngine(p)
    NOTED.clear()
    engine.run(1)
    # Real, fake and G's update, each done again in its backward pass.
    assert len(NOTED) == 6
    first, again = NOTED[:2], NOTED[2:4]
    assert not torch.equal(*first)
    assert all(any(torch.equal(a, b) for b in again) for a in first)
    assert torch.equal(*NOTED[4:])


# --- torch.compile --------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_network_with_dropout_is_compiled_once(in_place):
    dynamo = pytest.importorskip("torch._dynamo")
    count = []

    def backend(graph, inputs):
        count.append(1)
        return graph.forward

    dynamo.reset()
    g, d = mlps()
    d.insert(3, nn.Dropout(0.3))
    d.append(nn.Sigmoid())
    if in_place:
        d.compile(backend=backend)
    else:
        d = torch.compile(d, backend=backend)
    p = problem(g, d, images(24))
    engine, _ = engines.choose(p)
    assert not count, "looking at it compiles nothing"
    with dynamo.config.patch(error_on_recompile=False):
        engine.run(2)
        compiled = len(count)
        assert compiled
        for _ in range(3):
            assert engine.run(4).isfinite().all()
    assert len(count) == compiled
    dynamo.reset()


# --- averages -------------------------------------------------------------------------------------


class Running(nn.Module):
    """A buffer that forward replaces, and one that it makes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("made", None)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        self.made = x.detach().std(0)
        return x


def test_the_average_follows_replaced_buffers_however_a_run_is_cut():
    def make():
        torch.manual_seed(2)
        return problem(generator(Running()), ema=0.9)

    p, q = make(), make()
    a, b = EagerEngine(p), EagerEngine(q)
    a.run(6)
    for n in (1, 2, 3):
        b.run(n)
    assert same(weights(p.ema), weights(q.ema))
    for r in (p, q):
        ours, averages = r.generator.body[2], r.ema.body[2]
        assert torch.equal(averages.mean, ours.mean) and ours.mean != 0
        assert torch.equal(averages.made, ours.made)
        assert averages.mean is not ours.mean


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("called", [True, False])
def test_an_average_of_a_generator_with_computed_weights(norm, called):
    layer = getattr(nn.utils, norm)(nn.Linear(16, 16))
    g = generator(layer)
    if called:
        g(torch.ones(2, 5))
    p = problem(g, ema=0.5)
    engine, _ = engines.choose(p)
    assert engine.run(3).isfinite().all()
    key = "weight_v" if norm == "weight_norm" else "weight_orig"
    mine, average = (getattr(m.body[2], key) for m in (p.generator, p.ema))
    assert not torch.equal(mine, average)
    assert p.ema(torch.ones(2, 5)).isfinite().all()


# --- sizes of batches -----------------------------------------------------------------------------


class GroupsOfFour(nn.Module):
    """Minibatch statistics over groups of four samples."""

    def forward(self, x):
        return x - x.view(-1, 4, x.shape[1]).mean(1).repeat_interleave(4, 0)


def test_a_network_that_needs_four_samples_is_tried_with_a_whole_batch():
    d = discriminator(middle=(GroupsOfFour(),))
    engine, _ = engines.choose(problem(d=d, source=images(24)), "eager")
    assert engine.run(4).isfinite().all()


@pytest.mark.parametrize(
    ("d", "count"),
    [
        (lambda: discriminator(middle=(GroupsOfFour(),)), 22),
        (lambda: discriminator(middle=(nn.BatchNorm1d(16),)), 17),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 6), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)), 17),
    ],
    ids=["groups", "BatchNorm1d", "BatchNorm2d at 1x1"],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_last_batch_that_does_not_fit_is_told_before_the_first_step(d, count, engine):
    with pytest.raises(ValueError, match=r"an epoch's last batch has \d of \d+ samples.*drop_last"):
        engines.choose(problem(d=d(), source=images(count)), engine)
    p = problem(d=d(), source=images(count), drop_last=True)
    assert engines.choose(p, engine)[0].run(7).isfinite().all()


def test_a_batch_of_one_is_enough_for_norms_over_more_than_the_batch():
    norm = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 1))
    engine, _ = engines.choose(problem(d=norm, source=images(17)), "eager")
    assert engine.run(3).isfinite().all()
    signal = nn.Sequential(
        nn.Flatten(2), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(136, 1)
    )
    engine, _ = engines.choose(problem(d=signal, source=images(17)), "eager")
    assert engine.run(3).isfinite().all()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_size_above_the_data_is_told_once(engine, caplog):
    with caplog.at_level(logging.WARNING, "fastgan"):
        chosen, _ = engines.choose(problem(*mlps(), images(5)), engine)
        chosen.run(3)
    assert caplog.text.count("batch_size=8 is more than its 5") == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_size_far_above_the_data_is_all_of_them(engine):
    p, q = (problem(*mlps(), images(22), batch_size=b) for b in (10**12, 22))
    mine, plain = engines.choose(p, engine)[0], engines.choose(q, engine)[0]
    assert mine.name == plain.name and torch.equal(mine.run(3), plain.run(3))


def test_networks_that_were_swapped_are_told():
    g, d = generator(), discriminator()
    with pytest.raises(ValueError, match="generator and discriminator are swapped"):
        engines.choose(problem(d, g))


# --- optimisers and precision ---------------------------------------------------------------------


def muon_like(parameters):
    class Signs(torch.optim.Optimizer):
        def __init__(self, parameters, lr):
            super().__init__(parameters, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for w in group["params"]:
                    w.sub_(w.grad.sign(), alpha=group["lr"])

    return Signs(parameters, 1e-3)


@pytest.mark.parametrize(
    "kind",
    [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.RAdam, muon_like],
    ids=lambda kind: kind.__name__,
)
def test_any_optimiser_of_torchs_trains_on_eager(kind):
    p = problem(optimizer=kind)
    before = weights(p.generator)
    engine, said = engines.choose(p)
    assert engine.name == "eager" and "not fused" in said
    assert engine.run(3).isfinite().all()
    assert not same(before, weights(p.generator))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_processor_emulates_is_told_once(precision, monkeypatch, caplog):
    monkeypatch.setattr("fastgan.torch_private.cpu_has", lambda precision: False)
    engines.choose(problem(precision=precision), "eager")[0].run(1)
    assert caplog.text.count(f"'{precision}' is emulated") == 1 and EMULATED in caplog.text
    caplog.clear()
    monkeypatch.setattr("fastgan.torch_private.cpu_has", lambda precision: True)
    engines.choose(problem(precision=precision), "eager")
    assert "emulated" not in caplog.text


def test_convolutions_are_told_of_the_faster_format():
    g = nn.Sequential(
        nn.ConvTranspose2d(5, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 1, 4), nn.Tanh()
    )
    d = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 1))
    options = {"latent_dim": (5, 1, 1)}
    assert "channels_last=True" in engines.choose(problem(g, d, **options), "eager")[1]
    p = problem(copy.deepcopy(g), copy.deepcopy(d), channels_last=True, **options)
    assert "channels_last=True" not in engines.choose(p, "eager")[1]


def test_layers_that_a_user_froze_in_eval_stay_there():
    d = discriminator(middle=(nn.BatchNorm1d(16), nn.Dropout(0.5)))
    p = problem(d=d)
    d.body[3].eval()
    engine, _ = engines.choose(p)
    engine.run(3)
    assert not d.body[3].training and d.training and d.body[4].training
    assert (d.body[3].num_batches_tracked == 0).all()


def test_cannot_run_is_a_value_error():
    assert issubclass(CannotRun, ValueError)
