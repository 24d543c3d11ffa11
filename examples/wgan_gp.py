"""A Wasserstein GAN with a gradient penalty and five steps of the critic.

python examples/wgan_gp.py

I. Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017.
"""

import argparse

import torch
from torch import nn

import fastgan
from fastgan.models import DCGANGenerator


def networks(width=32):
    """DCGAN's generator, and a critic without BatchNorm, which the penalty does not go with."""
    D = nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 4 * width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(4 * width * 16, 1),
    )
    return DCGANGenerator(128, 32, 1, width), D


def trainer(G, D, data="digits", **settings):
    """Everything that the run is."""
    return fastgan.Trainer(
        G, D, data, image_size=32, latent_dim=128, loss="wasserstein", penalties="wgan-gp:10",
        d_steps=5, lr=1e-4, betas=(0.0, 0.9), **settings,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=50)
    torch.manual_seed(0)
    trainer(*networks(), out="runs/wgan-gp", if_exists="count").fit(**vars(parser.parse_args()))
