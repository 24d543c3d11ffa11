"""Pairs of MLPs for the fused engine."""

import torch
from torch import nn

from fastgan.heads import Heads
from fastgan.models import Discriminator, Generator


def mlp(*parts):
    return nn.Sequential(nn.Flatten(), *parts)


def reference_pair():
    return Generator(), Discriminator()


def deep_normed():
    g = mlp(
        nn.Linear(20, 48, bias=False),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(48, 70),
        nn.BatchNorm1d(70, momentum=None),
        nn.ELU(0.7),
        nn.Linear(70, 75),
        nn.Tanh(),
        nn.Unflatten(1, (3, 5, 5)),
    )
    d = mlp(
        nn.Linear(75, 50),
        nn.LeakyReLU(0.3),
        nn.Dropout(0.4),
        nn.Linear(50, 33),
        nn.BatchNorm1d(33),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(33, 17),
        nn.Sigmoid(),
        nn.Linear(17, 1),
    )
    return g, d


def plain():
    return (
        mlp(nn.Linear(7, 30), nn.LeakyReLU(0.1), nn.Linear(30, 36), nn.Unflatten(1, (1, 6, 6))),
        mlp(nn.Linear(36, 40), nn.ReLU(), nn.Linear(40, 1), nn.Flatten(0, 1)),
    )


def critic():
    # The last bias has no gradient but rounding, which Adam makes as large as any other.
    g, d = plain()
    d[3] = nn.Linear(40, 1, bias=False)
    return g, d


def single_layers():
    return (
        mlp(nn.Linear(5, 12), nn.Sigmoid(), nn.Unflatten(1, (3, 2, 2))),
        mlp(nn.Linear(12, 1, bias=False), nn.Sigmoid()),
    )


def smooth():
    g = mlp(
        nn.Linear(9, 40),
        nn.GELU(),
        nn.Linear(40, 33),
        nn.SiLU(),
        nn.Dropout(0.1),
        nn.Linear(33, 36),
        nn.GELU(approximate="tanh"),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(
        nn.Linear(36, 50),
        nn.SiLU(),
        nn.Linear(50, 20),
        nn.GELU(),
        nn.Dropout(0.2),
        nn.Linear(20, 17),
        nn.GELU(approximate="tanh"),
        nn.Linear(17, 1),
        nn.SiLU(),
    )
    return g, d


def selu_and_softplus():
    g = mlp(
        nn.Linear(9, 40),
        nn.SELU(),
        nn.Linear(40, 33),
        nn.Dropout(0.1),
        nn.ReLU(),
        nn.Linear(33, 36),
        nn.Softplus(),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(
        nn.Linear(36, 50),
        nn.Softplus(),
        nn.Dropout(0.2),
        nn.Linear(50, 20),
        nn.SELU(),
        nn.Linear(20, 1),
    )
    return g, d


def rows_normed():
    g = mlp(
        nn.Linear(9, 40),
        nn.LayerNorm(40),
        nn.LeakyReLU(0.2),
        nn.Linear(40, 33, bias=False),
        nn.LayerNorm(33, elementwise_affine=False),
        nn.SiLU(),
        nn.Dropout(0.1),
        nn.Linear(33, 36),
        nn.LayerNorm(36, bias=False),
        nn.Tanh(),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(
        nn.Linear(36, 70),
        nn.LayerNorm(70),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.2),
        nn.Linear(70, 20),
        nn.LayerNorm(20, eps=0.1),
        nn.Linear(20, 17),
        nn.LayerNorm(17),
        nn.ELU(),
        nn.Linear(17, 1),
    )
    return g, d


def with_heads():
    columns = [("tanh", 1), ("softmax", 4), ("gumbel", 5), ("gumbel", 9, 0.5), ("sigmoid", 2)]
    columns += [("none", 3), ("softmax", 11, 2.0), ("relu", 1)]
    g = mlp(
        nn.Linear(9, 40),
        nn.BatchNorm1d(40),
        nn.LeakyReLU(0.2),
        nn.Linear(40, 36),
        Heads(columns),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(nn.Linear(36, 70), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(70, 1))
    return g, d


class Add(nn.Module):
    """What comes in beside what a block makes of it, as a sum."""

    def __init__(self, *block, shortcut=None):
        super().__init__()
        self.block, self.shortcut = nn.Sequential(*block), shortcut or nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.block(x)


class Concat(nn.Sequential):
    """What a block makes of what comes in, and that behind it, as in CTGAN's generator."""

    def forward(self, x):
        return torch.cat([super().forward(x), x], 1)


def normed(n, m, act):
    return nn.Linear(n, m), nn.BatchNorm1d(m), act


def added():
    """Sums past one layer and several, one in the other, from the inputs, with new widths."""
    inner = Add(nn.Linear(33, 33), nn.Dropout(0.1))
    g = mlp(
        Add(nn.Linear(9, 40), nn.ReLU(), nn.Linear(40, 9), nn.Tanh()),
        Add(*normed(9, 33, nn.LeakyReLU(0.2)), inner, shortcut=nn.Linear(9, 33, bias=False)),
        nn.Linear(33, 36),
        nn.Tanh(),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(
        Add(nn.Linear(36, 70), nn.SiLU(), nn.Linear(70, 36)),
        nn.Linear(36, 33),
        nn.LayerNorm(33),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.2),
        Add(nn.Linear(33, 33), nn.BatchNorm1d(33), nn.LeakyReLU(0.2)),
        nn.Linear(33, 1),
    )
    return g, d


def concatenated():
    """CTGAN's generator, and a discriminator whose score sees its input, too."""
    g = mlp(
        Concat(*normed(9, 40, nn.ReLU())),
        Concat(*normed(49, 40, nn.ReLU())),
        nn.Linear(89, 36),
        nn.Tanh(),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(
        Concat(nn.Linear(36, 50), nn.ELU(), nn.Linear(50, 33), nn.LayerNorm(33), nn.ReLU()),
        nn.Linear(69, 1),
    )
    return g, d


def plain_norm():
    g = mlp(
        nn.Linear(16, 64),
        nn.BatchNorm1d(64, affine=False),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 49),
        nn.Tanh(),
        nn.Unflatten(1, (1, 7, 7)),
    )
    d = mlp(
        nn.Linear(49, 64),
        nn.BatchNorm1d(64, track_running_stats=False),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 64),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 1),
    )
    return g, d
