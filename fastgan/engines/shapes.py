"""The shape of a step: what the host must know of it before it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastgan.engines.scores import batch_sizes

if TYPE_CHECKING:
    from fastgan.problem import Problem


class DUpdate(NamedTuple):
    """What the host must know of an update of D before it is done."""

    size: int
    """Samples in its batch."""
    due: tuple[bool, ...]
    """Which of the penalties it has."""


StepShape = tuple[DUpdate, ...]
"""A step's updates of D; steps of one shape do the same operations on tensors of the same sizes."""


def shape_of(problem: Problem, step: int) -> StepShape:
    """The shape of a step."""
    p = problem
    per_epoch = p.batches_per_epoch
    full, last = batch_sizes(p)
    return tuple(
        DUpdate(
            last if (u + 1) % per_epoch == 0 else full,
            tuple(penalty.due(u) for penalty in p.penalties),
        )
        for u in range(step * p.d_steps, (step + 1) * p.d_steps)
    )
