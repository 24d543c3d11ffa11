"""What fastgan ships, by name: made for some data, written down as plain values, and made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from fastgan.models.mlp import Discriminator, Generator


@dataclass(frozen=True)
class Model:
    """A pair of networks.

    Attributes:
        help: what it is, in a few words.
        preset: the settings that suit it, where none are named.
        width: what it takes for the setting `width` where that is None.
        build: (shape of a sample, latent_dim, width, whether D ends in a Sigmoid) -> (G, D), with
            weights from torch's generator; ValueError for data that it is not for.
    """

    help: str
    preset: str
    width: int
    build: Callable[[tuple[int, ...], int, int, bool], tuple[nn.Module, nn.Module]]


def _mlp(shape, latent_dim, width, sigmoid):
    return Generator(latent_dim, shape, width), Discriminator(shape, width, sigmoid)


def _dcgan(shape, latent_dim, width, sigmoid):
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(
            f"model 'dcgan' makes square images, and a sample is {list(shape)}; give image_size="
        )
    channels, side, _ = shape
    return (
        DCGANGenerator(latent_dim, side, channels, width),
        DCGANDiscriminator(side, channels, width, sigmoid),
    )


MODELS: dict[str, Model] = {
    "mlp": Model("one hidden layer each, for samples of any shape", "mnist-mlp", 256, _mlp),
    "dcgan": Model("convolutions, for square images", "dcgan-64", 64, _dcgan),
}

NETWORKS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (Generator, Discriminator, DCGANGenerator, DCGANDiscriminator)
}
"""The classes; each has a method `arguments`, from which its like can be made."""


def make(
    name: str, shape: tuple[int, ...], latent_dim: Any, width: int | None, sigmoid: bool
) -> tuple[nn.Module, nn.Module]:
    """The pair of that name for samples of a shape, with weights from torch's generator.

    Raises:
        ValueError: the pair is not for such data.
    """
    model = MODELS[name]
    if not isinstance(latent_dim, int):
        raise ValueError(f"latent_dim is {latent_dim!r}; model {name!r} takes vectors: a length")
    return model.build(tuple(shape), latent_dim, width or model.width, sigmoid)


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
    if isinstance(arguments.get("img_shape"), list):
        arguments["img_shape"] = tuple(arguments["img_shape"])
    try:
        network = NETWORKS[name](**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be made of {arguments}: {error}") from None
    # By their texts, for which 1 is not True.
    if repr(sorted(describe(network).items())) != repr(sorted(described.items())):
        raise ValueError(f"{name} cannot be made of {arguments}, but of {network.arguments()}")
    return network
