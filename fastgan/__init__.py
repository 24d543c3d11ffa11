"""fastgan: the fast way to train generative adversarial networks in PyTorch."""

__version__ = "0.1.0"

from fastgan import data, losses, models, nn, ops, optim, random
from fastgan.callbacks import Callback, NonFiniteLossError
from fastgan.config import Config
from fastgan.info import info
from fastgan.losses import Loss, Penalty
from fastgan.models import Discriminator, Generator
from fastgan.nn import fuse, unfuse
from fastgan.train_gan import train_gan
from fastgan.trainer import Trainer

__all__ = [
    "Callback",
    "Config",
    "Discriminator",
    "Generator",
    "Loss",
    "NonFiniteLossError",
    "Penalty",
    "Trainer",
    "data",
    "fuse",
    "info",
    "losses",
    "models",
    "nn",
    "ops",
    "optim",
    "random",
    "train_gan",
    "unfuse",
]
