"""The residual pair of spectral normalisation for 32x32 images, as PyTorch modules.

T. Miyato, T. Kataoka, M. Koyama and Y. Yoshida, "Spectral Normalization for Generative Adversarial
Networks", ICLR 2018, appendix B.4: BatchNorm in G, spectral normalisation of every layer of D.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate
from torch.nn.utils.parametrizations import spectral_norm


class Up(nn.Module):
    """A block of G, which doubles the side."""

    def __init__(self, maps: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(maps), nn.BatchNorm2d(maps)
        self.conv1, self.conv2 = (nn.Conv2d(maps, maps, 3, padding=1) for _ in range(2))
        self.skip = nn.Conv2d(maps, maps, 1)

    def forward(self, x):
        h = self.conv1(interpolate(torch.relu(self.norm1(x)), scale_factor=2))
        return self.conv2(torch.relu(self.norm2(h))) + self.skip(interpolate(x, scale_factor=2))


class ResNetGenerator(nn.Module):
    """[b, latent] -> [b, 3, 32, 32]."""

    def __init__(self, latent: int, maps: int):
        super().__init__()
        self.maps = maps
        self.first = nn.Linear(latent, maps * 16)
        self.blocks = nn.Sequential(*[Up(maps) for _ in range(3)])
        self.norm = nn.BatchNorm2d(maps)
        self.last = nn.Conv2d(maps, 3, 3, padding=1)

    def forward(self, z):
        x = self.blocks(self.first(z).view(-1, self.maps, 4, 4))
        return torch.tanh(self.last(torch.relu(self.norm(x))))


class Down(nn.Module):
    """A block of D; without `halves` it keeps the side, and its input is its shortcut."""

    def __init__(self, before: int, maps: int, *, halves: bool, first: bool = False):
        super().__init__()
        self.halves, self.first = halves, first
        self.conv1 = spectral_norm(nn.Conv2d(before, maps, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(maps, maps, 3, padding=1))
        self.skip = spectral_norm(nn.Conv2d(before, maps, 1)) if halves else None

    def forward(self, x):
        h = self.conv2(torch.relu(self.conv1(x if self.first else torch.relu(x))))
        if not self.halves:
            return h + x
        return avg_pool2d(h, 2) + avg_pool2d(self.skip(x), 2)


class ResNetDiscriminator(nn.Module):
    """[b, 3, 32, 32] -> [b, 1]."""

    def __init__(self, maps: int, sigmoid: bool):
        super().__init__()
        self.blocks = nn.Sequential(
            Down(3, maps, halves=True, first=True),
            Down(maps, maps, halves=True),
            Down(maps, maps, halves=False),
            Down(maps, maps, halves=False),
        )
        self.last = spectral_norm(nn.Linear(maps, 1))
        self.end = nn.Sigmoid() if sigmoid else nn.Identity()

    def forward(self, x):
        return self.end(self.last(torch.relu(self.blocks(x)).sum((2, 3))))
