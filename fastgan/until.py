"""When a run ends, by what it has reached."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastgan import measure
from fastgan.callbacks import Callback
from fastgan.config import ConfigError
from fastgan.config.kinds import integer

if TYPE_CHECKING:
    import os

    import pandas

    from fastgan.data.table import Table
    from fastgan.trainer import Trainer

HIGHER = (
    *("is", "precision", "recall", "density", "coverage", "agreement", "diversity"),
    *("shapes", "pairs", "nearest", "efficacy"),
)
"""What is better the higher it is; all else is better the lower."""

_RULE = re.compile(
    r"\s*(?:plateau\s*:\s*(?P<level>\w+)\s*:\s*(?P<times>[1-9]\d*)"
    r"|(?P<name>\w+)\s*(?P<sign>[<>])\s*(?P<bound>[-+.\deE]+))\s*"
)
_EXPECTED = (
    "expected a function of the State, 'NAME<X' or 'NAME>X' such as 'jsd<0.05', or "
    "'plateau:NAME:N' such as 'plateau:fid:5'"
)


class Until(Callback):
    """Ends a run by a rule: ``fit(until="jsd<0.05")``, or as a callback.

    A rule is a function of the run's `State`, asked after every log line, or a text. ``NAME<X`` and
    ``NAME>X`` end the run when a number is there; ``plateau:NAME:N`` when it has not become better
    in N looks. NAME is a number of the log line (a statistic has its mean since the last one), a
    metric of `fastgan.metrics`, or "jsd", the lower bound on the Jensen-Shannon divergence that a
    fresh critic finds. What is not in the line already is measured every so many lines, and written
    into it. As a callback it goes on counting in a resumed run.

    Args:
        rule: the function or the text.
        every: log lines from one measurement to the next. Default 10.
        n: samples for a measurement. Default 2000.
        held_out: of a run on a table, real rows that it does not learn, for metrics to compare
            with: a DataFrame or a path. Default: rows that it learns.

    Raises:
        ValueError: the rule is none, or is no measurement where rows are held out. At the first log
            line: of a NAME that is none; of rows held out that are not of the table that is
            learned, with column and row.
    """

    def __init__(
        self,
        rule: str | Callable[[Any], bool],
        every: int = 10,
        n: int = 2000,
        held_out: pandas.DataFrame | str | os.PathLike | None = None,
    ):
        """Read the rule."""
        self.rule, self._held_out, self._compared = rule, held_out, False
        self.every, self.n = integer(1).take("every", every), integer(40).take("n", n)
        self._lines = self._worse = 0
        self._best: float | None = None
        if callable(rule):
            if held_out is not None:
                raise ConfigError("until: a function compares with no rows; leave held_out out")
            return
        found = _RULE.fullmatch(rule) if isinstance(rule, str) else None
        if found is None:
            raise ConfigError(f"until is {rule!r}; {_EXPECTED}")
        self._of = found["level"] or found["name"]
        self._times = None if found["times"] is None else int(found["times"])
        try:
            self._bound = None if found["bound"] is None else float(found["bound"])
        except ValueError:
            raise ConfigError(f"until is {rule!r}; {_EXPECTED}") from None
        self._below = found["sign"] == "<"

    def line(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Ask."""
        if callable(self.rule):
            if self.rule(trainer.state):
                trainer.stop("until()")
            return
        if self._held_out is not None and not self._compared:
            self._hold_out(trainer)
        self._lines += 1
        value = line.get(f"{self._of}_mean", line.get(self._of))
        if value is None and self._of in line:  # a measure without a number at this step
            return
        if value is None:
            ask = self._measure()
            if self._lines % self.every:
                return
            value = line[self._of] = float(f"{ask(trainer):.6g}")
        if self._reached(value):
            trainer.stop(f"until {self.rule!r}: {self._of} is {value:.4g}")

    def _reached(self, value: float) -> bool:
        if self._bound is not None:
            return value < self._bound if self._below else value > self._bound
        sign = -1 if self._of in HIGHER else 1
        # A comparison that fails with a NaN counts as no better.
        if self._best is None or sign * value < sign * self._best:
            self._best, self._worse = value, 0
        else:
            self._worse += 1
        return self._worse >= self._times

    def _measure(self) -> Callable[[Trainer], float]:
        known = measure.known()
        if self._of not in known:
            raise ConfigError(
                f"until is {self.rule!r}, and {self._of!r} is neither in the log line nor a "
                f"metric; expected {', '.join(known)}, or a number of the log line"
            )
        if self._held_out is not None:
            return self._beside_held_out
        return lambda trainer: measure.measured(trainer, [self._of], self.n)[self._of]

    def _hold_out(self, trainer: Trainer) -> None:
        """Read the rows once, and find out now whether they can be compared with at all."""
        from fastgan import metrics
        from fastgan.data.table import read

        table: Table | None = trainer.data.table
        if table is None or self._of not in metrics.TABLE_METRICS:
            raise ConfigError(
                f"until is {self.rule!r} with rows held out; expected a run on a table and one of "
                + ", ".join(metrics.TABLE_METRICS)
            )
        self._held_out = read(self._held_out)
        table.packed(self._held_out)
        self._compared = True

    def _beside_held_out(self, trainer: Trainer) -> float:
        from fastgan import metrics

        table = trainer.data.table
        rows = table.decoded(trainer.sample(self.n))
        found = metrics.evaluate_table(self._held_out, rows, table, self._of)
        return found[self._of]

    def state_dict(self) -> dict[str, Any]:
        """The looks so far."""
        return {"lines": self._lines, "worse": self._worse, "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._lines, self._worse = int(state["lines"]), int(state["worse"])
        self._best = state["best"]
