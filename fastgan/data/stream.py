"""Batches of a data set that is not held in memory, read ahead by worker processes."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .batch import map_condition
from .errors import DataError
from .items import generators_kept, seed_generators

# (numbers of the images, a seed for each or None)
Key = tuple[list[int], list[int] | None]

_PREFETCH = 2
# Seconds a worker goes on after SIGTERM
_GRACE = 15


class _Fetch(Dataset):
    """Reads a whole batch for one key, so the DataLoader needs no batching of its own."""

    def __init__(self, items: Any):
        self._items = items

    def __getitem__(self, key: Key) -> tuple[Tensor, Any] | str:
        indices, seeds = key
        try:
            if seeds is None:
                return _together([self._items[i] for i in indices])
            read = []
            with generators_kept():
                for index, seed in zip(indices, seeds, strict=True):
                    seed_generators(seed)
                    read.append(self._items[index])
            return _together(read)
        except DataError as error:
            # raised here, it would reach the user inside a worker's traceback; as text it crosses
            # unharmed
            return str(error)


def _together(read: list[tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    samples, conditions = zip(*read, strict=True)
    return torch.stack(samples), map_condition(lambda *parts: torch.stack(parts), *conditions)


def _as_is(batch: Any) -> Any:
    return batch


def _outlive_signals(_: int) -> None:
    # Ctrl-C, a closed terminal and a scheduler's SIGTERM reach the whole process group, but the
    # trainer finishes its step and saves, for which it still needs batches. A worker normally ends
    # when the loader says so or the parent is gone; after SIGTERM it also ends by itself, so that
    # nothing waits for it in vain
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, lambda *_: signal.alarm(_GRACE))


# At exit, multiprocessing terminates workers that still run and waits for them. Exit handlers run
# in the reverse of their order, so this one, registered after that of multiprocessing (which torch
# imports), lets the loaders end their workers before
_streams: weakref.WeakSet[Iterator[tuple[Tensor, Any]]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for open_stream in list(_streams):
        open_stream.close()


def start_method() -> str:
    """How worker processes start here: "fork" on Linux, else "spawn".

    A spawned one imports the user's script again, which ends in an error unless the script has a
    `if __name__ == "__main__":` around its work, and needs data sets that can be pickled.
    """
    return "fork" if sys.platform == "linux" else "spawn"


def workers_for(items: Any, batch_bytes: int) -> int:
    """Worker processes by default: half the processors, at most 8, as /dev/shm has room.

    None for a Dataset of the user's, none where they would be spawned, and none in a process that
    may not have processes of its own.
    """
    daemon = multiprocessing.current_process().daemon
    if not items.fork_safe or start_method() != "fork" or daemon:
        return 0
    count = max(1, min(8, (os.cpu_count() or 1) // 2))
    try:
        room = shutil.disk_usage("/dev/shm").free // 2
    except OSError:
        return count
    # batches cross in shared memory, and a container's 64 MB overflow into a bus error
    return min(count, room // max(1, (_PREFETCH + 1) * batch_bytes))


def read(items: Any, keys: Iterable[Key], workers: int, pin: bool) -> Iterator[tuple[Tensor, Any]]:
    """The batches for keys, in their order: samples [b, *shape] and conditions.

    DataError if a sample cannot be read, or if worker processes cannot be had.
    """
    batches = _read(items, keys, workers, pin)
    _streams.add(batches)
    return batches


def _read(items: Any, keys: Iterable[Key], workers: int, pin: bool) -> Iterator[tuple[Tensor, Any]]:
    options: dict[str, Any] = {}
    if workers > 0:
        options = {
            "prefetch_factor": _PREFETCH,
            "worker_init_fn": _outlive_signals,
            # not the default of Python, which changes from version to version
            "multiprocessing_context": start_method(),
        }
    loader = DataLoader(
        _Fetch(items),
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin,
        # without one of its own, the loader would draw from torch's global generator
        generator=torch.Generator(),
        **options,
    )
    batches = _started(loader, workers)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(_lost_workers(workers, error)) from error
        if isinstance(batch, str):
            raise DataError(batch)
        yield batch


def _started(loader: DataLoader, workers: int) -> Iterator[Any]:
    try:
        return iter(loader)
    except (RuntimeError, pickle.PicklingError, AttributeError, TypeError) as error:
        if workers == 0 or start_method() == "fork":
            raise
        raise DataError(_lost_workers(workers, error)) from error


def _lost_workers(workers: int, error: Exception) -> str:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    guard = ""
    if start_method() != "fork":
        guard = (
            "; here they import your script anew, so put its work under "
            "if __name__ == '__main__': and use a data set that can be pickled"
        )
    return f"the {workers} processes that read ahead ended ({why}){guard}, or pass workers=0"
