"""Take a trained generator away: weights, programs and a page that says what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastgan import sampling
from fastgan.config import ConfigError
from fastgan.data.table import FILE
from fastgan.export.card import LICENCES, card
from fastgan.export.forms import (
    TOLERANCE,
    LeftOut,
    write_onnx,
    write_program,
    write_safetensors,
    write_weights,
)
from fastgan.export.network import Network
from fastgan.report import drawn, facts
from fastgan.report.drawn import Maker
from fastgan.report.facts import Run
from fastgan.run import checkpoint, directory, files, log, pictures

__all__ = ["LICENCES", "TOLERANCE", "Exported", "export"]

FOLDER, CARD = "export", "README.md"


@dataclass
class Exported:
    """What an export has written.

    Attributes:
        place: the directory.
        written: what each file is, by its name.
        left_out: why a file was not written, by its name.
    """

    place: Path
    written: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def export(
    run: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    generator: nn.Module | None = None,
    condition: Tensor | None = None,
) -> Exported:
    """Write a run's generator, with the weights that samples are made by, for others to use.

    A state dict (generator.pth, generator.safetensors), a program of torch.export (generator.pt2)
    and a graph of ONNX (generator.onnx), both for any batch, both run and held against the module;
    config.json, samples.png where samples have a picture, and a README.md that says how good it is,
    of which data, and how each file is loaded. What cannot be written is left out, with the reason.

    Args:
        run: the directory of a run, or a checkpoint in it.
        out: a directory, made if it is not there. Default: "export" in the run's.
        generator: a network of a user's own that the weights belong to, needed for all but them;
            its weights are replaced.
        condition: examples of the conditions [n, ...] that such a network takes.

    Raises:
        CheckpointError: there is no checkpoint, or it does not fit the network.
        ConfigError: `out` is the directory of a run.
    """
    told = facts.of_directory(run)
    if told.state is None:
        raise checkpoint.CheckpointError(told.notes[0])
    if condition is not None and (not isinstance(condition, Tensor) or not condition.numel()):
        raise ConfigError("condition: expected a tensor of some conditions, one a row")
    place = directory.absolute(told.file.parent / FOLDER if out is None else out)
    if (place / log.LOG).exists() or place == told.file.parent:
        raise ConfigError(f"out: {place} is a run's own directory; choose another")
    directory.make(place)
    found, state = Exported(place), told.state
    told.about["models"] = state["models"]
    weights = state["ema"] or state["generator"]
    kept = "the average of G's weights" if state["ema"] else "G's weights"
    _write(found, "generator.pth", lambda f: f"{kept}: {write_weights(weights, f)}")
    _write(found, "generator.safetensors", lambda f: write_safetensors(weights, f))
    maker, network = _network(told, generator, condition)
    _write(found, "generator.pt2", lambda f: write_program(_there(network), f))
    _write(found, "generator.onnx", lambda f: write_onnx(_there(network), f))
    _write(found, log.CONFIG, lambda f: _config(told, f))
    shape: list[int] = []
    if isinstance(network, Network):
        shape = list(network(*network.inputs(2)).shape[1:])
        _beside(found, maker)
    else:
        network = None
    latent, _ = sampling.latents_of(state["config"])
    text = card(told, network, latent, shape, found.written, found.left_out)
    _write(found, CARD, lambda f: _text(f, text, "how to load it, how good it is, of which data"))
    return found


def _network(
    told: Run, generator: nn.Module | None, condition: Tensor | None
) -> tuple[Maker | None, Network | str]:
    """The generator with what it takes, or why it cannot be had."""
    maker = None
    try:
        maker = drawn.of_run(told, generator)
        if condition is not None:
            maker = replace(
                maker, condition=lambda n: condition[torch.arange(n, device="cpu") % len(condition)]
            )
        return maker, Network(maker)
    except ConfigError as error:
        return maker, str(error)
    except Exception as error:  # a network of a user's own may fail in any way
        return maker, f"the generator could not be run alone: {checkpoint.first_line(error)}"


def _there(network: Network | str) -> Network:
    if isinstance(network, str):
        raise LeftOut(network)
    return network


def _beside(found: Exported, maker: Maker) -> None:
    """What samples mean, or look like."""
    if maker.table is not None:
        maker.table.write(found.place)
        found.written[FILE] = "what the numbers of a row mean"
        return
    samples = maker.samples(64)
    file = found.place / pictures.SAMPLES
    if maker.images and pictures.drawable(samples.shape[1:]):
        pictures.grid(samples, file)
    elif samples.dim() == 2 and samples.shape[1] == 2:
        pictures.scatter(maker.samples(1000), file)
    else:
        return
    found.written[pictures.SAMPLES] = "samples"


def _write(found: Exported, name: str, write: Callable[[Path], str]) -> None:
    file = found.place / name
    try:
        found.written[name] = write(file)
    except LeftOut as why:
        found.left_out[name] = str(why)
        file.unlink(missing_ok=True)  # that of an earlier export would be of other weights


def _config(told: Run, file: Path) -> str:
    text = json.dumps({"settings": told.settings, "about": told.about}, indent=2) + "\n"
    return _text(file, text, "settings of the run, and what its networks are made of")


def _text(file: Path, text: str, words: str) -> str:
    files.write(file, lambda out: out.write(text.encode()))
    return words
