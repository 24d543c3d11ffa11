"""fastgan: the fast way to train generative adversarial networks in PyTorch."""

from fastgan import data, losses, models, nn, ops, optim, random, tabular, terms, theory
from fastgan.alarms import Alarms
from fastgan.callbacks import Callback, NonFiniteLossError
from fastgan.config import Config
from fastgan.history import History
from fastgan.info import info
from fastgan.latents import OneHot, Uniform
from fastgan.live import Live
from fastgan.losses import Loss, Penalty
from fastgan.many import Ensemble, grid
from fastgan.measure import Measure
from fastgan.models import Discriminator, Generator
from fastgan.nn import fuse, spectral_norm, unfuse
from fastgan.tensorboard import TensorBoard
from fastgan.train_gan import train_gan
from fastgan.trainer import Trainer
from fastgan.until import Until
from fastgan.version import __version__

__all__ = [
    "Alarms",
    "Callback",
    "Config",
    "Discriminator",
    "Ensemble",
    "Generator",
    "History",
    "Live",
    "Loss",
    "Measure",
    "NonFiniteLossError",
    "OneHot",
    "Penalty",
    "TensorBoard",
    "Trainer",
    "Uniform",
    "Until",
    "__version__",
    "data",
    "fuse",
    "grid",
    "info",
    "losses",
    "models",
    "nn",
    "ops",
    "optim",
    "random",
    "spectral_norm",
    "tabular",
    "terms",
    "theory",
    "train_gan",
    "unfuse",
]
