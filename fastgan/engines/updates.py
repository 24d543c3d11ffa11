"""How weights move: an update by a user's own optimiser, and the rates that a schedule gives it."""

from __future__ import annotations

import math
import numbers
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fastgan.problem import Problem


class Update:
    """Moves weights against the gradient of a loss: backward, sum over the ranks, step."""

    def __init__(
        self,
        problem: Problem,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
    ):
        """With a scaler, the backward pass is scaled and a step with infinite gradients skipped."""
        self.problem = problem
        self.optimizer = optimizer
        self.scaler = scaler

    def __call__(self, loss: Tensor, batch: int, *, narrow: bool = False) -> None:
        """One update.

        Args:
            loss: a scalar, a mean over this rank's rows of the batch.
            batch: rows of the whole batch.
            narrow: compute no gradient but those of the optimiser's weights. Reentrant activation
                checkpointing does not know how; without anything else to leave out it is no faster.
        """
        self.optimizer.zero_grad(set_to_none=True)
        weights = [w for w in self._weights() if w.requires_grad]
        loss = self.own(loss, batch)
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        if narrow:
            loss.backward(inputs=weights)
        else:
            loss.backward()
        self.use(batch)

    def own(self, loss: Tensor, batch: int) -> Tensor:
        """This rank's part of the loss of the whole batch."""
        world = self.problem.world
        return loss if world.size == 1 else loss * world.share(batch)

    def use(self, batch: int) -> None:
        """Move by the gradients that a backward pass has left, summed over the ranks."""
        if (world := self.problem.world).size > 1:
            world.total_([w.grad for w in self._weights() if w.grad is not None], batch)
        if (longest := self.problem.config.grad_clip) is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._weights(), longest)
        if self.scaler is None:
            self.step()
        else:
            self.scaled_step()
            self.scaler.update()

    def step(self) -> None:
        """Use the gradients."""
        self.optimizer.step()

    def scaled_step(self) -> None:
        """Use gradients that the scaler has scaled, unless one of them is not finite."""
        self.scaler.step(self.optimizer)

    def _weights(self) -> list[Tensor]:
        return [w for group in self.optimizer.param_groups for w in group["params"]]


def together(updates: tuple[Update, Update], loss: Tensor, batch: int) -> None:
    """One update of both networks by one loss, over this rank's rows of a batch of that size."""
    for update in updates:
        update.optimizer.zero_grad(set_to_none=True)
    updates[0].own(loss, batch).backward()
    for update in updates:
        update.use(batch)


def require_numbers(problem: Problem) -> None:
    """ValueError that names a value of an optimiser's group which is no number."""
    for name in ("optimizer_g", "optimizer_d"):
        optimizer = getattr(problem, name)
        for i, group in enumerate(optimizer.param_groups):
            for key in ("lr", "eps", "weight_decay", "momentum", "betas"):
                value = group.get(key, 0.0)
                parts = value if key == "betas" and isinstance(value, (tuple, list)) else (value,)
                if value is None and optimizer.defaults.get(key, 0.0) is None:
                    continue  # the optimiser's own choice
                if not all(isinstance(x, (numbers.Real, Tensor)) for x in parts):
                    raise ValueError(
                        f"{name}.param_groups[{i}][{key!r}] is {value!r}; expected "
                        + ("two numbers" if key == "betas" else "a number such as 2e-4")
                    )


@contextmanager
def scaled_learning_rates(problem: Problem):
    """Yields a function that sets both learning rates for a step; the base rates come back after.

    Whoever reads or changes `param_groups[i]["lr"]` between two runs thus deals in base rates.
    """
    if problem.lr_schedule is None:
        yield lambda step: None
        return
    groups = [*problem.optimizer_g.param_groups, *problem.optimizer_d.param_groups]
    base = [group["lr"] for group in groups]

    def apply(step: int) -> None:
        factor = learning_rate_factor(problem, step)
        for group, lr in zip(groups, base, strict=True):
            group["lr"] = lr * factor

    try:
        yield apply
    finally:
        for group, lr in zip(groups, base, strict=True):
            group["lr"] = lr


def learning_rate_factor(problem: Problem, step: int) -> float:
    """The schedule's factor at a step, checked: a finite number of at least 0."""
    factor = 1.0 if problem.lr_schedule is None else float(problem.lr_schedule(step))
    if not (math.isfinite(factor) and factor >= 0):
        raise ValueError(
            f"lr_schedule({step}) returned {factor}; expected a finite factor of at least 0"
        )
    return factor
