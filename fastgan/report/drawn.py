"""What the generator of a run makes for its report: a walk through its latents, rows, vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from fastgan import conditions, random, sampling, tabular
from fastgan.config import ConfigError
from fastgan.data import Data, DataError
from fastgan.data.rows import Rows
from fastgan.data.table import Table, read
from fastgan.latents import Latent
from fastgan.random import Stream
from fastgan.report.facts import Run
from fastgan.run import pictures
from fastgan.run.checkpoint import CheckpointError
from fastgan.sampling import made

if TYPE_CHECKING:
    import pandas

    from fastgan.trainer import Trainer

ENDS, BETWEEN = 4, 8
"""Latents on a walk, and pictures from each to the next."""


@dataclass(frozen=True)
class Maker:
    """A generator with all that it needs to make samples.

    Attributes:
        generator: the network, with the weights that samples are made by.
        latent: what it is fed.
        seed: of the latents.
        device: where it lies.
        condition: n -> conditions of n samples; None for a generator that takes none.
        images: whether samples may be images.
        table: what its rows mean, if it makes rows.
        source: what its real rows are read from, or a function that gives them; None: not at hand.
    """

    generator: nn.Module
    latent: Latent
    seed: int
    device: torch.device
    condition: Callable[[int], Any]
    images: bool = True
    table: Table | None = None
    source: str | Callable[[], pandas.DataFrame] | None = None

    def samples(self, n: int) -> Tensor:
        """n samples [n, *shape], those that `Trainer.sample` makes."""
        return sampling.sample(
            self.generator, n, self.latent, self.seed, self.device, self.images, self.condition(n)
        )

    def of(self, normals: Tensor, condition: Any) -> Tensor:
        """The samples of these normals [n, *latent.drawn]."""
        n = len(normals)
        return made(self.generator, n, self.latent, normals, self.seed, self.device, condition)

    def rows(self, n: int) -> pandas.DataFrame:
        """n rows of the table."""
        return tabular.rows(self.generator, self.table, n, self.latent, self.seed)

    def real(self) -> pandas.DataFrame:
        """The real rows of the table.

        Raises:
            DataError: they cannot be read, or a program passed them.
        """
        if self.source is None:
            raise DataError("its program passed the rows, and the run's directory has none of them")
        return self.source() if callable(self.source) else read(self.source)


def of_run(
    run: Run, generator: nn.Module | None = None, device: torch.device | None = None
) -> Maker:
    """That of a saved run.

    Args:
        run: the run.
        generator: its like, where it is a user's own; its weights are replaced.
        device: where it is to lie. Default: the CPU.

    Raises:
        ConfigError: it cannot be made again without its program, as the message says.
    """
    if run.state is None:
        raise ConfigError("there is no checkpoint that could be read")
    try:
        network = sampling.generator_of(run.file, run.state, generator)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    latent, seed = sampling.latents_of(run.state["config"])
    device = device or torch.device("cpu")
    network.to(device)
    table = Table.found(run.file.parent)
    return Maker(
        network, latent, seed, device,
        lambda n: sampling.classes_in_turn(network, n, device),
        table is None and run.state["data"]["kind"] == "image", table,
        run.state["config"]["data"],
    )  # fmt: skip


def of_trainer(trainer: Trainer) -> Maker:
    """That of a run at work."""
    p = trainer.problem
    return Maker(
        p.sampled, p.latent, p.seed, p.device,
        lambda n: conditions.to_sample_by(p, n, None), p.data.drawable, p.data.table,
        lambda: _rows_of(p.data),
    )  # fmt: skip


def _rows_of(data: Data) -> pandas.DataFrame:
    """The rows that are learned, back from what is held of them."""
    rows = data.samples
    return data.table.decoded(data.table.unpacked(rows) if isinstance(data, Rows) else rows)


def walk(
    maker: Maker, n: int | None = None, between: int = BETWEEN, scale: int | None = 1
) -> list[tuple[int, Image.Image]]:
    """Pictures of samples whose latents go from one to the next and back to the first.

    Between two draws u and v the way is u cos t + v sin t: on all of it latents are as likely as
    any draw. The first picture has the first samples of the run's samples.png.

    Args:
        maker: whose samples.
        n: samples in a picture. Default: as many as suit a page.
        between: pictures from one latent to the next.
        scale: as for `fastgan.run.pictures.sheet`.

    Raises:
        ConfigError: samples are no images, or there are no latents to go along.
    """
    if maker.latent.shape is None:
        raise ConfigError("The generator takes no latents to walk through.")
    if not maker.images:
        raise ConfigError("Samples are no images, and a walk is drawn of images.")
    like = maker.samples(1)
    if not pictures.drawable(like.shape[1:]):
        raise ConfigError("Samples are no images that could be drawn.")
    columns = None
    if n is None:
        columns, rows = _layout(max(like.shape[2:]))
        n = columns * rows
    shape = (ENDS * n, *maker.latent.drawn)
    ends = random.normal(maker.seed, Stream.SAMPLE, 0, shape, device=maker.device).chunk(ENDS)
    condition = maker.condition(n)
    found = []
    for at in range(ENDS * between):
        end, part = divmod(at, between)
        angle = part / between * math.pi / 2
        normals = ends[end] * math.cos(angle) + ends[(end + 1) % ENDS] * math.sin(angle)
        found.append((at, pictures.sheet(maker.of(normals, condition), columns, scale)))
    return found


def _layout(side: int) -> tuple[int, int]:
    """Columns and rows of pictures of so many pixels, for a page."""
    return (6, 4) if side <= 32 else (5, 3) if side <= 64 else (3, 2)
