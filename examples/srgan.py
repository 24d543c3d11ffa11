"""Super-resolution: digits four times as large, with a content loss. python examples/srgan.py

C. Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial
Network", CVPR 2017: residual blocks and pixel shuffling; what a frozen network sees in both images
is to be alike, beside a game of a thousandth of that weight. The frozen network is here a small
classifier of the same digits; with photographs take a VGG of torchvision.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import fastgan


class Residual(nn.Module):
    """Two convolutions beside what goes in."""

    def __init__(self, width):
        """With BatchNorm."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1),
            nn.BatchNorm2d(width),
            nn.PReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        """The sum."""
        return x + self.body(x)


class Enlarge(nn.Module):
    """A small image to one of four times the side."""

    def __init__(self, width, blocks):
        """Residual blocks, then twice pixels out of maps."""
        super().__init__()
        layers = [nn.Conv2d(1, width, 5, 1, 2), nn.PReLU()]
        layers += [Residual(width) for _ in range(blocks)]
        for _ in range(2):
            layers += [nn.Conv2d(width, 4 * width, 3, 1, 1), nn.PixelShuffle(2), nn.PReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 1, 5, 1, 2), nn.Tanh())

    def forward(self, small):
        """The large ones."""
        return self.body(small)


def networks(width=32, blocks=3):
    """G and D."""
    layers = []
    for i, o in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(i, o, 3, 2, 1), nn.LeakyReLU(0.2)]
    D = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, 1))
    return Enlarge(width, blocks), D


def classifier(width=16, steps=300):
    """The first layers of a classifier of the bundled digits at 32 x 32."""
    digits = fastgan.data.open("digits", image_size=32)
    features = nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()
    )
    whole = nn.Sequential(features, nn.Flatten(), nn.Linear(2 * width * 256, 10))
    optimizer = torch.optim.Adam(whole.parameters(), 1e-3)
    for _ in range(steps):
        rows = torch.randint(len(digits), (64,))
        logits = whole(digits.samples[rows] / 127.5 - 1)
        loss = F.cross_entropy(logits, digits.condition[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return features


def pairs(images=None):
    """Images in [-1, 1] and small ones; of the bundled digits where none are given."""
    if images is None:
        images = fastgan.data.open("digits", image_size=32).samples / 127.5 - 1
    return images, F.avg_pool2d(images, 4)


def trainer(G, D, data, features, **settings):
    """Everything that the run is."""
    return fastgan.Trainer(
        G, D, data, latent_dim=None, batch_size=32,
        terms={"content": (1000, fastgan.terms.Perceptual(features))}, **settings,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    torch.manual_seed(0)
    trainer(*networks(), pairs(), classifier(), out="runs/srgan", if_exists="count").fit(
        **vars(parser.parse_args())
    )
