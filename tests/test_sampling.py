"""Images from a generator that a run has saved, and from one at hand."""

import pytest
import torch
from torch import nn

from fastgan.latents import latent
from fastgan.run.checkpoint import CheckpointError
from fastgan.sampling import load_generator, sample
from fastgan.trainer import Trainer

SHAPE = (1, 6, 6)
CPU = torch.device("cpu")
OPTIONS = {
    "latent_dim": 5, "batch_size": 8, "device": "cpu", "engine": "eager", "console": "none",
}  # fmt: skip


class Noisy(nn.Module):
    """A generator with BatchNorm, and noise from torch's own generator."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 36), nn.BatchNorm1d(36), nn.Tanh())

    def forward(self, z):
        return self.body(z + 0.1 * torch.randn_like(z)).view(-1, *SHAPE)


def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (50, *SHAPE), generator=generator, dtype=torch.uint8)


def test_a_saved_generator_draws_what_its_trainer_drew(tmp_path):
    t = Trainer(None, None, pixels(), ema=0.9, out=tmp_path / "a", **OPTIONS)
    t.fit(steps=4)
    g, config = load_generator(tmp_path / "a")
    assert torch.equal(sample(g, 5, latent(5), config["seed"], CPU), t.sample(5))
    assert not torch.equal(sample(t.generator, 5, latent(5), config["seed"], CPU), t.sample(5))


def test_a_users_own_generator_must_be_given(tmp_path):
    d = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    t = Trainer(Noisy(), d, pixels(), out=tmp_path, **OPTIONS)
    t.fit(steps=1)
    with pytest.raises(CheckpointError, match="pass generator="):
        load_generator(tmp_path)
    with pytest.raises(CheckpointError, match="generator does not fit .*missing"):
        load_generator(tmp_path, nn.Linear(5, 36))
    g, config = load_generator(tmp_path, Noisy())
    assert torch.equal(g.body[0].weight, t.generator.body[0].weight)
    assert torch.equal(sample(g, 5, latent(5), config["seed"], CPU), t.sample(5))


def test_a_look_changes_nothing():
    torch.manual_seed(4)
    g = Noisy()
    g.body[1].eval()
    state, modes = torch.get_rng_state(), [m.training for m in g.modules()]
    weights = {key: value.clone() for key, value in g.state_dict().items()}
    first, again = (sample(g, 300, latent(5), 7, CPU) for _ in range(2))
    assert first.shape == (300, *SHAPE) and first.abs().max() <= 1
    assert torch.equal(first, again), "noise inside the network is the same too"
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in g.modules()]
    assert all(torch.equal(value, weights[key]) for key, value in g.state_dict().items())
    with pytest.raises(ValueError, match="n is 0; expected an integer of at least 1"):
        sample(g, 0, latent(5), 7, CPU)


def test_what_is_no_image_is_not_clamped(tmp_path):
    g = nn.Sequential(nn.Linear(5, 12))
    with torch.no_grad():
        g[0].bias += 10
    d = nn.Linear(12, 1)
    t = Trainer(g, d, torch.randn(40, 12), out=tmp_path / "a", **OPTIONS)
    t.fit(steps=2)
    assert t.sample(6).shape == (6, 12) and t.sample(6).amin() > 1
    assert not (tmp_path / "a" / "samples.png").exists(), "and not drawn"
    assert not (tmp_path / "a" / "samples").exists()
    again = Trainer.resume(tmp_path / "a", g, d, t.data)
    assert torch.equal(again.sample(6), t.sample(6))
