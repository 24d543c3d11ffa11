"""One page on one or several runs, with everything in it: `fastgan report`, `Trainer.show`."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastgan.config import ConfigError
from fastgan.config.kinds import integer
from fastgan.many import members
from fastgan.report import drawn, facts
from fastgan.report.page import render
from fastgan.run import files, pictures

if TYPE_CHECKING:
    from fastgan.trainer import Trainer

__all__ = ["FILE", "Report", "interpolate", "of_runs", "of_trainer"]

FILE = "report.html"


class Report:
    """A page on runs, which a notebook shows.

    Attributes:
        html: the page, a whole file.
    """

    HEIGHT = 900

    def __init__(self, html: str):
        """Keep the page."""
        self.html = html

    def save(self, path: str | os.PathLike) -> Path:
        """Write it to a file, and return which.

        Raises:
            ConfigError: there is no such directory.
            OSError: it cannot be written.
        """
        path = Path(path).expanduser()
        if not path.parent.is_dir():
            raise ConfigError(f"there is no directory {path.parent} for the report")
        files.write(path, lambda file: file.write(self.html.encode()))
        return path

    def _repr_html_(self) -> str:
        # In a frame of its own, so that neither page's style reaches the other.
        return (
            f'<iframe title="fastgan report" srcdoc="{html.escape(self.html)}" '
            f'style="width:100%;height:{self.HEIGHT}px;border:0"></iframe>'
        )

    def __repr__(self) -> str:
        """How large it is, and how to see it."""
        return f"<fastgan report, {len(self.html):,} characters; .save('report.html') writes it>"


def of_runs(
    paths: str | os.PathLike | Sequence[str | os.PathLike], generator: nn.Module | None = None
) -> Report:
    """A report on saved runs.

    Args:
        paths: the directory of a run, or several; that of an ensemble stands for its members.
        generator: of one run whose generator is a user's own: its like, for the walk. Its weights
            are replaced.

    Raises:
        ConfigError: a directory holds no run.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not paths:
        raise ConfigError("paths is empty; give the directory of a run, or several")
    paths = [run for path in paths for run in members.runs_of(path)]
    runs = facts.named([facts.of_directory(path) for path in paths])
    return Report(render(runs, [partial(drawn.of_run, run, generator) for run in runs]))


def of_trainer(trainer: Trainer) -> Report:
    """A report on a run at work; see `Trainer.show`."""
    return Report(render([facts.of_trainer(trainer)], [partial(drawn.of_trainer, trainer)]))


def interpolate(
    run: Trainer | str | os.PathLike,
    path: str | os.PathLike,
    n: int = 16,
    *,
    between: int = 16,
    seed: int | None = None,
    seconds: float = 0.06,
    generator: nn.Module | None = None,
    device: torch.device | None = None,
) -> Path:
    """Write samples whose latents go from one to the next and back to the first, as a film.

    Args:
        run: a run at work, or the directory of a saved one.
        path: ends in .gif or .mp4; the latter needs imageio (``pip install 'fastgan[video]'``).
        n: samples beside each other. Default 16.
        between: pictures from one latent to the next. Default 16.
        seed: of the latents. Default: the run's, so that the first are those of its samples.png.
        seconds: that each picture is seen. Default 0.06.
        generator: as for `of_runs`.
        device: where samples of a saved run are made. Default: the CPU.

    Returns:
        the path.

    Raises:
        ConfigError: samples are no images, or there are no latents to go along.
        ValueError: the path ends otherwise, or imageio is not here.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in pictures.MOVING:
        raise ConfigError(f"{path} ends otherwise than in {' or '.join(pictures.MOVING)}")
    n, between = integer(1).take("n", n), integer(1).take("between", between)
    if isinstance(run, (str, os.PathLike)):
        maker = drawn.of_run(facts.of_directory(run), generator, device)
    else:
        maker = drawn.of_trainer(run)
    if seed is not None:
        maker = replace(maker, seed=seed)
    frames = [one for _, one in drawn.walk(maker, n, between=between, scale=None)]
    pictures.animate(frames, path, seconds)
    return path
