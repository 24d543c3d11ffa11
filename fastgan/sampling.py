"""Samples from a generator: one in training, or one that a run has saved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import models, random, resuming
from fastgan.config import Config
from fastgan.config.kinds import ConfigError, integer, number
from fastgan.data.batch import map_condition
from fastgan.engines.probe import buffers_kept, dtype_of
from fastgan.latents import Latent
from fastgan.random import Stream
from fastgan.run import pictures, restore, torch_rng


@torch.no_grad()
def sample(
    generator: nn.Module,
    n: int,
    latent: Latent,
    seed: int,
    device: torch.device,
    images: bool = True,
    condition: Any = None,
    truncation: float | None = None,
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
        images: whether samples are images where their shape is that of one.
        condition: n of them, for a generator that takes one.
        truncation: see `Trainer.sample`.
    """
    n = integer(1).take("n", n)
    if truncation is not None:
        truncation = number(0, above=True).take("truncation", truncation)
        if latent.shape is None or not latent.normals:
            raise ConfigError(
                f"truncation is {truncation}, and the generator takes no normal latents"
            )
    normals = None
    if latent.shape is not None:
        normals = random.normal(seed, Stream.SAMPLE, 0, (n, *latent.drawn), device=device)
        if truncation is not None:
            normals = latent.truncated(normals, truncation)
    samples = made(generator, n, latent, normals, seed, device, condition)
    return samples.clamp(-1, 1) if images and pictures.drawable(samples.shape[1:]) else samples


@torch.no_grad()
def made(
    generator: nn.Module,
    n: int,
    latent: Latent,
    normals: Tensor | None,
    seed: int,
    device: torch.device,
    condition: Any = None,
) -> Tensor:
    """The samples of these normals, float32 [n, *shape] as the generator makes them.

    The generator is in eval mode meanwhile.

    Args:
        generator: see `sample`.
        n: how many.
        latent: what it is fed.
        normals: what latents are made of, float32 [n, *latent.drawn]; None where it is fed none.
        seed: of what the generator draws itself.
        device: where it lies.
        condition: n of them, for a generator that takes one.
    """
    inputs = []
    if normals is not None:
        inputs.append(latent.of(normals).to(dtype_of(generator)))
    if condition is not None:
        inputs.append(condition)
    modes = [(m, m.training) for m in generator.modules()]
    generator.eval()
    try:
        # A look at the samples must not move the run, nor depend on where its generators are.
        with torch_rng.seeded(seed, device), buffers_kept(generator):
            parts = [
                generator(*(map_condition(lambda t, at=at: t[at : at + 256], x) for x in inputs))
                for at in range(0, n, 256)
            ]
    finally:
        for m, training in modes:
            m.training = training
    parts = [part[0] if isinstance(part, (tuple, list)) else part for part in parts]
    return torch.cat(parts).float()


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
    return generator_of(file, state, generator), state["config"]


def generator_of(
    file: Path, state: Mapping[str, Any], generator: nn.Module | None = None
) -> nn.Module:
    """The generator that a checkpoint holds, with the weights that `Trainer.sample` uses."""
    generator = resuming.network_of(file, state, "generator", generator)
    weights = state["ema"] or state["generator"]
    generator.load_state_dict(restore.require_fit(file, "generator", generator, weights))
    return generator


def classes_of(generator: nn.Module) -> int:
    """How many classes a generator of ours takes one of; 0 for one that takes none."""
    described = models.describe(generator) or {}
    return described.get("classes") or described.get("condition_dim") or 0


def classes_in_turn(generator: nn.Module, n: int, device: torch.device) -> Tensor | None:
    """0, 1, ... from the beginning again after all, int64 [n], for a generator of ours that takes a
    class; None for one that does not."""
    classes = classes_of(generator)
    return torch.arange(n, device=device) % classes if classes else None


def classes_asked_for(generator: nn.Module, words: str | None) -> list[int] | None:
    """The classes that a text names, "all" or numbers such as "0,1,2"; None of None.

    Raises:
        ConfigError: it is no such text, or the generator takes no class.
    """
    if words is None:
        return None
    count = classes_of(generator)
    if not count:
        raise ConfigError(f"classes is {words!r}, but the run's generator takes no class")
    if words == "all":
        return [*range(count)]
    try:
        classes = [int(word) for word in words.replace(",", " ").split()]
    except ValueError:
        classes = []
    if not classes or min(classes) < 0 or max(classes) >= count:
        raise ConfigError(
            f"classes is {words!r}; expected all, or numbers from 0 to {count - 1} such as 0,1"
        )
    return classes


def sample_classes(
    generator: nn.Module,
    n: int,
    latent: Latent,
    seed: int,
    device: torch.device,
    classes: list[int] | None,
    truncation: float | None = None,
) -> Tensor:
    """About n samples: as many of each class, one class after the other, of the same latents.

    Without `classes` n of them, of all classes in turn where there are some.
    """
    if classes is None:
        in_turn = classes_in_turn(generator, n, device)
        return sample(generator, n, latent, seed, device, condition=in_turn, truncation=truncation)
    each = max(1, n // len(classes))
    rows = []
    for label in classes:
        labels = torch.full((each,), label, device=device)
        rows.append(
            sample(generator, each, latent, seed, device, condition=labels, truncation=truncation)
        )
    return torch.cat(rows)


def latents_of(values: dict[str, Any]) -> tuple[Latent, int]:
    """The latent and the seed of a run's settings as plain values."""
    config = Config(latent_dim=values["latent_dim"], seed=values["seed"])
    return config.latent, config.seed
