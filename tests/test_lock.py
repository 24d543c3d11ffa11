"""A directory has one run at a time; a killed one holds nobody off."""

import contextlib
import errno
import gc
import os
import signal
import subprocess
import sys
import types

import pytest

from fastgan.run import lock
from fastgan.run.lock import InUseError, RunLock

HOLDER = """
import os, sys, time
from fastgan.run.lock import RunLock
lock = RunLock(sys.argv[1]).acquire()
if sys.argv[2] == "worker" and os.fork() == 0:
    os.close(1)
    os.read(0, 1)  # goes on after its parent was killed, as a worker of a data loader may
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.readline()
if sys.argv[2] == "raise":
    raise SystemExit(3)
lock.release()
"""


@contextlib.contextmanager
def holder(directory, how="release"):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory), how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert int(process.stdout.readline()) == process.pid
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


def test_a_second_process_is_told_who_is_at_work(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(InUseError) as caught:
            RunLock(tmp_path).acquire()
        told = str(caught.value)
        assert told.startswith(
            f"out: {tmp_path} is in use by another run (process {process.pid} on"
        )
        assert told.endswith("; wait for it, or choose another name") and "\n" not in told
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait()
    with RunLock(tmp_path) as held:
        assert held.held
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("how", ["release", "worker"])
def test_a_killed_holder_never_blocks(tmp_path, how):
    with holder(tmp_path, how) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (tmp_path / lock.FILE).exists()
        with RunLock(tmp_path):
            text = (tmp_path / lock.FILE).read_text()
            assert text.startswith(f"process {os.getpid()} on host ")


def test_it_is_given_back_at_the_end_of_a_process_and_after_exceptions(tmp_path):
    with holder(tmp_path, "raise") as process:
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait() == 3
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    with RunLock(tmp_path):
        pass


def test_within_a_process_too_and_it_goes_with_the_object(tmp_path):
    first = RunLock(tmp_path).acquire()
    assert first.acquire() is first, "once held, it is held"
    with pytest.raises(InUseError, match=f"process {os.getpid()} on host"):
        RunLock(tmp_path).acquire()
    assert first.held
    first.release()
    first.release()
    second = RunLock(tmp_path).acquire()
    del second
    gc.collect()
    with RunLock(tmp_path):
        pass


@pytest.mark.skipif(lock.fcntl is None, reason="a test of fcntl's files")
def test_a_file_removed_between_opening_and_locking_is_not_taken_for_the_lock(
    tmp_path, monkeypatch
):
    flock, calls = lock.fcntl.flock, []

    def late(file, how):
        if not calls:  # the holder before us removes his file now
            (tmp_path / lock.FILE).unlink()
        calls.append(file)
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with RunLock(tmp_path):
        assert len(calls) == 2
        with pytest.raises(InUseError):
            RunLock(tmp_path).acquire()


@pytest.mark.parametrize("platform", ["no locks", "no modules"])
def test_without_locks_a_warning_is_given_once_and_the_run_goes_on(
    tmp_path, monkeypatch, caplog, platform
):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    other = types.SimpleNamespace(flock=refuse, LOCK_EX=1, LOCK_NB=2)
    monkeypatch.setattr(lock, "fcntl", other if platform == "no locks" else None)
    monkeypatch.setattr(lock, "msvcrt", None)
    with RunLock(tmp_path) as held, RunLock(tmp_path):
        assert held.held
    assert caplog.text.count("its file system has no locks") == 1
    assert str(tmp_path) in caplog.text


@pytest.mark.skipif(lock.fcntl is None, reason="stands in for msvcrt by fcntl")
def test_windows_locks(tmp_path, monkeypatch):
    fcntl, places = lock.fcntl, []

    def locking(file, mode, count):
        places.append((mode, os.lseek(file, 0, os.SEEK_CUR), count))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(
        lock, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2), raising=False
    )
    with RunLock(tmp_path), pytest.raises(InUseError, match=f"process {os.getpid()} on host"):
        RunLock(tmp_path).acquire()
    with RunLock(tmp_path):
        pass
    assert set(places) == {(2, lock._LOCKED_BYTE, 1)}
    assert not list(tmp_path.iterdir())
