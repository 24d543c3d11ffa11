"""The protocol, the choice of an engine, and the eager engine against a loop written by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastgan import data, engines, losses, random
from fastgan.engines.base import PENALTY_STREAM, Engine, FinalSigmoid, final_sigmoid
from fastgan.engines.eager import EagerEngine
from fastgan.models import Discriminator, Generator
from fastgan.nn import fuse
from fastgan.problem import make_problem
from fastgan.random import Stream

SHAPE = (1, 6, 6)


class Mlp(nn.Module):
    """A generator or the logits of a discriminator, with whatever layers a test wants inside."""

    def __init__(self, *layers, out_shape=()):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), *layers)
        self.out_shape = out_shape

    def forward(self, x):
        return self.body(x).view(len(x), *self.out_shape)


def generator(*middle, latent=5, shape=SHAPE):
    pixels = torch.Size(shape).numel()
    layers = (nn.Linear(latent, 16), *middle, nn.LeakyReLU(0.2), nn.Linear(16, pixels), nn.Tanh())
    return Mlp(*layers, out_shape=shape)


def discriminator(*end, middle=(), shape=SHAPE):
    pixels = torch.Size(shape).numel()
    return Mlp(
        nn.Linear(pixels, 16), nn.LeakyReLU(0.2), *middle, nn.Linear(16, 1), *end, out_shape=(1,)
    )


def images(n=22, shape=SHAPE, seed=0):
    pixels = torch.randint(
        0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return data.open(pixels)


DEVICE = "cpu"


def problem(g=None, d=None, source=None, **options):
    torch.manual_seed(1)
    options = {"batch_size": 8, "latent_dim": 5, "device": DEVICE, "seed": 11, **options}
    source = source or images()
    if options["device"] != "cpu":
        source = source.to(options["device"], budget_bytes=None if source.resident else 1)
    return make_problem(g or generator(), d or discriminator(), source, **options)


def weights(module):
    return [t.detach().clone() for t in module.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def by_hand(p, steps):
    """The step as the protocol's text has it, in plain PyTorch with torch.optim.Adam."""
    g, d = p.generator, p.discriminator
    kind = next(g.parameters()).dtype
    adam = {"betas": (0.5, 0.999), "lr": 2e-4}
    adam_g, adam_d = (
        torch.optim.Adam(g.parameters(), **adam),
        torch.optim.Adam(d.parameters(), **adam),
    )

    class Drop(nn.Module):
        def __init__(self, index, p):
            super().__init__()
            self.index, self.p = index, p

        def forward(self, x):
            stream = Stream.DROPOUT + 8 * self.index + Drop.use
            keep = random.keep_mask(p.seed, stream, Drop.step, x.shape, self.p)
            return torch.where(keep, x * random.keep_scale(self.p), 0.0)

    for network in (g, d):
        index = 0
        for parent in network.modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(parent, name, Drop(index, child.p))
                    index += 1
    found = []
    for t in range(steps):
        for k in range(p.d_steps):
            u = t * p.d_steps + k
            indices = p.data.batch_indices(p.seed, u, p.batch_size)
            real = (p.data.pixels[indices].float() * (2 / 255) - 1).to(kind)
            Drop.step, Drop.use = u, 3
            z = random.normal(p.seed, Stream.LATENT_D, u, (len(real), p.latent_dim)).to(kind)
            fake = g(z).detach()
            Drop.use = 0
            on_real = d(real).flatten()
            Drop.use = 1
            on_fake = d(fake).flatten()
            d_loss = F.binary_cross_entropy_with_logits(on_real, torch.ones_like(on_real))
            d_loss = d_loss + F.binary_cross_entropy_with_logits(on_fake, torch.zeros_like(on_fake))
            adam_d.zero_grad()
            d_loss.backward()
            adam_d.step()
        z = random.normal(p.seed, Stream.LATENT_G, t, (len(real), p.latent_dim)).to(kind)
        Drop.step, Drop.use = t, 4
        fake = g(z)
        Drop.use = 2
        score = d(fake).flatten()
        g_loss = F.binary_cross_entropy_with_logits(score, torch.ones_like(score))
        adam_g.zero_grad()
        g_loss.backward()
        adam_g.step()
        if p.ema is not None:
            kept, now = p.ema.state_dict(), g.state_dict()
            for name, value in kept.items():
                if name in dict(g.named_parameters()):
                    value.mul_(p.ema_decay).add_(now[name], alpha=1 - p.ema_decay)
                else:
                    value.copy_(now[name])
        found.append([d_loss.item(), g_loss.item()])
    return torch.tensor(found)


@pytest.mark.parametrize("d_steps", [1, 2])
@pytest.mark.parametrize(
    ("g_middle", "d_middle"),
    [
        ((), (nn.Dropout(0.3),)),
        (
            (nn.Dropout(0.2), nn.BatchNorm1d(16)),
            (nn.Dropout(0.4), nn.BatchNorm1d(16), nn.Dropout(0.1)),
        ),
    ],
    ids=["plain", "norms and dropouts"],
)
def test_eager_is_the_loop_of_the_protocol(d_steps, g_middle, d_middle):
    g = generator(*copy.deepcopy(g_middle)).double()
    d = discriminator(middle=copy.deepcopy(d_middle)).double()
    p = problem(g, d, d_steps=d_steps, ema=0.9)
    q = problem(copy.deepcopy(g), copy.deepcopy(d), d_steps=d_steps, ema=0.9)
    # 22 images in batches of 8: the third of each epoch's batches has 6.
    found = EagerEngine(p).run(7)
    expected = by_hand(q, 7)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for mine, theirs in ((g, q.generator), (d, q.discriminator), (p.ema, q.ema)):
        for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)
    assert not same(weights(p.ema), weights(g))


@pytest.mark.parametrize("name", ["r1", "wgan-gp"])
def test_a_penalty_is_in_the_updates_and_not_in_the_losses(name):
    """Against the step written by hand in float64, with a lazy penalty and two updates of D."""

    def make():
        torch.manual_seed(6)
        d = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 1))
        return problem(
            generator().double(), d.double(), loss="wasserstein", d_steps=2, penalty=name,
            penalty_weight=3.0, penalty_every=3,
        )  # fmt: skip

    p, q = make(), make()
    found = EagerEngine(p).run(5)
    g, d = q.generator, q.discriminator
    adam_g, adam_d = q.optimizer_g, q.optimizer_d
    for u in range(10):
        real = (q.data.pixels[q.data.batch_indices(q.seed, u, 8)].float() * (2 / 255) - 1).double()
        with torch.no_grad():
            fake = g(random.normal(q.seed, Stream.LATENT_D, u, (len(real), 5)).double())
        loss = d(fake).mean() - d(real).mean()
        total = loss
        if u % 3 == 0:
            x = real
            if name == "wgan-gp":
                z = random.normal(q.seed, PENALTY_STREAM, u, (len(real),))
                eps = (0.5 * (1 + torch.erf(z / 2**0.5))).double().view(-1, 1, 1, 1)
                x = fake + eps * (real - fake)
            # The slope by the chain rule, layer by layer.
            first, last = d[1], d[3]
            h = torch.tanh(first(x.flatten(1)))
            slope = ((1 - h**2) * last.weight) @ first.weight
            norm2 = slope.pow(2).sum(1)
            one = norm2.mean() / 2 if name == "r1" else (norm2.sqrt() - 1).pow(2).mean()
            total = loss + 3 * 3.0 * one
        adam_d.zero_grad()
        total.backward()
        adam_d.step()
        if u % 2:
            adam_g.zero_grad()
            g_loss = -d(g(random.normal(q.seed, Stream.LATENT_G, u // 2, (len(real), 5)).double()))
            g_loss.mean().backward()
            adam_g.step()
            expected = torch.stack([loss, g_loss.mean()]).float()
            torch.testing.assert_close(found[u // 2], expected, rtol=1e-5, atol=1e-7)
    for a, b in zip(weights(p.discriminator), weights(d), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_fp16_trains_with_float32_weights_and_scaled_losses():
    a, b = problem(batch_size=16), problem(batch_size=16, precision="fp16", penalty="r1")
    assert a.scalers is None and len(b.scalers) == 2
    b.penalty = None
    fp32, fp16 = EagerEngine(a).run(20), EagerEngine(b).run(20)
    assert all(w.dtype == torch.float32 for w in b.generator.parameters())
    assert not torch.equal(fp32, fp16)
    torch.testing.assert_close(fp32, fp16, rtol=0.01, atol=0.003)


def test_a_scaled_penalty_has_the_gradients_of_one_that_is_not():
    """Slopes of 1e-6 vanish in float16 unless they are scaled, in both backward passes."""

    def small(precision):
        torch.manual_seed(6)
        d = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 1))
        with torch.no_grad():
            d[3].weight.mul_(1e-5)
        p = problem(d=d, precision=precision, penalty="r1", penalty_weight=1e5)
        p.optimizer_d = torch.optim.SGD(d.parameters(), lr=1e3)
        p.optimizer_g = torch.optim.SGD(p.generator.parameters(), lr=0.0)
        return p

    p, q = small("fp32"), small("fp16")
    before = weights(p.discriminator)
    EagerEngine(p).run(1), EagerEngine(q).run(1)
    for old, a, b in zip(before, weights(p.discriminator), weights(q.discriminator), strict=True):
        torch.testing.assert_close(
            a - old, b - old, rtol=0.05, atol=float((a - old).abs().max()) / 50
        )


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"penalty": "r1"}, "penalty 'r1'"), ({"precision": "fp16"}, "precision 'fp16'")],
)
def test_fused_tells_what_it_does_not_have(options, reason):
    assert reason in engines.load("fused").unsupported(problem(**options))
    engine, said = engines.choose(problem(**options))
    assert isinstance(engine, EagerEngine) and "not graph: " in said and reason in said


def test_the_reference_pair_on_real_digits():
    p = problem(Generator(20), Discriminator(), data.open("digits"), latent_dim=20, batch_size=64)
    q = problem(
        Generator(20),
        nn.Sequential(nn.Flatten(), *Discriminator().model[:-1]),
        p.data,
        latent_dim=20,
        batch_size=64,
    )
    q.generator.load_state_dict(p.generator.state_dict())
    for mine, theirs in zip(
        q.discriminator.parameters(), p.discriminator.parameters(), strict=True
    ):
        mine.data.copy_(theirs)
    found, expected = EagerEngine(p).run(10), by_hand(q, 10)
    assert found.dtype == torch.float32 and found.shape == (10, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_chunks_change_nothing_and_step_can_be_set():
    def make():
        torch.manual_seed(2)
        return problem(d=discriminator(middle=(nn.Dropout(0.5),)))

    whole, cut = EagerEngine(make()), EagerEngine(make())
    found = whole.run(7)
    parts = torch.cat([cut.run(1), cut.run(0), cut.run(4), cut.run(2)])
    assert torch.equal(found, parts) and cut.step == whole.step == 7
    assert same(weights(whole.problem.generator), weights(cut.problem.generator))
    late = EagerEngine(make())
    late.step = 7
    assert not torch.equal(late.run(1), EagerEngine(make()).run(1))


def test_no_network_computes_gradients_for_the_other_ones_update():
    p = problem(d_steps=2)
    counts = {"g": 0, "d": 0}

    def count(which):
        def hook(_):
            counts[which] += 1

        return hook

    for which, network in (("g", p.generator), ("d", p.discriminator)):
        next(network.parameters()).register_hook(count(which))
    EagerEngine(p).run(3)
    assert counts == {"d": 6, "g": 3}
    assert all(w.grad is None for w in p.discriminator.parameters())


def test_frozen_weights_stay_frozen_and_the_others_come_back():
    p = problem()
    frozen = next(p.discriminator.parameters()).requires_grad_(False)
    before = frozen.clone()
    needed = [w.requires_grad for w in p.discriminator.parameters()]
    EagerEngine(p).run(2)
    assert torch.equal(frozen, before)
    assert [w.requires_grad for w in p.discriminator.parameters()] == needed
    assert needed.count(False) == 1


# --- the sigmoid at D's end -----------------------------------------------------------------------


class Ends(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.body = discriminator()
        self.act = nn.Sigmoid()
        self.end = end

    def forward(self, x):
        return self.end(self, self.body(x))


ENDS = {
    "module": lambda d, x: d.act(x),
    "module, then a view": lambda d, x: d.act(x).view(-1),
    "module used twice": lambda d, x: d.act(x + 0 * d.act(x)),
    "torch.sigmoid": lambda d, x: torch.sigmoid(x),
    "method": lambda d, x: x.sigmoid().squeeze(1),
    "functional": lambda d, x: F.sigmoid(x),
    "in place": lambda d, x: (x * 1).sigmoid_(),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_final_sigmoid_is_absorbed_exactly(end):
    plain = problem(d=Ends(lambda d, x: x))
    with_sigmoid = problem(d=Ends(ENDS[end]))
    with_sigmoid.discriminator.load_state_dict(plain.discriminator.state_dict())
    with_sigmoid.generator.load_state_dict(plain.generator.state_dict())
    for p in (plain, with_sigmoid):
        with torch.no_grad():
            p.discriminator.body.body[-1].bias.fill_(30.0)  # float32 probabilities are 1 from 17 on
    engine, other = EagerEngine(with_sigmoid), EagerEngine(plain)
    found = engine.run(3)
    torch.testing.assert_close(found, other.run(3), rtol=1e-6, atol=0)
    assert found[0, 0] > 25
    assert "absorbed" in engine.describe() and "absorbed" not in other.describe()
    score = with_sigmoid.discriminator(torch.zeros(2, *SHAPE))
    assert (score <= 1).all(), "outside of run, D gives probabilities as before"


@pytest.mark.parametrize(
    "end",
    [
        lambda d, x: d.act(x) * 2 - 1,
        lambda d, x: x + 0 * torch.sigmoid(x),
        lambda d, x: torch.cat([d.act(x), d.act(x)], 1).mean(1),
    ],
)
def test_a_sigmoid_that_is_not_the_end_is_left_alone(end):
    p = problem(d=Ends(end))
    assert final_sigmoid(p) is None
    assert torch.isfinite(EagerEngine(p).run(1)).all()


def test_a_sigmoid_changed_in_place_is_not_the_end():
    x = torch.zeros(3)
    with FinalSigmoid() as trace:
        y = torch.sigmoid(x)
        assert trace.input_of(y) is x and trace.input_of(y.view(3, 1)) is x
        assert trace.input_of(y[:2]) is None and trace.input_of(y + 0) is None
        assert trace.input_of(y.mul_(3)) is None


@pytest.mark.parametrize("loss", ["hinge", "least-squares", "wasserstein"])
def test_games_on_raw_scores_refuse_a_sigmoid(loss):
    for d in (Discriminator(SHAPE), Ends(ENDS["torch.sigmoid"])):
        with pytest.raises(ValueError, match=f"loss '{loss}' works on raw scores.*remove"):
            engines.choose(problem(d=d, loss=loss), "eager")
    p = problem(loss=loss)
    engine, _ = engines.choose(p, "eager")
    assert torch.isfinite(engine.run(3)).all()


def test_a_users_own_game_may_want_probabilities():
    mine = losses.Game(
        "mine", lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()
    )
    engine, _ = engines.choose(problem(d=Discriminator(SHAPE), loss=mine), "eager")
    assert engine.run(2).abs().max() < 1


# --- dropout --------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One dropout layer that a pass calls twice."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.end = nn.Linear(36, 1)
        self.seen = []

    def forward(self, x):
        ones = torch.ones(len(x), 36, device=x.device)
        masks = self.drop(ones), self.drop(ones)
        self.seen.append(torch.stack(masks).detach())
        return self.end(x.flatten(1) * masks[0] * masks[1])


def test_masks_are_those_of_the_contract_and_two_calls_differ():
    d = Twice()
    p = problem(d=d, d_steps=2)
    d.train()
    engine = EagerEngine(p)
    d.seen.clear()  # the looks that the engine takes at D
    engine.step = 3
    engine.run(1)
    expected = [(0, 6), (1, 6), (0, 7), (1, 7), (2, 3)]
    assert len(d.seen) == len(expected)
    for seen, (use, step) in zip(d.seen, expected, strict=True):
        keep = random.keep_mask(p.seed, Stream.DROPOUT + use, step, (seen.numel(),), 0.5)
        assert torch.equal(seen.flatten(), keep * 2.0)
        assert not torch.equal(seen[0], seen[1])


def test_fused_layers_drop_what_the_plain_ones_do():
    layers = nn.Linear(36, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1)
    plain = nn.Sequential(nn.Flatten(), *layers)
    watched = copy.deepcopy(plain)
    fused = fuse(copy.deepcopy(plain))
    fuse(watched)[3].register_forward_hook(lambda *_: seen.append(1))
    seen, found = [], []
    for d in (plain, fused, watched):
        torch.manual_seed(1)
        found.append(EagerEngine(problem(d=d)).run(5))
        assert "forward" not in vars(d) and all("forward" not in vars(m) for m in d)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    assert seen, "a hook's layer is called as a layer"


def test_dropout_off_and_forward_put_back():
    off, in_place, shared = nn.Dropout(0.9).eval(), nn.Dropout(0.3, inplace=True), nn.Dropout(0.0)
    p = problem(d=discriminator(middle=(off, nn.Sequential(shared, shared), in_place)))
    own = lambda x: x  # noqa: E731
    shared.forward = own
    q = problem(d=discriminator(middle=(nn.Dropout(0.3),)))
    q.discriminator.body[1].load_state_dict(p.discriminator.body[1].state_dict())
    q.discriminator.body[-1].load_state_dict(p.discriminator.body[-1].state_dict())
    q.generator.load_state_dict(p.generator.state_dict())
    a, b = EagerEngine(p), EagerEngine(q)
    assert torch.isfinite(a.run(2)).all() and torch.isfinite(b.run(2)).all()
    assert "forward" not in vars(off) and "forward" not in vars(in_place)
    assert shared.forward is own

    p.generator.forward = lambda z: 1 / 0
    with pytest.raises(ZeroDivisionError):
        a.run(1)
    assert "forward" not in vars(off) and "forward" not in vars(in_place)
    assert all(w.requires_grad for w in p.discriminator.parameters())


# --- rates, precision, changes from outside -------------------------------------------------------


def test_schedule_scales_both_rates_and_leaves_the_base():
    p = problem(lr=(1e-3, 5e-4), lr_schedule=lambda step: 0.0 if step >= 2 else 1.0)
    engine = EagerEngine(p)
    engine.run(2)
    before = weights(p.generator) + weights(p.discriminator)
    engine.run(3)
    assert same(before, weights(p.generator) + weights(p.discriminator))
    assert [p.optimizer_g.param_groups[0]["lr"], p.optimizer_d.param_groups[0]["lr"]] == [
        1e-3,
        5e-4,
    ]
    p.lr_schedule = lambda step: float("nan")
    with pytest.raises(ValueError, match=r"lr_schedule\(5\) returned nan"):
        engine.run(1)
    assert p.optimizer_g.param_groups[0]["lr"] == 1e-3


def test_weights_and_rates_changed_between_runs_count():
    p = problem()
    engine = EagerEngine(p)
    engine.run(2)
    for optimizer in (p.optimizer_g, p.optimizer_d):
        optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        p.generator.body[1].weight.fill_(0.5)
    engine.run(2)
    assert (p.generator.body[1].weight == 0.5).all()


def test_bf16_trains_with_float32_weights_and_losses():
    a, b = problem(batch_size=16), problem(batch_size=16, precision="bf16")
    fp32, bf16 = EagerEngine(a).run(20), EagerEngine(b).run(20)
    assert bf16.dtype == torch.float32
    assert all(w.dtype == torch.float32 for w in b.generator.parameters())
    assert not torch.equal(fp32, bf16)
    torch.testing.assert_close(fp32, bf16, rtol=0.03, atol=0.01)


def test_spatial_latents_and_unusual_score_shapes():
    g = nn.Sequential(nn.ConvTranspose2d(4, 1, 6), nn.Tanh())
    d = nn.Sequential(nn.Conv2d(1, 1, 6))
    engine, said = engines.choose(problem(g, d, latent_dim=(4, 1, 1)), "eager")
    assert torch.isfinite(engine.run(2)).all()
    assert said.startswith("engine eager: ")


@given(
    batch=st.integers(1, 40),
    count=st.integers(1, 40),
    d_steps=st.integers(1, 3),
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(4, 8), st.integers(4, 8)),
)
@settings(max_examples=25, deadline=None)
def test_any_sizes_run(batch, count, d_steps, shape):
    p = problem(
        generator(shape=shape),
        discriminator(shape=shape),
        images(count, shape),
        batch_size=batch,
        d_steps=d_steps,
    )
    engine = EagerEngine(p)
    found = engine.run(3)
    assert found.shape == (3, 2) and torch.isfinite(found).all() and engine.step == 3


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ({"g": generator(shape=(1, 5, 5))}, r"generator makes \[1, 5, 5\], but .* \[1, 6, 6\]"),
        ({"g": generator(latent=9)}, r"generator failed on latents of shape \[2, 5\].*latent_dim"),
        (
            {"d": discriminator(shape=(1, 5, 5))},
            r"discriminator failed on images of .*\[2, 1, 6, 6\]",
        ),
        ({"d": nn.Conv2d(1, 1, 3)}, r"discriminator returned \[2, 1, 4, 4\] for a batch of 2"),
        ({"d": nn.LSTM(6, 6)}, "discriminator failed"),
    ],
)
def test_networks_that_do_not_fit_are_told_apart(networks, message):
    with pytest.raises(ValueError, match=message):
        engines.choose(problem(**networks), "eager")


def test_looking_at_the_networks_leaves_no_trace():
    d = discriminator(middle=(nn.BatchNorm1d(16), nn.AlphaDropout(0.5)))
    p = problem(d=d)
    d.body[1].eval()
    modes = [m.training for m in d.modules()]
    before, state = weights(d), torch.get_rng_state()
    engines.choose(p, "eager")
    assert same(before, weights(d)) and torch.equal(state, torch.get_rng_state())
    assert [m.training for m in d.modules()] == modes


class Picky(Engine):
    name = "picky"
    reason: str | None = "discriminator.body: this one is too dull"

    @classmethod
    def unsupported(cls, problem):
        return cls.reason

    def run(self, n):
        return torch.zeros(n, 2)

    def describe(self):
        return "does nothing"


def test_auto_takes_the_first_that_can_and_says_why_not_the_others(monkeypatch):
    known = engines.load
    monkeypatch.setattr(engines, "ORDER", ("picky", "eager"))
    monkeypatch.setattr(engines, "load", lambda name: Picky if name == "picky" else known(name))
    engine, said = engines.choose(problem())
    assert isinstance(engine, EagerEngine)
    assert said.startswith("engine eager: ") and "not picky: discriminator.body: this one" in said
    with pytest.raises(ValueError, match="engine='picky' cannot run this .*too dull.*auto"):
        engines.choose(problem(), "picky")
    monkeypatch.setattr(Picky, "reason", None)
    engine, said = engines.choose(problem())
    assert isinstance(engine, Picky) and said == "engine picky: does nothing"
    engine.close()


def test_every_registered_engine_loads_and_an_unknown_one_is_named():
    for name in engines.ORDER:
        assert engines.load(name).name == name
    with pytest.raises(ValueError, match="engine 'warp' is unknown; choose one of auto, "):
        engines.choose(problem(), "warp")
