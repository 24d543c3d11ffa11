"""The directory of a run: which one, may it be used, and what in it is a run's."""

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastgan.run import checkpoint, files, log, pictures
from fastgan.run.lock import RunLock

logger = logging.getLogger("fastgan")

IF_EXISTS = ("fail", "overwrite", "count")
_WRITTEN = (
    checkpoint.FILE,
    *checkpoint.WEIGHTS,
    log.LOG,
    log.TIMING,
    log.CONFIG,
    log.QUALITY,
    pictures.SAMPLES,
    pictures.LOSSES,
)
_NUMBERED = re.compile(r"checkpoint-\d+\.pt")
_PICTURE = re.compile(r"\d{8,}\.png")
_EVENTS = re.compile(r"events\.out\.tfevents\..*")


def prepare(out: str | os.PathLike, if_exists: str = "fail") -> Path:
    """The directory of a new run, ready to be used; call it when all else was found right.

    What a run left that ended before its first checkpoint is removed, which a warning says.

    Args:
        out: the directory; "~" is the user's, and a relative path means the directory of now.
        if_exists: what to do where a run has been saved. "fail" (default); "overwrite": remove the
            files that a run writes, and no others; "count": take out-2, out-3, ... instead.

    Returns:
        an absolute path. With "count" the directory has been made, so that no two runs get it.

    Raises:
        FileExistsError: it holds a run, and if_exists is "fail".
        InUseError: another run is at work there.
        NotADirectoryError: it, or a directory above it, is a file.
        ValueError: an argument is wrong.
    """
    path = absolute(out)
    if if_exists not in IF_EXISTS:
        raise ValueError(f"if_exists is {if_exists!r}; expected one of {', '.join(IF_EXISTS)}")
    if if_exists == "count":
        return _count(path)
    if _has_run(path) and if_exists == "fail":
        raise _exists(path)
    if _has_run(path) or _broken_off(path):
        with RunLock(path):
            if not _has_run(path):
                logger.warning(
                    "out: %s holds the log of a run that ended before its first checkpoint; it is "
                    "replaced",
                    path,
                )
            elif if_exists == "fail":  # saved while we looked
                raise _exists(path)
            _clear(path)
    for name in (log.LOG, log.CONFIG):
        if (path / name).exists():
            raise FileExistsError(
                f"out: {path} holds a {name} that is no run's, and a run would write over it; "
                "choose another name"
            )
    return path


@contextmanager
def at_work(
    out: Path, *, new: bool, known: tuple[int, int] | None = None, step: int | None = None
) -> Iterator[None]:
    """Hold the lock of a run's directory meanwhile; it is made if it is not there.

    Args:
        out: what `prepare` returned, or the directory of a resumed run.
        new: the run has written nothing yet: another that was given the directory in the meantime
            is not written over.
        known: the `mark` of the directory when the run last wrote to it or was read from it.
        step: the one that will be saved; a later one that another run has saved is not written
            over. Default: it is not looked for.

    Raises:
        InUseError: another run is at work there.
        FileExistsError: `new`, and a run has been saved there since `prepare`; or a later `step`.
    """
    make(out)
    with RunLock(out):
        if new and _has_run(out):
            raise _exists(out)
        if not new and step is not None and mark(out) not in (None, known):
            _refuse_later(out, step)
        files.sweep(out)
        yield


def mark(out: Path) -> tuple[int, int] | None:
    """What tells the checkpoint in a directory from another one there; None if there is none."""
    try:
        found = (out / checkpoint.FILE).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def make(out: Path) -> None:
    """Make a run's directory, if it is not there; OSError that names it if that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.unwritable(f"out: {out}", error, "choose another directory") from error


def absolute(out: str | os.PathLike) -> Path:
    """A path that means the same from every working directory, "~" read as the user's.

    Raises:
        ValueError: it is no path.
        NotADirectoryError: it, or a directory above it, is a file.
    """
    if not isinstance(out, (str, os.PathLike)) or not os.fspath(out):
        raise ValueError(f"out is {out!r}; expected the path of a directory, such as 'runs/mine'")
    try:
        path = Path(os.path.abspath(Path(out).expanduser()))
    except RuntimeError as error:
        raise ValueError(f"out is {os.fspath(out)!r}: {error}; give the path in full") from error
    try:
        there = next(place for place in (path, *path.parents) if place.exists())
    except OSError as error:  # a name that is too long, say
        raise files.unwritable(f"out: {path}", error, "choose another directory") from error
    if not there.is_dir():
        raise NotADirectoryError(f"out: {there} is a file; give the name of a directory")
    return path


def newest(root: str | os.PathLike = "runs") -> Path:
    """The run in a folder of runs that was saved last.

    Raises:
        FileNotFoundError: there is none.
    """
    root = Path(root)
    folders = [path for path in root.iterdir() if _has_run(path)] if root.is_dir() else []
    if not folders:
        raise FileNotFoundError(
            f"there is no run in {root.absolute()}; name the directory of one, or begin one with "
            "`fastgan train`"
        )
    return max(folders, key=_saved_at)


def _saved_at(path: Path) -> int:
    file = path / checkpoint.FILE
    return max(save.stat().st_mtime_ns for save in (file, *checkpoint.saves(file)) if save.exists())


def _count(path: Path) -> Path:
    # An empty directory that was there before is as good as none.
    if path.is_dir() and not any(path.iterdir()):
        return path
    for i in itertools.count(1):
        place = path if i == 1 else path.with_name(f"{path.name}-{i}")
        with contextlib.suppress(FileExistsError):
            place.mkdir(parents=True)
            return place
    raise AssertionError


def _has_run(path: Path) -> bool:
    return (path / checkpoint.FILE).exists() or bool(checkpoint.saves(path / checkpoint.FILE))


def _broken_off(path: Path) -> bool:
    """A run has begun here and has not saved anything: both its files are there from the start."""
    return (path / log.LOG).exists() and (path / log.CONFIG).exists()


def _clear(path: Path) -> None:
    for file in path.iterdir():
        if file.name in _WRITTEN or _NUMBERED.fullmatch(file.name):
            file.unlink(missing_ok=True)
    for folder, written in ((pictures.SERIES, _PICTURE), (log.TENSORBOARD, _EVENTS)):
        if (place := path / folder).is_dir():
            for file in place.iterdir():
                if written.fullmatch(file.name):
                    file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds files of the user's own
                place.rmdir()


def _refuse_later(out: Path, step: int) -> None:
    try:
        there = checkpoint.load(out)["step"]
    except checkpoint.CheckpointError:
        return  # nothing that could be lost
    if there > step:
        raise FileExistsError(
            f"out: {out} holds step {there}, which another run has saved since this one was there, "
            f"and step {step} would replace it; continue that one with resume"
        )


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(
        f"out: {path} already holds a run; continue it with resume, replace it with "
        "if_exists='overwrite', keep both with if_exists='count', or choose another name"
    )
