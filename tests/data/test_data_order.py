"""Order, batches, and reading ahead."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from data_kit import Listed, noise, png, write, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgan import data, random
from fastgan.data import DataError, stream
from fastgan.data import data as data_room


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 50),
    batch_size=st.integers(1, 60),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**33),
)
def test_an_epoch_is_its_permutation_in_slices(n, batch_size, seed, epoch):
    opened = data.open(torch.zeros(n, 1, 1, dtype=torch.uint8))
    per_epoch = opened.batches_per_epoch(batch_size)
    assert per_epoch == -(-n // batch_size)
    updates = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    parts = [opened.batch_indices(seed, update, batch_size) for update in updates]
    assert all(len(part) == batch_size for part in parts[:-1])
    assert torch.equal(torch.cat(parts), random.permutation(seed, epoch, n))


def test_batch_is_normalised_and_ordered():
    array = torch.from_numpy(noise(10, 3, 4, 4))
    array[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    opened = data.open(array)
    for update in (0, 3, 2, 7):
        batch = opened.batch(1, update, 4).images
        chosen = array[opened.batch_indices(1, update, 4)]
        assert batch.dtype == torch.float32 and len(batch) == (2 if update % 3 == 2 else 4)
        assert torch.equal(batch, chosen.float() * (2 / 255) - 1)
    whole = opened.batch(1, 0, 10).images
    assert float(whole.min()) == -1 and float(whole.max()) == 1


def test_batch_larger_than_the_data_is_all_of_it(caplog):
    opened = data.open(torch.from_numpy(noise(5, 4, 4)))
    assert opened.batches_per_epoch(64) == 1
    for update in range(3):
        assert sorted(opened.batch_indices(0, update, 64).tolist()) == [0, 1, 2, 3, 4]
    assert len(caplog.records) == 1 and "batch_size=64" in caplog.text


@pytest.mark.parametrize(
    ("update", "batch_size"), [(-1, 4), (0, 0), (0, 2.0), (True, 4), (0, True)]
)
def test_bad_batch_arguments(update, batch_size):
    opened = data.open(torch.from_numpy(noise(5, 4, 4)))
    with pytest.raises(ValueError, match="expected an integer"):
        opened.batch(0, update, batch_size)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("archive", [False, True])
def test_read_ahead_gives_what_memory_gives(folder, tmp_path, workers, archive, caplog):
    source = zipped(folder, tmp_path / "photos.zip") if archive else folder
    resident = data.open(source)
    lazy = data.open(source, budget_bytes=100, workers=workers)
    assert lazy.samples is None and lazy.dataset is not None and not lazy.resident
    assert len(caplog.records) == 1 and "budget" in caplog.text
    assert lazy.shape == resident.shape and len(lazy) == len(resident)
    assert lazy.differs(resident.identity()) is None and resident.differs(lazy.identity()) is None
    for update in [*range(9), 2, 3, 40, 41]:
        assert torch.equal(lazy.batch(7, update, 4).images, resident.batch(7, update, 4).images)
    assert torch.equal(lazy.batch(8, 42, 4).images, resident.batch(8, 42, 4).images)
    assert torch.equal(lazy.batch(8, 43, 5).images, resident.batch(8, 43, 5).images)
    lazy.close()
    assert torch.equal(lazy.batch(8, 44, 5).images, resident.batch(8, 44, 5).images)
    lazy.close()
    assert lazy.to("cpu") is lazy
    held = lazy.to("cpu", budget_bytes=1 << 20)
    assert held.resident and torch.equal(held.samples, resident.samples)


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_moves_no_generator(folder, workers):
    lazy = data.open(folder, budget_bytes=0, workers=workers)
    before = torch.get_rng_state()
    lazy.batch(0, 0, 4)
    lazy.close()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_image_damaged_after_opening_is_named(folder, workers):
    lazy = data.open(folder, budget_bytes=0, workers=workers)
    bad = write(folder / "a" / "0.png", b"damaged")
    with pytest.raises(DataError) as caught:
        lazy.batch(0, 0, 9)
    assert str(bad) in str(caught.value) and "\n" not in str(caught.value)
    write(bad, png(noise(9, 6, 8, 3)[0]))
    assert lazy.batch(0, 0, 9).images.shape == (9, 3, 6, 8)
    write(bad, png(noise(6, 9, 3)))
    with pytest.raises(DataError, match="promised"):
        lazy.batch(0, 0, 9)
    lazy.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process on Windows")
def test_workers_outlive_ctrl_c_and_end_on_close(folder):
    before = set(multiprocessing.active_children())
    lazy = data.open(folder, budget_bytes=0, workers=2)
    for update in range(4):
        # a batch from each worker: both are up
        lazy.batch(0, update, 4)
    children = set(multiprocessing.active_children()) - before
    assert len(children) == 2
    for child in children:
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
    for update in range(4, 16):
        lazy.batch(0, update, 4)
    lazy.close()
    for child in children:
        child.join(10)
        assert not child.is_alive()


def test_script_that_closes_nothing_ends_its_workers_itself(folder):
    # this handler runs after the loaders are closed and before multiprocessing, which would send
    # the workers a signal that they outlive for a while
    script = (
        "import atexit, multiprocessing.util, sys\n"
        "atexit.register(lambda: print(len(multiprocessing.active_children())))\n"
        "from fastgan import data\n"
        "lazy = data.open(sys.argv[1], budget_bytes=0, workers=2); lazy.batch(0, 0, 4)\n"
        "print(len(multiprocessing.active_children()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and done.stdout.split() == ["2", "0"]


def test_many_files_are_brought_into_memory_by_workers(tmp_path, monkeypatch):
    arrays = noise(40, 4, 4)
    for i, array in enumerate(arrays):
        write(tmp_path / "x" / f"{i:02}.png", png(array))
    monkeypatch.setattr(data_room, "_WORTH_WORKERS", 10)
    monkeypatch.setattr(data_room, "_CHUNK", 7)
    assert np.array_equal(data.open(tmp_path / "x", workers=2).samples[:, 0].numpy(), arrays)


def test_workers_respect_shared_memory(monkeypatch):
    items = types.SimpleNamespace(fork_safe=True)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=60 << 20))
    assert stream.workers_for(items, 1 << 10) == 8
    assert stream.workers_for(items, 4 << 20) == 2
    assert stream.workers_for(items, 64 << 20) == 0
    assert stream.workers_for(types.SimpleNamespace(fork_safe=False), 1) == 0
    # a process of a pool may not start its own
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    assert stream.workers_for(items, 1 << 10) == 0


# ------------------------------------------------------------------------------- drop_last (15)


@given(
    n=st.integers(1, 50),
    batch_size=st.integers(1, 60),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**33),
)
def test_drop_last_leaves_the_ragged_batch_out(n, batch_size, seed, epoch):
    opened = data.open(torch.arange(n)[:, None].float())
    if batch_size > n:
        with pytest.raises(DataError, match="leaves no batch"):
            opened.batches_per_epoch(batch_size, drop_last=True)
        return
    per_epoch = opened.batches_per_epoch(batch_size, drop_last=True)
    assert per_epoch == n // batch_size
    order = random.permutation(seed, epoch, n)
    for position in range(per_epoch):
        update = epoch * per_epoch + position
        expected = order[position * batch_size : (position + 1) * batch_size]
        assert torch.equal(opened.batch_indices(seed, update, batch_size, drop_last=True), expected)
        images = opened.batch(seed, update, batch_size, drop_last=True).images
        assert torch.equal(images[:, 0], expected.float())


@pytest.mark.parametrize("workers", [0, 2])
def test_drop_last_is_the_same_read_ahead(folder, workers):
    resident, lazy = data.open(folder), data.open(folder, budget_bytes=0, workers=workers)
    for update in (0, 1, 2, 3, 9):
        batch = lazy.batch(7, update, 4, drop_last=True)
        assert len(batch.images) == 4
        assert torch.equal(batch.images, resident.batch(7, update, 4, drop_last=True).images)
        assert torch.equal(lazy.batch(7, 2, 4).images, resident.batch(7, 2, 4).images)
    lazy.close()
    with pytest.raises(DataError, match="batch_size=10 leaves no batch of 9 samples"):
        lazy.batch(7, 0, 10, drop_last=True)


# --------------------------------------------------------------- batch_size above the data (46)


def test_batch_larger_than_the_data_is_told_once_by_the_data(caplog):
    opened = data.open(torch.from_numpy(noise(5, 4, 4)))
    assert opened.batches_per_epoch(5) == 1 and not caplog.records
    # the one call that every engine makes
    assert opened.batches_per_epoch(64) == 1
    assert (
        len(caplog.records) == 1 and "batch_size=64" in caplog.text and "5 samples" in caplog.text
    )
    there = opened.to("meta")
    opened.batch_indices(0, 3, 64)
    there.batches_per_epoch(64)
    assert len(caplog.records) == 1


# ------------------------------------------------------------- platforms that spawn workers (25)


UNGUARDED = """
import sys
from fastgan import data
from fastgan.data import data as data_room, stream
stream.start_method = lambda: "spawn"
data_room._WORTH_WORKERS = 1
workers = int(sys.argv[2]) if len(sys.argv) > 2 else None
opened = data.open(sys.argv[1], budget_bytes=0 if workers else None, workers=workers)
lazy = data.open(sys.argv[1], budget_bytes=0, workers=workers)
print(len(opened), lazy.batch(0, 0, 4).images.shape[0])
"""


def unguarded(tmp_path, folder, *arguments):
    path = write(tmp_path / "script.py", UNGUARDED.encode())
    command = [sys.executable, str(path), str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_script_without_a_main_guard_runs_where_workers_are_spawned(folder, tmp_path):
    done = unguarded(tmp_path, folder)
    assert done.returncode == 0 and done.stdout.split() == ["9", "4"]
    assert "workers=N" in done.stderr and "__main__" in done.stderr


def test_spawned_workers_without_a_main_guard_end_in_a_sentence(folder, tmp_path):
    done = unguarded(tmp_path, folder, "1")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "DataError" in last and "__name__ == '__main__'" in last and "workers=0" in last


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_spawned_workers_give_the_same_batches(folder, monkeypatch):
    expected = data.open(folder).batch(3, 1, 4)
    monkeypatch.setattr(stream, "start_method", lambda: "spawn")
    lazy = data.open(folder, budget_bytes=0, workers=1)
    batch = lazy.batch(3, 1, 4)
    assert torch.equal(batch.images, expected.images)
    assert torch.equal(batch.condition, expected.condition)
    lazy.close()
    lazy = data.open(Listed([noise(4, 4)]), budget_bytes=0, workers=1)
    lazy.dataset.unpicklable = lambda: 0
    with pytest.raises(DataError, match="pickled"):
        lazy.batch(0, 0, 1)


def test_default_workers_are_none_where_they_would_be_spawned(folder, monkeypatch, caplog):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    lazy = data.open(folder, budget_bytes=0)
    assert lazy._workers(4) > 0 and "workers=N" not in caplog.text
    caplog.clear()
    monkeypatch.setattr(stream, "start_method", lambda: "spawn")
    lazy = data.open(folder, budget_bytes=0)
    assert lazy._workers(4) == 0 and "workers=N" in caplog.text
    caplog.clear()
    monkeypatch.setattr(data_room, "_WORTH_WORKERS", 9)
    assert data.open(folder).resident
    assert len(caplog.records) == 1 and "in this process; data.open(..., workers=N)" in caplog.text


def test_worker_that_dies_is_a_sentence(folder):
    class Deadly(Listed):
        def __getitem__(self, index):
            if multiprocessing.parent_process() is not None:
                os._exit(3)
            return self.items[index]

    lazy = data.open(Deadly([noise(4, 4)] * 9), augmented=True, workers=1)
    with pytest.raises(DataError, match="workers=0"):
        lazy.batch(0, 0, 4)
    lazy.close()
