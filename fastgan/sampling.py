"""Samples from a generator: one in training, or one that a run has saved."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import random, resuming
from fastgan.config import Config
from fastgan.config.kinds import integer
from fastgan.data.batch import map_condition
from fastgan.engines.probe import dtype_of
from fastgan.latents import Latent
from fastgan.random import Stream
from fastgan.run import restore, torch_rng


@torch.no_grad()
def sample(
    generator: nn.Module,
    n: int,
    latent: Latent,
    seed: int,
    device: torch.device,
    images: bool = True,
    condition: Any = None,
) -> Tensor:
    """n samples of a generator, float32 [n, *shape], from the latents of `seed`.

    The generator is in eval mode meanwhile. The first samples do not depend on n. Images are
    clamped to [-1, 1].

    Args:
        generator: latents, and a condition if it is given one, to samples, or to a tuple that
            begins with them.
        n: how many.
        latent: what it is fed.
        seed: of the latents.
        device: where it lies.
        images: whether samples are images.
        condition: n of them, for a generator that takes one.
    """
    n = integer(1).take("n", n)
    inputs = []
    if latent.shape is not None:
        normals = random.normal(seed, Stream.SAMPLE, 0, (n, *latent.drawn), device=device)
        inputs.append(latent.of(normals).to(dtype_of(generator)))
    if condition is not None:
        inputs.append(condition)
    modes = [(m, m.training) for m in generator.modules()]
    generator.eval()
    try:
        # A look at the samples must not move the random state of the run, nor depend on it.
        with torch_rng.seeded(seed, device):
            made = [
                generator(*(map_condition(lambda t, at=at: t[at : at + 256], x) for x in inputs))
                for at in range(0, n, 256)
            ]
    finally:
        for m, training in modes:
            m.training = training
    made = [part[0] if isinstance(part, (tuple, list)) else part for part in made]
    samples = torch.cat(made).float()
    return samples.clamp(-1, 1) if images else samples


def load_generator(
    path: str | os.PathLike, generator: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The generator of a saved run, with the weights that `Trainer.sample` uses, and its settings.

    Args:
        path: the directory of a run, or a checkpoint in it.
        generator: the network to load into; needed if the run did not train a pair of ours.

    Returns:
        the generator, and the run's settings as plain values.

    Raises:
        CheckpointError: missing, damaged or not fitting, as for `Trainer.resume`.
    """
    file, state = resuming.read(path)
    generator = resuming.network_of(file, state, "generator", generator)
    weights = state["ema"] or state["generator"]
    generator.load_state_dict(restore.require_fit(file, "generator", generator, weights))
    return generator, state["config"]


def latents_of(values: dict[str, Any]) -> tuple[Latent, int]:
    """The latent and the seed of a run's settings as plain values."""
    config = Config(latent_dim=values["latent_dim"], seed=values["seed"])
    return config.latent, config.seed
