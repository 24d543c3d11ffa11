"""Draws that are noted while an update is rehearsed, to be drawn for every update like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from fastgan.data.batch import Batch
from fastgan.engines.draws import Counter, DeviceDraws, Draws, HostDraws

Drawer = Callable[[Counter], Any]
"""Draws for the update of that number."""


class Noting(Draws):
    """Draws, noted or given.

    Attributes:
        asked: whether anybody asked for the step's number on the host since this was set to False.
    """

    # By masks, which can be given.
    drop, drop_after = Draws.drop, Draws.drop_after

    def __init__(self, *made_of: Any):
        """Nothing is noted yet."""
        super().__init__(*made_of)
        self.asked = False
        self._notes: list[tuple[Drawer, Counter]] | None = None
        self._given: Iterator[Any] | None = None

    @property
    def host_step(self) -> int:
        """The step: whoever asks gets another number in each."""
        self.asked = True
        return self._step

    def pretend(self, batch: Batch) -> None:
        """This is the last batch, of all ranks."""
        self.part, self._conditions = self.problem.world, batch.condition

    @contextmanager
    def noting(self) -> Iterator[list[tuple[Drawer, Counter]]]:
        """Yields a list of what is drawn meanwhile, and for which update."""
        self._notes = []
        try:
            yield self._notes
        finally:
            self._notes = None

    @contextmanager
    def giving(self, drawn: list[Any]) -> Iterator[None]:
        """What is drawn meanwhile is this."""
        self._given = iter(drawn)
        try:
            yield
        finally:
            self._given = None

    def conditions(self, stream: int, counter: Counter, size: int) -> Any:
        """See `Draws.conditions`."""
        draw = super().conditions
        return self._noted(lambda counter: draw(stream, counter, size), counter)

    def _normal(self, stream: int, counter: Counter, shape: tuple[int, ...]) -> Tensor:
        draw = super()._normal
        return self._noted(lambda counter: draw(stream, counter, shape), counter)

    def _kept(self, stream: int, counter: Counter, n: int, p: float) -> Tensor:
        draw = super()._kept
        return self._noted(lambda counter: draw(stream, counter, n, p), counter)

    def _noted(self, drawer: Drawer, counter: Counter) -> Any:
        if self._given is not None:
            return next(self._given)
        notes, self._notes = self._notes, None  # a drawer may itself draw
        try:
            value = drawer(counter)
        finally:
            self._notes = notes
        if notes is not None:
            notes.append((drawer, counter))
        return value


class NotedDraws(Noting, HostDraws):
    """Draws of the host."""


class NotedDeviceDraws(Noting, DeviceDraws):
    """Draws by a step that the device counts."""
