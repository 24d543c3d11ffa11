"""State dicts move between fastgan's pair and the classic small program, both ways, strictly."""

import math

import pytest
import torch
from torch import nn

import fastgan


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
