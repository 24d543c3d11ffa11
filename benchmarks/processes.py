"""A peer in a process of its own: how the harness starts, asks, stops and ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Pipe
from pathlib import Path

import worker
from peers import Entry

HERE = Path(__file__).resolve().parent


class Dead(Exception):
    """A peer's process ended or failed; the text says how."""


class Process:
    """A peer in a process of its own, stopped whenever it is not its turn.

    ``patience``: seconds after which an answer is not waited for any longer; None for no limit.
    """

    def __init__(
        self,
        entry: Entry,
        threads: int,
        cpus: list[int],
        device: str = "cpu",
        patience: float | None = None,
    ):
        self.entry = entry
        self.patience = patience
        ours, theirs = Pipe()
        environment = dict(os.environ)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC", "PJRT_NPROC"):
            environment[name] = str(threads)
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        if device == "cpu":
            environment.setdefault("JAX_PLATFORMS", "cpu")
        else:
            # The peers share the GPU's memory: JAX would take three quarters of it at once.
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        environment |= entry.env

        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), entry.name, str(theirs.fileno()), device],
            pass_fds=[theirs.fileno()],
            env=environment,
            # Nothing a peer prints may end up in --json.
            stdout=sys.stderr if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
        )
        # Thread pools are sized by the cpus a process may use when it loads its libraries: the
        # worker imports nothing heavy before it is first spoken to.
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, cpus)
        theirs.close()
        self.connection = ours

    @contextlib.contextmanager
    def turn(self):
        """The time in which this peer, and no other, may run."""
        self._signal(signal.SIGCONT)
        try:
            yield self
        finally:
            self._signal(signal.SIGSTOP)

    def ask(self, command: str, *arguments):
        try:
            self.connection.send((command, *arguments))
            if not self.connection.poll(self.patience):
                self.process.kill()
                # A kernel that never ends keeps its process for a while.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(20)
                raise Dead(f"{command} took more than {self.patience:g} s, so it was stopped")
            fine, answer = self.connection.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            raise Dead(f"its process ended during {command} ({_status(code)})") from None
        if not fine:
            raise Dead(f"{command} failed: {answer}")
        return answer

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()

    def end(self) -> None:
        self.connection.close()
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Inline:
    """The same face in this process: idle thread pools are not stopped, a crash takes all."""

    def __init__(self, entry: Entry, threads: int, cpus: list[int], device: str = "cpu", *_):
        self.host = worker.Host(entry.name, device)
        self.entry = entry

    @contextlib.contextmanager
    def turn(self):
        yield self

    def ask(self, command: str, *arguments):
        try:
            return getattr(self.host, command)(*arguments)
        except Exception as error:
            raise Dead(f"{command} failed: {type(error).__name__}: {error}") from error

    def kill(self) -> None:
        pass

    def end(self) -> None:
        self.host.close()


def _status(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit status {code}"


def _has_descriptor(stream) -> bool:
    try:
        stream.fileno()
    except (OSError, AttributeError, ValueError):
        return False
    return True
