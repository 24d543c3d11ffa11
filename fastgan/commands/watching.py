"""The callbacks that options of a command ask for."""

from __future__ import annotations

import argparse

from fastgan.alarms import Alarms
from fastgan.callbacks import Callback
from fastgan.measure import Measure
from fastgan.tensorboard import TensorBoard


def callbacks(chosen: argparse.Namespace) -> list[Callback]:
    """New ones, of --alarms, --measure and --tensorboard; see `fastgan.options.start`."""
    made: list[Callback] = [Alarms()] if chosen.alarms else []
    if chosen.measure is not None:
        made.append(Measure(chosen.measure.replace(",", " ").split()))
    return [*made, TensorBoard()] if chosen.tensorboard else made
