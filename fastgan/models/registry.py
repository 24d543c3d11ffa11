"""What fastgan ships, by name: made for some data, written down as plain values, and made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastgan.models.ctgan import PACK, CTGANDiscriminator, CTGANGenerator
from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from fastgan.models.mlp import Discriminator, Generator
from fastgan.models.points import PointDiscriminator, PointGenerator
from fastgan.models.r3gan import R3GANDiscriminator, R3GANGenerator
from fastgan.models.sn_resnet import SNResNetDiscriminator, SNResNetGenerator


@dataclass(frozen=True)
class Form:
    """What a pair must know of the data that it is made for.

    Attributes:
        shape: of a sample.
        classes: how many there are where each sample has one, or length of a condition that says
            which of some classes; None without.
        heads: what a row of a table consists of, as `CTGANGenerator` takes it; None of what is no
            table.
    """

    shape: tuple[int, ...]
    classes: int | None = None
    heads: tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True)
class Model:
    """A pair of networks.

    Attributes:
        help: what it is, in a few words.
        preset: the settings that suit it, where none are named.
        width: what it takes for the setting `width` where that is None.
        build: (form of the data, latent_dim, width, whether D ends in a Sigmoid, which it may leave
            out) -> (G, D), with weights from torch's generator; ValueError for data that it is not
            for.
    """

    help: str
    preset: str
    width: int
    build: Callable[[Form, int, int, bool], tuple[nn.Module, nn.Module]]


def _mlp(form, latent_dim, width, sigmoid):
    return Generator(latent_dim, form.shape, width), Discriminator(form.shape, width, sigmoid)


def _square(name, form):
    shape = form.shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(
            f"model {name!r} makes square images, and a sample is {list(shape)}; give image_size="
        )
    return shape[1], shape[0]


def _dcgan(form, latent_dim, width, sigmoid):
    image = _square("dcgan", form)
    return DCGANGenerator(latent_dim, *image, width), DCGANDiscriminator(*image, width, sigmoid)


def _sn_resnet(form, latent_dim, width, sigmoid):
    options = (*_square("sn-resnet", form), width, form.classes)
    return SNResNetGenerator(latent_dim, *options), SNResNetDiscriminator(*options)


def _r3gan(form, latent_dim, width, sigmoid):
    options = (*_square("r3gan", form), width)
    return R3GANGenerator(latent_dim, *options), R3GANDiscriminator(*options)


def _ctgan(form, latent_dim, width, sigmoid):
    if form.heads is None:
        raise ValueError(
            f"model 'ctgan' makes the rows of a table, and a sample is {list(form.shape)}; give "
            "a CSV or Parquet file, or a DataFrame"
        )
    (row,), classes = form.shape, form.classes or 0
    return (
        CTGANGenerator(form.heads, latent_dim, width, classes),
        CTGANDiscriminator(row, width, classes, PACK),
    )


def _points(form, latent_dim, width, sigmoid):
    return (
        PointGenerator(latent_dim, form.shape, width),
        PointDiscriminator(form.shape, width, sigmoid),
    )


MODELS: dict[str, Model] = {
    "mlp": Model("one hidden layer each, for samples of any shape", "mnist-mlp", 256, _mlp),
    "dcgan": Model("convolutions, for square images", "dcgan-64", 64, _dcgan),
    "sn-resnet": Model(
        "residual, spectral norm, by classes if there are any, for images of 32 or 64",
        "sn-resnet-32", 64, _sn_resnet,
    ),
    "r3gan": Model("residual without normalisation, for square images", "r3gan-32", 256, _r3gan),
    "ctgan": Model("for the rows of a table", "ctgan", 256, _ctgan),
    "points": Model("two hidden layers each, for vectors of few numbers", "points", 64, _points),
}  # fmt: skip

NETWORKS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(Generator, Discriminator, DCGANGenerator, DCGANDiscriminator),
        *(SNResNetGenerator, SNResNetDiscriminator, R3GANGenerator, R3GANDiscriminator),
        *(CTGANGenerator, CTGANDiscriminator),
        *(PointGenerator, PointDiscriminator),
    )
}
"""The classes; each has a method `arguments`, from which its like can be made."""


def make(
    name: str, form: Form, latent_dim: Any, width: int | None, sigmoid: bool
) -> tuple[nn.Module, nn.Module]:
    """The pair of that name for data of a form, with weights from torch's generator.

    Raises:
        ValueError: the pair is not for such data.
    """
    model = MODELS[name]
    if not isinstance(latent_dim, int):
        raise ValueError(f"latent_dim is {latent_dim!r}; model {name!r} takes vectors: a length")
    with torch.device("cpu"):  # whose generator was seeded, whatever the default device is
        return model.build(form, latent_dim, width or model.width, sigmoid)


def describe(network: nn.Module) -> dict[str, Any] | None:
    """How to make a network of ours again, as plain values; None for a user's own."""
    name = type(network).__name__
    if NETWORKS.get(name) is not type(network):
        return None
    return {"network": name, **network.arguments()}


def rebuild(described: Mapping[str, Any]) -> nn.Module:
    """The network that `describe` wrote down, with new weights.

    Raises:
        ValueError: it is no such description.
    """
    arguments = dict(described)
    name = arguments.pop("network", None)
    if name not in NETWORKS:
        raise ValueError(f"network is {name!r}; expected one of {', '.join(NETWORKS)}")
    for shape in ("img_shape", "shape"):
        if isinstance(arguments.get(shape), list):
            arguments[shape] = tuple(arguments[shape])
    try:
        with torch.device("cpu"):
            network = NETWORKS[name](**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be made of {arguments}: {error}") from None
    # By their texts, for which 1 is not True.
    if repr(sorted(describe(network).items())) != repr(sorted(described.items())):
        raise ValueError(f"{name} cannot be made of {arguments}, but of {network.arguments()}")
    return network
