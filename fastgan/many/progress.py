"""What a person sees while an ensemble is trained: one line for all members."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastgan.screen import Screen

if TYPE_CHECKING:
    from fastgan.many.members import Member


class Progress(Screen):
    """How far all members are, in one bar or line; its arguments are those of `Screen`."""

    def start(self, members: Sequence[Member]) -> None:
        """Members are about to be trained."""
        self._members = members
        self._began = time.monotonic()
        self._begin(self._steps())
        ends = {"diverged", "failed"}
        targets = [m.trainer.step if m.status in ends else m.trainer.target for m in members]
        self._total = None if None in targets else sum(targets)

    def _steps(self) -> int:
        return sum(member.trainer.step for member in self._members)

    def show(self) -> None:
        """Move the bar, or say a line if the last is some seconds old."""
        if self._has_bar():
            self._move_bar()
        elif self._is_time():
            self.say(self.line())

    def line(self) -> str:
        """Where all members stand together."""
        steps = self._steps()
        done, seconds = steps - self._first, time.monotonic() - self._began
        if not done:
            return f"{self.counts()}, nothing left to do"
        left = ""
        if self._total is not None:
            left = f"/{self._total}, {max(0, self._total - steps) * seconds / done:.0f} s left"
        return f"{self.counts()}, steps of all {steps}{left}, {seconds / done * 1e3:.3f} ms each"

    def counts(self) -> str:
        """How many members are where."""
        found = [member.status for member in self._members]
        some = [f"{found.count(s)} {s}" for s in ("diverged", "failed") if s in found]
        return ", ".join([f"{found.count('done')} of {len(found)} members done", *some])

    def _move_bar(self) -> None:
        self._move(self._steps(), self._total, self.counts())

    def end(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._move_bar()
        self._close()
