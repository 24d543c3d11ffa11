"""What a run tells, for TensorBoard."""

from __future__ import annotations

import importlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgan.callbacks import Callback, Samples
from fastgan.config import ConfigError
from fastgan.run import directory, log

if TYPE_CHECKING:
    from fastgan.trainer import Trainer


class TensorBoard(Callback):
    """Writes for TensorBoard: ``Trainer(..., callbacks=fastgan.TensorBoard())``.

    Settings when the run begins; every number of a log line, and the milliseconds that a step took,
    when it is written; alarms; samples at every save. A resumed run goes on where its checkpoint
    was: what had been written beyond is taken back. It needs tensorboardX
    (``pip install 'fastgan[tensorboard]'``); to look at it, ``tensorboard --logdir runs``.

    Args:
        logdir: where to. Default: "tensorboard" in the run's directory.

    Raises:
        ConfigError: tensorboardX is not here; or, when `fit` begins, `logdir` is None and the run
            has no directory.
    """

    on_all_ranks = True

    def __init__(self, logdir: str | os.PathLike | None = None):
        """See whether it can be written."""
        self._logdir = None if logdir is None else directory.absolute(logdir)
        self._writer: Any = None
        try:
            self._library = importlib.import_module("tensorboardX")
        except ImportError as error:
            raise ConfigError(
                f"TensorBoard's files are written by tensorboardX, which is not here ({error}): "
                "pip install 'fastgan[tensorboard]'"
            ) from error

    def start(self, trainer: Trainer) -> None:
        """Open a file, of the first rank only."""
        if not trainer.world.leads:
            return
        place = self._logdir
        if place is None:
            if trainer.out is None:
                raise ConfigError(
                    "TensorBoard has nowhere to write: give TensorBoard(logdir), or the run an out"
                )
            place = trainer.out / log.TENSORBOARD
        begun = trainer.step > 0
        # Files are named by the second, and a second one of that name would replace the first.
        suffix = f".{trainer.step:012d}.{secrets.token_hex(4)}"
        purge = trainer.step + 1 if begun else None
        self._writer = self._library.SummaryWriter(
            str(place), purge_step=purge, filename_suffix=suffix
        )
        if not begun:
            lines = [f"    {n}: {json.dumps(v)}" for n, v in trainer.config.to_dict().items()]
            self._writer.add_text("settings", "\n".join(lines), 0)

    def line(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Write its numbers."""
        if self._writer is None:
            return
        for name, value in _numbers(line):
            self._writer.add_scalar(name, value, trainer.step)
        self._writer.add_scalar("ms_per_step", trainer.ms_per_step, trainer.step)
        if alarms := line.get("alarms"):
            self._writer.add_text("alarms", ", ".join(map(str, alarms)), trainer.step)

    def save(self, trainer: Trainer, directory: Path | None) -> None:
        """Write samples, if they have a picture."""
        if self._writer is None and directory is not None:
            return
        picture = Samples().picture(trainer)
        if self._writer is not None and picture is not None:
            pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image("samples", pixels, trainer.step, dataformats="HWC")
            self._writer.flush()

    def end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _numbers(line: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line, those of a dict in it under a name with a slash."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{before}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step":
            yield before + name, value
