"""An information GAN: a class and two codes that D finds again, without labels.

X. Chen et al., "InfoGAN: Interpretable Representation Learning by Information Maximizing Generative
Adversarial Nets", NeurIPS 2016. python examples/infogan.py
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import fastgan


class Discriminator(nn.Module):
    """An image to a score, logits of a class, and two codes."""

    def __init__(self, width):
        """Convolutions, which the heads share."""
        super().__init__()
        layers = []
        for i, o in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(i, o, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.score, self.digit, self.code = (nn.Linear(4 * width * 16, n) for n in (1, 10, 2))

    def forward(self, x):
        """Scores, logits, codes."""
        h = self.body(x)
        return self.score(h), self.digit(h), self.code(h)


def networks(width=32):
    """DCGAN's generator, and D."""
    return fastgan.models.DCGANGenerator(74, 32, 1, width), Discriminator(width)


def bce(scores, value):
    """Cross-entropy of scores with one value."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, value))


class Information:
    """The plain game, and a loss that trains both networks."""

    def d_loss(self, step):
        """Real or fake."""
        return bce(step.D(step.real)[0], 1.0) + bce(step.D(step.fake)[0], 0.0)

    def g_loss(self, step):
        """To pass for real."""
        return bce(step.D(step.fake)[0], 1.0)

    def joint_loss(self, step):
        """What went into G is found again."""
        _, digit, code = step.D(step.fake)
        found = F.cross_entropy(digit, step.parts["digit"].argmax(1))
        return found + 0.1 * F.mse_loss(code, step.parts["code"])


def trainer(G, D, data="digits", **settings):
    """Everything that the run is."""
    latent = {"noise": 62, "digit": fastgan.OneHot(10), "code": fastgan.Uniform(2)}
    return fastgan.Trainer(
        G, D, data, image_size=32, latent_dim=latent, method=Information(), **settings
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    torch.manual_seed(0)
    trainer(*networks(), out="runs/infogan", if_exists="count").fit(**vars(parser.parse_args()))
