"""A GAN with an auxiliary classifier: D also says which digit it sees. python examples/acgan.py

A. Odena, C. Olah and J. Shlens, "Conditional Image Synthesis with Auxiliary Classifier GANs", ICML
2017.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import fastgan


class Generator(nn.Module):
    """Latents and a digit to an image."""

    def __init__(self, width):
        """DCGAN's generator of the latents, each times a number of the digit's."""
        super().__init__()
        self.of_label = nn.Embedding(10, 100)
        self.body = fastgan.models.DCGANGenerator(100, 32, 1, width)

    def forward(self, z, label):
        """Images of the digits."""
        return self.body(z * self.of_label(label))


class Discriminator(nn.Module):
    """An image to a score and to logits of the digits."""

    def __init__(self, width):
        """Convolutions with dropout."""
        super().__init__()
        layers = []
        for i, o in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(i, o, 3, 2, 1), nn.LeakyReLU(0.2), nn.Dropout(0.25)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.score, self.digit = (nn.Linear(4 * width * 16, n) for n in (1, 10))

    def forward(self, x):
        """Scores, logits."""
        h = self.body(x)
        return self.score(h), self.digit(h)


def networks(width=32):
    """G and D."""
    return Generator(width), Discriminator(width)


def bce(scores, value):
    """Cross-entropy of scores with one value."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, value))


class AuxiliaryClassifier:
    """Both want the digits to be recognised."""

    def d_loss(self, step):
        """On real images and on fake ones."""
        (real, of_real), (fake, of_fake) = step.D(step.real), step.D(step.fake)
        step.log("accuracy", (of_real.argmax(1) == step.cond).float().mean())
        digits = F.cross_entropy(of_real, step.cond) + F.cross_entropy(of_fake, step.fake_cond)
        return bce(real, 1.0) + bce(fake, 0.0) + digits

    def g_loss(self, step):
        """Real, and the digit that was asked for."""
        fake, of_fake = step.D(step.fake)
        return bce(fake, 1.0) + F.cross_entropy(of_fake, step.fake_cond)


def trainer(G, D, data="digits", **settings):
    """Everything that the run is."""
    return fastgan.Trainer(G, D, data, image_size=32, method=AuxiliaryClassifier(), **settings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    torch.manual_seed(0)
    trainer(*networks(), out="runs/acgan", if_exists="count").fit(**vars(parser.parse_args()))
