"""R3GAN: relativistic pairing with R1 and R2, networks without normalisation.

python examples/r3gan.py

N. Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", NeurIPS 2024.
"""

import argparse

import torch

import fastgan
from fastgan.models import R3GANDiscriminator, R3GANGenerator


def networks(width=64):
    """The pair that fastgan has; the paper's is twelve times as wide."""
    return R3GANGenerator(64, 32, 1, width), R3GANDiscriminator(32, 1, width)


def trainer(G, D, data="digits", **settings):
    """Everything that the run is."""
    return fastgan.Trainer(
        G, D, data, image_size=32, latent_dim=64, loss="relativistic",
        penalties=["r1:0.5", "r2:0.5"], betas=(0.0, 0.99), ema=0.999, **settings,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=50)
    torch.manual_seed(0)
    trainer(*networks(), out="runs/r3gan", if_exists="count").fit(**vars(parser.parse_args()))
