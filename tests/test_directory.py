"""Which directory a run gets, and what is removed for it: only what a run writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastgan.run import directory
from fastgan.run.lock import InUseError, RunLock

WRITTEN = (
    "checkpoint.pt", "checkpoint-100.pt", "generator.pth", "discriminator.pth", "log.jsonl",
    "timing.jsonl", "config.json", "samples.png", "loss.png", "quality.jsonl",
)  # fmt: skip
FOREIGN = ("notes.txt", "checkpoint-best.pt", "grid.png", "mine.pth")


def fill(path, names):
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).write_text(name)
    return path


def names(path):
    return sorted(p.name for p in path.iterdir())


@pytest.mark.parametrize("saved", ["checkpoint.pt", "checkpoint-100.pt"])
def test_a_run_is_not_written_over_unless_that_is_asked_for(tmp_path, saved):
    run = fill(tmp_path / "mine", [saved, *WRITTEN[2:], *FOREIGN])
    with pytest.raises(FileExistsError) as caught:
        directory.prepare(run)
    told = str(caught.value)
    assert told.startswith(f"out: {run} already holds a run; continue it with resume, ")
    assert "if_exists='overwrite'" in told and "if_exists='count'" in told and "\n" not in told
    assert names(run) == sorted([saved, *WRITTEN[2:], *FOREIGN])
    assert directory.prepare(run, "overwrite") == run
    assert names(run) == sorted(FOREIGN)


@pytest.mark.parametrize("own", [[], ["favourite.png"]])
def test_the_pictures_along_a_run_go_with_it(tmp_path, own):
    run = fill(tmp_path / "mine", WRITTEN)
    fill(run / "samples", ["00000100.png", "00000200.png", *own])
    directory.prepare(run, "overwrite")
    assert names(run) == (["samples"] if own else [])
    assert not own or names(run / "samples") == own


def test_runs_count_up(tmp_path):
    run = tmp_path / "runs" / "mine"
    found = [directory.prepare(run, "count") for _ in range(2)]
    # The first was given away empty; once a run is there, or a file, the next is taken.
    assert found == [run, run]
    fill(run, WRITTEN)
    found = [fill(directory.prepare(run, "count"), WRITTEN) for _ in range(3)]
    assert [path.name for path in found] == ["mine-2", "mine-3", "mine-4"]
    assert names(run) == sorted(WRITTEN)


COUNTING = """
import sys
from fastgan.run.directory import prepare
sys.stdin.readline()
for _ in range(20):
    print(prepare(sys.argv[1], "count"))
"""


def test_no_two_processes_count_to_the_same_directory(tmp_path):
    fill(tmp_path / "mine", WRITTEN)
    counting = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTING, str(tmp_path / "mine")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in counting:
        process.stdin.write("\n")
        process.stdin.flush()
    found = [line for process in counting for line in process.communicate()[0].split()]
    assert len(found) == len(set(found)) == 40


@pytest.mark.parametrize("if_exists", ["fail", "overwrite"])
def test_what_a_run_left_before_its_first_checkpoint_is_no_dead_end(tmp_path, caplog, if_exists):
    left = ["log.jsonl", "timing.jsonl", "config.json", "samples.png"]
    run = fill(tmp_path / "mine", [*left, *FOREIGN])
    assert directory.prepare(run, if_exists) == run
    assert caplog.text.count("a run that ended before its first checkpoint; it is replaced") == 1
    assert names(run) == sorted(FOREIGN)
    caplog.clear()
    assert directory.prepare(run, if_exists) == run and not caplog.text


@pytest.mark.parametrize("name", ["config.json", "log.jsonl"])
@pytest.mark.parametrize("if_exists", ["fail", "overwrite"])
def test_a_users_own_file_is_not_written_over(tmp_path, name, if_exists):
    run = fill(tmp_path / "project", [name, *FOREIGN])
    with pytest.raises(FileExistsError, match=f"holds a {name} that is no run's"):
        directory.prepare(run, if_exists)
    assert (run / name).read_text() == name


@pytest.mark.parametrize("files", [WRITTEN, ["log.jsonl", "config.json"]])
def test_a_run_at_work_loses_nothing(tmp_path, files):
    run = fill(tmp_path / "mine", files)
    with RunLock(run):
        with pytest.raises(InUseError, match="is in use by another run"):
            directory.prepare(run, "overwrite")
        assert set(files) < set(names(run))


def test_the_second_of_two_that_were_given_a_directory_does_not_write_over_the_first(tmp_path):
    run = tmp_path / "mine"
    assert directory.prepare(run) == directory.prepare(run) == run
    with directory.at_work(run, new=True):
        fill(run, WRITTEN)
        with pytest.raises(InUseError), directory.at_work(run, new=True):
            pytest.fail("two at work")
    with (
        pytest.raises(FileExistsError, match="already holds a run"),
        directory.at_work(run, new=True),
    ):
        pytest.fail("written over")
    with directory.at_work(run, new=False):
        pass
    assert names(run) == sorted(WRITTEN)


def test_home_and_the_directory_of_the_moment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert directory.prepare("~/runs/a") == tmp_path / "home" / "runs" / "a"
    run = directory.prepare(Path("runs") / ".." / "b")
    assert run == tmp_path / "b" and run.is_absolute()
    monkeypatch.chdir("/")
    with directory.at_work(run, new=True):
        assert (tmp_path / "b").is_dir()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("out", ["", 3, None, b"", ["a"]])
def test_what_is_no_path_is_refused(out):
    with pytest.raises(ValueError, match="out is .*; expected the path of a directory"):
        directory.prepare(out)


def test_a_name_that_the_system_does_not_take_is_told(tmp_path):
    with pytest.raises(OSError, match=r"out: .*aaa cannot be written .*; choose another directory"):
        directory.prepare(tmp_path / ("a" * 300))


def test_files_in_the_way_and_unknown_words(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(NotADirectoryError, match=r"out: .*file is a file; give the name of a"):
            directory.prepare(out)
    with pytest.raises(ValueError, match="if_exists is 'ask'; expected one of fail, overwri"):
        directory.prepare(tmp_path / "a", "ask")
    with pytest.raises(ValueError, match="out is '~nobody-of-this-name/a'"):
        directory.prepare("~nobody-of-this-name/a")
    assert os.listdir(tmp_path) == ["file"]


def test_the_newest_run_of_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no run in .*; name the directory of one"):
        directory.newest(tmp_path / "runs")
    for i, name in enumerate(("b", "c", "a")):
        (tmp_path / name).mkdir()
        save = tmp_path / name / ("checkpoint-3.pt" if name == "a" else "checkpoint.pt")
        save.write_bytes(b"")
        os.utime(save, (100 + i, 100 + i))
    (tmp_path / "d").mkdir()
    (tmp_path / "file").write_text("")
    assert directory.newest(tmp_path) == tmp_path / "a"
    os.utime(tmp_path / "b" / "checkpoint.pt", (200, 200))
    assert directory.newest(tmp_path) == tmp_path / "b"
