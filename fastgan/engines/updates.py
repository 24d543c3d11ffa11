"""How weights move: an update by a user's own optimiser, and the rates that a schedule gives it."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgan import sharded, torch_private
from fastgan.engines import reentrant

if TYPE_CHECKING:
    from fastgan.engines.measuring import Gauge
    from fastgan.problem import Problem

logger = logging.getLogger("fastgan")


class Update:
    """Moves weights against the gradient of a loss: backward, sum over the ranks, step.

    Attributes:
        gauge: what looks at the gradients before they are used, in a measured step.
    """

    reads = True
    """Whether a step may read numbers on the host."""

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
        self.gauge: Gauge | None = None
        self._divided = any(map(sharded.is_part, self.weights()))
        self._moves = scaler is not None or self._divided
        """Whether the first step is known to have moved something, or need not: a scaler may leave
        a step out."""

    def clear(self) -> None:
        """Forget the gradients of the update before."""
        self.optimizer.zero_grad(set_to_none=True)

    def add(self, loss: Tensor, share: float = 1.0, *, narrow: bool = False) -> None:
        """Add the gradients of a loss of some rows of the batch.

        Args:
            loss: a scalar, a mean over those rows.
            share: what part of the batch, of all ranks, they are.
            narrow: compute no gradient but those of the optimiser's weights. Reentrant activation
                checkpointing does not know how; without anything else to leave out it is no faster.
        """
        # Divided weights are not those that a pass has gone through.
        narrow = narrow and not self._divided
        weights = [w for w in self.weights() if w.requires_grad] if narrow else None
        if share != 1.0:
            loss = loss * share
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        with reentrant.told("a loss that holds a penalty on D's slope"):
            loss.backward(inputs=weights)

    def use(self, batch: int) -> None:
        """Move by the gradients, summed over the ranks, of a batch of that size."""
        self.total(batch)
        self.move()

    def total(self, batch: int, but: Iterable[Tensor] = ()) -> None:
        """Sum the gradients over the ranks, without those of some weights."""
        if (world := self.problem.world).size > 1:
            left = set(but)
            own = sharded.own(self.weights())
            some = [w.grad for w in own if w.grad is not None and w not in left]
            world.total_(some, batch)

    def move(self) -> None:
        """Clip the gradients and use them."""
        config = self.problem.config
        longest, largest = config.grad_clip, config.grad_clip_value
        scaled = self.scaler is not None
        if scaled and (longest is not None or largest is not None):
            self.scaler.unscale_(self.optimizer)
            scaled = False
        if self.gauge is not None:
            scale = torch_private.scaler_tensors(self.scaler)[0] if scaled else None
            self.gauge.look(self.weights(), scale, reads=self.reads)
        if largest is not None:
            nn.utils.clip_grad_value_(self.weights(), largest)
        if longest is not None:
            nn.utils.clip_grad_norm_(self.weights(), longest)
        if self.scaler is None and self._moves:
            self.step()
        elif self.scaler is None:
            self._first_step()
        else:
            self.scaled_step()
            self.scaler.update()

    def _first_step(self) -> None:
        """A step after which it is said if nothing has moved: a run of that trains nothing."""
        self._moves = True
        before = [(w, w.detach().clone()) for w in self.weights() if w.grad is not None]
        rates = [float(group.get("lr", 1.0)) for group in self.optimizer.param_groups]
        pulled = any(rates) and any(bool(w.grad.any()) for w, _ in before)
        self.step()
        if pulled and all(torch.equal(w, old) for w, old in before):
            name = "optimizer_d" if self.optimizer is self.problem.optimizer_d else "optimizer_g"
            logger.warning(
                "%s: the first step of %s has moved none of its weights, whose gradients are not "
                "zero, at a learning rate of %g; unless a later step does, nothing is trained",
                name, type(self.optimizer).__name__, max(rates),
            )  # fmt: skip

    def step(self) -> None:
        """Use the gradients."""
        self.optimizer.step()

    def scaled_step(self) -> None:
        """Use gradients that the scaler has scaled, unless one of them is not finite."""
        self.scaler.step(self.optimizer)

    def weights(self) -> list[Tensor]:
        """Those of the optimiser."""
        return [w for group in self.optimizer.param_groups for w in group["params"]]


def together(updates: tuple[Update, Update], batch: int) -> None:
    """Move both networks by the gradients that one loss has left, those that both hold twice."""
    first, second = updates
    first.total(batch)
    second.total(batch, but=first.weights())
    for update in updates:
        update.move()


@contextmanager
def without_gradients(weights: list[nn.Parameter]):
    """No gradients for these parameters meanwhile."""
    try:
        for w in weights:
            w.requires_grad_(False)
        yield
    finally:
        for w in weights:
            w.requires_grad_(True)


@contextmanager
def gradients_forgotten(problem: Problem):
    """The optimisers' weights have no gradients afterwards, nor others that have none now.

    After an error neither, which may leave half an update: a loop of the user's own would add to
    its gradients, and a scaler would refuse its next update.
    """
    p = problem
    without = [w for m in (p.generator, p.discriminator) for w in m.parameters() if w.grad is None]
    try:
        yield
    except BaseException:
        for scaler in p.scalers or ():
            torch_private.forget_unscaled(scaler)
        raise
    finally:
        for optimizer in (p.optimizer_d, p.optimizer_g):
            optimizer.zero_grad(set_to_none=True)
        for w in without:
            w.grad = None


@contextmanager
def gradients_aside(weights: Iterable[Tensor]):
    """These have no gradients meanwhile, and afterwards those of before."""
    before = [(w, w.grad) for w in weights]
    try:
        for w, _ in before:
            w.grad = None
        yield
    finally:
        for w, gradient in before:
            w.grad = gradient


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
    optimizers = problem.optimizer_g, problem.optimizer_d
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def apply(*factors: float) -> None:
        for optimizer, rates, factor in zip(optimizers, base, factors, strict=True):
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr if factor is None else lr * factor

    try:
        yield lambda step: apply(*learning_rate_factors(problem, step))
    finally:
        apply(None, None)


def learning_rate_factors(problem: Problem, step: int) -> tuple[float, float]:
    """The factors of G's and D's rates at a step, checked: finite numbers of at least 0."""
    schedule = problem.lr_schedule
    if not isinstance(schedule, tuple):
        return (_factor(schedule, step),) * 2
    return _factor(schedule[0], step), _factor(schedule[1], step)


def _factor(schedule: Callable[[int], float] | None, step: int) -> float:
    factor = 1.0 if schedule is None else float(schedule(step))
    if not (math.isfinite(factor) and factor >= 0):
        raise ValueError(
            f"lr_schedule({step}) returned {factor}; expected a finite factor of at least 0"
        )
    return factor
