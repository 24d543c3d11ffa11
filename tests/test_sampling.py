"""Images from a generator that a run has saved, and from one at hand."""

import math

import pytest
import torch
from small_runs import assert_same_bits, every_bit, own, own_pair
from torch import nn

from fastgan import data, models
from fastgan.cli import main
from fastgan.latents import latent
from fastgan.run import pictures
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


def test_truncated_latents_are_a_normal_distribution_cut_off():
    seen = []

    class Seeing(nn.Module):
        def forward(self, z):
            seen.append(z)
            return z

    for limit in (None, 0.5, 2.0, 9.0):
        sample(Seeing(), 4000, latent(5), 7, CPU, False, truncation=limit)
    z = [torch.cat(seen[i : i + 16]) for i in range(0, 64, 16)]
    order = z[0].flatten().argsort()
    for cut, limit in zip(z[1:], (0.5, 2.0, 9.0), strict=True):
        assert cut.abs().max() <= limit
        assert (cut.flatten()[order].diff() >= 0).all()
        # phi(limit) / (Phi(limit) - 1/2) is what truncation takes off the variance of 1.
        density = math.exp(-(limit**2) / 2) / math.sqrt(2 * math.pi)
        less = limit * density / (0.5 * math.erf(limit / math.sqrt(2)))
        assert abs(cut.var() - (1 - less)) < 0.02
    torch.testing.assert_close(z[3], z[0], rtol=1e-4, atol=1e-4)
    parts = latent({"noise": 2, "digit": "onehot:3", "code": "uniform:1"})
    a, b = (sample(Seeing(), 200, parts, 7, CPU, False, truncation=limit) for limit in (None, 0.5))
    assert torch.equal(a[:, 2:], b[:, 2:]) and b[:, :2].abs().max() <= 0.5 < a[:, :2].abs().max()
    for wrong, of in ((0.0, 5), (0.7, {"digit": "onehot:3"}), (0.7, None)):
        with pytest.raises(ValueError, match=f"truncation is {wrong}"):
            sample(Seeing(), 4, latent(of), 7, CPU, truncation=wrong)


class ByClass(nn.Module):
    """A generator of a shade for each class."""

    def __init__(self, latent_dim=5, classes=3):
        super().__init__()
        self.latent_dim, self.classes = latent_dim, classes
        self.body, self.of_class = nn.Linear(latent_dim, 36), nn.Embedding(max(1, classes), 36)

    def forward(self, z, y):
        return torch.tanh(self.body(z) + self.of_class(y)).view(-1, *SHAPE)

    def arguments(self):
        return {"latent_dim": self.latent_dim, "classes": self.classes}


def test_a_command_draws_a_row_for_each_class(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.registry.NETWORKS, "ByClass", ByClass)
    d = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    source = data.open((pixels(), torch.arange(50) % 3))
    t = Trainer(ByClass(), d, source, out=tmp_path / "run", **OPTIONS)
    t.fit(steps=1)
    plain = Trainer(None, None, pixels(), out=tmp_path / "plain", **OPTIONS)
    plain.fit(steps=1)
    drawn = []
    monkeypatch.setattr(pictures, "grid", lambda *given: drawn.append(given[::2]))
    run = str(tmp_path / "run")
    assert main(["sample", run, "--device", "cpu"]) == 0
    torch.testing.assert_close(drawn.pop()[0], t.sample(64))  # the classes in turn
    assert main(["sample", run, "--device", "cpu", "--classes", "all"]) == 0
    images, columns = drawn.pop()
    assert columns == 21 and images.shape == (63, *SHAPE)
    for c in range(3):
        expected = t.sample(21, condition=c)
        torch.testing.assert_close(images[21 * c : 21 * c + 21], expected)
    assert main(["sample", run, "--device", "cpu", "--classes", "2,0", "--n", "6",
                 "--truncation", "0.7"]) == 0  # fmt: skip
    images, columns = drawn.pop()
    assert columns == 3
    torch.testing.assert_close(images[:3], t.sample(3, condition=2, truncation=0.7))
    for wrong in ("3", "x", "-1", ""):
        assert main(["sample", run, f"--classes={wrong}"]) == 2
        assert "expected all, or numbers from 0 to 2 such as 0,1" in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "plain"), "--classes", "all"]) == 2
    assert "classes is 'all', but the run's generator takes no class" in capsys.readouterr().err


def test_a_look_at_the_samples_moves_no_buffer_and_so_no_run(tmp_path):
    class Follows(nn.Module):
        """Its statistics go on in eval mode as well."""

        def __init__(self):
            super().__init__()
            self.register_buffer("replaced", torch.zeros(16))
            self.register_buffer("changed", torch.zeros(16))
            self.register_buffer("later", None)

        def forward(self, x):
            now = x.detach().mean(0)
            self.replaced = 0.9 * self.replaced + 0.1 * now
            self.changed.mul_(0.9).add_(now, alpha=0.1)
            self.later = now
            return x - self.replaced - self.changed.clone()

    def pair():
        g, d = own_pair()
        g.body.insert(1, Follows())
        return g, d

    looked, left_alone = own(tmp_path, pair=pair, checkpoint_every=2), own(pair=pair)
    for t in (looked, left_alone):
        t.fit(steps=3)
    looked.sample(5)
    for t in (looked, left_alone):
        t.fit(steps=5)
    assert_same_bits(every_bit(looked), every_bit(left_alone))
    torch.testing.assert_close(looked.sample(5), looked.sample(5), rtol=0, atol=0)
