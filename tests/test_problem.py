"""What a user says becomes a Problem, or a clear error."""

import copy
import functools

import pytest
import torch
from small_runs import SHAPE, pixels
from torch import nn

from fastgan import Config, data, losses, optim, problem
from fastgan.models import Discriminator, Generator
from fastgan.problem import make_problem


def own_pair():
    g = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 36), nn.Unflatten(1, SHAPE))
    return g, nn.Sequential(nn.Flatten(), nn.Linear(36, 1))


def make(g=None, d=None, source=None, **options):
    options = {"batch_size": 8, "latent_dim": 5, "device": "cpu", **options}
    return make_problem(g, d, source or data.open(pixels()), **options)


# --- the networks ---------------------------------------------------------------------------------


def frozen():
    return nn.Linear(5, 36).requires_grad_(False)


@pytest.mark.parametrize(
    ("g", "message"),
    [
        (None, "pass both generator and discriminator, or None for both"),
        (Generator, r"generator is a type; expected an nn.Module: Generator is a class; pass Gen"),
        (lambda z: z, "generator is a function; expected an nn.Module"),
        (frozen(), "generator has no weight to train: requires_grad is False for all"),
        (nn.Tanh(), "generator has no weight to train$"),
        (nn.Sequential(nn.LazyLinear(3)), r"generator.0.weight has no shape yet .a lazy layer"),
    ],
)
def test_what_is_no_generator_is_said(g, message):
    with pytest.raises(ValueError, match=message):
        make(g, own_pair()[1])


def test_the_discriminator_is_looked_at_likewise():
    with pytest.raises(ValueError, match="discriminator is a type; .*Discriminator is a class"):
        make(own_pair()[0], Discriminator)


def test_latents_of_a_shape_are_not_for_our_own_pair():
    with pytest.raises(ValueError, match=r"latent_dim is \(5, 1\); model 'mlp' takes vectors"):
        make(latent_dim=(5, 1))
    with pytest.raises(ValueError, match="device 'cuda:99' cannot be used"):
        make(device="cuda:99")


def test_devices_that_are_none_or_the_same():
    with pytest.raises(
        ValueError, match="device 'meta' cannot be used: its tensors have no values"
    ):
        make(device="meta")
    assert make(device="cpu:0").device == torch.device("cpu")


def test_without_networks_there_is_the_pair_of_the_model_from_the_seed():
    state = torch.get_rng_state()
    p, same, other = make(seed=3), make(seed=3), make(seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert type(p.generator) is Generator and type(p.discriminator) is Discriminator
    assert torch.equal(p.generator.fc[0].weight, same.generator.fc[0].weight)
    assert not torch.equal(p.generator.fc[0].weight, other.generator.fc[0].weight)
    assert p.generator(torch.zeros(2, 5)).shape == (2, *SHAPE)
    assert make(width=7).generator.fc[0].out_features == 7


@pytest.mark.parametrize("loss", list(losses.LOSSES))
def test_losses_on_raw_scores_get_no_sigmoid(loss):
    d = make(loss=loss).discriminator
    assert isinstance(d.model[-1], nn.Sigmoid) == (loss in ("minimax", "non-saturating"))


def test_settings_come_from_a_config_and_overrides():
    c = Config(batch_size=4, latent_dim=5, device="cpu", d_steps=3)
    p = make_problem(None, None, data.open(pixels()), c, d_steps=2, ema=0.5)
    assert (p.batch_size, p.d_steps, p.ema_decay, p.latent.shape) == (4, 2, 0.5, (5,))
    assert p.batches_per_epoch == 13 and p.steps_per_epoch == 7
    assert make(drop_last=True).batches_per_epoch == 6
    drawn = make(seed=None)
    assert drawn.seed == drawn.config.seed is not None


def test_channels_last_is_for_the_convolutions():
    g = nn.Sequential(nn.ConvTranspose2d(5, 1, 6), nn.Tanh())
    d = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 1))
    p = make(g, d, latent_dim=(5, 1, 1), channels_last=True)
    assert p.discriminator[0].weight.is_contiguous(memory_format=torch.channels_last)


# --- the optimisers -------------------------------------------------------------------------------


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


def test_an_optimiser_is_a_class_a_factory_a_word_or_made():
    g, d = own_pair()
    p = make(g, d, optimizer=(torch.optim.SGD, "rmsprop"), lr=(0.1, 0.2), weight_decay=0.5)
    assert type(p.optimizer_g) is torch.optim.SGD and type(p.optimizer_d) is torch.optim.RMSprop
    assert [o.param_groups[0]["lr"] for o in (p.optimizer_g, p.optimizer_d)] == [0.1, 0.2]
    assert p.optimizer_g.param_groups[0]["weight_decay"] == 0.5
    assert make(g, d, optimizer=torch.optim.Adam, betas=(0.1, 0.2)).optimizer_g.defaults[
        "betas"
    ] == (0.1, 0.2)

    factory = functools.partial(torch.optim.SGD, lr=0.25, momentum=0.9)
    p = make(g, d, optimizer=factory)
    group = p.optimizer_d.param_groups[0]
    assert group["momentum"] == 0.9 and group["lr"] == 0.25 and group["params"][0] is d[1].weight

    made = [torch.optim.SGD(n.parameters(), lr=0.5) for n in (g, d)]
    p = make(g, d, optimizer=made)
    assert (p.optimizer_g, p.optimizer_d) == tuple(made)
    p = make(g, d, optimizer=(made[0], "adam"))
    assert p.optimizer_g is made[0] and type(p.optimizer_d) is optim.Adam


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": torch.optim.SGD, "betas": (0.1, 0.2)}, "betas was given, but the optimizer"),
        ({"optimizer": "sgd", "eps": 1e-3}, "eps was given, but the optimizer of the generator"),
        ({"optimizer": lambda p: torch.optim.SGD(p, 0.1), "lr": 0.2}, "lr was given, but the opt"),
        ({"optimizer": lambda p: 3}, "optimizer of the generator: .* gave a int; expected a torch"),
        ({"optimizer": lambda: 3}, "optimizer of the generator: .* failed: .*positional argument"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS.*step needs a closure"),
    ],
)
def test_an_optimiser_that_cannot_be_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        make(*own_pair(), **options)


def test_optimisers_of_other_networks_are_refused():
    g, d = own_pair()
    of_g, of_d = (torch.optim.SGD(n.parameters(), lr=0.5) for n in (g, d))
    with pytest.raises(
        ValueError, match="optimizer of the generator holds none of the generator's"
    ):
        make(g, d, optimizer=(of_d, of_g))
    with pytest.raises(ValueError, match="one optimiser serves one network: give two"):
        make(g, d, optimizer=of_g)


# --- the average ----------------------------------------------------------------------------------


def test_the_average_is_a_copy_that_is_not_trained():
    g, d = own_pair()
    p = make(g, d, ema=0.5)
    assert p.ema is not g and p.ema_decay == 0.5
    assert not any(w.requires_grad for w in p.ema.parameters())
    before = copy.deepcopy(p.ema.state_dict())
    with torch.no_grad():
        g[0].weight.zero_()
    assert all(torch.equal(value, before[key]) for key, value in p.ema.state_dict().items())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_is_copied_in_whatever_state_it_is():
    old = nn.utils.weight_norm(nn.Linear(5, 36))
    spectral = nn.utils.spectral_norm(nn.Linear(5, 36))
    new = nn.utils.parametrizations.weight_norm(nn.Linear(5, 36))
    for layer in (old, spectral, new):
        g = nn.Sequential(layer, nn.Unflatten(1, SHAPE))
        g(torch.zeros(2, 5))  # leaves a computed weight in some of them
        p = make(g, own_pair()[1], ema=0.5)
        x = torch.randn(3, 5)
        assert torch.equal(p.ema.eval()(x), g.eval()(x))


def test_a_network_that_cannot_be_copied_is_said_with_the_reason():
    class Held(nn.Linear):
        def __init__(self):
            super().__init__(5, 36)
            self.lock = __import__("threading").Lock()

        def forward(self, z):
            return super().forward(z).view(-1, *SHAPE)

    with pytest.raises(ValueError, match="generator cannot be copied, which ema needs: .*lock"):
        make(Held(), own_pair()[1], ema=0.5)
    assert make(Held(), own_pair()[1]).ema is None


# --- data -----------------------------------------------------------------------------------------


def test_data_and_how_to_open_them_again(tmp_path, monkeypatch):
    from PIL import Image

    def opened(source, **settings):
        found, c = problem.open_data(source, Config(**settings))
        return found, c.data, c.image_size

    assert opened(None)[1] == "digits" and opened("digits")[1] == "digits"
    own = data.open(pixels())
    assert opened(own) == (own, None, None) and opened(own.samples)[1] is None
    (tmp_path / "pictures").mkdir()
    Image.new("L", (6, 6)).save(tmp_path / "pictures" / "a.png")
    monkeypatch.chdir(tmp_path)
    found, source, size = opened("pictures", image_size=4)
    assert found.shape == (1, 4, 4) and source == str(tmp_path / "pictures") and size == 4
    # What was said where the data were opened belongs to the run as well.
    found, source, size = opened(data.open("pictures", image_size=5))
    assert found.shape == (1, 5, 5) and source == str(tmp_path / "pictures") and size == 5
    with pytest.raises(ValueError, match="image_size was given, but the data are already open"):
        opened(found, image_size=4)
    with pytest.raises(ValueError, match="data is None; pass a name"):
        opened(None, data=None)
    with pytest.raises(ValueError, match="a DataLoader.*pass its data set"):
        opened(torch.utils.data.DataLoader(pixels()))
