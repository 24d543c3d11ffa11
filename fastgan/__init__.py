"""fastgan: the fast way to train generative adversarial networks in PyTorch."""

# _start comes first: it notes the time before torch is imported.
from fastgan import _start

__version__ = "0.1.0"

with _start.no_collection():
    from fastgan import data, losses, nn, ops, optim, random
    from fastgan.classic import train_gan
    from fastgan.info import info
    from fastgan.models import Discriminator, Generator
    from fastgan.nn import fuse, unfuse
    from fastgan.trainer import Trainer

__all__ = [
    "Discriminator",
    "Generator",
    "Trainer",
    "data",
    "fuse",
    "info",
    "losses",
    "nn",
    "ops",
    "optim",
    "random",
    "train_gan",
    "unfuse",
]
