"""What a compiled update is: what it is for, what it takes, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastgan.data.batch import Batch, tensors_of
from fastgan.engines.draws import Counter
from fastgan.engines.noted_draws import Drawer
from fastgan.engines.shapes import StepShape

if TYPE_CHECKING:
    from fastgan.problem import Problem


class Key(NamedTuple):
    """Updates of one key do the same operations on tensors of the same sizes."""

    player: str
    size: int
    due: tuple[bool, ...] = ()
    shares: bool = False  # G's begins before D's, which is given its samples

    @property
    def in_halves(self) -> bool:
        """Whether D's update comes between G's pass and the rest of this one."""
        return self.shares and self.player == "g"

    def __str__(self) -> str:
        """For sentences."""
        whose = {"d": "D's update", "g": "G's update", "joint": "the joint update"}[self.player]
        return f"{whose} of {self.size} samples"


def keys_of(problem: Problem, shape: StepShape) -> Iterator[Key]:
    """The updates of a step."""
    p, (*before, last) = problem, shape
    shares = p.config.shared_fakes
    yield from (Key("d", *update) for update in before)
    yield Key("d", *last, shares)
    yield from (Key("g", last.size, shares=shares and k == 0) for k in range(p.g_steps))
    if hasattr(p.method, "joint_loss"):
        yield Key("joint", last.size)


class Found(NamedTuple):
    """What an update has found; `scores`: D's."""

    gradients: list[Tensor]
    statistics: list[Tensor]
    logged: dict[str, Tensor]
    scores: list[Tensor]


class Function(NamedTuple):
    """An update's losses and gradients, compiled."""

    code: Callable[..., list[Tensor]]
    inputs: list[Tensor | int]
    """Tensors, and places among the tensors of a batch, its draws, and samples that are given."""
    strides: list[tuple[int, ...]]
    """How the latter must lie in memory, in the order of their places."""
    drawers: list[Drawer]
    weights: list[Tensor]
    """Those that have a gradient."""
    others: list[Tensor]
    """Those of the optimisers that have none."""
    statistics: int
    logged: list[str]
    kept: bool
    """Whether an earlier run had compiled it."""
    seconds: tuple[float, float]
    """What a call takes without and with the compiler, best of a few."""
    distance: float
    """How far its gradients were from eager's on the first draws; see `agree.TOLERANCE`."""

    def __call__(self, counter: Counter, batch: Batch, *given: Tensor) -> Found:
        """Do an update; `given`: samples of G's, for an update of D that shares them."""
        with torch.no_grad():
            return self.split(self.code(*self._filled(counter, batch, given)))

    def begin(self, counter: Counter, batch: Batch) -> tuple[Tensor, Callable[[], list[Tensor]]]:
        """The samples of an update of G that shares them, and what does the rest."""
        with torch.no_grad():
            return self.code.begin(*self._filled(counter, batch, ()))

    def _filled(self, counter: Counter, batch: Batch, given: tuple[Tensor, ...]) -> list[Tensor]:
        moving = moving_of(batch, [*(drawer(counter) for drawer in self.drawers), *given])
        moving = [
            t if t.stride() == stride else torch.empty_like(t).as_strided(t.shape, stride).copy_(t)
            for t, stride in zip(moving, self.strides, strict=True)
        ]
        return [moving[i] if isinstance(i, int) else i for i in self.inputs]

    def split(self, found: list[Tensor]) -> Found:
        """What the code has returned."""
        n = len(self.weights)
        last = n + self.statistics
        end = last + len(self.logged)
        logged = dict(zip(self.logged, found[last:end], strict=True))
        return Found(found[:n], found[n:last], logged, found[end:])


class Outputs(NamedTuple):
    """What `Function` returns in one list, and what stands where."""

    values: list[Tensor]
    weights: list[Tensor]
    others: list[Tensor]
    statistics: int
    logged: list[str]
    scores: int


def moving_of(batch: Batch, drawn: list[Any]) -> list[Tensor]:
    """What is another tensor in every update."""
    return [batch.images, *tensors_of(batch.condition), *(t for d in drawn for t in tensors_of(d))]
