"""Runs that take a moment, and what must be the same in two of them."""

import torch
from torch import nn

from fastgan import Callback, data
from fastgan.statistics import MEASURE_NAMES
from fastgan.trainer import Trainer

SHAPE = (1, 6, 6)
SUMMARY = [
    "steps", "seconds", "ms_per_step", "engine", "device", "precision",
    "d_loss", "g_loss", "d_real", "d_fake", *MEASURE_NAMES,
]  # fmt: skip
"""What `fit` tells, before where the run is."""


def pixels(n=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)


class OwnG(nn.Module):
    """A user's generator: BatchNorm, and noise from torch's own generator."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 36), nn.Tanh()
        )

    def forward(self, z):
        return self.body(z + 0.01 * torch.randn_like(z)).view(-1, *SHAPE)


def own_pair(seed=3):
    torch.manual_seed(seed)
    d = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1)
    )
    return OwnG(), d


def plain_pair(seed=3):
    """Without randomness of torch's."""
    torch.manual_seed(seed)
    g = nn.Sequential(nn.Linear(5, 36), nn.Tanh(), nn.Unflatten(1, SHAPE))
    return g, nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 1))


QUICK = {
    "batch_size": 8,
    "latent_dim": 5,
    "log_every": 10,
    "device": "cpu",
    "engine": "eager",
    "console": "none",
}


def small(out=None, **options):
    """A trainer that is quick: the reference pair with short latents on random bytes."""
    source = options.pop("data", None)
    source = data.open(pixels()) if source is None else source
    return Trainer(None, None, source, out=out, **{**QUICK, **options})


def own(out=None, *, pair=own_pair, **options):
    """A trainer of networks of a user's own."""
    source = options.pop("data", None)
    source = data.open(pixels()) if source is None else source
    return Trainer(*pair(), source, out=out, **{**QUICK, **options})


def every_bit(t):
    """All that must be the same after a resume."""
    tensors = {}
    for name in ("generator", "discriminator", "ema"):
        network = getattr(t, name)
        for key, value in ({} if network is None else network.state_dict()).items():
            tensors[f"{name}.{key}"] = value.clone()
    for name in ("optimizer_g", "optimizer_d"):
        for key, state in getattr(t, name).state_dict()["state"].items():
            for part, value in state.items():
                tensors[f"{name}.{key}.{part}"] = torch.as_tensor(value).clone()
    return tensors


def assert_same_bits(a, b):
    assert a.keys() == b.keys() and len(a) > 7
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert not differing


class Seen(Callback):
    """Keeps the state after each chunk, and calls a function with the trainer."""

    def __init__(self, then=lambda trainer: None):
        self.states, self.logged, self.then = [], [], then

    def chunk(self, trainer, statistics):
        self.states.append(trainer.state)
        if trainer.logged:
            self.logged.append(trainer.step)
        self.then(trainer)
