"""The lines of a run: their numbers, their files, and what a killed run leaves of them."""

import json
import math

import pytest
import torch

from fastgan.run.log import RunLog, refuse_used

LOSSES = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0], [0.1, 0.2]])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_last_losses_and_the_means_since_the_last(tmp_path):
    log = RunLog()
    assert all(math.isnan(x) for x in log.last)
    with log.open(tmp_path / "run", {"seed": 3}):
        log.write(0, 1, 0.0)
        assert not log.history, "no steps, no line"
        log.add(LOSSES[:1])
        log.add(LOSSES[1:3])
        assert log.first_bad() is None and log.last == (6.0, 30.0)
        log.write(3, 1, 0.123456)
        log.add(LOSSES[3:])
        log.write(4, 2, 0.2)
    expected = [
        {"step": 3, "epoch": 1, "d_loss": 6, "g_loss": 30, "d_loss_mean": 3, "g_loss_mean": 20},
        {
            "step": 4, "epoch": 2, "d_loss": 0.1, "g_loss": 0.2, "d_loss_mean": 0.1,
            "g_loss_mean": 0.2,
        },
    ]  # fmt: skip
    for found in (log.history, lines(tmp_path / "run/log.jsonl")):
        assert [list(line) for line in found] == [list(line) for line in expected]
        for line, right in zip(found, expected, strict=True):
            assert line == pytest.approx(right)
    assert lines(tmp_path / "run/timing.jsonl") == [
        {"step": 3, "seconds": 0.1235},
        {"step": 4, "seconds": 0.2},
    ]
    assert json.loads((tmp_path / "run/config.json").read_text()) == {"seed": 3}


def test_the_first_bad_step_is_found_and_the_good_losses_stay():
    for bad in (float("nan"), float("inf")):
        log = RunLog()
        log.add(LOSSES)
        assert log.first_bad() is None
        broken = LOSSES.clone()
        broken[1, 0], broken[3, 1] = bad, bad
        log.add(broken)
        followed, d_loss, g_loss = log.first_bad()
        assert followed == 2 and g_loss == 20 and not math.isfinite(d_loss)
        assert log.last == tuple(LOSSES[-1].tolist())


def test_the_line_of_a_part_is_taken_back(tmp_path):
    cut, whole = RunLog(), RunLog()
    with cut.open(tmp_path / "cut", {}):
        cut.add(LOSSES[:2])
        cut.write(2, 1, 0.0)
        cut.add(LOSSES[2:3])
        cut.write(3, 1, 0.0, whole=False)
    assert [line["step"] for line in lines(tmp_path / "cut/log.jsonl")] == [2, 3]
    with whole.open(tmp_path / "whole", {}):
        whole.add(LOSSES[:2])
        whole.write(2, 1, 0.0)
        whole.add(LOSSES[2:])
        whole.write(4, 1, 0.0)
    with cut.open(tmp_path / "cut", {}):
        cut.add(LOSSES[3:])
        cut.write(4, 1, 0.0)
    assert cut.history == whole.history
    texts = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("cut", "whole")]
    assert texts[0] == texts[1]


def test_a_checkpoint_brings_back_the_lines_before_it(tmp_path):
    log = RunLog()
    with log.open(tmp_path, {"first": True}):
        log.add(LOSSES[:1])
        log.write(1, 1, 0.0)
        log.add(LOSSES[1:2])
        saved = log.state_dict()
        log.add(LOSSES[2:])
        log.write(4, 1, 0.0)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "epo')  # the process was killed here
    again = RunLog()
    again.load_state_dict(saved, tmp_path)
    assert [line["step"] for line in again.history] == [1]
    with again.open(tmp_path, {"first": False}):
        assert len(lines(tmp_path / "log.jsonl")) == len(lines(tmp_path / "timing.jsonl")) == 1
        again.add(LOSSES[2:])
        again.write(4, 1, 0.0)
    assert again.history == log.history == lines(tmp_path / "log.jsonl")
    assert json.loads((tmp_path / "config.json").read_text()) == {"first": True}


def test_a_used_directory_is_refused(tmp_path):
    refuse_used(tmp_path / "nowhere")
    refuse_used(tmp_path)
    for name in ("checkpoint.pt", "log.jsonl", "config.json"):
        (tmp_path / name).touch()
        with pytest.raises(FileExistsError, match="already holds a run; continue it with resume"):
            refuse_used(tmp_path)
        (tmp_path / name).unlink()
