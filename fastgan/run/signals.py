"""Ctrl-C, SIGTERM and a closed terminal, heard between two chunks of steps, not within one."""

import logging
import signal
import threading
from typing import Any

logger = logging.getLogger("fastgan")

NUMBERS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
"""Those listened for; SIGHUP comes when a terminal is closed, but not on every system."""


class Signals:
    """Notes SIGINT, SIGTERM and SIGHUP instead of acting on them; a second one acts at once.

    Only in the main thread, where Python allows it, and only for signals that are not ignored.

    Attributes:
        received: the number of the signal that came, or None.
    """

    def __init__(self):
        """Nothing has come, and nothing is listened for yet."""
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self):
        """Put our handlers in place."""
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        """Put the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.received is not None:
            self.__exit__()
            signal.raise_signal(number)
        self.received = number

    @property
    def name(self) -> str:
        """What a person calls the signal that came."""
        number = self.received
        return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name

    def deliver(self, message: str) -> None:
        """Do now what the signal would have done without us; the message goes to the log first.

        Raises:
            KeyboardInterrupt: for SIGINT, if Python's own handler was in place.
            SystemExit: if the system's default was, with status 128 + the signal's number.
        """
        logger.warning(message)
        number, handler = self.received, self._before[self.received]
        if number == signal.SIGINT and handler is signal.default_int_handler:
            raise KeyboardInterrupt(message)
        if handler == signal.SIG_DFL:
            raise SystemExit(128 + number)
        signal.raise_signal(number)
