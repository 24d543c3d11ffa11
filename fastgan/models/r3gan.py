"""Residual networks without any normalisation, for a regularised relativistic game.

N. Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", NeurIPS 2024: grouped
convolutions between two of 1 x 1 that double and halve the maps, LeakyReLU(0.2) after biases,
first weights so that every block begins as the identity, a learned 4 x 4 image in G and one
convolution of each map in D. Like theirs, not the same: the side is doubled and halved by bilinear
interpolation, every stage has the same number of maps, and there are no classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.models import sizes

_GROUP = 16
"""Maps of a group, as in the paper's networks for CIFAR-10."""


class R3GANGenerator(nn.Module):
    """Latent vectors to images, by stages of residual blocks, each at twice the side.

    Args:
        latent_dim: length of a latent vector. Default 64.
        image_size: side of an image; a power of two of at least 8. Default 32.
        channels: of an image. Default 3.
        width: maps of every stage; the paper has 768 for CIFAR-10. Default 768.
        blocks: residual blocks of a stage. Default 2.

    Shape:
        ``[batch, latent_dim] -> [batch, channels, image_size, image_size]``; values are not
        bounded: samples are clamped to [-1, 1].
    """

    def __init__(
        self, latent_dim: int = 64, image_size: int = 32, channels: int = 3, width: int = 768,
        blocks: int = 2,
    ):  # fmt: skip
        """Build the layers with the paper's initialisation."""
        super().__init__()
        stages = _stages(image_size, latent_dim=latent_dim, channels=channels, width=width)
        self.latent_dim, self.img_shape = latent_dim, (channels, image_size, image_size)
        self.width, self.blocks = width, blocks
        self.basis = nn.Parameter(torch.randn(width, 4, 4))
        self.linear = _drawn(nn.Linear(latent_dim, width, bias=False))
        self.stages = nn.ModuleList(_stage(width, blocks, stages) for _ in range(stages))
        self.to_image = _drawn(nn.Conv2d(width, channels, 1, bias=False))

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        return {"latent_dim": self.latent_dim, **_arguments(self)}

    def forward(self, z: Tensor) -> Tensor:
        """Images for a batch of latent vectors."""
        x = self.basis * self.linear(z)[..., None, None]
        for i, stage in enumerate(self.stages):
            if i:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = stage(x)
        return self.to_image(x)


class R3GANDiscriminator(nn.Module):
    """Images to raw scores, [batch, 1], by stages of residual blocks, each at half the side.

    The arguments are the generator's.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, width: int = 768, blocks: int = 2):
        """Build the layers with the paper's initialisation."""
        super().__init__()
        stages = _stages(image_size, channels=channels, width=width)
        self.img_shape = (channels, image_size, image_size)
        self.width, self.blocks = width, blocks
        self.from_image = _drawn(nn.Conv2d(channels, width, 1, bias=False))
        self.stages = nn.ModuleList(_stage(width, blocks, stages) for _ in range(stages))
        self.basis = _drawn(nn.Conv2d(width, width, 4, groups=width, bias=False))
        self.linear = _drawn(nn.Linear(width, 1, bias=False))

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        return _arguments(self)

    def forward(self, x: Tensor) -> Tensor:
        """Raw scores of a batch of images."""
        x = self.from_image(x)
        for i, stage in enumerate(self.stages):
            # Half the side by bilinear interpolation is the mean of four pixels.
            x = stage(F.avg_pool2d(x, 2) if i else x)
        # The basis as the product that it is: torch goes through the groups of a convolution one
        # by one where a penalty differentiates twice, and here every map is one.
        return self.linear((x * self.basis.weight[:, 0]).sum((2, 3)))


class _Block(nn.Module):
    def __init__(self, width: int, scale: float):
        super().__init__()
        wide = 2 * width
        groups = max(1, wide // _GROUP)
        groups = groups if wide % groups == 0 else 1
        self.widen = _drawn(nn.Conv2d(width, wide, 1, bias=False), scale)
        self.grouped = _drawn(nn.Conv2d(wide, wide, 3, 1, 1, groups=groups, bias=False), scale)
        self.narrow = _drawn(nn.Conv2d(wide, width, 1, bias=False), 0.0)
        self.biases = nn.Parameter(torch.zeros(2, wide, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.widen(x) + self.biases[0], 0.2)
        h = F.leaky_relu(self.grouped(h) + self.biases[1], 0.2)
        return x + self.narrow(h)


def _stage(width: int, blocks: int, stages: int) -> nn.Sequential:
    # Fixup (H. Zhang, Y. Dauphin and T. Ma, ICLR 2019): L ** (-1 / (2 m - 2)), m = 3 a block.
    return nn.Sequential(*(_Block(width, (stages * blocks) ** -0.25) for _ in range(blocks)))


def _drawn(layer: nn.Module, scale: float = 1.0) -> nn.Module:
    gain = math.sqrt(2 / (1 + 0.2**2)) if isinstance(layer, nn.Conv2d) else 1.0
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, 0.0, scale * gain / math.sqrt(fan_in))
    return layer


def _arguments(network: nn.Module) -> dict:
    channels, side, _ = network.img_shape
    made = {"image_size": side, "channels": channels, "width": network.width}
    return {**made, "blocks": network.blocks}


def _stages(image_size: int, **others: int) -> int:
    if image_size < 8 or image_size & (image_size - 1):
        raise ValueError(
            f"image_size is {image_size}; the R3GAN pair takes a power of two of at least 8"
        )
    sizes.check(**others)
    return image_size.bit_length() - 2
