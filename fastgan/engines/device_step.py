"""Whole steps whose every changing number lies on the device: what a recording records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan.engines.device_updates import device_update, send
from fastgan.engines.draws import DeviceDraws
from fastgan.engines.narrow import AUTOCAST, Narrowed
from fastgan.engines.shapes import StepShape
from fastgan.engines.step import Step
from fastgan.engines.updates import learning_rate_factors
from fastgan.statistics import STATISTICS, SUMS

if TYPE_CHECKING:
    from fastgan.problem import Problem

CHUNK = 8
"""Steps in the longer of the two kinds of recording: one launch for all of them."""
RING = 1024
"""Steps whose statistics and learning rates the device holds at a time."""


class DeviceStep:
    """Whole steps over static buffers.

    A call depends on no number of the host that changes, so doing it again is doing the next step.

    Attributes:
        counter: int64 [1], steps done.
        logged: what the method said of the last step, by name: float32 scalars.
        sums: float64 [len(SUMS)], of the last step that was measured.
        statistics: float32 [RING, len(STATISTICS)], those of step t in row t % RING.
        updates: D's and G's.
        step: what does the work.
    """

    _step, _device = Step, DeviceDraws

    def __init__(self, problem: Problem):
        """Make the buffers."""
        p = self.problem = problem
        self.counter = torch.zeros(1, dtype=torch.int64, device=p.device)
        self.statistics = torch.zeros(RING, len(STATISTICS), dtype=torch.float32, device=p.device)
        self.logged: dict[str, Tensor] = {}
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=p.device)
        self._counted = self._first = 0
        self._factors = self._new = None
        if p.lr_schedule is not None:
            self._factors = torch.ones(2, RING, dtype=torch.float64, device=p.device)
        if p.config.ema_warmup is not None:
            self._new = torch.ones(RING, dtype=torch.float64, device=p.device)
        self._draws = self._device(p, self.counter, CHUNK)
        self.updates = [
            device_update(p, optimizer, scaler)
            for optimizer, scaler in zip(
                (p.optimizer_d, p.optimizer_g), p.scalers or (None, None), strict=True
            )
        ]
        narrow = None
        if p.precision in AUTOCAST and not self._step.traces:
            narrow = Narrowed((p.generator, p.discriminator), AUTOCAST[p.precision])
        self.step = self._step(p, self._draws, *self.updates, narrow)

    def do(self, shapes: tuple[StepShape, ...], *, measured: bool = False) -> None:
        """The next steps, which must be of these shapes; measured, or not."""
        self._draws.begin(self._first)
        self.step.measures.on = measured
        with self.step.ready():
            for shape in shapes:
                slot = self.counter % RING
                if self._factors is not None:
                    for update, factors in zip(self.updates, self._factors, strict=True):
                        update.scale_rates(factors.index_select(0, slot))
                if self._new is not None:
                    self.step.new = self._new.index_select(0, slot)
                row = torch.stack(self.step(shape)).float()
                if measured:
                    self.sums.copy_(self.step.measures.sums())
                for name, value in self.step.logged.items():
                    if name not in self.logged:
                        self.logged[name] = torch.zeros((), device=self.problem.device)
                    self.logged[name].copy_(value)
                self.statistics.index_copy_(0, slot, row.view(1, -1))
                self.counter.add_(1)
                self._draws.next()

    def count_from(self, step: int) -> None:
        """The next step is this one; `prepare` follows what is done from here."""
        if self._counted != step:
            self.counter.fill_(step)
            self._counted = step

    def schedule(self, step: int, count: int) -> None:
        """Write down what the next steps have of their own; no multiple of RING lies among them."""
        p, at, steps = self.problem, step % RING, range(step, step + count)
        if self._factors is not None:
            of_g, of_d = zip(*(learning_rate_factors(p, t) for t in steps), strict=True)
            for factors, row in zip((of_d, of_g), self._factors, strict=True):
                send(factors, row[at : at + count])
        if self._new is not None:
            send([p.ema_new(t) for t in steps], self._new[at : at + count])

    def prepare(self, step: int, count: int) -> None:
        """Lay the samples or their order ready for the next steps."""
        self._first, self._counted = step, step + count
        self._draws.prepare(step, count)

    @property
    def asked(self) -> bool:
        """Whether the step has asked for its number on the host since this was last asked."""
        asked, self._draws.asked = self._draws.asked, False
        return asked

    @property
    def times(self) -> tuple[int, int]:
        """How many updates of D and of G there are in a step."""
        joint = hasattr(self.problem.method, "joint_loss")
        return self.problem.d_steps + joint, self.problem.g_steps + joint

    def written(self) -> list[Tensor]:
        """Every tensor that a step writes to and that a user can see."""
        p, augmentation = self.problem, self.problem.augmentation
        return [
            *(t for m in (p.generator, p.discriminator) for t in (*m.parameters(), *m.buffers())),
            *(() if p.ema is None else (*p.ema.parameters(), *p.ema.buffers())),
            *([augmentation.state] if augmentation is not None and augmentation.adapts else ()),
            *(t for update in self.updates for t in update.tensors()),
        ]
