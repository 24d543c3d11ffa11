"""From one image to another: digits from their outlines. python examples/pix2pix.py

P. Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017: a
U-Net, whose only noise is dropout; a D that scores patches; the distance from the image itself.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import fastgan


class UNet(nn.Module):
    """An outline to an image."""

    def __init__(self, width):
        """Three times down and up again, with what was there before beside it."""
        super().__init__()
        maps = (1, width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 4, 2, 1), nn.BatchNorm2d(o), nn.LeakyReLU(0.2))
            for i, o in zip(maps, maps[1:], strict=False)
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(i, o, 4, 2, 1), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in ((4 * width, 2 * width), (4 * width, width))
        )
        self.drop = nn.Dropout(0.5)
        self.last = nn.ConvTranspose2d(2 * width, 1, 4, 2, 1)

    def forward(self, outline):
        """Images."""
        first = self.down[0](outline)
        second = self.down[1](first)
        x = self.drop(self.up[0](self.down[2](second)))
        x = self.up[1](torch.cat([x, second], 1))
        return torch.tanh(self.last(torch.cat([x, first], 1)))


class Patches(nn.Module):
    """An image and its outline to a map of scores."""

    def __init__(self, width):
        """Three convolutions."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, 1, 1),
        )

    def forward(self, x, outline):
        """Scores."""
        return self.body(torch.cat([x, outline], 1))


def networks(width=32):
    """G and D."""
    return UNet(width), Patches(width)


def pairs(images=None):
    """Images in [-1, 1] and their outlines; of the bundled digits where none are given."""
    if images is None:
        images = fastgan.data.open("digits", image_size=32).samples / 127.5 - 1
    return images, F.max_pool2d(images, 3, 1, 1) - images - 1


def bce(scores, value):
    """Cross-entropy of scores with one value."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, value))


class Paired:
    """The game on patches."""

    def d_loss(self, step):
        """Pairs with real images and with fake ones."""
        real, fake = step.D(step.real, step.cond), step.D(step.fake, step.cond)
        return 0.5 * (bce(real, 1.0) + bce(fake, 0.0))

    def g_loss(self, step):
        """To pass for real."""
        return bce(step.D(step.fake, step.cond), 1.0)


def trainer(G, D, data, **settings):
    """Everything that the run is."""
    return fastgan.Trainer(
        G, D, data, latent_dim=None, batch_size=32, method=Paired(),
        terms={"l1": (100, fastgan.terms.l1)}, **settings,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    torch.manual_seed(0)
    trainer(*networks(), pairs(), out="runs/pix2pix", if_exists="count").fit(
        **vars(parser.parse_args())
    )
