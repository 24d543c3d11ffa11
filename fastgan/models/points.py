"""A pair for vectors of few numbers, such as points of a plane.

Without a bound on what G makes and without dropout in D, which tells points that are near each
other apart only where every feature counts.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class PointGenerator(nn.Module):
    """Latent vectors to vectors, through two hidden layers.

    Args:
        latent_dim: length of a latent vector. Default 8.
        shape: of a sample. Default (2,).
        hidden: width of the hidden layers. Default 64.

    Shape:
        ``[batch, latent_dim] -> [batch, *shape]``.
    """

    def __init__(self, latent_dim: int = 8, shape: tuple[int, ...] = (2,), hidden: int = 64):
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.latent_dim, self.shape = latent_dim, tuple(shape)
        self.body = nn.Sequential(*_hidden(latent_dim, hidden, math.prod(self.shape)))

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        return {
            "latent_dim": self.latent_dim,
            "shape": list(self.shape),
            "hidden": self.body[0].out_features,
        }

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Samples for a batch of latent vectors."""
        return self.body(z).view(z.size(0), *self.shape)


class PointDiscriminator(nn.Module):
    """Vectors to the probability of being real, through two hidden layers.

    Args:
        shape: of a sample. Default (2,).
        hidden: width of the hidden layers. Default 64.
        sigmoid: end in a Sigmoid; without it the scores are raw. Default True.

    Shape:
        ``[batch, *shape] -> [batch, 1]``, values in (0, 1) with the Sigmoid.
    """

    def __init__(self, shape: tuple[int, ...] = (2,), hidden: int = 64, sigmoid: bool = True):
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.shape = tuple(shape)
        self.body = nn.Sequential(
            *_hidden(math.prod(self.shape), hidden, 1), *([nn.Sigmoid()] if sigmoid else [])
        )

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        return {
            "shape": list(self.shape),
            "hidden": self.body[0].out_features,
            "sigmoid": isinstance(self.body[-1], nn.Sigmoid),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probability (or raw score) that each sample of a batch is real."""
        return self.body(x.view(x.size(0), -1))


def _hidden(before: int, width: int, after: int) -> list[nn.Module]:
    return [
        nn.Linear(before, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, after),
    ]
