"""The plain engine: any two modules, step by step in PyTorch.

It is the definition that the faster engines are held against.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan import sharded, statistics, torch_private
from fastgan.engines.base import Engine
from fastgan.engines.draws import HostDraws
from fastgan.engines.probe import undisturbed
from fastgan.engines.shapes import shape_of
from fastgan.engines.step import Step
from fastgan.engines.updates import Update, scaled_learning_rates

if TYPE_CHECKING:
    from fastgan.problem import Problem

logger = logging.getLogger("fastgan")

EMULATED = "8 to 23 times as slow as fp32"
"""Measured on Zen 3: an MLP pair 61 ms a step instead of 2.7, a DCGAN of 32 pixels 1650 instead of
90."""


class EagerEngine(Engine):
    """Runs any pair of modules with autograd, on any device; see `Step` for what it does.

    With precision fp16, torch's GradScaler waits for the device in every update.
    """

    name = "eager"
    _step, _host = Step, HostDraws

    def __init__(self, problem: Problem):
        """Look at how D ends."""
        super().__init__(problem)
        p = problem
        sharded.prepare(p)
        self._draws = self._host(p)
        self._once = self._step(
            p,
            self._draws,
            *(
                Update(p, optimizer, scaler)
                for optimizer, scaler in zip(
                    (p.optimizer_d, p.optimizer_g), p.scalers or (None, None), strict=True
                )
            ),
        )
        if (
            p.device.type == "cpu"
            and p.precision != "fp32"
            and not torch_private.cpu_has(p.precision)
        ):
            logger.warning(
                "precision %r is emulated in engine %s on this processor, and %s; use 'fp32'",
                p.precision,
                self.name,
                EMULATED,
            )

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """None: whatever PyTorch can differentiate, this engine runs."""
        return None

    def describe(self) -> str:
        """One line that says which path is taken."""
        return ", ".join(["PyTorch operations one by one", *self._once.describe()])

    def run(self, n: int) -> Tensor:
        """Do n steps; see `Engine.run`."""
        if n < 0:
            raise ValueError(f"n is {n}; expected a number of steps, 0 or more")
        p, warms = self.problem, self.problem.config.ema_warmup is not None
        self.measured, measures, last = None, self._once.measures, self.step + n - 1
        rows: list[Tensor] = []
        self.unreported, self._once.whole = self._table(rows), True
        try:
            with (
                p.world.named(), undisturbed(p.device), scaled_learning_rates(p) as set_lr,
                self._once.ready(),
            ):  # fmt: skip
                for _ in range(n):
                    set_lr(self.step)
                    if warms:
                        self._once.new = p.ema_new(self.step)
                    self._draws.step = self.step
                    measures.on = self.measuring and self.step == last
                    rows += self._once(shape_of(p, self.step))
                    self.step += 1
                    self.logged = self._once.logged
        except BaseException:
            self.unreported = self._table(rows) if self._once.whole else None
            raise
        if n and p.world.size > 1:
            self.logged = p.world.means(self.logged, shape_of(p, last)[-1].size)
        if self.measuring and n:
            self.measured = self._of_all_rows(measures.sums(), last)
        return self._table(rows)

    def _of_all_rows(self, sums: Tensor, step: int) -> Tensor:
        p = self.problem
        if p.world.size > 1:
            share = p.world.share(shape_of(p, step)[-1].size)
            own = sums[: statistics.SCORE_SUMS] * share
            p.world.sum_(own if share else own.zero_())
            sums = torch.cat([own, sums[statistics.SCORE_SUMS :]])
        return statistics.measures_of(sums)

    def _table(self, rows: list[Tensor]) -> Tensor:
        if not rows:
            return statistics.table(0, self.problem.device)
        found = torch.stack(rows).float().view(-1, len(statistics.STATISTICS))
        p = self.problem
        if p.world.size > 1:
            first = self.step - len(found)
            sizes = [shape_of(p, step)[-1].size for step in range(first, self.step)]
            weights = torch.tensor([p.world.share(size) for size in sizes], device=p.device)[
                :, None
            ]
            # A rank without rows has means that are no numbers.
            found = torch.where(weights > 0, found * weights, 0.0)
            p.world.sum_(found)
        return found
