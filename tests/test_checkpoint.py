"""A checkpoint is whole at every moment, says when it is damaged, and holds plain values only."""

import os
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgan.run import checkpoint
from fastgan.run.checkpoint import CheckpointError

STATE = {
    "step": 7,
    "weights": OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.tensor(3, dtype=torch.int64)),
    "groups": [{"lr": 0.1, "betas": (0.5, 0.999), "params": [0, 1], "foreach": None, "on": True}],
    "name": "digits",
}


def test_round_trip_with_torchs_safe_loader(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    raw = torch.load(path, weights_only=True)
    for read in (raw, checkpoint.load(path), checkpoint.load(tmp_path)):
        assert read["format"] == checkpoint.FORMAT and read["version"] == checkpoint.VERSION
        assert torch.equal(read["weights"]["a"], STATE["weights"]["a"])
        assert read["weights"]["b"].dtype == torch.int64
        assert read["groups"] == STATE["groups"] and read["name"] == "digits"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_only_plain_values_are_taken_and_the_old_file_stays(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    with pytest.raises(CheckpointError, match=r"state\['extra'\]\[1\] is a complex;"):
        checkpoint.save(path, {"step": 8, "extra": [1, 2j]})
    assert checkpoint.load(path)["step"] == 7


def test_a_view_does_not_drag_its_storage_along(tmp_path):
    path = tmp_path / "checkpoint.pt"
    big = torch.zeros(1 << 20)
    checkpoint.save(path, {"step": 1, "slice": big[:10], "row": torch.ones(3, 4)[1]})
    assert path.stat().st_size < 10_000
    assert checkpoint.load(path)["row"].tolist() == [1, 1, 1, 1]


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


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "checkpoint.pt"
    noise = torch.randn(500, generator=torch.Generator().manual_seed(0))
    checkpoint.save(path, {**STATE, "noise": noise})
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
        assert torch.equal(read["noise"], noise) and read["step"] == 7


def test_the_error_names_another_save_to_go_on_from(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (100, 200):
        checkpoint.save(path, {"step": step}, keep=2)
    path.unlink()
    path.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"damaged.*try another save.*checkpoint-200\.pt"):
        checkpoint.load(tmp_path)
    (tmp_path / "checkpoint-200.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint-200.pt is damaged"):
        checkpoint.load(tmp_path / "checkpoint-200.pt")
    assert checkpoint.load(tmp_path / "checkpoint-100.pt")["step"] == 100


@pytest.mark.parametrize("links", [True, False])
def test_keep_counts_the_saves_that_stay(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "checkpoint.pt"
    for step in (100, 200, 300, 300):
        checkpoint.save(path, {"step": step}, keep=2)
        # Times of writing order the saves, and a file system's clock may be coarse.
        os.utime(tmp_path / f"checkpoint-{step}.pt", (step, step))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["checkpoint-200.pt", "checkpoint-300.pt", "checkpoint.pt"]
    assert [checkpoint.load(tmp_path / name)["step"] for name in names] == [200, 300, 300]
    # A run that went back to step 200 writes lower numbers than those it leaves behind.
    os.utime(tmp_path / "checkpoint-200.pt", (400, 400))
    checkpoint.save(path, {"step": 250}, keep=2)
    assert [p.name for p in checkpoint.saves(path)] == ["checkpoint-200.pt", "checkpoint-250.pt"]


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for name in (".checkpoint.pt.tmp", ".checkpoint-100.pt.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "checkpoint-best.pt").write_bytes(b"a user's own copy")
    checkpoint.save(path, STATE, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-best.pt", "checkpoint.pt"]


def test_mismatch_names_the_first_differences():
    own = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    assert checkpoint.mismatch(own, dict(own)) is None
    saved = {"a": torch.zeros(2), "b": torch.zeros(4), "d": torch.zeros(1)}
    told = checkpoint.mismatch(own, saved)
    assert told == "missing in the checkpoint: c; only in the checkpoint: d; b is [3], saved [4]"


def test_what_a_checkpoint_cannot_hold_must_be_given(tmp_path):
    file = tmp_path / "checkpoint.pt"
    assert checkpoint.require(file, "data", "given", "saved") == "given"
    assert checkpoint.require(file, "data", None, "saved") == "saved"
    with pytest.raises(CheckpointError, match=r"checkpoint.pt was trained with a loss of your own"):
        checkpoint.require(file, "loss", None, None)
    network = torch.nn.Linear(2, 1)
    weights = network.state_dict()
    checkpoint.require_fit(file, "generator", network, weights)
    with pytest.raises(CheckpointError, match=r"generator does not fit .*missing .*: bias"):
        checkpoint.require_fit(file, "generator", network, {"weight": weights["weight"]})


def test_weights_alone(tmp_path):
    network, other = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    network(torch.randn(5, 3))
    checkpoint.save_weights(tmp_path / "network.pth", network)
    saved = torch.load(tmp_path / "network.pth", weights_only=True)
    assert not any(value.requires_grad for value in saved.values())
    other.load_state_dict(saved, strict=True)
    assert torch.equal(other.running_mean, network.running_mean) and other.running_mean.any()


def test_write_replaces_a_file_at_once(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the n")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        checkpoint.write(path, fail)
    assert path.read_bytes() == b"old"
    checkpoint.write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


KILLS = 50
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from fastgan.run import checkpoint

torch.set_num_threads(1)
path, kills = Path(sys.argv[1]), int(sys.argv[2])
random.seed(0)
last = halfway = 0
for kill in range(kills):
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        step = last
        os.write(write, b"x")
        while True:
            step += 1
            tensors = [torch.full((100_000,), float(step)) for _ in range(12)]
            checkpoint.save(path, {"step": step, "tensors": tensors}, keep=2)
    os.read(ready, 1)
    time.sleep(random.uniform(0.001, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready), os.close(write)
    halfway += any(path.parent.glob(".*.tmp"))
    if not path.exists():
        assert last == 0, "the checkpoint is gone"
        continue
    for save in (path, *checkpoint.saves(path)):
        state = checkpoint.load(save)
        assert len(state["tensors"]) == 12
        assert all((t == state["step"]).all() and len(t) == 100_000 for t in state["tensors"])
    step = checkpoint.load(path)["step"]
    assert step >= last, f"went back from {last} to {step}"
    last = step
print(last, halfway)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fifty_kills_in_the_middle_of_saving_lose_nothing(tmp_path):
    path = tmp_path / "checkpoint.pt"
    result = subprocess.run(
        [sys.executable, "-c", KILLER, str(path), str(KILLS)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    last, halfway = map(int, result.stdout.split())
    assert last > 10, "the saver did save"
    assert halfway > 10, "many of the kills hit a save under way"
    checkpoint.save(path, {"step": last + 1}, keep=2)
    assert not list(tmp_path.glob(".*"))


def test_every_record_carries_a_checksum(sound, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(sound[0])
    with zipfile.ZipFile(path) as archive:
        assert all(entry.CRC for entry in archive.infolist() if entry.file_size > 8)
