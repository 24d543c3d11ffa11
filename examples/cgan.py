"""A conditional GAN: both networks are given the digit. python examples/cgan.py

M. Mirza and S. Osindero, "Conditional Generative Adversarial Nets", 2014. The networks take a
second argument, so fastgan gives them the labels of the data; fakes are made for labels drawn anew.
"""

import argparse

import torch
from torch import nn

import fastgan


class Generator(nn.Module):
    """Latents and a digit to an image."""

    def __init__(self, width):
        """Two layers."""
        super().__init__()
        self.of_label = nn.Embedding(10, 10)
        self.body = nn.Sequential(
            nn.Linear(110, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 2 * width),
            nn.BatchNorm1d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Linear(2 * width, 784),
            nn.Tanh(),
        )

    def forward(self, z, label):
        """Images of the digits."""
        return self.body(torch.cat([z, self.of_label(label)], 1)).view(-1, 1, 28, 28)


class Discriminator(nn.Module):
    """An image and a digit to a score."""

    def __init__(self, width):
        """Two layers."""
        super().__init__()
        self.of_label = nn.Embedding(10, 10)
        self.body = nn.Sequential(
            nn.Linear(794, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Linear(2 * width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def forward(self, x, label):
        """Scores of the images as such digits."""
        return self.body(torch.cat([x.flatten(1), self.of_label(label)], 1))


def networks(width=256):
    """G and D."""
    return Generator(width), Discriminator(width)


def trainer(G, D, data="digits", **settings):
    """Everything that the run is."""
    return fastgan.Trainer(G, D, data, loss="least-squares", **settings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    torch.manual_seed(0)
    trainer(*networks(), out="runs/cgan", if_exists="count").fit(**vars(parser.parse_args()))
