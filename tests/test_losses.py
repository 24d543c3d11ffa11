"""The games against their definitions."""

import pickle

import pytest
import torch
import torch.nn.functional as F

from fastgan import losses


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(6, 1), torch.randn(4, 1)


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
    }


@pytest.mark.parametrize("name", list(losses.GAMES))
def test_game_is_its_definition(name, logits):
    real, fake = logits
    game = losses.game(name)
    d_loss, g_loss = definitions(real, fake)[name]
    torch.testing.assert_close(game.d_loss(real, fake), d_loss)
    torch.testing.assert_close(game.g_loss(fake), g_loss)
    assert game.name == name
    assert game.takes_sigmoid == (name in ("minimax", "non-saturating"))


@pytest.mark.parametrize("name", list(losses.GAMES))
def test_losses_are_float32_and_differentiable_for_bfloat16_logits(name, logits):
    real, fake = (t.bfloat16().requires_grad_() for t in logits)
    game = losses.game(name)
    for loss, given in ((game.d_loss(real, fake), (real, fake)), (game.g_loss(fake), (fake,))):
        assert loss.dtype == torch.float32 and loss.shape == ()
        for grad in torch.autograd.grad(loss, given):
            assert grad.dtype == torch.bfloat16 and grad.abs().sum() > 0


def test_default_is_non_saturating():
    assert losses.game().name == "non-saturating"


def test_label_smoothing_is_one_sided(logits):
    real, fake = logits
    game = losses.game("minimax", 0.1)
    assert game.label_smoothing == 0.1
    torch.testing.assert_close(game.d_loss(real, fake), bce(real, 0.9) + bce(fake, 0.0))
    torch.testing.assert_close(game.g_loss(fake), losses.game("minimax").g_loss(fake))


def test_own_game_passes_through(logits):
    own = losses.Game("own", lambda r, f: f.mean() - r.mean(), lambda f: -f.mean())
    assert losses.game(own) is own
    with pytest.raises(ValueError, match="label_smoothing"):
        losses.game(own, 0.1)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="loss is 'nonsense'.*minimax"):
        losses.game("nonsense")
    with pytest.raises(ValueError, match="label_smoothing is 0.1.*hinge"):
        losses.game("hinge", 0.1)
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="label_smoothing"):
            losses.game("minimax", wrong)


@pytest.mark.parametrize("name", list(losses.GAMES))
def test_games_pickle_and_compare(name):
    assert pickle.loads(pickle.dumps(losses.game(name))) == losses.game(name)
    assert losses.game("minimax", 0.1) == losses.game("minimax", 0.1) != losses.game("minimax")


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
        "wgan-gp": weight * ((d.slope().pow(2).sum(1).sqrt() - 1) ** 2).mean(),
    }
    assert set(expected) == set(losses.PENALTIES)
    for name, by_hand in expected.items():
        x = d.x.clone().view(5, 1, 2, 2).requires_grad_()
        penalty = losses.penalty(name, weight)
        value = penalty.value(d.logits(x.flatten(1)), x, scale)
        assert value.dtype == torch.float64 and value.shape == ()
        torch.testing.assert_close(value, by_hand)
        found = torch.autograd.grad(value, d.a)
        torch.testing.assert_close(found, torch.autograd.grad(by_hand, d.a))


def test_a_lazy_penalty_is_as_much_heavier_as_it_is_rarer():
    d = Quadratic()
    x = d.x.clone().requires_grad_()
    lazy, eager = losses.penalty("r1", 2.0, 4), losses.penalty("r1", 2.0)
    assert [lazy.due(u) for u in range(9)] == [u % 4 == 0 for u in range(9)]
    assert all(eager.due(u) for u in range(3))
    torch.testing.assert_close(
        lazy.value(d.logits(x), x), 4 * eager.value(d.logits(x), x), rtol=1e-12, atol=0
    )


def test_a_flat_discriminator_has_a_finite_penalty_with_finite_gradients():
    w = torch.zeros(3, requires_grad=True)
    for name, value in (("r1", 0.0), ("wgan-gp", 10.0)):
        x = torch.randn(2, 3, requires_grad=True)
        found = losses.penalty(name).value((x * w).sum(1), x)
        assert found == value
        (grad,) = torch.autograd.grad(found, w)
        assert torch.isfinite(grad).all()


def test_half_precision_slopes_are_squared_in_float32():
    x = torch.full((1, 4), 300.0, dtype=torch.float16, requires_grad=True)
    value = losses.penalty("r1", 2.0).value((x * 300).sum(1), x)
    assert value.dtype == torch.float32 and value == 4 * 300.0**2


def test_penalties_are_chosen_by_name_or_given():
    assert losses.penalty() is None and losses.penalty(None) is None
    chosen = losses.penalty("r1")
    assert (chosen.weight, chosen.every, chosen.between) == (10.0, 1, False)
    assert losses.penalty("wgan-gp").between
    own = losses.Penalty("own", lambda slope: slope.abs().mean(), weight=3.0)
    assert losses.penalty(own) == own
    assert losses.penalty(own, every=2).every == 2 and losses.penalty(own, every=2).weight == 3.0
    assert pickle.loads(pickle.dumps(chosen)) == chosen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("r3",), "penalty is 'r3'; it must be one of r1, wgan-gp"),
        (("r1", 0.0), "penalty_weight is 0.0"),
        (("r1", float("nan")), "penalty_weight is nan"),
        (("r1", None, 0), "penalty_every is 0"),
        (("r1", None, 1.5), "penalty_every is 1.5"),
        ((None, 5.0), "penalty_weight is 5.0, but there is no penalty"),
        ((None, None, 2), "penalty_every is 2, but there is no penalty"),
    ],
)
def test_a_bad_penalty_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.penalty(*arguments)
