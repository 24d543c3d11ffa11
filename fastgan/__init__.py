"""fastgan: the fast way to train generative adversarial networks in PyTorch."""

from fastgan import data, losses, models, nn, ops, optim, random, terms
from fastgan.callbacks import Callback, NonFiniteLossError
from fastgan.config import Config
from fastgan.info import info
from fastgan.latents import OneHot, Uniform
from fastgan.losses import Loss, Penalty
from fastgan.models import Discriminator, Generator
from fastgan.nn import fuse, unfuse
from fastgan.train_gan import train_gan
from fastgan.trainer import Trainer
from fastgan.version import __version__

__all__ = [
    "Callback",
    "Config",
    "Discriminator",
    "Generator",
    "Loss",
    "NonFiniteLossError",
    "OneHot",
    "Penalty",
    "Trainer",
    "Uniform",
    "__version__",
    "data",
    "fuse",
    "info",
    "losses",
    "models",
    "nn",
    "ops",
    "optim",
    "random",
    "terms",
    "train_gan",
    "unfuse",
]
