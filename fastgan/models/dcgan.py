"""The convolutional pair of DCGAN, for square images of any power of two from 16 up.

A. Radford, L. Metz, S. Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks", ICLR 2016: strided convolutions instead of pooling, BatchNorm in
both networks but not in G's last and D's first layer, ReLU in G, LeakyReLU(0.2) in D, Adam with lr
2e-4 and beta1 0.5.

The layers stand in one Sequential called `main`, so that at 64 x 64 state dicts move between these
two and the widely used example program with ``strict=True`` in both directions.
"""

from __future__ import annotations

import torch
from torch import nn

from fastgan.models import sizes as sizes_room


class DCGANGenerator(nn.Module):
    """Latent vectors to images, by transposed convolutions that double the side.

    From 4 x 4 with ``width * image_size / 8`` feature maps, the maps halve as the side doubles,
    down to ``width`` before the last layer.

    Args:
        latent_dim: length of a latent vector. Default 100.
        image_size: side of an image; a power of two of at least 16. Default 64.
        channels: of an image. Default 3.
        width: feature maps before the last layer. Default 64.

    Shape:
        ``[batch, latent_dim]`` or ``[batch, latent_dim, 1, 1] -> [batch, channels, image_size,
        image_size]``, values in [-1, 1].

    Raises:
        ValueError: image_size is no power of two of at least 16, or a number is below 1.
    """

    def __init__(
        self, latent_dim: int = 100, image_size: int = 64, channels: int = 3, width: int = 64
    ):
        """Build the layers with the paper's initialisation."""
        super().__init__()
        _check(latent_dim=latent_dim, image_size=image_size, channels=channels, width=width)
        self.latent_dim = latent_dim
        self.img_shape = (channels, image_size, image_size)
        self.width = width
        maps = width * image_size // 8
        layers = [nn.ConvTranspose2d(latent_dim, maps, 4, 1, 0, bias=False)]
        while maps > width:
            layers += [nn.BatchNorm2d(maps), nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(maps, maps // 2, 4, 2, 1, bias=False)]
            maps //= 2
        layers += [nn.BatchNorm2d(maps), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(maps, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = init_dcgan(nn.Sequential(*layers))

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        channels, side, _ = self.img_shape
        made = {"image_size": side, "channels": channels, "width": self.width}
        return {"latent_dim": self.latent_dim, **made}

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Images for a batch of latent vectors."""
        return self.main(z.reshape(z.shape[0], -1, 1, 1))


class DCGANDiscriminator(nn.Module):
    """Images to the probability of being real, by convolutions that halve the side.

    The feature maps double as the side halves, from ``width`` after the first layer to
    ``width * image_size / 8`` at 4 x 4. While fastgan trains it with a minimax loss, the Sigmoid is
    absorbed into the loss (computed from logits).

    Args:
        image_size: side of an image; a power of two of at least 16. Default 64.
        channels: of an image. Default 3.
        width: feature maps after the first layer. Default 64.
        sigmoid: end in a Sigmoid, as the paper does; without it the scores are raw, which hinge,
            least-squares and Wasserstein losses take. Default True.

    Shape:
        ``[batch, channels, image_size, image_size] -> [batch, 1]``, values in (0, 1) with the
        Sigmoid.

    Raises:
        ValueError: image_size is no power of two of at least 16, or a number is below 1.
    """

    def __init__(
        self, image_size: int = 64, channels: int = 3, width: int = 64, sigmoid: bool = True
    ):
        """Build the layers with the paper's initialisation."""
        super().__init__()
        _check(image_size=image_size, channels=channels, width=width)
        self.img_shape = (channels, image_size, image_size)
        self.width = width
        maps, side = width, image_size // 2
        layers = [nn.Conv2d(channels, maps, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        while side > 4:
            layers += [nn.Conv2d(maps, 2 * maps, 4, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(2 * maps), nn.LeakyReLU(0.2, inplace=True)]
            maps, side = 2 * maps, side // 2
        layers += [nn.Conv2d(maps, 1, 4, 1, 0, bias=False)]
        if sigmoid:
            layers += [nn.Sigmoid()]
        self.main = init_dcgan(nn.Sequential(*layers))

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        channels, side, _ = self.img_shape
        sigmoid = isinstance(self.main[-1], nn.Sigmoid)
        return {"image_size": side, "channels": channels, "width": self.width, "sigmoid": sigmoid}

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        """Probability (or raw score) that each image of a batch is real."""
        return self.main(img).flatten(1)


@torch.no_grad()
def init_dcgan(network: nn.Module) -> nn.Module:
    """Draw a network's weights as the DCGAN paper does, in place, from torch's generator.

    Weights of convolutions and linear layers: normal, mean 0, standard deviation 0.02; scales of
    BatchNorm: normal, mean 1, standard deviation 0.02. Biases and shifts: 0.

    Returns:
        the same network.
    """
    for m in network.modules():
        if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear)):
            nn.init.normal_(m.weight, 0.0, 0.02)
        elif isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine:
            nn.init.normal_(m.weight, 1.0, 0.02)
        else:
            continue
        if m.bias is not None:
            nn.init.zeros_(m.bias)
    return network


def _check(image_size: int, **sizes: int) -> None:
    if image_size < 16 or image_size & (image_size - 1):
        raise ValueError(
            f"image_size is {image_size}; the DCGAN pair takes a power of two of at least 16"
        )
    sizes_room.check(**sizes)
