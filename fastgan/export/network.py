"""The generator of a saved run as others are to have it: on its own, with examples of inputs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import conditions, random, wrapped
from fastgan.config import ConfigError
from fastgan.data.rows import frequent
from fastgan.engines.probe import dtype_of
from fastgan.nn import unfuse
from fastgan.random import Stream
from fastgan.report.drawn import Maker


class _OneTensor(nn.Module):
    """A generator whose output is its samples, where it gives a tuple that begins with them."""

    def __init__(self, generator: nn.Module):
        super().__init__()
        self.generator = generator

    def forward(self, *given: Tensor) -> Tensor:
        made = self.generator(*given)
        return made[0] if isinstance(made, (tuple, list)) else made


class Network:
    """A copy of a run's generator on the CPU, in eval mode, and what it is called with.

    Args:
        maker: the generator, its latents and conditions.

    Attributes:
        module: takes what `inputs` gives, and returns one tensor.
        names: of the inputs: "latents", "condition".
        constant: two calls with the same inputs give the same samples.

    Raises:
        ConfigError: what it takes is not known.
    """

    def __init__(self, maker: Maker):
        """Copy and try it."""
        generator = unfuse(copy.deepcopy(wrapped.unwrapped(maker.generator)).cpu()).eval()
        self.module = _OneTensor(generator).eval()
        self._maker, self._dtype = maker, dtype_of(generator)
        condition = self._condition(2)
        if condition is not None and not isinstance(condition, Tensor):
            raise ConfigError("its generator takes conditions of several parts, which is not done")
        names = {"latents": maker.latent.shape is not None, "condition": condition is not None}
        self.names = [name for name, given in names.items() if given]
        needs = conditions.asked_for(maker.generator, names["latents"])[1]
        if needs and condition is None:
            raise ConfigError(
                "its generator takes a condition, of which an export needs examples; call "
                "fastgan.export.export(RUN, generator=G, condition=a tensor of them)"
            )
        self.constant = torch.equal(*(self(*self.inputs(3)) for _ in range(2)))

    def inputs(self, n: int) -> tuple[Tensor, ...]:
        """Examples of what it is called with, for n samples."""
        latent, found = self._maker.latent, []
        if latent.shape is not None:
            shape = (n, *latent.drawn)
            normals = random.normal(self._maker.seed, Stream.SAMPLE, 0, shape, device="cpu")
            found.append(latent.of(normals).to(self._dtype))
        if (condition := self._condition(n)) is not None:
            found.append(condition)
        return tuple(found)

    @torch.no_grad()
    def __call__(self, *given: Tensor) -> Tensor:
        """Samples of the module."""
        return self.module(*given)

    def _condition(self, n: int) -> Any:
        maker = self._maker
        if maker.table is not None and maker.table.discrete:
            return frequent(maker.table, n, maker.seed)
        return maker.condition(n)
