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
