"""What comes before torch is imported, which takes a second or two.

The time is noted, so that a run can say what starting took. And the garbage collector rests: an
import makes many objects and hardly any garbage, and going over them again and again takes a sixth
of that time.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

BEGAN = time.perf_counter() - time.process_time()
"""Seconds by time.perf_counter(); what Python itself had taken by now kept a processor busy. Not
the age of the process, which may have been a shell's before it was Python's."""


@contextmanager
def no_collection() -> Iterator[None]:
    """Without garbage collection inside, and as it was afterwards."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
