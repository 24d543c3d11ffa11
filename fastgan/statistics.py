"""What an engine tells of a run's steps.

Of every step a row of STATISTICS; of one of many, before a log line, MEASURES.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Statistic(NamedTuple):
    """One number of a step."""

    name: str
    """As in log lines, where the mean of a statistic over the interval is `<name>_mean`."""
    help: str


STATISTICS = (
    Statistic("d_loss", "D's loss in the step's last update of D, without penalties"),
    Statistic("g_loss", "G's loss"),
    Statistic("d_real", "mean of D's scores of the real batch in its last update"),
    Statistic("d_fake", "mean of D's scores of the fake batch in its last update"),
)
"""The columns, in order. Scores are logits where the loss works on logits."""

NAMES = tuple(one.name for one in STATISTICS)

MEASURES = (
    Statistic("d_real_accuracy", "share of the real batch that D takes for real"),
    Statistic("d_fake_accuracy", "share of the fake batch that D takes for fake"),
    Statistic("d_real_spread", "standard deviation of D's scores of the real batch"),
    Statistic("d_fake_spread", "standard deviation of D's scores of the fake batch"),
    Statistic("d_grad_norm", "norm of the gradient of D's weights, before it is clipped"),
    Statistic("g_grad_norm", "norm of the gradient of G's weights, before it is clipped"),
    Statistic("d_update_ratio", "norm of what D's update changed, over that of its weights before"),
    Statistic("g_update_ratio", "norm of what G's update changed, over that of its weights before"),
    Statistic("nonfinite", "numbers of gradients and of moved weights that are not finite"),
)
"""What is told of a step before a log line, of the last update of D and of G in it.

Accuracies go by `Loss.middle`, and are no numbers where a loss has none. Gradients are those of the
losses with their penalties, summed over the ranks, without weight decay; batches are whole ones.
"""

MEASURE_NAMES = tuple(one.name for one in MEASURES)

SUMS = (
    "real_right", "real_score", "real_square", "fake_right", "fake_score", "fake_square",
    "d_gradient", "d_update", "d_weight", "d_nonfinite",
    "g_gradient", "g_update", "g_weight", "g_nonfinite",
)  # fmt: skip
"""What engines add up of a step for its measures, in order.

Of each batch, means over its samples: of being scored on the right side, of the score and of its
square. Of each network sums of squares, of its gradient, of what its update changed and of its
weights before; and how many numbers of gradient and moved weights are not finite.
"""
SCORE_SUMS = 6
"""How many of them are of the batches; those of D follow, and then those of G."""


def table(n: int, device: torch.device | str = "cpu") -> Tensor:
    """Room for the statistics of n steps: float32 [n, len(STATISTICS)]."""
    return torch.empty(n, len(STATISTICS), dtype=torch.float32, device=device)


def measures_of(sums: Tensor) -> Tensor:
    """The measures of a step.

    Args:
        sums: [len(SUMS)], see there.

    Returns:
        [len(MEASURES)], of the same dtype and on the same device.
    """
    of = dict(zip(SUMS, sums.unbind(), strict=True))

    def spread(batch: str) -> Tensor:
        square = of[f"{batch}_square"] - of[f"{batch}_score"].square()
        return square.clamp(min=0.0).sqrt()

    return torch.stack(
        [
            of["real_right"],
            of["fake_right"],
            spread("real"),
            spread("fake"),
            *(of[f"{player}_gradient"].sqrt() for player in "dg"),
            *((of[f"{player}_update"] / of[f"{player}_weight"]).sqrt() for player in "dg"),
            of["d_nonfinite"] + of["g_nonfinite"],
        ]
    )
