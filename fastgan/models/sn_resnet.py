"""Residual networks with spectral normalisation, class-conditional where the data have classes.

T. Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018, has the
networks for 32 x 32 images; T. Miyato and M. Koyama, "cGANs with Projection Discriminator", ICLR
2018, how they take a class: G by BatchNorm's scales and shifts, D by the inner product of its
features with a vector of the class. At 64 x 64 the maps are those of the second paper's networks
for 128 x 128 with one block less in each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fastgan.models import sizes
from fastgan.models.sn_blocks import DownBlock, UpBlock, drawn

_MAPS = {32: ((4, 4, 4, 4), (2, 2, 2, 2), 2), 64: ((16, 8, 4, 2, 1), (1, 2, 4, 8, 16), 4)}
"""By the side of an image, in widths: G's maps from 4 x 4 on; D's after each block; and how many of
D's blocks halve the side."""


class _Network(nn.Module):
    """What both have."""

    def __init__(self, image_size: int, channels: int, width: int, classes: int | None):
        super().__init__()
        if image_size not in _MAPS:
            raise ValueError(
                f"image_size is {image_size}; the SN-ResNet pair takes one of {list(_MAPS)}"
            )
        sizes.check(channels=channels, width=width, classes=1 if classes is None else classes)
        self.img_shape = (channels, image_size, image_size)
        self.width, self.classes = width, classes

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        channels, side, _ = self.img_shape
        made = {"image_size": side, "channels": channels, "width": self.width}
        return {**made, "classes": self.classes}

    def _classes_of(self, y: Tensor | None) -> Tensor | None:
        if self.classes is not None and y is None:
            raise ValueError(
                f"{type(self).__name__} was made for {self.classes} classes and was given none; "
                "pass int64 [batch] beside its input"
            )
        return None if self.classes is None else y


class SNResNetGenerator(_Network):
    """Latent vectors, and classes if there are any, to images: blocks that double the side.

    Args:
        latent_dim: length of a latent vector. Default 128.
        image_size: side of an image, 32 or 64. Default 32.
        channels: of an image. Default 3.
        width: a quarter of the maps at 32, those before the last layer at 64. Default 64.
        classes: how many there are. Default None: no condition.

    Shape:
        ``[batch, latent_dim]``, ``[batch]`` -> ``[batch, channels, image_size, image_size]``,
        values in [-1, 1].
    """

    def __init__(
        self, latent_dim: int = 128, image_size: int = 32, channels: int = 3, width: int = 64,
        classes: int | None = None,
    ):  # fmt: skip
        """Build the layers with the papers' initialisation."""
        super().__init__(image_size, channels, width, classes)
        sizes.check(latent_dim=latent_dim)
        self.latent_dim = latent_dim
        maps = [width * n for n in _MAPS[image_size][0]]
        self.linear = drawn(nn.Linear(latent_dim, maps[0] * 16))
        steps = zip(maps, maps[1:], strict=False)
        self.blocks = nn.ModuleList(UpBlock(i, o, classes) for i, o in steps)
        self.norm = nn.BatchNorm2d(maps[-1])
        self.conv = drawn(nn.Conv2d(maps[-1], channels, 3, 1, 1))

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        return {"latent_dim": self.latent_dim, **super().arguments()}

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Images for a batch of latent vectors and classes."""
        y = self._classes_of(y)
        x = self.linear(z).view(z.shape[0], -1, 4, 4)
        for block in self.blocks:
            x = block(x, y)
        return torch.tanh(self.conv(F.relu(self.norm(x))))


class SNResNetDiscriminator(_Network):
    """Images, and classes if there are any, to raw scores, [batch, 1].

    The arguments are the generator's; width: half the maps at 32, the first block's at 64.
    """

    def __init__(
        self, image_size: int = 32, channels: int = 3, width: int = 64, classes: int | None = None
    ):
        """Build the layers with the papers' initialisation, spectral norm on every one."""
        super().__init__(image_size, channels, width, classes)
        _, maps, halves = _MAPS[image_size]
        maps = [channels, *(width * n for n in maps)]
        self.blocks = nn.Sequential(
            *(DownBlock(maps[i], maps[i + 1], i < halves, i == 0) for i in range(len(maps) - 1))
        )
        self.linear = spectral_norm(drawn(nn.Linear(maps[-1], 1)))
        if classes is not None:
            self.of_class = spectral_norm(drawn(nn.Embedding(classes, maps[-1])))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Raw scores of a batch of images of those classes."""
        y = self._classes_of(y)
        h = F.relu(self.blocks(x)).sum((2, 3))
        score = self.linear(h)
        return score if y is None else score + (h * self.of_class(y)).sum(1, keepdim=True)
