"""Several runs whose steps go to the device in one launch, each run in a thread of its own.

A run comes with the steps that it is asked for and waits, in nobody's turn, until all others of its
gang have come. Then one launch does as many steps of each as the one with the fewest has left, and
who has more left stays for the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from fastgan.engines import turns

_mine = threading.local()


@dataclass
class _Waiting:
    """A run that has come, and what became of the launch that it waited for."""

    job: Any
    left: int
    done: int | None = None
    error: Exception | None = None


class Gang:
    """Runs that are launched together, as many as there are threads at work on them."""

    def __init__(
        self,
        runs: int,
        launch: Callable[[Sequence[Any], int], None],
        here: Callable[[], AbstractContextManager] = nullcontext,
    ):
        """Expect so many runs.

        Args:
            runs: threads that will each join.
            launch: does a number of steps of all the jobs that it is given.
            here: what their threads are in meanwhile, such as a stream of the device.
        """
        self._runs, self._launch, self._here = runs, launch, here
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()

    @contextmanager
    def joined(self) -> Iterator[None]:
        """This thread's runs are of the gang meanwhile, and nobody waits for it afterwards."""
        with self._here():
            _mine.gang = self
            try:
                yield
            finally:
                del _mine.gang
                with self._changed:
                    self._runs -= 1
                    self._go()

    def steps(self, job: Any, n: int) -> None:
        """Do n steps of this thread's job, in as many launches as the others' steps make of them.

        Raises:
            RuntimeError: a launch was refused, and with it the steps of all that were in it.
        """
        with turns.aside(), self._changed:
            while n > 0:
                mine = _Waiting(job, n)
                self._waiting.append(mine)
                self._go()
                self._changed.wait_for(lambda mine=mine: mine.done is not None)
                if mine.error is not None:
                    # Of its own for each, as a traceback grows with every thread that raises it.
                    raise RuntimeError(f"a launch of several runs: {mine.error}") from mine.error
                n -= mine.done

    def _go(self) -> None:
        """Launch, if all have come; whoever comes or leaves last does it for the others."""
        if not self._waiting or len(self._waiting) < self._runs:
            return
        all_here, self._waiting = self._waiting, []
        n = min(one.left for one in all_here)
        error = None
        try:
            self._launch([one.job for one in all_here], n)
        except Exception as refused:
            error = refused
        for one in all_here:
            one.done, one.error = n, error
        self._changed.notify_all()


def mine() -> Gang | None:
    """The gang of this thread's run; None where it is launched by itself."""
    return getattr(_mine, "gang", None)
