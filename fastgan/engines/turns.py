"""Several runs in threads of one process: one of them at a time, but for steps that need nothing
of Python's.

Torch's generators, its global modes and a user's functions belong to the whole process. Each run
therefore holds one lock for all that it does, and gives it up only around an operator that touches
nothing but the run's own tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

_mine = threading.local()
_ALONE = nullcontext()


class Turns:
    """Whose turn it is among some runs, each in a thread of its own."""

    def __init__(self):
        """It is nobody's."""
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, outside: Callable[[], AbstractContextManager]) -> Iterator[None]:
        """It is this thread's turn meanwhile, but for what it does within `aside`.

        Args:
            outside: puts back what the run has changed in the process, such as the states of
                torch's generators, around what others do; `OwnStates.outside`.
        """
        with self._lock:
            _mine.turn = self._lock, outside
            try:
                yield
            finally:
                del _mine.turn


def aside() -> AbstractContextManager:
    """Around an operator during which other runs may have their turn; alone it does nothing."""
    turn = getattr(_mine, "turn", None)
    return _ALONE if turn is None else _aside(*turn)


@contextmanager
def _aside(lock: threading.Lock, outside: Callable[[], AbstractContextManager]) -> Iterator[None]:
    with outside():
        lock.release()
        try:
            yield
        finally:
            lock.acquire()
