"""Methods: what a user's own losses are given, and that every engine runs them alike."""

import copy
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from methods import (
    CASES,
    LABELS,
    NAMED,
    Conditional,
    D,
    G,
    Info,
    Slope,
    bce,
    case,
    labelled,
    plain_d,
    plain_g,
)
from pairs import same, weights
from recordings import Again
from small_runs import QUICK, SHAPE, assert_same_bits, every_bit, pixels
from torch import nn

from fastgan import Trainer, data, losses, random, terms
from fastgan.engines import CannotRun, scores
from fastgan.engines.eager import EagerEngine
from fastgan.engines.graph import GraphEngine
from fastgan.latents import latent
from fastgan.problem import make_problem
from fastgan.random import Stream
from fastgan.run import checkpoint


@pytest.mark.parametrize("name", CASES)
def test_every_method_trains_and_is_continued_to_the_bit(name, tmp_path):
    make, method, more = CASES[name]

    def trainer(out):
        torch.manual_seed(3)
        options = {**QUICK, "latent_dim": 5, **more}
        return Trainer(*make(), labelled(), method=method(), out=tmp_path / out, **options)

    whole = trainer("whole")
    before = weights(whole.generator), weights(whole.discriminator)
    whole.fit(steps=20)
    assert not same(weights(whole.generator), before[0])
    assert not same(weights(whole.discriminator), before[1])
    trainer("half").fit(steps=9)
    torch.manual_seed(4)
    parts = {"latent_dim": more["latent_dim"]} if "latent_dim" in more else {}
    half = Trainer.resume(tmp_path / "half", *make(), labelled(), method=method())
    assert not parts or half.config.latent_dim == latent(NAMED)
    half.fit(steps=20)
    assert_same_bits(every_bit(half), every_bit(whole))


class Pool:
    """A history of fakes."""

    __slots__ = ("images",)

    def __init__(self):
        self.images = []

    def query(self, fake):
        self.images = [*self.images, fake.clone()][-5:]
        return self.images[0]


class Keeping:
    """Keeps something, in each of the ways that programs have."""

    def d_loss(self, step):
        real, fake = bce(step.D(step.real), 1.0), bce(step.D(self.of(step)), 0.0)
        self.weight = getattr(self, "weight", 1.0) * 0.99
        return self.weight * real + fake

    def g_loss(self, step):
        return bce(step.D(step.fake), 1.0)

    def of(self, step):
        return step.fake


class InPool(Keeping):
    def __init__(self):
        self.pool = Pool()

    def of(self, step):
        return self.pool.query(step.fake)


class InDeque(Keeping):
    def __init__(self):
        self.fakes = deque(maxlen=5)

    def of(self, step):
        self.fakes.append(step.fake.clone())
        return self.fakes[0]


class InNetwork(Keeping, nn.Module):
    def __init__(self):
        super().__init__()
        self.k, self.trained = 0.0, nn.Parameter(torch.zeros(36))

    def of(self, step):
        self.k += 0.1
        with torch.no_grad():
            self.trained += 0.1
        return step.fake + self.k * self.trained.detach().view(SHAPE)


class InOptimizer(Keeping):
    def __init__(self):
        torch.manual_seed(5)
        self.head = nn.Linear(36, 1)
        self.optimizer = torch.optim.Adam(self.head.parameters(), 0.1)
        self.generator = torch.Generator().manual_seed(7)

    def of(self, step):
        self.optimizer.zero_grad()
        (self.head(step.real.flatten(1)) - 1).square().mean().backward()
        self.optimizer.step()
        noise = torch.randn(step.fake.shape, generator=self.generator)
        return step.fake + self.head.weight.detach().view(SHAPE) * noise


@pytest.mark.parametrize("kind", [Keeping, InPool, InDeque, InNetwork, InOptimizer])
def test_what_a_method_keeps_is_continued_to_the_bit(kind, tmp_path):
    def trainer(out):
        torch.manual_seed(3)
        return Trainer(
            plain_g(), plain_d(), labelled(), method=kind(), out=tmp_path / out, lr=0.01, **QUICK
        )

    whole = trainer("whole")
    whole.fit(steps=20)
    trainer("half").fit(steps=9)
    half = Trainer.resume(tmp_path / "half", plain_g(), plain_d(), labelled(), method=kind())
    half.fit(steps=20)
    assert_same_bits(every_bit(half), every_bit(whole))


def test_what_a_method_keeps_and_has_no_place_for_is_told(tmp_path, caplog):
    class Late(Keeping):
        def of(self, step):
            if not hasattr(self, "head"):
                self.head = nn.Linear(36, 1)
            return step.fake

    options = {"method": Late(), "out": tmp_path / "run", **QUICK}
    Trainer(plain_g(), plain_d(), labelled(), **options).fit(steps=2)
    caplog.clear()
    again = Trainer.resume(tmp_path / "run", plain_g(), plain_d(), labelled(), method=Late())
    assert "head.state_dict() of method was saved" in caplog.text
    assert again.problem.method.weight == pytest.approx(0.99**2)


def test_networks_of_the_run_and_frozen_ones_are_not_saved_twice(tmp_path):
    class Holding(Keeping):
        def __init__(self, g):
            self.network, self.frozen = g, nn.Linear(3, 3)

    g = plain_g()
    perceptual = terms.Perceptual(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    t = Trainer(
        g, plain_d(), labelled(), method=Holding(g), terms={"p": perceptual}, out=tmp_path / "run",
        **QUICK,
    )  # fmt: skip
    t.fit(steps=2)
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["loss"] == {
        "method": {"weight": t.problem.method.weight}
    }


REFUSED = ("boundary", "counting", "information")


@pytest.mark.parametrize("name", [n for n in CASES if n not in REFUSED])
def test_graph_replays_what_eager_does(name):
    p, q = case(name), case(name)
    recorder = Again()
    engine = GraphEngine(p, recorder)
    found, expected = engine.run(15), EagerEngine(q).run(15)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=2e-5, atol=2e-6)
    for a, b in zip(weights(p.generator), weights(q.generator), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert recorder.replayed


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("boundary", "attribute k of method was changed by a pass"),
        ("counting", "asks for the number of the step"),
        ("information", "a gradient in some updates only"),
    ],
)
def test_what_a_replay_cannot_repeat_is_told_and_leaves_no_trace(name, reason):
    p = case(name)
    before = weights(p.generator), weights(p.discriminator)
    with pytest.raises(CannotRun, match=reason):
        GraphEngine(p, Again())
    assert same(weights(p.generator), before[0]) and same(weights(p.discriminator), before[1])
    assert getattr(p.method, "k", 0.0) == 0.0


def test_a_method_is_given_what_the_plain_loop_would_use():
    """Against a loop in plain PyTorch that draws the same numbers."""
    seen = []

    class Looking(Conditional):
        def g_loss(self, step):
            seen.append((step.number, step.update, step.player, step.real, step.cond, step.z))
            seen[-1] += (step.fake_cond, step.fake.requires_grad, step.fake.shape)
            return super().g_loss(step)

    torch.manual_seed(3)
    g, d = G(), D()
    p = make_problem(
        g, d, labelled(), method=Looking(), batch_size=8, latent_dim=5, d_steps=2, device="cpu"
    )
    EagerEngine(p).run(3)
    for t, (number, update, player, real, cond, z, fake_cond, grad, shape) in enumerate(seen):
        assert (number, update, player) == (t, t, "g")
        rows = p.data.batch_indices(0, 2 * t + 1, 8)
        assert torch.equal(cond, LABELS[rows]) and torch.equal(
            real, p.data.batch(0, 2 * t + 1, 8)[0]
        )
        assert torch.equal(z, random.normal(0, Stream.LATENT_G, t, (len(rows), 5)))
        assert grad and shape == real.shape
        assert fake_cond.shape == cond.shape and set(fake_cond.tolist()) <= {0, 1, 2}
    assert any(not torch.equal(s[4], s[6]) for s in seen)


def test_one_update_of_each_is_the_one_by_hand():
    torch.manual_seed(3)
    g, d = plain_g().double(), plain_d().double()
    p = make_problem(
        g, d, labelled(), method=Slope(), batch_size=8, latent_dim=5, device="cpu", lr=0.01
    )
    h, e = copy.deepcopy(g), copy.deepcopy(d)
    EagerEngine(p).run(1)
    real = p.data.batch(0, 0, 8).images.double()
    fake = h(random.normal(0, Stream.LATENT_D, 0, (8, 5)).double()).detach()
    eps = torch.special.ndtr(random.normal(0, 6, 0, (8,))).double().view(-1, 1, 1, 1)
    between = torch.lerp(fake, real, eps).requires_grad_()
    (slope,) = torch.autograd.grad(e(between).sum(), between, create_graph=True)
    at_real = real.clone().requires_grad_()
    (steep,) = torch.autograd.grad(e(at_real).sum(), at_real, create_graph=True)
    loss = e(fake).mean() - e(real).mean()
    loss = loss + 2 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
    loss = loss + 0.1 * 0.5 * steep.flatten(1).square().sum(1).mean()
    optimizer = torch.optim.Adam(e.parameters(), 0.01, (0.5, 0.999))
    loss.backward()
    optimizer.step()
    for a, b in zip(weights(d), weights(e), strict=True):
        torch.testing.assert_close(a, b)
    optimizer = torch.optim.Adam(h.parameters(), 0.01, (0.5, 0.999))
    (-e(h(random.normal(0, Stream.LATENT_G, 0, (8, 5)).double())).mean()).backward()
    optimizer.step()
    for a, b in zip(weights(g), weights(h), strict=True):
        torch.testing.assert_close(a, b)


def test_the_plain_losses_are_a_method_too():
    """The same loss, as a word and as a class of the user's."""

    class Hinge:
        def d_loss(self, step):
            real, fake = step.D(step.real).flatten(), step.D(step.fake).flatten()
            return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

        def g_loss(self, step):
            return -step.D(step.fake).flatten().mean()

    problems = []
    for options in ({"loss": "hinge"}, {"method": Hinge()}):
        torch.manual_seed(3)
        g = nn.Sequential(nn.Linear(5, 36), nn.Dropout(0.2), nn.Tanh(), nn.Unflatten(1, SHAPE))
        d = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        problems.append(
            make_problem(g, d, labelled(), batch_size=8, latent_dim=5, device="cpu", **options)
        )
    rows = [EagerEngine(p).run(9) for p in problems]
    torch.testing.assert_close(*rows, rtol=1e-6, atol=0)
    for a, b in zip(*(weights(p.discriminator) for p in problems), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_what_is_no_method_or_does_not_fit_is_told():
    def build(g=None, d=None, source=None, **options):
        options = {"batch_size": 8, "latent_dim": 5, "device": "cpu", **options}
        return make_problem(g or plain_g(), d or plain_d(), source or labelled(), **options)

    class Half:
        def d_loss(self, step):
            return None

    class Wrong(Half):
        def g_loss(self):
            return None

    class Nothing(Half):
        def g_loss(self, step):
            return step.fake.mean()

    for options, words in (
        ({"method": Conditional}, "method=Conditional()"),
        ({"method": Half()}, "no g_loss"),
        ({"method": Wrong()}, "expected .step."),
        ({"method": Slope(), "loss": "hinge"}, "loss is given beside a method"),
        ({"method": Slope(), "penalties": "r1"}, "step.penalty"),
        ({"method": Info(), "precision": "fp16"}, "joint_loss"),
        ({"terms": {"a": (1, 2)}}, "'a' is 2"),
        ({"terms": {"a": ("much", terms.l1)}}, "adaptive:factor"),
        ({"terms": [1]}, "expected a dict"),
        ({"latent_dim": None}, "failed on the condition alone"),
        ({"g": G(), "source": data.open(pixels())}, "data .* have none"),
    ):
        with pytest.raises(ValueError, match=words):
            scores.check(build(**options))
    for method, words in ((Nothing(), "method 'Nothing': d_loss returned None"),):
        with pytest.raises(ValueError, match=words):
            EagerEngine(build(method=method)).run(1)
    engine = EagerEngine(build(terms={"step": terms.l1}))
    with pytest.raises(ValueError, match="use another name"):
        engine.run(1)


def test_a_dict_of_discriminators():
    class Two:
        def d_loss(self, step):
            ends = [(step.D[n](step.real), step.D[n](step.fake)) for n in ("a", "b")]
            return sum(bce(r, 1.0) + bce(f, 0.0) for r, f in ends)

        def g_loss(self, step):
            return bce(step.D.a(step.fake), 1.0) + bce(step.D["b"](step.fake), 1.0)

    pair = {"a": plain_d(), "b": plain_d()}
    trainer = Trainer(plain_g(), pair, labelled(), method=Two(), **QUICK)
    before = weights(pair["a"]), weights(pair["b"])
    trainer.fit(steps=3)
    assert not same(weights(pair["a"]), before[0]) and not same(weights(pair["b"]), before[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_network_has_is_had_in_a_method(precision):
    seen = []

    class Looking:
        def ends(self, step):
            d = step.D
            assert isinstance(d, nn.ModuleDict) and len(d) == 2 and list(d) == ["a", "b"] and d
            ends = [*d.values(), d.a, d["b"], *d.children(), *(m for _, m in d.items())]
            assert all(isinstance(m, nn.Sequential) for m in ends)
            return ends

        def d_loss(self, step):
            decay = sum(w.square().sum() for w in step.D.parameters())
            assert not step.D["a"].marked and "b" in step.D
            loss = 1e-3 * decay
            for end in self.ends(step):
                score = end(step.real)
                seen.append(score.dtype)
                loss = loss + bce(score, 1.0) + bce(end.forward(step.fake), 0.0)
            return loss

        def g_loss(self, step):
            x = step.z
            for layer in step.G:
                x = layer(x)
            step.G.alpha = step.number
            return sum(bce(end(x), 1.0) for end in self.ends(step))

    g, d = plain_g(), {"a": plain_d(), "b": plain_d()}
    d["a"].marked = False
    p = make_problem(
        g, d, labelled(), method=Looking(), batch_size=8, latent_dim=5, device="cpu",
        precision=precision,
    )  # fmt: skip
    assert EagerEngine(p).run(2)[:, :2].isfinite().all()
    assert g.alpha == 1 and set(seen) == {torch.float32}


def test_a_look_at_the_weights_is_no_pass():
    """It does not move the dropout masks."""

    class Looking(Conditional):
        def d_loss(self, step):
            list(step.D.parameters())
            return super().d_loss(step)

    rows = []
    for method in (Conditional(), Looking()):
        torch.manual_seed(3)
        rows.append(
            EagerEngine(
                make_problem(
                    G(), D(), labelled(), method=method, batch_size=8, latent_dim=5, device="cpu"
                )
            ).run(3)
        )
    assert torch.equal(*rows)


def test_bf16_runs_a_method_with_float32_losses():
    seen = []

    class Wide(Conditional):
        def d_loss(self, step):
            seen.append((step.fake.dtype, step.D(step.real, step.cond).dtype))
            return super().d_loss(step)

    torch.manual_seed(3)
    p = make_problem(
        G(), D(), labelled(), method=Wide(), batch_size=8, latent_dim=5, device="cpu",
        precision="bf16",
    )  # fmt: skip
    assert EagerEngine(p).run(3)[:, :2].isfinite().all()
    assert set(seen) == {(torch.float32, torch.float32)}


def test_losses_of_the_library_serve_in_a_method():
    class Mixed:
        def d_loss(self, step):
            return losses.LOSSES["hinge"].d_loss(step.score(step.real), step.score(step.fake))

        def g_loss(self, step):
            return losses.LOSSES["hinge"].g_loss(step.score(step.fake))

    p = make_problem(
        plain_g(), plain_d(), labelled(), method=Mixed(), batch_size=8, latent_dim=5, device="cpu"
    )
    assert EagerEngine(p).run(3)[:, :2].isfinite().all()
