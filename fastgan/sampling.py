"""Images from a generator: one in training, or one that a run has saved."""

import os
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import random
from fastgan.engines.base import dtype_of
from fastgan.problem import at_least, rebuild
from fastgan.random import Stream
from fastgan.run import checkpoint, restore, torch_rng


@torch.no_grad()
def sample(
    generator: nn.Module, n: int, latent_shape: tuple[int, ...], seed: int, device: torch.device
) -> Tensor:
    """n images of a generator, float32 [n, C, H, W] in [-1, 1], from the latents of `seed`.

    The generator is in eval mode meanwhile. The first images do not depend on n.
    """
    at_least(1, n=n)
    latents = random.normal(seed, Stream.SAMPLE, 0, (n, *latent_shape), device=device)
    latents = latents.to(dtype_of(generator))
    modes = [(m, m.training) for m in generator.modules()]
    generator.eval()
    try:
        # A look at the images must not move the random state of the run, nor depend on it.
        with torch_rng.seeded(seed, device):
            images = [generator(part) for part in latents.split(256)]
    finally:
        for m, training in modes:
            m.training = training
    return torch.cat(images).float().clamp(-1, 1)


def load_generator(
    path: str | os.PathLike, generator: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The generator of a saved run, with the weights that `Trainer.sample` uses, and its config.

    Args:
        path: the directory of a run, or a checkpoint in it.
        generator: the network to load into; needed if the run did not train the reference pair.

    Raises:
        CheckpointError: missing, damaged or not fitting, as for `Trainer.resume`.
    """
    file = checkpoint.find(path)
    state = checkpoint.load(file)
    config = state["config"]
    restore.require(file, "generator", generator, config["generator"])
    if generator is None:
        generator = rebuild(config["generator"])
    weights = state["ema"] or state["generator"]
    weights = restore.require_fit(file, "generator", generator, weights)
    generator.load_state_dict(weights)
    return generator, config
