"""What an engine tells of every step: the columns of the tensor that `Engine.run` returns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Statistic(NamedTuple):
    """One number of a step."""

    name: str
    """As in log lines, where its mean over the interval is `<name>_mean`."""
    help: str


STATISTICS = (
    Statistic("d_loss", "D's loss in the step's last update of D, without penalties"),
    Statistic("g_loss", "G's loss"),
    Statistic("d_real", "mean of D's scores of the real batch in its last update"),
    Statistic("d_fake", "mean of D's scores of the fake batch in its last update"),
)
"""The columns, in order. Scores are logits where the loss works on logits."""

NAMES = tuple(one.name for one in STATISTICS)


def table(n: int, device: torch.device | str = "cpu") -> Tensor:
    """Room for the statistics of n steps: float32 [n, len(STATISTICS)]."""
    return torch.empty(n, len(STATISTICS), dtype=torch.float32, device=device)
