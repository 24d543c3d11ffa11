"""Network pairs that fastgan ships."""

from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator, init_dcgan
from fastgan.models.mlp import Discriminator, Generator

__all__ = ["DCGANDiscriminator", "DCGANGenerator", "Discriminator", "Generator", "init_dcgan"]
