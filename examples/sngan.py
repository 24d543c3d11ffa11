"""A class-conditional GAN with spectral norm, projection and hinge loss: python examples/sngan.py

T. Miyato and M. Koyama, "cGANs with Projection Discriminator", ICLR 2018; D. Tran et al., 2017, and
J. H. Lim and J. C. Ye, 2017, for the loss; the running average of G is from A. Brock, J. Donahue
and K. Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR 2019.
"""

import argparse

import torch

import fastgan
from fastgan.models import SNResNetDiscriminator, SNResNetGenerator


def networks(width=16):
    """The pair of the papers, which fastgan has; theirs is four times as wide."""
    return (
        SNResNetGenerator(128, 32, 1, width, classes=10),
        SNResNetDiscriminator(32, 1, width, classes=10),
    )


def trainer(G, D, data="digits", **settings):
    """Everything that the run is."""
    return fastgan.Trainer(
        G, D, data, image_size=32, latent_dim=128, loss="hinge", d_steps=5, betas=(0.0, 0.9),
        ema=0.999, **settings,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=50)
    torch.manual_seed(0)
    trainer(*networks(), channels_last=True, out="runs/sngan", if_exists="count").fit(
        **vars(parser.parse_args())
    )
