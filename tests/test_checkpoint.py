"""A checkpoint is whole at every moment, says when it is damaged, and holds plain values only."""

import inspect
import os
import signal
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgan.run import checkpoint
from fastgan.run.checkpoint import CheckpointError

DATA = {
    "name": "digits", "kind": "image", "count": 40, "shape": [1, 4, 4], "dtype": "uint8",
    "condition": None, "checksum": "b21b9e24", "condition_checksum": None, "whole": ["12", None],
}  # fmt: skip
GROUP = {"lr": 0.1, "betas": (0.5, 0.999), "params": [0, 1], "foreach": None, "on": True}


def state(step=7, **fields):
    """A small state with every field, `fields` in place of some."""
    weights = OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.tensor(3, dtype=torch.int64))
    optimizer = {"state": {}, "param_groups": [GROUP]}
    return {
        "step": step,
        "seconds": 1.5,
        "goal": {"epochs": None, "steps": 20, "seconds": None},
        "config": {"seed": 3, "lr": [0.1, 0.2], "data": {"source": "digits"}},
        "models": {"generator": {"network": "Generator"}, "discriminator": None},
        "threads": 2,
        "engine": "eager",
        "data": dict(DATA),
        "generator": weights,
        "discriminator": weights,
        "optimizer_g": optimizer,
        "optimizer_d": optimizer,
        "ema": None,
        "scalers": [],
        "random": {"cpu": torch.Generator().get_state()},
        "log": {"columns": ["d"], "lines": 0, "unlogged": torch.zeros(2, 1), "last": None},
        "callbacks": {"mine": {"best": 0.5}},
        "loss": None,
        "versions": {"fastgan": "0.1.0", "torch": "2", "python": "3"},
        **fields,
    }


STATE = state()


def test_round_trip_with_torchs_safe_loader(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    raw = torch.load(path, weights_only=True)
    for read in (raw, checkpoint.load(path), checkpoint.load(tmp_path)):
        assert read["format"] == checkpoint.FORMAT and read["version"] == checkpoint.VERSION
        assert torch.equal(read["generator"]["a"], STATE["generator"]["a"])
        assert read["generator"]["b"].dtype == torch.int64
        assert read["optimizer_g"]["param_groups"] == [GROUP]
        assert read["callbacks"] == STATE["callbacks"] and read["config"] == STATE["config"]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_only_plain_values_are_taken_and_the_old_file_stays(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    with pytest.raises(CheckpointError, match=r"state\['callbacks'\]\['a'\]\[1\] is a complex;"):
        checkpoint.save(path, state(8, callbacks={"a": [1, 2j]}))
    assert checkpoint.load(path)["step"] == 7
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_view_does_not_drag_its_storage_along(tmp_path):
    path = tmp_path / "checkpoint.pt"
    big = torch.zeros(1 << 20)
    checkpoint.save(path, state(generator={"slice": big[:10], "row": torch.ones(3, 4)[1]}))
    assert path.stat().st_size < 40_000
    assert checkpoint.load(path)["generator"]["row"].tolist() == [1, 1, 1, 1]


def test_missing_foreign_and_newer_files_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint .*checkpoint.pt"):
        checkpoint.load(tmp_path)
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="other.pt is not a fastgan checkpoint"):
        checkpoint.load(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="text.pt is damaged or not a checkpoint"):
        checkpoint.load(tmp_path / "text.pt")
    torch.save({"format": checkpoint.FORMAT, "version": 99}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="has format 99.*upgrade fastgan"):
        checkpoint.load(tmp_path / "new.pt")
    for version in (1, 2):
        old = {"format": checkpoint.FORMAT, "version": version, "versions": {"fastgan": "0.0.9"}}
        torch.save(old, tmp_path / "old.pt")
        told = rf"old.pt has format {version}, written by fastgan 0.0.9, but .* reads format 3; con"
        with pytest.raises(CheckpointError, match=told):
            checkpoint.load(tmp_path / "old.pt")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "checkpoint.pt"
    noise = torch.randn(500, generator=torch.Generator().manual_seed(0))
    checkpoint.save(path, state(ema={"noise": noise}))
    return path.read_bytes(), noise


@given(where=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_damage_is_noticed(sound, tmp_path_factory, where, bit, cut):
    content, noise = sound
    at = int(where * (len(content) - 1))
    damaged = bytearray(content[:at]) if cut else bytearray(content)
    if not cut:
        damaged[at] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(damaged)
    try:
        read = checkpoint.load(path)
    except CheckpointError as error:
        assert "damaged.pt" in str(error) and "\n" not in str(error)
    else:  # a flipped bit between the records changes nothing
        assert not cut
        assert torch.equal(read["ema"]["noise"], noise) and read["step"] == 7


def test_the_error_names_another_save_to_go_on_from(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (100, 200):
        checkpoint.save(path, state(step), keep=2)
    path.unlink()
    path.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"damaged.*try another save.*checkpoint-200\.pt"):
        checkpoint.load(tmp_path)
    (tmp_path / "checkpoint-200.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint-200.pt is damaged"):
        checkpoint.load(tmp_path / "checkpoint-200.pt")
    assert checkpoint.load(tmp_path / "checkpoint-100.pt")["step"] == 100
    path.unlink()
    (tmp_path / "checkpoint-200.pt").unlink()
    assert checkpoint.load(tmp_path)["step"] == 100, "a run killed between the names of a save"


@pytest.mark.parametrize("links", [True, False])
def test_keep_counts_the_saves_that_stay(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "checkpoint.pt"
    for step in (100, 200, 300, 300):
        checkpoint.save(path, state(step), keep=2)
        # Times of writing order the saves, and a file system's clock may be coarse.
        os.utime(tmp_path / f"checkpoint-{step}.pt", (step, step))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["checkpoint-200.pt", "checkpoint-300.pt", "checkpoint.pt"]
    assert [checkpoint.load(tmp_path / name)["step"] for name in names] == [200, 300, 300]
    # A run that went back to step 200 writes lower numbers than those it leaves behind.
    os.utime(tmp_path / "checkpoint-200.pt", (400, 400))
    checkpoint.save(path, state(250), keep=2)
    assert [p.name for p in checkpoint.saves(path)] == ["checkpoint-200.pt", "checkpoint-250.pt"]


def test_a_clock_that_was_set_back_removes_no_new_save(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (100, 200):
        checkpoint.save(path, state(step), keep=2)
        ahead = 4_000_000_000 + step  # written before the clock was put right
        os.utime(tmp_path / f"checkpoint-{step}.pt", (ahead, ahead))
    for step, kept in ((300, [200, 300]), (400, [300, 400]), (500, [400, 500])):
        checkpoint.save(path, state(step), keep=2)
        assert [p.name for p in checkpoint.saves(path)] == [f"checkpoint-{n}.pt" for n in kept]


def test_a_run_that_goes_on_with_one_save_keeps_no_older_ones(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (100, 200):
        checkpoint.save(path, state(step), keep=3)
    assert len(checkpoint.saves(path)) == 2
    checkpoint.save(path, state(300), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert checkpoint.load(path)["step"] == 300


def test_weights_alone(tmp_path):
    network, other = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    network(torch.randn(5, 3))
    checkpoint.save_weights(tmp_path / "network.pth", network.state_dict())
    saved = torch.load(tmp_path / "network.pth", weights_only=True)
    assert not any(value.requires_grad for value in saved.values())
    other.load_state_dict(saved, strict=True)
    assert torch.equal(other.running_mean, network.running_mean) and other.running_mean.any()


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Path("photos") / "cats", os.path.join("photos", "cats")),
        (signal.SIGINT, 2),
        ({np.int64(1): (np.float16(2.0), None)}, {1: (2.0, None)}),
        (torch.Size([2, 3]), (2, 3)),
    ],
    ids=str,
)
def test_numbers_are_taken_as_numbers_and_paths_as_text(tmp_path, value, becomes):
    told = state(config={"seed": 0, "value": value}, seconds=np.float64(5), step=np.int64(7))
    checkpoint.try_state(told)
    checkpoint.save(tmp_path / "checkpoint.pt", told)
    read = checkpoint.load(tmp_path)
    assert read["config"]["value"] == becomes and type(read["config"]["value"]) is type(becomes)
    assert type(read["seconds"]) is float and type(read["step"]) is int


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": {"hook": print}}, r"state\['config'\]\['hook'\] is a builtin_function_or"),
        (
            {"callbacks": {"a": {(1, 2): 3}}},
            r"state\['callbacks'\]\['a'\] has the key \(1, 2\), a tup",
        ),
        (
            {"ema": {"w": torch.zeros(2, device="meta")}},
            r"\['ema'\]\['w'\] is a tensor that .* meta",
        ),
        ({"seconds": float("nan")}, "cannot be saved: field 'seconds' is nan"),
        ({"mine": 1}, "cannot be saved: field 'mine' is 1 .int.; expected no field of this name"),
        ({"callbacks": {"a": np.zeros(3)}}, r"state\['callbacks'\]\['a'\] is a ndarray;"),
    ],
)
def test_what_cannot_be_saved_is_known_before_the_first_step(tmp_path, fields, message):
    for attempt in (checkpoint.try_state, lambda s: checkpoint.save(tmp_path / "c.pt", s)):
        with pytest.raises(CheckpointError, match=message) as caught:
            attempt(state(**fields))
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_trying_a_state_copies_no_weights_and_writes_nothing(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(torch.Tensor, "cpu", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    checkpoint.try_state(STATE)


KILLS = 50
KILLER = """
import os, random, signal, sys
from pathlib import Path
import torch
from fastgan.run import checkpoint, files
from tests_state import state

torch.set_num_threads(1)
path, kills = Path(sys.argv[1]), int(sys.argv[2])
random.seed(0)
last = halfway = 0
for kill in range(kills):
    saved, tell = os.pipe()
    child = os.fork()
    if child == 0:
        # Where to stop is said in the calls of a save, not in seconds: after so many whole saves,
        # the next one stops before one of its calls and waits to be killed.
        whole = random.randrange(3)
        call, left = random.choice([
            ("write", random.randrange(60)), ("fsync", 0), ("fsync", 1), ("link", 0), ("utime", 0),
            ("replace", 0), ("replace", 1),
        ])
        def counted(name, function):
            def stopping(*a, **k):
                global left
                if step > last + whole and name == call:
                    left -= 1
                    if left < 0:
                        os.write(tell, b"x")
                        signal.pause()
                return function(*a, **k)
            return stopping
        class Slow:
            def __init__(self, file): self.file = file
            def __getattr__(self, name): return getattr(self.file, name)
            def write(self, data): return counted("write", self.file.write)(data)
        real_open = open
        files.open = lambda *a: Opened(real_open(*a))
        class Opened:
            def __init__(self, file): self.file = file
            def __enter__(self): return Slow(self.file.__enter__())
            def __exit__(self, *a): return self.file.__exit__(*a)
        for name in ("fsync", "link", "replace", "utime"):
            setattr(os, name, counted(name, getattr(os, name)))
        step = last
        while True:
            step += 1
            tensors = {str(i): torch.full((10_000,), float(step)) for i in range(12)}
            checkpoint.save(path, state(step, generator=tensors), keep=2)
    os.close(tell)
    assert os.read(saved, 1) == b"x", "the saver ended by itself"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(saved)
    halfway += any(path.parent.glob(".*.tmp"))
    random.seed(kill + 1)
    found = [*([path] if path.exists() else []), *checkpoint.saves(path)]
    assert found or last == 0, "the checkpoint is gone"
    for save in found:
        read = checkpoint.load(save)
        assert len(read["generator"]) == 12
        for t in read["generator"].values():
            assert (t == read["step"]).all() and len(t) == 10_000
    if path.exists():
        step = checkpoint.load(path)["step"]
        assert step >= last, f"went back from {last} to {step}"
        last = step
print(last, halfway)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fifty_kills_in_the_middle_of_saving_lose_nothing(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    path = run / "checkpoint.pt"
    (tmp_path / "tests_state.py").write_text(
        "import torch\nfrom collections import OrderedDict\n"
        f"GROUP, DATA = {GROUP!r}, {DATA!r}\n{inspect.getsource(state)}"
    )
    result = subprocess.run(
        [sys.executable, "-c", KILLER, str(path), str(KILLS)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    last, halfway = map(int, result.stdout.split())
    assert last > 10, "the saver did save"
    assert halfway > 20, "many of the kills hit a save under way"
    checkpoint.save(path, state(last + 1), keep=2)
    assert not list(run.glob(".*"))


def test_every_record_carries_a_checksum(sound, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(sound[0])
    with zipfile.ZipFile(path) as archive:
        assert all(entry.CRC for entry in archive.infolist() if entry.file_size > 8)


@pytest.mark.parametrize("wrong", [3, None, ["runs"]])
def test_what_is_no_path_is_named(wrong):
    with pytest.raises(CheckpointError, match="^path is .*; expected the directory of a run"):
        checkpoint.find(wrong)
