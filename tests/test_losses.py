"""The losses and penalties against their definitions."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from pairs import problem, same, weights
from torch import nn

from fastgan import losses, random
from fastgan.engines.draws import AROUND_STREAM
from fastgan.engines.eager import EagerEngine


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(6, 1), torch.randn(6, 1)


def bce(logits, label):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def definitions(real, fake):
    return {
        "minimax": (bce(real, 1.0) + bce(fake, 0.0), torch.log(1 - torch.sigmoid(fake)).mean()),
        "non-saturating": (bce(real, 1.0) + bce(fake, 0.0), bce(fake, 1.0)),
        "hinge": (
            torch.clamp(1 - real, min=0).mean() + torch.clamp(1 + fake, min=0).mean(),
            -fake.mean(),
        ),
        "least-squares": (
            0.5 * ((real - 1) ** 2).mean() + 0.5 * (fake**2).mean(),
            0.5 * ((fake - 1) ** 2).mean(),
        ),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
        "relativistic": (-F.logsigmoid(real - fake).mean(), -F.logsigmoid(fake - real).mean()),
        "relativistic-average": (
            bce(real - fake.mean(), 1.0) + bce(fake - real.mean(), 0.0),
            bce(fake - real.mean(), 1.0) + bce(real - fake.mean(), 0.0),
        ),
        "relativistic-average-hinge": (
            torch.clamp(1 - (real - fake.mean()), min=0).mean()
            + torch.clamp(1 + (fake - real.mean()), min=0).mean(),
            torch.clamp(1 - (fake - real.mean()), min=0).mean()
            + torch.clamp(1 + (real - fake.mean()), min=0).mean(),
        ),
        "relativistic-average-least-squares": (
            ((real - fake.mean() - 1) ** 2).mean() + ((fake - real.mean() + 1) ** 2).mean(),
            ((fake - real.mean() - 1) ** 2).mean() + ((real - fake.mean() + 1) ** 2).mean(),
        ),
    }


@pytest.mark.parametrize("name", list(losses.LOSSES))
def test_a_loss_is_its_definition(name, logits):
    real, fake = logits
    loss = losses.loss(name)
    d_loss, g_loss = definitions(real, fake)[name]
    torch.testing.assert_close(loss.d_loss(real, fake), d_loss)
    scores = (fake, real) if loss.needs_real else (fake,)
    torch.testing.assert_close(loss.g_loss(*scores), g_loss)
    assert loss.name == name and loss.needs_real == name.startswith("relativistic")
    assert loss.scores == ("logits" if name in ("minimax", "non-saturating") else "raw")


@pytest.mark.parametrize("name", list(losses.LOSSES))
def test_losses_are_float32_and_differentiable_for_bfloat16_logits(name, logits):
    real, fake = (t.bfloat16().requires_grad_() for t in logits)
    chosen = losses.loss(name)
    of_g = (fake, real) if chosen.needs_real else (fake,)
    for loss, given in ((chosen.d_loss(real, fake), (real, fake)), (chosen.g_loss(*of_g), of_g)):
        assert loss.dtype == torch.float32 and loss.shape == ()
        for grad in torch.autograd.grad(loss, given):
            assert grad.dtype == torch.bfloat16 and grad.abs().sum() > 0


def test_default_is_non_saturating():
    assert losses.loss().name == "non-saturating"


def test_label_smoothing_is_one_sided(logits):
    real, fake = logits
    loss = losses.loss("minimax", 0.1)
    assert loss.label_smoothing == 0.1
    torch.testing.assert_close(loss.d_loss(real, fake), bce(real, 0.9) + bce(fake, 0.0))
    torch.testing.assert_close(loss.g_loss(fake), losses.loss("minimax").g_loss(fake))


def test_an_own_loss_passes_through(logits):
    own = losses.Loss("own", lambda r, f: f.mean() - r.mean(), lambda f: -f.mean())
    assert losses.loss(own) is own
    with pytest.raises(ValueError, match="label_smoothing"):
        losses.loss(own, 0.1)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="loss is 'nonsense'.*minimax"):
        losses.loss("nonsense")
    with pytest.raises(ValueError, match="label_smoothing is 0.1.*hinge"):
        losses.loss("hinge", 0.1)
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="label_smoothing"):
            losses.loss("minimax", wrong)


@pytest.mark.parametrize("name", list(losses.LOSSES))
def test_losses_pickle_and_compare(name):
    assert pickle.loads(pickle.dumps(losses.loss(name))) == losses.loss(name)
    assert losses.loss("minimax", 0.1) == losses.loss("minimax", 0.1) != losses.loss("minimax")


NO_FUNCTION = [
    ({"d_loss": lambda real: real.mean()}, r"'mine': d_loss must take .real scores, fake scores."),
    ({"g_loss": lambda a, b, c: a.mean()}, "'mine': g_loss must take .fake scores., or .fake"),
    ({"d_loss": nn.BCELoss}, "d_loss is <class .*make an instance of the class"),
    ({"g_loss": 3}, "g_loss is 3; expected a function of .fake scores."),
    ({"scores": "logit"}, "scores is 'logit'; expected 'logits', 'raw', 'probabilities', or None"),
    ({"name": ""}, "name is ''; expected a word"),
]


@pytest.mark.parametrize(("wrong", "message"), NO_FUNCTION)
def test_a_loss_whose_functions_cannot_be_called_is_refused_when_it_is_made(wrong, message):
    right = {"name": "mine", "d_loss": lambda r, f: f.mean(), "g_loss": lambda f: f.mean()}
    losses.Loss(**right)
    with pytest.raises(ValueError, match=message):
        losses.Loss(**{**right, **wrong})


def test_a_generators_loss_takes_the_real_scores_only_if_it_must():
    def d_loss(real, fake):
        return fake.mean()

    taken = {
        True: [lambda fake, real: fake.mean(), lambda fake, real, k=1: fake.mean()],
        False: [lambda fake: fake.mean(), lambda fake, real=None: fake.mean(), lambda *s: s[0]],
    }
    for needs, functions in taken.items():
        for g_loss in functions:
            assert losses.Loss("mine", d_loss, g_loss).needs_real is needs


# --- penalties ------------------------------------------------------------------------------------


class Quadratic:
    """D(x) = x A x / 2 + b x, with a slope known by hand: (A + A') x / 2 + b."""

    def __init__(self):
        torch.manual_seed(3)
        self.a = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
        self.b = torch.randn(4, dtype=torch.float64)
        self.x = torch.randn(5, 4, dtype=torch.float64)

    def logits(self, x):
        return 0.5 * ((x @ self.a) * x).sum(1) + x @ self.b

    def slope(self):
        return self.x @ (self.a + self.a.T) / 2 + self.b


@pytest.mark.parametrize("scale", [None, torch.tensor(2.0**12)])
@pytest.mark.parametrize("weight", [10.0, 0.3])
def test_penalties_and_their_gradients_are_those_computed_by_hand(weight, scale):
    d = Quadratic()
    expected = {
        "r1": weight / 2 * (d.slope() ** 2).sum(1).mean(),
        "r2": weight / 2 * (d.slope() ** 2).sum(1).mean(),
        "wgan-gp": weight * ((d.slope().pow(2).sum(1).sqrt() - 1) ** 2).mean(),
        "dragan": weight * ((d.slope().pow(2).sum(1).sqrt() - 1) ** 2).mean(),
    }
    assert {*expected, "approximate-r1"} == set(losses.PENALTIES)
    for name, by_hand in expected.items():
        x = d.x.clone().view(5, 1, 2, 2).requires_grad_()
        (penalty,) = losses.penalties(f"{name}:{weight}")
        value = penalty.value(d.logits(x.flatten(1)), x, scale)
        assert value.dtype == torch.float64 and value.shape == ()
        torch.testing.assert_close(value, by_hand)
        found = torch.autograd.grad(value, d.a)
        torch.testing.assert_close(found, torch.autograd.grad(by_hand, d.a))


@pytest.mark.parametrize("sigma", [0.01, 0.5])
def test_the_approximate_penalty_and_its_gradient_are_those_computed_by_hand(sigma):
    d = Quadratic()
    noise = torch.randn_like(d.x)
    symmetric = (d.a + d.a.T) / 2
    # Of a quadratic D the difference is exact: the slope along the noise, and half its bend.
    along = (noise * d.slope()).sum(1) + sigma / 2 * ((noise @ symmetric) * noise).sum(1)
    by_hand = 3.0 / 2 * along.square().mean()
    (penalty,) = losses.penalties(f"approximate-r1:3:1:{sigma}")
    value = penalty.value_nearby(d.logits(d.x), d.logits(d.x + sigma * noise))
    assert value.dtype == torch.float64 and value.shape == ()
    torch.testing.assert_close(value, by_hand)
    found = torch.autograd.grad(value, d.a)
    torch.testing.assert_close(found, torch.autograd.grad(by_hand, d.a))


def test_the_approximate_penalty_is_r1_in_the_mean():
    d = Quadratic()
    approximate, exact = losses.penalties(["approximate-r1:2", "r1:2"])
    x = d.x.repeat(20_000, 1)
    near = x + approximate.sigma * torch.randn_like(x)
    found = approximate.value_nearby(d.logits(x), d.logits(near))
    x = d.x.clone().requires_grad_()
    assert found.item() == pytest.approx(exact.value(d.logits(x), x).item(), rel=0.02)


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.last, self.seen = nn.Dropout(0.5), nn.Linear(36, 1), []

    def forward(self, x):
        h = self.drop(x.flatten(1))
        self.seen.append((x.detach(), (h != 0).detach()))
        return self.last(h)


@pytest.mark.parametrize("at", losses.PLACES)
def test_neighbours_are_at_noise_of_a_stream_of_its_own_and_have_the_same_masks(at):
    p = problem(d=Dropped(), penalties=losses.Penalty("near", square, at, sigma=0.25), d_steps=2)
    p.discriminator.seen = seen = []
    EagerEngine(p).run(1)
    passes = 3 if at in ("real", "fake") else 4
    assert len(seen) == 2 * passes + 1
    for update in range(2):
        of_update = seen[update * passes : (update + 1) * passes]
        points, kept = of_update[{"real": 0, "fake": 1}.get(at, 2)]
        near, masks = of_update[-1]
        stream = random.Stream.NEARBY + losses.PLACES.index(at)
        noise = random.normal(p.seed, stream, update, tuple(points.shape))
        torch.testing.assert_close(near, points + 0.25 * noise)
        assert torch.equal(kept, masks)


def square(slope):
    return slope.square().mean()


def test_a_method_asks_for_the_approximate_penalty_by_its_word():
    class Own:
        def d_loss(self, step):
            on_real, on_fake = step.score(step.real), step.score(step.fake)
            loss = on_fake.mean() - on_real.mean()
            step.report(loss, on_real, on_fake)
            return loss + step.penalty("approximate-r1:3")

        def g_loss(self, step):
            return -step.score(step.fake).mean()

    p, q = problem(method=Own()), problem(loss="wasserstein", penalties="approximate-r1:3")
    found, expected = EagerEngine(p).run(3), EagerEngine(q).run(3)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch.equal(found, EagerEngine(problem(loss="wasserstein")).run(3))


def test_dragan_looks_around_the_real_samples():
    """Along half the spread of the batch times uniform noise, as far as a uniform number says."""
    seen = []

    class Slope:
        def d_loss(self, step):
            at = step.points("around", step.real, step.fake)
            seen.append((step.real, at))
            return step.penalty("dragan") + step.D(step.real).mean()

        def g_loss(self, step):
            return step.D(step.fake).mean()

    p = problem(method=Slope(), batch_size=20)
    EagerEngine(p).run(1)
    (real, at), numbers = seen[0], random.normal(p.seed, AROUND_STREAM, 0, (20, 37))
    uniform = torch.special.ndtr(numbers)
    noise = uniform[:, 1:].view(20, 1, 6, 6) * uniform[:, 0].view(20, 1, 1, 1)
    torch.testing.assert_close(at.detach(), real + 0.5 * real.std(correction=0) * noise)
    assert at.requires_grad
    q = problem(loss="wasserstein", penalties="dragan")
    before = weights(q.discriminator)
    assert EagerEngine(q).run(3).isfinite().all() and not same(weights(q.discriminator), before)


def test_a_lazy_penalty_is_as_much_heavier_as_it_is_rarer():
    d = Quadratic()
    x = d.x.clone().requires_grad_()
    lazy, eager = losses.penalties(["r1:2:4", "r1:2"])
    assert [lazy.due(u) for u in range(9)] == [u % 4 == 0 for u in range(9)]
    assert all(eager.due(u) for u in range(3))
    torch.testing.assert_close(
        lazy.value(d.logits(x), x), 4 * eager.value(d.logits(x), x), rtol=1e-12, atol=0
    )


def test_a_flat_discriminator_has_a_finite_penalty_with_finite_gradients():
    w = torch.zeros(3, requires_grad=True)
    for name, value in (("r1", 0.0), ("wgan-gp", 10.0)):
        x = torch.randn(2, 3, requires_grad=True)
        found = losses.PENALTIES[name].value((x * w).sum(1), x)
        assert found == value
        (grad,) = torch.autograd.grad(found, w)
        assert torch.isfinite(grad).all()


def test_half_precision_slopes_are_squared_in_float32():
    x = torch.full((1, 4), 300.0, dtype=torch.float16, requires_grad=True)
    value = losses.penalties("r1:2")[0].value((x * 300).sum(1), x)
    assert value.dtype == torch.float32 and value == 4 * 300.0**2


def test_penalties_are_chosen_by_name_or_given():
    assert losses.penalties() == losses.penalties(None) == losses.penalties([]) == ()
    (chosen,) = losses.penalties("r1")
    assert (chosen.weight, chosen.every, chosen.at) == (10.0, 1, "real")
    assert [p.at for p in losses.penalties(["r2", "wgan-gp"])] == ["fake", "between"]
    own = losses.Penalty("own", lambda slope: slope.abs().mean(), weight=3.0)
    assert losses.penalties(own) == (own,)
    assert losses.penalties(["r1:0.5:16", own]) == (
        losses.Penalty("r1", losses.PENALTIES["r1"].of, "real", 0.5, 16),
        own,
    )
    assert pickle.loads(pickle.dumps(chosen)) == chosen
    assert str(losses.penalties("r1:0.5:16")[0]) == "r1:0.5:16" and str(chosen) == "r1:10"
    (near,) = losses.penalties("approximate-r1:2:1:0.1")
    assert (near.weight, near.every, near.sigma) == (2.0, 1, 0.1)
    assert losses.penalties(str(near)) == (near,) and str(near) == "approximate-r1:2:1:0.1"
    assert str(losses.PENALTIES["approximate-r1"]) == "approximate-r1:10"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("r3", "'r3' is none; expected one of r1, r2, approximate-r1, wgan-gp, dragan, as name"),
        ("ar1", "'ar1' is 'approximate-r1' here"),
        ("approximate-r1:1:1:-1", "sigma is -1.0; expected a finite number of at least 0"),
        ("gradient-penalty", "'gradient-penalty' is 'wgan-gp' here"),
        ("r1:0", "penalty 'r1': weight is 0.0; expected a finite number above 0"),
        ("r1:nan", "weight is nan"),
        ("r1:1:0", "every is 0; expected an integer of at least 1"),
        ("r1:1:1.5", "'r1:1:1.5' is none"),
        ("r1:1:1:1", "'r1:1:1:1' is none"),
        ([3], "3 is none"),
    ],
)
def test_a_bad_penalty_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        losses.penalties(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "nowhere"}, "'own': at is 'nowhere'; expected one of real, fake, between, around"),
        ({"weight": "heavy"}, "penalty 'own': weight is 'heavy'"),
        ({"every": True}, "penalty 'own': every is True"),
        ({"sigma": float("inf")}, "penalty 'own': sigma is inf"),
        ({"of": 3}, "penalty 'own': of is 3; expected a function of the gradients"),
    ],
)
def test_a_bad_penalty_of_ones_own_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        losses.Penalty(**{"name": "own", "of": lambda slope: slope.sum(), **options})
