"""A GAN of multilayer perceptrons, G with BatchNorm1d: python examples/mlp_batchnorm.py

I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014.
"""

import argparse

import torch
from torch import nn

import fastgan


def networks(width=128):
    """Four layers in G, three in D."""
    layers = [nn.Linear(100, width), nn.LeakyReLU(0.2)]
    for i in (1, 2):
        layers += [nn.Linear(i * width, 2 * i * width), nn.BatchNorm1d(2 * i * width)]
        layers += [nn.LeakyReLU(0.2)]
    G = nn.Sequential(*layers, nn.Linear(4 * width, 784), nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))
    D = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 2 * width),
        nn.LeakyReLU(0.2),
        nn.Linear(2 * width, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, 1),
    )
    return G, D


def trainer(G, D, data="digits", **settings):
    """Everything that the run is."""
    return fastgan.Trainer(G, D, data, **settings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    torch.manual_seed(0)
    trainer(*networks(), out="runs/mlp-batchnorm", if_exists="count").fit(
        **vars(parser.parse_args())
    )
