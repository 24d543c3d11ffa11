"""Network pairs that fastgan ships."""

from fastgan.models.ctgan import CTGANDiscriminator, CTGANGenerator
from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator, init_dcgan
from fastgan.models.mlp import Discriminator, Generator
from fastgan.models.points import PointDiscriminator, PointGenerator
from fastgan.models.r3gan import R3GANDiscriminator, R3GANGenerator
from fastgan.models.registry import MODELS, NETWORKS, Form, Model, describe, make, rebuild
from fastgan.models.sn_resnet import SNResNetDiscriminator, SNResNetGenerator

__all__ = [
    "MODELS",
    "NETWORKS",
    "CTGANDiscriminator",
    "CTGANGenerator",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "Discriminator",
    "Form",
    "Generator",
    "Model",
    "PointDiscriminator",
    "PointGenerator",
    "R3GANDiscriminator",
    "R3GANGenerator",
    "SNResNetDiscriminator",
    "SNResNetGenerator",
    "describe",
    "init_dcgan",
    "make",
    "rebuild",
]
