"""Methods: what a user's own losses are given, and that every engine runs them alike."""

import copy

import pytest
import torch
import torch.nn.functional as F
from pairs import same, weights
from recordings import Again
from small_runs import QUICK, SHAPE, assert_same_bits, every_bit, pixels
from torch import nn

from fastgan import Trainer, data, losses, random, terms
from fastgan.engines import CannotRun, choose, scores
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine
from fastgan.engines.graph import GraphEngine
from fastgan.latents import OneHot, Uniform, latent
from fastgan.problem import make_problem
from fastgan.random import Stream

LABELS = torch.arange(50) % 3


class G(nn.Module):
    """Latents and a class to images."""

    def __init__(self, width=5, classes=3):
        super().__init__()
        self.of_class = nn.Embedding(classes, 4)
        self.body = nn.Sequential(
            nn.Linear(width + 4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 36), nn.Tanh()
        )

    def forward(self, z, y):
        return self.body(torch.cat([z, self.of_class(y)], 1)).view(-1, *SHAPE)


class D(nn.Module):
    """Images and a class to a score."""

    def __init__(self, classes=3):
        super().__init__()
        self.of_class = nn.Embedding(classes, 36)
        self.body = nn.Sequential(
            nn.Linear(36, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1)
        )

    def forward(self, x, labels):
        return self.body(x.flatten(1) + self.of_class(labels))


class Heads(nn.Module):
    """Images to a score and to logits of classes."""

    def __init__(self, classes=3, more=0):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.LeakyReLU(0.2))
        self.score, self.classes = nn.Linear(16, 1), nn.Linear(16, classes)
        self.more = nn.Linear(16, more) if more else None

    def forward(self, x):
        h = self.body(x)
        return (self.score(h), self.classes(h), *([self.more(h)] if self.more else []))


def plain_g(width=5):
    return nn.Sequential(nn.Linear(width, 36), nn.Tanh(), nn.Unflatten(1, SHAPE))


def plain_d():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))


def labelled():
    return data.open((pixels(), LABELS))


def bce(scores, value):
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, value))


class Conditional:
    def d_loss(self, step):
        real, fake = step.D(step.real, step.cond), step.D(step.fake, step.fake_cond)
        return bce(real, 1.0) + bce(fake, 0.0)

    def g_loss(self, step):
        return bce(step.D(step.fake, step.fake_cond), 1.0)


class Auxiliary:
    def d_loss(self, step):
        (r, of_real), (f, of_fake) = step.D(step.real), step.D(step.fake)
        step.log("accuracy", (of_real.argmax(1) == step.cond).float().mean())
        classes = F.cross_entropy(of_real, step.cond) + F.cross_entropy(of_fake, step.fake_cond)
        return bce(r, 1.0) + bce(f, 0.0) + classes

    def g_loss(self, step):
        f, of_fake = step.D(step.fake)
        return bce(f, 1.0) + F.cross_entropy(of_fake, step.fake_cond)


class Info:
    def d_loss(self, step):
        return bce(step.D(step.real)[0], 1.0) + bce(step.D(step.fake)[0], 0.0)

    def g_loss(self, step):
        return bce(step.D(step.fake)[0], 1.0)

    def joint_loss(self, step):
        _, digit, code = step.D(step.fake)
        classes = F.cross_entropy(digit, step.parts["digit"].argmax(1))
        return classes + 0.1 * F.mse_loss(code, step.parts["code"])


class Boundary:
    """BEGAN: D returns an image, and the method keeps k."""

    def __init__(self):
        self.k = 0.0

    def d_loss(self, step):
        real = (step.D(step.real) - step.real).abs().mean()
        fake = (step.D(step.fake) - step.fake).abs().mean()
        loss = real - self.k * fake
        self.k = min(max(self.k + 0.05 * (0.75 * real - fake).item(), 0.0), 1.0)
        return loss

    def g_loss(self, step):
        return (step.D(step.fake) - step.fake).abs().mean()


class Slope:
    """A penalty of the method's own choice, and dropout in a third pass."""

    def d_loss(self, step):
        loss = step.D(step.fake).mean() - step.D(step.real).mean()
        return loss + step.penalty("wgan-gp:2") + step.penalty("r1:0.1")

    def g_loss(self, step):
        return -step.D(step.fake).mean()


class Noisy:
    """Draws of its own."""

    def d_loss(self, step):
        noise = 0.1 * step.normal(*SHAPE), step.uniform(1)
        real = step.D(step.real + noise[0])
        return bce(real, 1.0) * noise[1].mean() + bce(step.D(step.fake), 0.0)

    def g_loss(self, step):
        return bce(step.D(step.fake + 0.1 * step.normal(*SHAPE)), 1.0)


NAMED = {"noise": 3, "digit": OneHot(3), "code": Uniform(2)}


def autoencoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, 36), nn.Unflatten(1, SHAPE))


CASES = {
    "conditional": (lambda: (G(), D()), Conditional, {}),
    "auxiliary": (lambda: (G(), Heads()), Auxiliary, {}),
    "information": (lambda: (plain_g(8), Heads(more=2)), Info, {"latent_dim": NAMED}),
    "boundary": (lambda: (plain_g(), autoencoder()), Boundary, {}),
    "slope": (lambda: (plain_g(), plain_d()), Slope, {"d_steps": 3}),
    "counting": (lambda: (G(), D()), lambda: Counting(), {}),
    "noisy": (lambda: (plain_g(), plain_d()), Noisy, {}),
}


def case(name, **options):
    make, method, more = CASES[name]
    torch.manual_seed(3)
    options = {"latent_dim": 5, "batch_size": 8, "device": "cpu", **more, **options}
    return make_problem(*make(), labelled(), method=method(), **options)


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


class Counting(Conditional):
    def g_loss(self, step):
        return super().g_loss(step) * (1.0 if step.number < 3 else 0.5)


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


# Conditions


def test_networks_that_take_a_condition_are_given_it_by_the_plain_losses():
    for penalties in ((), "wgan-gp", ["r1", "r2"]):
        torch.manual_seed(3)
        p = make_problem(
            G(), D(), labelled(), batch_size=8, latent_dim=5, device="cpu", penalties=penalties
        )
        assert p.conditioned == (True, True)
        before = weights(p.generator)
        engine, said = choose(p)
        assert engine.name == "eager" and "takes a condition" in said
        assert engine.run(4).isfinite().all() and not same(weights(p.generator), before)


def test_fake_conditions_are_drawn_from_the_datas_own_or_are_the_same():
    seen = []

    class Looking(Conditional):
        def d_loss(self, step):
            seen.append((step.cond, step.fake_cond))
            return super().d_loss(step)

    labels = (torch.arange(50) % 10 == 0).long()  # one in ten
    for how in ("drawn", "same"):
        seen.clear()
        torch.manual_seed(3)
        p = make_problem(
            G(), D(), data.open((pixels(), labels)), method=Looking(), batch_size=25,
            latent_dim=5, device="cpu", fake_condition=how,
        )  # fmt: skip
        EagerEngine(p).run(40)
        alike = [torch.equal(a, b) for a, b in seen]
        assert all(alike) if how == "same" else not all(alike)
        share = torch.cat([b for _, b in seen]).double().mean()
        assert abs(share - 0.1) < 0.04


def test_a_condition_that_is_an_image_is_handed_on():
    class ToImage(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 1, 3, 1, 1))

        def forward(self, condition):
            return torch.tanh(self.body(condition))

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(2, 1, 3)

        def forward(self, x, condition):
            return self.body(torch.cat([x, condition], 1))

    torch.manual_seed(3)
    source = data.open((pixels(), torch.rand(50, *SHAPE)))
    trainer = Trainer(
        ToImage(), Patches(), source, method=Conditional(), terms={"l1": (100, terms.l1)},
        **{**QUICK, "latent_dim": None},
    )  # fmt: skip
    trainer.fit(steps=10)
    line = trainer.history[-1]
    assert 0 < line["l1"] < 2 and line["d_loss"] > 0
    assert trainer.sample(4).shape == (4, *SHAPE)
    other = trainer.sample(4, condition=torch.zeros(4, *SHAPE))
    assert not torch.equal(other, trainer.sample(4))


def test_samples_of_a_class():
    trainer = Trainer(G(), D(), labelled(), method=Conditional(), **QUICK)
    trainer.fit(steps=3)
    assert torch.equal(trainer.sample(9), trainer.sample(9, condition=[0, 1, 2] * 3))
    assert not torch.equal(trainer.sample(9), trainer.sample(9, condition=2))
    with pytest.raises(ValueError, match=r"condition is \[2\]; expected \[9\]"):
        trainer.sample(9, condition=[0, 1])
    plain = Trainer(plain_g(), plain_d(), labelled(), **QUICK)
    with pytest.raises(ValueError, match="the generator takes none"):
        plain.sample(9, condition=2)


# Latents


def test_named_parts_of_latents():
    made = latent(NAMED)
    assert made.shape == (8,) and made.drawn == (6,) and not made.is_noise
    z = made.of(random.normal(0, 0, 0, (3000, 6)))
    parts = made.split(z)
    assert torch.equal(torch.cat([*parts.values()], 1), z)
    assert abs(parts["noise"].std() - 1) < 0.05
    assert parts["digit"].sum(1).eq(1).all() and (parts["digit"].mean(0) - 1 / 3).abs().max() < 0.05
    code = parts["code"]
    assert code.min() >= -1 and code.max() <= 1 and abs(code.square().mean() - 1 / 3) < 0.05
    assert latent(made.plain()) == made
    assert latent({"a": "uniform:2:0:3", "b": "4"}).plain() == {"a": "uniform:2:0:3", "b": 4}
    far = torch.full((1, 1), 1e3)
    assert OneHot(4).of(far).argmax() == 3 and OneHot(4).of(-far).argmax() == 0
    for wrong, words in (
        ({}, "expected a length"), ({"a": 0}, "part 'a' is 0"), ({"a": "onehot"}, "onehot:N"),
        ("many", "expected a length"), ({"a": "uniform:2:3:1"}, "part 'a'"), (0, "expected"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            latent(wrong)


# Terms


def test_terms_have_weights_that_are_fixed_scheduled_or_adaptive():
    def drift(step):
        return step.fake.square().mean()

    torch.manual_seed(3)
    found = {}
    for weight in (0.0, 2.0, lambda t: 2.0 if t < 2 else 0.0, "adaptive", "adaptive:0"):
        torch.manual_seed(3)
        p = make_problem(
            plain_g(), plain_d(), labelled(), batch_size=8, latent_dim=5, device="cpu",
            terms={"drift": (weight, drift)},
        )  # fmt: skip
        engine = EagerEngine(p)
        rows = engine.run(2)
        assert set(engine.logged) == {"drift"} and "drift" in FusedEngine.unsupported(p)
        found[weight if isinstance(weight, (float, str)) else "scheduled"] = (
            weights(p.generator), rows
        )  # fmt: skip
    assert same(found[0.0][0], found["adaptive:0"][0])
    assert same(found[2.0][0], found["scheduled"][0])
    assert not same(found[2.0][0], found[0.0][0])
    assert not same(found["adaptive"][0], found[0.0][0])
    # What is reported is the plain loss.
    torch.testing.assert_close(found[2.0][1][0], found[0.0][1][0])


def test_an_adaptive_weight_makes_both_slopes_as_long():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.5])
    torch.testing.assert_close(terms.adapted(a, b), torch.tensor(10.0), rtol=1e-3, atol=0)
    assert terms.adapted(None, b) == 0.0 and terms.adapted(a, 0 * b) == 1e4


def test_given_terms():
    class Middle(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU())
            self.end = nn.Linear(8, 1)

        def forward(self, x):
            return self.end(self.body(x))

    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.back = nn.Linear(5, 36), nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

        def forward(self, z, y):
            out = self.fc(z)
            return torch.tanh(out).view(-1, *SHAPE)

    frozen = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    torch.manual_seed(3)
    chosen = {
        "features": (1.0, terms.FeatureMatching("body.1", "body")),
        "means": (1.0, terms.FeatureMatching("body", means=True)),
        "perceptual": (1.0, terms.Perceptual(frozen, lambda x: (x + 1) / 2)),
        "l2": terms.l2,
    }
    p = make_problem(
        Coder(), Middle(), labelled(), batch_size=8, latent_dim=5, device="cpu", terms=chosen
    )
    engine = EagerEngine(p)
    engine.run(2)
    assert engine.logged.keys() == chosen.keys()
    assert all(v > 0 for v in engine.logged.values())
    assert all(w.grad is None for w in frozen.parameters())
    chosen = {"features": terms.FeatureMatching("middle")}
    p = make_problem(
        Coder(), Middle(), labelled(), batch_size=8, latent_dim=5, device="cpu", terms=chosen
    )
    with pytest.raises(ValueError, match="D has no layer 'middle'; it has body, body.0"):
        EagerEngine(p).run(1)


def test_kl_and_cycle_by_hand():
    class Step:
        fake = (None, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))

    torch.testing.assert_close(terms.kl(Step), torch.tensor(0.5 + 0.5 * (torch.e - 2)))

    class Around:
        fake, fake_cond, G = torch.ones(2, 3), torch.zeros(2, 3), nn.Identity()

    Around.G.way = nn.Identity()
    assert terms.Cycle("way")(Around) == 1.0


# Refusals


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
