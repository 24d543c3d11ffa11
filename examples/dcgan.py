"""DCGAN at 32 x 32: python examples/dcgan.py

A. Radford, L. Metz and S. Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks", ICLR 2016. D ends in a Sigmoid, as in the paper; fastgan takes the
loss from what goes into it.
"""

import argparse

import torch

import fastgan
from fastgan.models import DCGANDiscriminator, DCGANGenerator


def networks(width=64):
    """The pair of the paper, which fastgan has."""
    return DCGANGenerator(100, 32, 1, width), DCGANDiscriminator(32, 1, width)


def trainer(G, D, data="digits", **settings):
    """Everything that the run is."""
    return fastgan.Trainer(G, D, data, image_size=32, batch_size=128, **settings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=25)
    torch.manual_seed(0)
    trainer(*networks(), channels_last=True, out="runs/dcgan", if_exists="count").fit(
        **vars(parser.parse_args())
    )
