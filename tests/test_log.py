"""The lines of a run: their numbers, their files, and what a killed run leaves of them."""

import json
import math

import numpy as np
import pytest
import torch

from fastgan.run.checkpoint import CheckpointError
from fastgan.run.log import RunLog

COLUMNS = ("d_loss", "g_loss")

LOSSES = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0], [0.1, 0.2]])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_last_losses_and_the_means_since_the_last(tmp_path):
    log = RunLog(COLUMNS)
    assert all(math.isnan(log.last[name]) for name in COLUMNS)
    with log.open(tmp_path / "run", {"seed": 3}):
        assert log.line(0, 1) is None, "no steps, no line"
        log.add(LOSSES[:1])
        log.add(LOSSES[1:3])
        assert log.first_bad() is None and log.last == {"d_loss": 6.0, "g_loss": 30.0}
        log.write(log.line(3, 1), 0.123456)
        log.add(LOSSES[3:])
        log.write(log.line(4, 2), 0.2)
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
        log = RunLog(COLUMNS)
        log.add(LOSSES)
        assert log.first_bad() is None
        broken = LOSSES.clone()
        broken[1, 0], broken[3, 1] = bad, bad
        log.add(broken)
        followed, values = log.first_bad()
        assert followed == 2 and values["g_loss"] == 20 and not math.isfinite(values["d_loss"])
        assert tuple(log.last.values()) == tuple(LOSSES[-1].tolist())


def test_the_line_of_a_part_is_taken_back(tmp_path):
    cut, whole = RunLog(COLUMNS), RunLog(COLUMNS)
    with cut.open(tmp_path / "cut", {}):
        cut.add(LOSSES[:2])
        cut.write(cut.line(2, 1), 0.0)
        cut.add(LOSSES[2:3])
        cut.write(cut.line(3, 1), 0.0, whole=False)
    assert [line["step"] for line in lines(tmp_path / "cut/log.jsonl")] == [2, 3]
    with whole.open(tmp_path / "whole", {}):
        whole.add(LOSSES[:2])
        whole.write(whole.line(2, 1), 0.0)
        whole.add(LOSSES[2:])
        whole.write(whole.line(4, 1), 0.0)
    with cut.open(tmp_path / "cut", {}):
        cut.add(LOSSES[3:])
        cut.write(cut.line(4, 1), 0.0)
    assert cut.history == whole.history
    texts = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("cut", "whole")]
    assert texts[0] == texts[1]


def test_a_checkpoint_brings_back_the_lines_before_it(tmp_path):
    log = RunLog(COLUMNS)
    with log.open(tmp_path, {"first": True}):
        log.add(LOSSES[:1])
        log.write(log.line(1, 1), 0.0)
        log.add(LOSSES[1:2])
        saved = log.state_dict()
        log.add(LOSSES[2:])
        log.write(log.line(4, 1), 0.0)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "epo')  # the process was killed here
    again = RunLog(COLUMNS)
    again.load_state_dict(saved, tmp_path / "checkpoint.pt")
    assert [line["step"] for line in again.history] == [1]
    with again.open(tmp_path, {"first": False}):
        assert len(lines(tmp_path / "log.jsonl")) == len(lines(tmp_path / "timing.jsonl")) == 1
        again.add(LOSSES[2:])
        again.write(again.line(4, 1), 0.0)
    assert again.history == log.history == lines(tmp_path / "log.jsonl")
    assert json.loads((tmp_path / "config.json").read_text()) == {"first": True}


def test_any_columns_and_the_values_of_others(tmp_path):
    log = RunLog(("d_loss", "g_loss", "d_real", "d_fake"))
    with log.open(tmp_path, {}):
        log.add(torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 0.0]]))
        line = log.line(2, 1)
        line["fid"] = np.float64(12.5)
        line["norms"] = {"g": torch.tensor(0.5), "d": float("nan")}
        log.write(line, 0.1)
    expected = {
        "step": 2, "epoch": 1, "d_loss": 3.0, "g_loss": 4.0, "d_real": 5.0, "d_fake": 0.0,
        "d_loss_mean": 2.0, "g_loss_mean": 3.0, "d_real_mean": 4.0, "d_fake_mean": 2.0,
        "fid": 12.5, "norms": {"g": 0.5, "d": None},
    }  # fmt: skip
    assert log.history == lines(tmp_path / "log.jsonl") == [expected]
    assert list(log.history[0]) == list(expected)
    again = RunLog(log.columns)
    again.load_state_dict(log.state_dict(), tmp_path / "checkpoint.pt")
    assert again.history == log.history and again.last == log.last


def test_a_value_that_no_line_can_hold_is_named(tmp_path):
    log = RunLog(COLUMNS)
    with log.open(tmp_path, {}):
        log.add(LOSSES)
        line = log.line(4, 1)
        line["mine"] = {"a": [1, print]}
        with pytest.raises(ValueError, match=r"the log line's 'mine.a\[1\]' is a builtin_function"):
            log.write(line, 0.1)
    assert (tmp_path / "log.jsonl").read_text() == "" and not log.history


@pytest.fixture
def logged(tmp_path):
    """A directory with two lines, and the state that counts them."""
    log = RunLog(COLUMNS)
    with log.open(tmp_path, {}):
        for step in (1, 2):
            log.add(LOSSES[:1])
            log.first_bad()
            log.write(log.line(step, 1), 0.0)
        return log.state_dict()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"hello", "line 2 is damaged: it is no JSON"),
        (b"\xff\xfe{}", "line 2 is damaged: it is no JSON"),
        (b"[" * 100_000, "line 2 is damaged: it is no JSON"),
        (b"[1]", "line 2 is damaged: field 'all' is a list of 1; expected a dict"),
        (b'{"step": "x"}', "line 2 is damaged: field 'step' is 'x' .str.; expected an integer"),
        (b'{"step": 2, "epoch": 1}', "line 2 is damaged: field 'd_loss' is missing; expected"),
        (b'{"step": 2, "epoch": 1, "d_loss": NaN}', "field 'd_loss' is nan"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, logged, damage, message):
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes().splitlines()[0] + b"\n" + damage + b"\n")
    with pytest.raises(CheckpointError, match=message) as caught:
        RunLog(COLUMNS).load_state_dict(logged, tmp_path / "checkpoint.pt")
    told = str(caught.value)
    assert str(path) in told and "move the file away" in told and "\n" not in told
    path.unlink()
    RunLog(COLUMNS).load_state_dict(logged, tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("left", [0, 1])
def test_lost_lines_do_not_end_the_run_but_are_told(tmp_path, logged, left, caplog):
    path = tmp_path / "log.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first * left + second[:9])
    again = RunLog(COLUMNS)
    again.load_state_dict(logged, tmp_path / "checkpoint.pt")
    assert f"{2 - left} of the 2 lines that the checkpoint counts are missing" in caplog.text
    assert [line["step"] for line in again.history] == [1][:left]
    with again.open(tmp_path, {}):
        again.add(LOSSES[:1])
        again.write(again.line(3, 1), 0.0)
    assert [line["step"] for line in lines(path)] == [1][:left] + [3]


def test_a_log_of_other_columns_is_refused(tmp_path, logged):
    with pytest.raises(CheckpointError, match="field 'log.columns' is d_loss, g_loss, but this"):
        RunLog(("d_loss", "g_loss", "d_real")).load_state_dict(logged, tmp_path / "checkpoint.pt")
