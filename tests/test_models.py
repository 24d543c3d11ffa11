"""State dicts move between fastgan's pairs and the programs people know; shapes, first weights."""

import json
import math

import pytest
import torch
from torch import nn

import fastgan
from fastgan import data, engines
from fastgan.models import MODELS, DCGANDiscriminator, DCGANGenerator, Form, registry
from fastgan.problem import make_problem


class Generator(nn.Module):
    """The generator of the program that people start from."""

    def __init__(self, latent_dim=100, img_shape=(1, 28, 28)):
        super().__init__()
        self.img_shape = img_shape
        self.fc = nn.Sequential(
            nn.Linear(latent_dim, 256),
            nn.LeakyReLU(0.2),
            nn.Linear(256, math.prod(img_shape)),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.fc(z).view(z.size(0), *self.img_shape)


class Discriminator(nn.Module):
    """Its discriminator; some copies flatten in the forward method, others by a first layer."""

    def __init__(self, img_shape=(1, 28, 28), flatten_layer=False):
        super().__init__()
        self.model = nn.Sequential(
            *([nn.Flatten()] if flatten_layer else []),
            nn.Linear(math.prod(img_shape), 256),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Linear(256, 1),
            nn.Sigmoid(),
        )

    def forward(self, img):
        return self.model(img.view(img.size(0), -1))


SHAPES = [(1, 28, 28), (3, 32, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fused", [False, True])
def test_generator_both_ways(shape, fused):
    theirs, ours = Generator(100, shape), fastgan.Generator(100, shape)
    if fused:
        ours = fastgan.fuse(ours)
    z = torch.randn(5, 100)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.allclose(ours(z), theirs(z), atol=1e-6)
    assert ours(z).shape == (5, *shape)
    fresh = Generator(100, shape)
    fresh.load_state_dict(fastgan.Generator(100, shape).state_dict(), strict=True)
    fresh.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(fresh(z), theirs(z))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fused", [False, True])
def test_discriminator_both_ways(shape, fused):
    theirs, ours = Discriminator(shape).eval(), fastgan.Discriminator(shape).eval()
    if fused:
        ours = fastgan.fuse(ours)
    x = torch.rand(5, *shape) * 2 - 1
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert ours(x).shape == (5, 1)
    fresh = Discriminator(shape).eval()
    fresh.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(fresh(x), theirs(x))


def test_the_copy_with_a_flatten_layer_loads_too():
    theirs, ours = Discriminator(flatten_layer=True).eval(), fastgan.Discriminator().eval()
    state = theirs.state_dict()
    before = list(state)
    ours.load_state_dict(state, strict=True)
    assert list(state) == before
    x = torch.rand(5, 1, 28, 28)
    assert torch.equal(ours(x), theirs(x))


def test_a_wrong_state_is_still_refused():
    with pytest.raises(RuntimeError, match="model.0.weight"):
        fastgan.Discriminator().load_state_dict({}, strict=True)


# DCGAN


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_dcgan_shapes(size, channels):
    g = DCGANGenerator(7, size, channels, width=2)
    d = DCGANDiscriminator(size, channels, width=2)
    z = torch.randn(3, 7)
    images = g(z)
    assert images.shape == (3, channels, size, size) and g.img_shape == images.shape[1:]
    assert images.abs().max() <= 1
    torch.testing.assert_close(g.eval()(z.view(3, 7, 1, 1)), g(z))
    scores = d(images)
    assert scores.shape == (3, 1) and ((scores > 0) & (scores < 1)).all()
    raw = DCGANDiscriminator(size, channels, width=2, sigmoid=False)
    raw.load_state_dict(d.state_dict(), strict=True)
    torch.testing.assert_close(raw.eval()(images).sigmoid(), d.eval()(images))


def test_dcgan_at_64_is_the_known_program():
    """Names and shapes of the example's state dicts; in the paper G begins with 1024 maps of 4x4,
    which is width 128."""
    g, d = DCGANGenerator(), DCGANDiscriminator()
    weights = {name: tuple(t.shape) for name, t in g.state_dict().items() if t.ndim == 4}
    assert weights == {
        "main.0.weight": (100, 512, 4, 4),
        "main.3.weight": (512, 256, 4, 4),
        "main.6.weight": (256, 128, 4, 4),
        "main.9.weight": (128, 64, 4, 4),
        "main.12.weight": (64, 3, 4, 4),
    }
    weights = {name: tuple(t.shape) for name, t in d.state_dict().items() if t.ndim == 4}
    assert weights == {
        "main.0.weight": (64, 3, 4, 4),
        "main.2.weight": (128, 64, 4, 4),
        "main.5.weight": (256, 128, 4, 4),
        "main.8.weight": (512, 256, 4, 4),
        "main.11.weight": (1, 512, 4, 4),
    }
    norms = {name.rpartition(".")[0] for name in g.state_dict() if "running_mean" in name}
    assert norms == {"main.1", "main.4", "main.7", "main.10"}
    norms = {name.rpartition(".")[0] for name in d.state_dict() if "running_mean" in name}
    assert norms == {"main.3", "main.6", "main.9"}
    assert sum(p.numel() for p in DCGANGenerator(width=128).parameters()) == sum(
        (100 * 1024 * 16, 1024 * 512 * 16, 512 * 256 * 16, 256 * 128 * 16, 128 * 3 * 16)
    ) + 2 * (1024 + 512 + 256 + 128)


def test_dcgan_begins_with_the_papers_weights():
    torch.manual_seed(0)
    network = nn.Sequential(
        DCGANDiscriminator(32, width=16), nn.Linear(50, 60), nn.BatchNorm1d(4, affine=False)
    )
    assert fastgan.models.init_dcgan(network) is network
    for m in network.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            n = m.weight.numel()
            assert abs(m.weight.std().item() - 0.02) < 0.02 * 4 / (2 * n) ** 0.5
            assert abs(m.weight.mean().item()) < 0.02 * 4 / n**0.5
        if isinstance(m, nn.BatchNorm2d):
            assert 0 < m.weight.std() < 0.04 and (m.bias == 0).all()
            assert abs(m.weight.mean().item() - 1) < 0.02 * 4 / m.weight.numel() ** 0.5
    assert (network[1].bias == 0).all()


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("latent_dim", [6, (6, 1, 1)])
def test_dcgan_trains_by_the_eager_engine(size, latent_dim):
    torch.manual_seed(0)
    g, d = DCGANGenerator(6, size, 3, width=2), DCGANDiscriminator(size, 3, width=2)
    before = [p.detach().clone() for p in (*g.parameters(), *d.parameters())]
    images = data.open(torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8))
    problem = make_problem(g, d, images, batch_size=4, latent_dim=latent_dim, device="cpu")
    engine, _ = engines.choose(problem, "eager")
    found = engine.run(1)
    # Both begin undecided: 2 ln 2 and ln 2.
    torch.testing.assert_close(found[:, :2], torch.tensor([[1.386, 0.693]]), rtol=0.2, atol=0)
    after = (*g.parameters(), *d.parameters())
    assert all((p != q).any() for p, q in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"image_size": 48}, "image_size is 48"),
        ({"image_size": 8}, "image_size is 8"),
        ({"channels": 0}, "channels is 0"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_dcgan_refuses_sizes_it_cannot_have(arguments, said):
    for network in (DCGANGenerator, DCGANDiscriminator):
        with pytest.raises(ValueError, match=said):
            network(**arguments)
    with pytest.raises(ValueError, match="latent_dim is 0"):
        DCGANGenerator(0)


# The registry


FORMS = {
    "sn-resnet": Form((3, 32, 32), classes=4),
    "ctgan": Form((5,), classes=4, heads=(("tanh", 2), ("softmax", 3))),
}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("sigmoid", [True, False])
def test_every_model_is_made_described_and_made_again(name, sigmoid):
    form = FORMS.get(name, Form((3, 16, 16)))
    for one in registry.make(name, form, 7, 4, sigmoid):
        n = 3 * getattr(one, "pack", 1)
        condition = () if form.classes is None else (torch.arange(n) % form.classes,)
        described = registry.describe(one)
        with torch.no_grad():  # the scales and shifts of the classes begin alike
            for w in one.parameters():
                w.add_(0.1 * torch.randn_like(w))
        again = registry.rebuild(json.loads(json.dumps(described)))
        again.load_state_dict(one.state_dict(), strict=True)
        x = torch.rand(n, 7) if "latent_dim" in described else torch.rand(n, *form.shape)
        torch.manual_seed(0)
        expected = one.eval()(x, *condition)
        torch.manual_seed(0)
        assert torch.equal(again.eval()(x, *condition), expected)
        if condition:
            assert not torch.equal(one(x, condition[0].flip(0)), expected)
            with pytest.raises(ValueError, match="was made for .* and was given none"):
                one(x)
    assert expected.shape == (3, 1)
    may_end = name in ("mlp", "dcgan", "points")
    assert any(type(m) is nn.Sigmoid for m in one.modules()) == (sigmoid and may_end)


def test_a_network_of_a_users_own_is_not_described():
    class Changed(fastgan.Generator):
        pass

    assert registry.describe(nn.Linear(3, 4)) is None
    assert registry.describe(Changed(7, (1, 6, 6))) is None, "it may well compute something else"


def test_the_mlp_pair_is_for_samples_of_any_shape():
    for shape in ((12,), (2, 5), (1, 6, 6), (2, 3, 4, 5)):
        g, d = registry.make("mlp", Form(shape), 5, None, True)
        assert g(torch.zeros(2, 5)).shape == (2, *shape) and d(torch.zeros(2, *shape)).shape == (
            2,
            1,
        )
        assert g.fc[0].out_features == 256, "its own width"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("dcgan", (1, 16, 24), 5),
            r"square images, and a sample is .1, 16, 24.; give image_size=",
        ),
        (("dcgan", (12,), 5), r"square images, and a sample is .12."),
        (("dcgan", (1, 28, 28), 5), "image_size is 28; the DCGAN pair takes a power of two"),
        (("sn-resnet", (3, 16, 16), 5), "image_size is 16; .* takes one of .32, 64"),
        (("r3gan", (3, 12, 12), 5), "image_size is 12; the R3GAN pair takes a power of two"),
        (("ctgan", (1, 28, 28), 5), "rows of a table, and a sample is .1, 28, 28.; give a CSV"),
        (("mlp", (1, 6, 6), (5, 1)), "latent_dim is .5, 1.; model 'mlp' takes vectors: a length"),
    ],
)
def test_data_that_a_model_is_not_for(arguments, said):
    with pytest.raises(ValueError, match=said):
        name, shape, latent_dim = arguments
        registry.make(name, Form(shape), latent_dim, None, True)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"network": "Evil"}, "network is 'Evil'; expected one of Generator, Discriminator"),
        ({"network": "Generator", "latent_dim": -1}, "Generator cannot be made of"),
        ({"network": "Generator", "what": 1}, "Generator cannot be made of .*'what'"),
        ({}, "network is None"),
    ],
)
def test_a_description_that_is_none(described, said):
    with pytest.raises(ValueError, match=said):
        registry.rebuild(described)
