"""The plain engine: any two modules, step by step in PyTorch.

It is the definition that the faster engines are held against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan import random, statistics
from fastgan.engines.base import Engine, scaled_learning_rates
from fastgan.engines.step import Counter, Draws, Step, Update, shape_of

if TYPE_CHECKING:
    from fastgan.problem import Problem


class EagerEngine(Engine):
    """Runs any pair of modules with autograd, on any device; see `Step` for what it does.

    With precision fp16, torch's GradScaler waits for the device in every update.
    """

    name = "eager"

    def __init__(self, problem: Problem):
        """Look at how D ends."""
        super().__init__(problem)
        p = problem
        self._draws = _HostDraws(p)
        self._once = Step(
            p,
            self._draws,
            *map(Update, (p.optimizer_d, p.optimizer_g), p.scalers or (None, None)),
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
        p = self.problem
        rows = []
        with scaled_learning_rates(p) as set_lr, self._once.ready():
            for _ in range(n):
                set_lr(self.step)
                self._draws.step = self.step
                rows += self._once(shape_of(p, self.step))
                self.step += 1
        if not rows:
            return statistics.table(0, p.device)
        return torch.stack(rows).float().view(n, -1)


class _HostDraws(Draws):
    """Draws by a step that the host counts."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.step = 0

    def _at(self, when: Counter) -> int:
        return self.step * when.multiplier + when.offset

    def batch(self, when: Counter, size: int) -> Tensor:
        p = self.problem
        return p.data.batch(p.seed, self._at(when), p.batch_size, p.drop_last).images

    def normal(self, stream: int, when: Counter, shape: tuple[int, ...]) -> Tensor:
        p = self.problem
        return random.normal(p.seed, stream, self._at(when), shape, device=p.device)

    def drop(self, x: Tensor, stream: int, when: Counter, p: float, start: int) -> Tensor:
        n, seed = start + x.numel(), self.problem.seed
        keep = random.keep_mask(seed, stream, self._at(when), n, p, device=x.device)
        return x * keep[start:].view(x.shape).to(x.dtype) * random.keep_scale(p)
