"""Many runs of a moment, the same by themselves, and what must be the same in both."""

import csv
import json

import pytest
import torch
from small_runs import assert_same_bits, every_bit
from torch import nn

from fastgan import Callback, Trainer, ops

POINTS = {
    "data": "ring8", "model": "points", "latent_dim": 4, "width": 16, "batch_size": 32,
    "device": "cpu", "log_every": 10, "console": "none",
}  # fmt: skip
fused = pytest.mark.skipif(
    not ops.has_kernels(torch.device("cpu")), reason="needs the library of the CPU"
)


# Members that eager trains have all threads.
THREADS = 1 if ops.has_kernels(torch.device("cpu")) else torch.get_num_threads()


def alone(steps=45, *, pair=(None, None), **settings):
    """The same run as a member, by itself, as a rule on one thread."""
    before = torch.get_num_threads()
    try:
        run = Trainer(*pair, **{**POINTS, "threads": THREADS, **settings})
        run.fit(steps=steps)
    finally:
        torch.set_num_threads(before)
    return run


def assert_same(member, other):
    assert_same_bits(every_bit(member), every_bit(other))
    assert member.history == other.history and member.step == other.step


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def table_of(file):
    return list(csv.DictReader(file.read_text().splitlines()))


class Noisy(nn.Module):
    """Draws from torch's generator, so that no plan in C++ fits it."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, z):
        return self.body(z + 0.1 * torch.randn_like(z))


def noisy(config):
    body = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    return Noisy(8 if config.seed < 2 else 12), body


def plain(config):
    pair = noisy(config)
    return pair[0].body, pair[1]


class Draws(Callback):
    """Draws from torch's generator, as a careless callback does, and samples."""

    def chunk(self, trainer, statistics):
        torch.randn(100)
        trainer.sample(10)
