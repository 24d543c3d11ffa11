"""A run in a notebook while it trains."""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from fastgan.callbacks import Callback, Samples
from fastgan.config import ConfigError
from fastgan.config.kinds import number
from fastgan.run import pictures

if TYPE_CHECKING:
    from fastgan.trainer import Trainer


class Live(Callback):
    """Shows a run under the cell that trains it: ``Trainer(..., callbacks=fastgan.Live())``.

    Samples of the same latents, where they have a picture, beside both losses; drawn anew in place
    every so many seconds, and at the end. `Trainer.show` has all of a run, on a page.

    Args:
        seconds: from one drawing to the next. Default 5.

    Raises:
        ConfigError: when `fit` begins, this is no notebook.
    """

    def __init__(self, seconds: float = 5.0):
        """Nothing is drawn yet."""
        self.seconds = number(0).take("seconds", seconds)
        self._handle: Any = None
        self._drawn_at = 0.0

    def start(self, trainer: Trainer) -> None:
        """Make the place for the pictures, of the first rank only."""
        if trainer.problem.divided and trainer.world.size > 1:
            raise ConfigError(
                "Live draws on the first rank, when it is time there, and samples of networks that "
                "are divided over the ranks are made by all; leave it out"
            )
        if not trainer.world.leads:
            return
        try:
            display = importlib.import_module("IPython.display")
            kernel = getattr(importlib.import_module("IPython").get_ipython(), "kernel", None)
        except ImportError:
            kernel = None
        if kernel is None:
            raise ConfigError(
                "Live shows a run under a notebook's cell, and this is no notebook; leave it out: "
                "trainer.show().save('report.html') writes a page anywhere"
            )
        self._handle = display.display(self.picture(trainer), display_id=True)
        self._drawn_at = time.perf_counter()

    def chunk(self, trainer: Trainer, statistics: Tensor) -> None:
        """Draw, if it is time."""
        if self._handle is not None and time.perf_counter() - self._drawn_at >= self.seconds:
            self._draw(trainer)

    def end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Draw how it ended."""
        if self._handle is not None:
            self._draw(trainer)
            self._handle = None

    def _draw(self, trainer: Trainer) -> None:
        self._handle.update(self.picture(trainer))
        self._drawn_at = time.perf_counter()

    def picture(self, trainer: Trainer) -> Image.Image:
        """What is shown of a run now."""
        title = f"loss, mean since the last log line; step {trainer.step:,}"
        plot = pictures.plot(trainer.history, pictures.LOSS_CURVES, title)
        samples = Samples().picture(trainer)
        if samples is None:
            return plot
        high = plot.height
        samples = samples.convert("RGB").resize(
            (round(samples.width * high / samples.height), high)
        )
        both = Image.new("RGB", (samples.width + plot.width, high), "white")
        both.paste(samples, (0, 0))
        both.paste(plot, (samples.width, 0))
        return both
