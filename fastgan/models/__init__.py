"""Network pairs that fastgan ships."""

from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator, init_dcgan
from fastgan.models.mlp import Discriminator, Generator
from fastgan.models.registry import MODELS, NETWORKS, Model, describe, make, rebuild

__all__ = [
    "MODELS",
    "NETWORKS",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "Discriminator",
    "Generator",
    "Model",
    "describe",
    "init_dcgan",
    "make",
    "rebuild",
]
