"""Network pairs that fastgan ships."""

from fastgan.models.mlp import Discriminator, Generator

__all__ = ["Discriminator", "Generator"]
