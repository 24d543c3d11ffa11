"""One peer in a process of its own, obeying the harness over a pipe.

A process each, because the runtimes compared here keep thread pools that spin after work, read
their settings once at import, and disagree about how many threads there are; and because the
harness stops (SIGSTOP) every process but the one being timed, which nothing inside one process can
promise.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Host:
    """The commands; also used without a process, in the harness's own (``--inline``)."""

    def __init__(self, name: str, device: str = "cpu"):
        from peers import CATALOGUE, MANY

        self.entry = {**CATALOGUE, **MANY}[name]
        self.device = device
        self.peer = None

    def setup(self, plan: dict, threads: int) -> dict:
        """Build the peer for a plan. {"missing": reason} or {"seconds", "granularity"}."""
        from peers import Unavailable
        from plans import Plan

        self.close()
        plan = Plan(**plan)
        start = time.perf_counter()
        try:
            self.peer = self.entry.load(self.device)
            self.peer.setup(plan, threads)
        except Unavailable as reason:
            self.close()
            return {"missing": str(reason)}
        except Exception as error:
            traceback.print_exc()
            self.close()
            return {"missing": f"failed: {type(error).__name__}: {error}"}
        return {
            "seconds": time.perf_counter() - start,
            "granularity": self.peer.granularity,
        }

    def warm(self, seconds: float) -> float:
        """Run for a while, at least one call after a first; seconds per step of the last."""
        n = self.peer.granularity
        self.peer.block(n)  # page faults, thread pools, lazy libraries: no guide to what follows
        end = time.perf_counter() + seconds
        while True:
            step = self.peer.block(n) / n
            now = time.perf_counter()
            if now >= end:
                return step
            # Longer calls as the speed becomes known: single steps overstate it.
            want = max(1, int(min(0.1, end - now) / step))
            n = max(1, want // self.peer.granularity) * self.peer.granularity

    def blocks(self, n: int, count: int) -> tuple[list[float], float]:
        """(seconds of each of ``count`` runs of n steps, cpu seconds that this process used)."""
        cpu = time.process_time()
        times = [self.peer.block(n) for _ in range(count)]
        return times, time.process_time() - cpu

    def calls(self, count: int) -> tuple[float, float]:
        """(seconds of ``count`` runs of one step, one after the other, cpu seconds)."""
        cpu = time.process_time()
        seconds = self.peer.block(1, calls=count)
        return seconds, time.process_time() - cpu

    def check(self) -> dict:
        """The latest losses and how the peer ran; {"error": ...} if the losses are not finite."""
        try:
            losses = self.peer.check()
        except FloatingPointError as error:
            return {"error": str(error)}
        return {"d_loss": losses[0], "g_loss": losses[1], "how": self.peer.describe()}

    def profile(self, steps: int) -> dict:
        """{"phases", "seconds"} of a step, or {"missing": reason}.

        A phase is (name, floating-point operations, seconds at work, seconds waiting).
        """
        from peers import Unavailable

        if not hasattr(self.peer, "profile"):
            return {"missing": "this peer has no profile"}
        try:
            start = time.perf_counter()
            phases = self.peer.profile(steps)
            seconds = time.perf_counter() - start
            if self.device == "cuda":  # a profiler takes longer than what it looks at
                seconds = self.peer.block(steps)
            return {"phases": phases, "seconds": seconds / steps}
        except Unavailable as reason:
            return {"missing": str(reason)}

    def close(self) -> None:
        if self.peer is not None and hasattr(self.peer, "close"):
            self.peer.close()
        self.peer = None
        gc.collect()


def main() -> None:
    name, fd, device = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    _die_with_parent()
    # The checkout's own fastgan where none is installed.
    sys.path.append(str(HERE.parent))
    connection = Connection(fd)
    host = Host(name, device)
    while True:
        try:
            command, *arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, getattr(host, command)(*arguments)))
        except Exception as error:
            traceback.print_exc()
            connection.send((False, f"{type(error).__name__}: {error}"))


def _die_with_parent() -> None:
    # A stopped process would outlive a killed harness for ever.
    if sys.platform == "linux":
        import ctypes

        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
        if os.getppid() == 1:
            sys.exit(1)


if __name__ == "__main__":
    main()
