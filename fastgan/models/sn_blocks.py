"""The residual blocks of the SN-ResNet pair; sn_resnet.py says which papers have them."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class ConditionalNorm(nn.Module):
    """BatchNorm2d, with a scale and a shift of each class where there are any."""

    def __init__(self, maps: int, classes: int | None):
        """Of so many maps; every class begins as plain BatchNorm."""
        super().__init__()
        self.norm = nn.BatchNorm2d(maps, affine=classes is None)
        if classes is not None:
            self.scale, self.shift = nn.Embedding(classes, maps), nn.Embedding(classes, maps)
            nn.init.ones_(self.scale.weight)
            nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        """[batch, maps, ...] of classes [batch], or of none."""
        x = self.norm(x)
        return (
            x if y is None else x * self.scale(y)[..., None, None] + self.shift(y)[..., None, None]
        )


class UpBlock(nn.Module):
    """G's: maps of twice the side."""

    def __init__(self, i: int, o: int, classes: int | None):
        """From i maps to o."""
        super().__init__()
        self.norm1, self.norm2 = ConditionalNorm(i, classes), ConditionalNorm(o, classes)
        self.conv1, self.conv2 = (drawn(nn.Conv2d(n, o, 3, 1, 1), math.sqrt(2)) for n in (i, o))
        self.shortcut = drawn(nn.Conv2d(i, o, 1))

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        """[batch, i, side, side] -> [batch, o, 2 side, 2 side]."""
        h = self.conv1(F.interpolate(F.relu(self.norm1(x, y)), scale_factor=2))
        h = self.conv2(F.relu(self.norm2(h, y)))
        # A 1x1 convolution and the doubling of pixels commute; this way round it is a quarter.
        return h + F.interpolate(self.shortcut(x), scale_factor=2)


class DownBlock(nn.Module):
    """D's, with spectral norm; maps of half the side if it halves."""

    def __init__(self, i: int, o: int, halves: bool, first: bool):
        """From i maps to o; the first block of D takes images, without a ReLU before."""
        super().__init__()
        self.halves, self.first = halves, first
        convs = (drawn(nn.Conv2d(n, o, 3, 1, 1), math.sqrt(2)) for n in (i, o))
        self.conv1, self.conv2 = map(spectral_norm, convs)
        plain = i == o and not halves
        self.shortcut = nn.Identity() if plain else spectral_norm(drawn(nn.Conv2d(i, o, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, i, side, side] -> [batch, o, side or half of it, ...]."""
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.halves:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + self.shortcut(x)


def drawn(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """The layer, its weights drawn anew by Xavier's uniform distribution, its bias 0."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    return layer
