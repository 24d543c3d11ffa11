"""Boundary equilibrium: D is an autoencoder, and a number keeps the two in balance.

D. Berthelot, T. Schumm and L. Metz, "BEGAN: Boundary Equilibrium Generative Adversarial Networks",
2017. python examples/began.py
"""

import argparse

import torch
from torch import nn

import fastgan


def decoder(width, latent):
    """Codes to images of 32 x 32."""
    layers = [nn.Linear(latent, width * 64), nn.Unflatten(1, (width, 8, 8))]
    for _ in range(2):
        layers += [nn.Conv2d(width, width, 3, 1, 1), nn.ELU(), nn.Upsample(scale_factor=2)]
    return [*layers, nn.Conv2d(width, 1, 3, 1, 1), nn.Tanh()]


def networks(width=32, latent=64):
    """G is a decoder; D an encoder and a decoder."""
    encoder = [nn.Conv2d(1, width, 3, 1, 1), nn.ELU()]
    for _ in range(2):
        encoder += [nn.Conv2d(width, width, 3, 2, 1), nn.ELU()]
    encoder += [nn.Flatten(), nn.Linear(width * 64, latent)]
    return nn.Sequential(*decoder(width, latent)), nn.Sequential(*encoder, *decoder(width, latent))


class BoundaryEquilibrium:
    """k is what D's loss counts a fake for; a checkpoint has it."""

    def __init__(self):
        """Fakes do not count yet."""
        self.k = 0.0

    def d_loss(self, step):
        """Real images are to be had back, fakes are not."""
        real = (step.D(step.real) - step.real).abs().mean()
        fake = (step.D(step.fake) - step.fake).abs().mean()
        loss = real - self.k * fake
        self.k = min(max(self.k + 1e-3 * (0.5 * real - fake).item(), 0.0), 1.0)
        return loss

    def g_loss(self, step):
        """Fakes are to be had back."""
        return (step.D(step.fake) - step.fake).abs().mean()


def trainer(G, D, data="digits", **settings):
    """Everything that the run is."""
    return fastgan.Trainer(
        G, D, data, image_size=32, latent_dim=64, lr=1e-4, method=BoundaryEquilibrium(), **settings
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    torch.manual_seed(0)
    trainer(*networks(), out="runs/began", if_exists="count").fit(**vars(parser.parse_args()))
