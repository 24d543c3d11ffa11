"""What a user says becomes a Problem, or a clear error; and a Problem can be written down."""

import copy
import json

import pytest
import torch
from torch import nn

from fastgan import data, losses, optim, problem
from fastgan.models import Discriminator, Generator
from fastgan.problem import arguments, make_problem, settings

SHAPE = (1, 6, 6)


def images(n=50):
    generator = torch.Generator().manual_seed(0)
    return data.open(torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8))


def own_pair():
    g = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 36), nn.Unflatten(1, SHAPE))
    return g, nn.Sequential(nn.Flatten(), nn.Linear(36, 1))


def make(g=None, d=None, source=None, **options):
    options = {"batch_size": 8, "latent_dim": 5, "device": "cpu", **options}
    return make_problem(g, d, source or images(), **options)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"batch_size": True}, "batch_size is True"),
        ({"d_steps": 0}, "d_steps is 0"),
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"latent_dim": (5, 1)}, r"latent_dim is \(5, 1\); the reference generator takes vectors"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": (1e-3, float("nan"))}, "lr is .*nan"),
        ({"lr": (1.0, 1.0, 1.0)}, "generator's, discriminator's"),
        ({"betas": (0.5, 1.0)}, "betas is .*expected two numbers"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; expected one of adam, adamw"),
        ({"optimizer": torch.optim.Adam}, "optimizer is <class .*expected one of adam, adamw"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"eps": 0.0}, "eps is 0.0; expected a finite number above 0"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"precision": "fp8"}, "precision is 'fp8'; expected one of fp32, bf16, fp16"),
        ({"penalty": "r3"}, "penalty is 'r3'"),
        ({"penalty_weight": 2.0}, "penalty_weight is 2.0, but there is no penalty"),
        ({"loss": "nice"}, "nice"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"device": "warp"}, "device 'warp' cannot be used"),
    ],
)
def test_arguments_are_checked_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_networks_come_in_pairs_and_a_batch_of_one_is_foreseen():
    with pytest.raises(ValueError, match="pass both generator and discriminator"):
        make(own_pair()[0])
    with pytest.raises(
        ValueError, match="17 images in batches of 8 leave a batch of one.*generator's BatchNorm1d"
    ):
        make(*own_pair(), images(17))
    assert len(make(*own_pair(), images(18)).data) == 18


def test_each_network_gets_the_optimiser_asked_for():
    for name, kind, decoupled in (("adam", optim.Adam, False), ("adamw", optim.AdamW, True)):
        p = make(lr=(0.1, 0.2), betas=(0, 0.9), optimizer=name, weight_decay=0.5, eps=1e-4)
        for optimizer, rate in ((p.optimizer_g, 0.1), (p.optimizer_d, 0.2)):
            group = optimizer.param_groups[0]
            assert type(optimizer) is kind and group["lr"] == rate
            assert (group["betas"], group["weight_decay"], group["eps"]) == ((0, 0.9), 0.5, 1e-4)
            # A step without a gradient of its own: an L2 penalty acts as one, whose size Adam
            # divides out again; decoupled decay takes its share.
            weight = optimizer.param_groups[0]["params"][0]
            before = weight.detach().clone()
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
            if decoupled:
                torch.testing.assert_close(weight.detach(), before * (1 - rate * 0.5))
            else:
                step = rate * (0.5 * before) / ((0.5 * before).abs() + 1e-4)
                torch.testing.assert_close(weight.detach(), before - step)


# --- the reference pair ---------------------------------------------------------------------------


def test_without_networks_there_is_the_reference_pair_from_the_seed():
    state = torch.get_rng_state()
    p, same, other = make(seed=3), make(seed=3), make(seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert type(p.generator) is Generator and type(p.discriminator) is Discriminator
    assert torch.equal(p.generator.fc[0].weight, same.generator.fc[0].weight)
    assert not torch.equal(p.generator.fc[0].weight, other.generator.fc[0].weight)
    assert p.generator(torch.zeros(2, 5)).shape == (2, *SHAPE)


@pytest.mark.parametrize("loss", list(losses.GAMES))
def test_games_on_raw_scores_get_no_sigmoid(loss):
    d = make(loss=loss).discriminator
    assert isinstance(d.model[-1], nn.Sigmoid) == (loss in ("minimax", "non-saturating"))
    again = problem.rebuild(problem.recipe(d))
    again.load_state_dict(d.state_dict())
    d.eval(), again.eval()
    x = torch.rand(3, *SHAPE)
    assert torch.equal(again(x), d(x))


def test_a_recipe_is_for_our_own_networks_only():
    recipe = problem.recipe(Generator(7, SHAPE))
    again = problem.rebuild(json.loads(json.dumps(recipe)))
    assert again(torch.zeros(2, 7)).shape == (2, *SHAPE)
    assert problem.recipe(own_pair()[0]) is None

    class Changed(Generator):
        pass

    assert problem.recipe(Changed(7, SHAPE)) is None, "it may well compute something else"


# --- written down ---------------------------------------------------------------------------------


def test_settings_make_the_same_problem_again():
    options = {
        "batch_size": 9, "loss": "minimax", "d_steps": 2, "lr": (1e-3, 2e-3), "betas": (0.1, 0.9),
        "optimizer": "adamw", "weight_decay": 0.25, "eps": 1e-6, "label_smoothing": 0.1,
        "ema": 0.75, "precision": "bf16", "seed": 2**64 - 1,
    }  # fmt: skip
    written = settings(make(**options))
    assert {**written, "lr": tuple(written["lr"]), "betas": tuple(written["betas"])} == {
        **options, "latent_dim": 5, "own_loss": False, "lr_schedule": False,
        "penalty": None, "own_penalty": False,
    }  # fmt: skip
    read = json.loads(json.dumps(written))
    assert settings(make(loss=read["loss"], **arguments(read))) == written


def test_settings_mark_what_they_cannot_hold():
    game = losses.Game("hinge", lambda r, f: f.mean() - r.mean(), lambda f: -f.mean())
    written = settings(make(*own_pair(), loss=game, lr_schedule=lambda step: 1.0))
    assert written["own_loss"] and written["lr_schedule"] and written["ema"] is None
    heavy = settings(make(*own_pair(), penalty="r1", penalty_weight=3.0, penalty_every=4))
    assert not heavy["own_penalty"]
    assert [heavy[name] for name in ("penalty", "penalty_weight", "penalty_every")] == ["r1", 3, 4]
    own = losses.Penalty("r1", lambda slope: slope.sum())
    assert settings(make(*own_pair(), penalty=own))["own_penalty"]
    g, d = own_pair()
    g.insert(0, nn.Flatten())
    written = settings(make(g, d, latent_dim=(5, 1)))
    assert written["latent_dim"] == [5, 1] and arguments(written)["latent_dim"] == (5, 1)


# --- data -----------------------------------------------------------------------------------------


def test_images_and_how_to_open_them_again(tmp_path, monkeypatch):
    from PIL import Image

    assert problem.open_images("digits")[1] == {"source": "digits"}
    opened = images()
    assert problem.open_images(opened) == (opened, None)
    assert problem.open_images(opened.pixels)[1] is None
    (tmp_path / "pictures").mkdir()
    Image.new("L", (6, 6)).save(tmp_path / "pictures" / "a.png")
    monkeypatch.chdir(tmp_path)
    found, source = problem.open_images({"source": "pictures", "image_size": 4})
    assert found.shape == (1, 4, 4)
    assert source == {"source": str(tmp_path / "pictures"), "image_size": 4}


def test_the_average_is_a_copy_that_is_not_trained():
    g, d = own_pair()
    p = make(g, d, ema=0.5)
    assert p.ema is not g and p.ema_decay == 0.5
    assert not any(w.requires_grad for w in p.ema.parameters())
    before = copy.deepcopy(p.ema.state_dict())
    with torch.no_grad():
        g[0].weight.zero_()
    assert all(torch.equal(value, before[key]) for key, value in p.ema.state_dict().items())
