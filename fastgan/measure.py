"""How good samples are, measured along a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fastgan.callbacks import Callback
from fastgan.config import ConfigError
from fastgan.config.kinds import integer
from fastgan.words import nearest

if TYPE_CHECKING:
    from fastgan.trainer import Trainer

JSD = "jsd"
"""What is measured besides metrics: the lower bound on the Jensen-Shannon divergence by a fresh
critic (`fastgan.theory.jsd_lower_bound`)."""


class Measure(Callback):
    """Writes metrics into the log lines: ``Trainer(..., callbacks=fastgan.Measure("fid"))``.

    They are curves of the run's report then, and a line of its quality.jsonl each time. The run's
    numbers stay as they are without; it takes as much longer as the measurements do.

    Args:
        names: metrics of `fastgan.metrics` (of a run on a table those of tables), or "jsd".
        every: log lines from one measurement to the next. Default 10.
        n: samples for a measurement, and as many of the data. Default 2000.

    Raises:
        ValueError: a name that is none.
    """

    def __init__(self, names: str | Sequence[str], every: int = 10, n: int = 2000):
        """Check the names."""
        self.names = (names,) if isinstance(names, str) else tuple(names)
        self.every, self.n = integer(1).take("every", every), integer(40).take("n", n)
        self._lines = 0
        possible = known()
        for name in self.names:
            if name not in possible:
                raise ConfigError(
                    f"measure is {name!r}; expected of {', '.join(possible)}"
                    f"{nearest(name, possible)}"
                )

    def line(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Measure, if it is time."""
        self._lines += 1
        if self._lines % self.every == 0:
            found = measured(trainer, self.names, self.n)
            line |= {name: float(f"{value:.6g}") for name, value in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """The lines so far."""
        return {"lines": self._lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._lines = int(state["lines"])


def known() -> list[str]:
    """The names of everything that can be measured."""
    # Here, as most runs do without.
    from fastgan import metrics

    return [JSD, *metrics.METRICS, *metrics.TABLE_METRICS]


def measured(trainer: Trainer, names: Sequence[str], n: int) -> dict[str, float]:
    """Those numbers of a run as it is, of n samples."""
    found = {}
    if others := [name for name in names if name != JSD]:
        told = trainer.evaluate(others, n)
        found = {name: told[name] for name in others}
    if JSD in names:
        found[JSD] = _divergence(trainer, n)
    return found


def _divergence(trainer: Trainer, n: int) -> float:
    from fastgan import metrics, theory

    n = min(n, len(trainer.data))
    real = torch.cat([x for x, _ in metrics.batches(trainer.data, n, 256)])
    fake = torch.cat([x for x, _ in metrics.fakes(trainer, n, 256)])
    return theory.jsd_lower_bound(real, fake, steps=300).value
