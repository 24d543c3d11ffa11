"""A batch in parts, one after the other, whose gradients are added up."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """One of the parts in which a batch passes through the networks."""

    whole: bool
    """Whether it is all of this rank's rows."""
    first: bool
    share: float
    """Of the whole batch, of all ranks."""
    weight: float
    """Of this rank's rows."""


class Means:
    """What an update has to tell, as means over its parts.

    Attributes:
        found: its statistics.
        logged: what its method said, by name.
    """

    def __init__(self):
        """Of nothing yet."""
        self.found: list[Tensor] = []
        self.logged: dict[str, Tensor] = {}

    def add(self, weight: float, found: list[Tensor], logged: dict[str, Tensor]) -> None:
        """A part's, by its weight."""
        if weight != 1.0:
            found = [x * weight for x in found]
            logged = {name: x * weight for name, x in logged.items()}
        if not self.found and not self.logged:
            self.found, self.logged = found, logged
            return
        self.found = [a + b for a, b in zip(self.found, found, strict=True)]
        for name, x in logged.items():
            self.logged[name] = self.logged[name] + x if name in self.logged else x


def mean(scores: Tensor | None, like: Tensor) -> Tensor:
    """In float32 or better; no number of none."""
    if scores is None:
        return torch.full_like(like, float("nan"))
    return (scores if scores.element_size() >= 4 else scores.float()).mean()
