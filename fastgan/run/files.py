"""Files that hold their old or their new content at every moment, whoever else writes beside us."""

import contextlib
import itertools
import os
import re
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
# Tells this process from an earlier one with its number: in containers all have the same few.
_TOKEN = secrets.token_hex(3)
_COUNT = itertools.count()
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-([0-9a-f]{6})-\d+\.tmp")
_ABANDONED_SECONDS = 3600.0


def write(path: str | os.PathLike, fill: Callable[[BinaryIO], None]) -> None:
    """Write a file so that a kill or a power cut leaves the old content or the new.

    Args:
        path: the file; its directory exists.
        fill: called with an open binary file. Where it raises, the old content stays.

    Raises:
        IsADirectoryError: the path is a directory.
        Whatever `fill` raises.
    """
    path = Path(path)
    temporary = draft(path, fill)
    try:
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if path.is_dir():
            raise unwritable(path, error, "give the name of a file") from error
        raise


def draft(path: Path, fill: Callable[[BinaryIO], None]) -> Path:
    """Write the new content of a file beside it, synced, and return where: for ``os.replace``."""
    temporary = beside(path)
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error, "give another place, or make room") from error
        raise
    return temporary


def unwritable(path: str | os.PathLike, error: OSError, way: str) -> OSError:
    """The same error in words that name what the user gave, and the way out."""
    named = type(error)(f"{path} cannot be written ({error.strerror or error}); {way}")
    named.errno = error.errno
    return named


def link(source: Path, target: Path) -> None:
    """Give a file a second name, in place of what had it; a copy where links are not to be had."""
    temporary = beside(target)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        with open(source, "rb") as original:
            write(target, lambda file: shutil.copyfileobj(original, file))
        return
    os.replace(temporary, target)
    # Linking keeps the source's time of writing, by which saves are pruned.
    os.utime(target)


def beside(path: Path) -> Path:
    """A name for a temporary file that nobody else uses, in this process or in another."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{_TOKEN}-{next(_COUNT)}.tmp")


def sweep(directory: Path) -> None:
    """Remove the temporary files that killed processes left in a directory; never a live one's."""
    for path in directory.glob(".*.tmp"):
        if (found := _TEMPORARY.fullmatch(path.name)) and _abandoned(path, *found.groups()):
            path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    # Windows cannot open a directory; its rename is durable without it.
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _abandoned(path: Path, host: str, pid: str, token: str) -> bool:
    if host == _HOST:
        return token != _TOKEN if int(pid) == os.getpid() else not _alive(int(pid))
    try:  # whether a process of another machine lives can only be told from what it writes
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    except OSError:
        return False


def _alive(pid: int) -> bool:
    if os.name != "posix":
        # There os.kill ends the process that is asked about; Windows refuses to unlink open files.
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True
