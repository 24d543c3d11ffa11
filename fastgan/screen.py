"""What a person sees of what takes long: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

logger = logging.getLogger("fastgan")


class Screen:
    """Where it is said how far something is.

    Args:
        mode: "auto", "bar", "lines" or "none", as the setting `console`.
        stream: where lines go. Default: stdout of the moment.
    """

    SECONDS_BETWEEN_LINES = 2.0

    def __init__(self, mode: str = "auto", stream: TextIO | None = None):
        """Nothing is said before `start`."""
        self.mode, self._stream = mode, stream
        self._bar = None
        self._first, self._said_at = 0, 0.0

    def say(self, line: str) -> None:
        """Print a line, unless nothing is to be said; a screen that fails ends no run."""
        stream = self._stream or sys.stdout
        if self.mode == "none" or stream is None:
            return
        try:
            print(line, file=stream, flush=True)
        except UnicodeEncodeError:  # a path, say, on a terminal of fewer letters
            known = getattr(stream, "encoding", None) or "ascii"
            print(line.encode(known, "backslashreplace").decode(known), file=stream, flush=True)
        except (OSError, ValueError) as error:  # a pipe that nobody reads, a stream that was closed
            self.mode = "none"
            logger.warning("nothing more is printed (%s)", error)

    def _begin(self, step: int) -> None:
        """It goes on from a step."""
        self._first, self._said_at = step, time.monotonic()

    def _has_bar(self) -> bool:
        return self.mode == "bar" or (self.mode == "auto" and _is_terminal())

    def _is_time(self) -> bool:
        """Whether the last line is some seconds old; then the next one is said now."""
        now = time.monotonic()
        if self.mode == "none" or now - self._said_at < self.SECONDS_BETWEEN_LINES:
            return False
        self._said_at = now
        return True

    def _move(self, step: int, total: int | None, beside: str | None) -> None:
        """Move the bar; `beside`: what stands behind it, None for what stood there."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="step", file=sys.stderr, dynamic_ncols=True)
            self._bar.initial = self._bar.n = self._bar.last_print_n = self._first
        if beside is not None:
            self._bar.set_postfix_str(beside, refresh=False)
        self._bar.update(step - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _is_terminal() -> bool:
    # A program without a console has no stderr, and a closed one refuses the question.
    there = sys.stderr
    return there is not None and not getattr(there, "closed", False) and there.isatty()
