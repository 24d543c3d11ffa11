"""One run at a time in a directory: a lock of the operating system's, which ends with its holder.

The lock is on the open file ``.lock``, not in its existence, so that one left behind by a killed
process never blocks. The file's text says who holds it.
"""

import contextlib
import logging
import os
import socket
import weakref
from pathlib import Path

from fastgan.run import files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

logger = logging.getLogger("fastgan")

FILE = ".lock"
# Windows keeps others from reading the bytes that are locked; the text lies before this one.
_LOCKED_BYTE = 1 << 20
_held: "weakref.WeakSet[RunLock]" = weakref.WeakSet()
_told: set[Path] = set()


class InUseError(OSError):
    """Another run, of this process or of another, is at work in the directory."""


class RunLock:
    """The exclusive right to write in a run's directory; a context manager.

    Where the file system has no locks, a warning is logged and the lock holds nobody off.

    Attributes:
        directory: the run's directory, which must exist.
        held: the lock is held.
    """

    def __init__(self, directory: str | os.PathLike):
        """Hold nothing yet."""
        self.directory = Path(directory)
        self._file: int | None = None
        self._exclusive = False

    held = property(lambda self: self._file is not None)

    def acquire(self) -> "RunLock":
        """Take the lock, at once or not at all.

        Raises:
            InUseError: another run holds it; the message names its process.
            OSError: the directory cannot be written to.
        """
        path = self.directory / FILE
        while self._file is None:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                way = "choose another directory"
                raise files.unwritable(f"out: {self.directory}", error, way) from error
            try:
                _lock(file)
                self._exclusive = True
            except BlockingIOError:
                holder = _holder(file)
                os.close(file)
                raise InUseError(
                    f"out: {self.directory} is in use by another run{holder}; wait for it, or "
                    "choose another name"
                ) from None
            except OSError as error:
                self._exclusive = False
                _tell_once(self.directory, error)
            # The holder before us may have removed the file between our opening and locking it.
            if self._exclusive and not _same(file, path):
                os.close(file)
                continue
            self._file = file
        os.ftruncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on host {socket.gethostname()}".encode())
        _held.add(self)
        return self

    def release(self) -> None:
        """Give the lock back, if it is held."""
        file, self._file = self._file, None
        _held.discard(self)
        if file is None:
            return
        path = self.directory / FILE
        if fcntl is not None and self._exclusive:
            # While it is locked, so that nobody loses a file that he has just locked.
            path.unlink(missing_ok=True)
        os.close(file)
        if fcntl is None:
            with contextlib.suppress(OSError):  # Windows removes no file that another has opened
                path.unlink()

    def __enter__(self):
        """Take it."""
        return self.acquire()

    def __exit__(self, *_):
        """Give it back."""
        self.release()

    def __del__(self):
        """Give it back with the object."""
        self.release()


def _tell_once(directory: Path, error: OSError) -> None:
    if directory not in _told:
        _told.add(directory)
        logger.warning(
            "%s: its file system has no locks (%s); see to it that no other run writes there",
            directory,
            error.strerror or error,
        )


def _lock(file: int) -> None:
    """Lock a file without waiting.

    Raises:
        BlockingIOError: another holds it.
        OSError: the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    if msvcrt is None:
        raise OSError("this platform has none")
    os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except PermissionError as error:
        raise BlockingIOError(str(error)) from error
    finally:
        os.lseek(file, 0, os.SEEK_SET)


def _holder(file: int) -> str:
    try:
        text = os.read(file, 200).decode(errors="replace").strip()
    except OSError:
        text = ""
    return f" ({text})" if text else ""


def _same(file: int, path: Path) -> bool:
    try:
        there = path.stat()
    except OSError:
        return False
    here = os.fstat(file)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _forget() -> None:
    # A lock belongs to an open file, which a forked child shares: it would keep the lock of a
    # parent that was killed.
    for lock in list(_held):
        file, lock._file = lock._file, None
        if file is not None:
            os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
