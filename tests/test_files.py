"""Files hold the old or the new content; temporary ones are nobody else's, and none stays."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastgan.run import files


def test_write_replaces_a_file_at_once(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the n")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.write(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    files.write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(IsADirectoryError, match="cannot be written .*; give the name of a file"):
        files.write(tmp_path, lambda file: file.write(b"a directory has this name"))
    assert list(tmp_path.iterdir()) == [path]
    assert not list(tmp_path.parent.glob(".*.tmp"))


WRITER = """
import sys
from pathlib import Path
from fastgan.run import files
path, word = Path(sys.argv[1]), sys.argv[2].encode()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(200):
    files.sweep(path.parent)
    files.write(path, lambda file: file.write(word * 1000))
"""


def test_two_writers_of_a_file_never_take_each_others_temporary_file(tmp_path):
    path = tmp_path / "samples.png"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), word],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for word in "ab"
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        _, error = writer.communicate()
        assert writer.returncode == 0, error
    assert path.read_text() in ("a" * 1000, "b" * 1000)
    assert [p.name for p in tmp_path.iterdir()] == ["samples.png"]


def test_names_differ_from_call_to_call():
    names = {files.beside(Path("x")) for _ in range(100)}
    assert len(names) == 100


KILLED = """
import os, signal, sys
from pathlib import Path
from fastgan.run import files
def fill(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
files.write(Path(sys.argv[1]), fill)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_only_what_the_dead_left_is_swept(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "checkpoint.pt")])
    (left,) = tmp_path.iterdir()
    own = files.beside(tmp_path / "checkpoint.pt")
    other = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-"))
    # Number and host of this process, but of an earlier one: in a container both come again.
    earlier = own.with_name(re.sub(r"-[0-9a-f]{6}-", "-000000-", own.name))
    elsewhere = own.with_name(own.name.replace(files._HOST, "00000000"))
    stale = elsewhere.with_name(elsewhere.name.replace("checkpoint", "samples"))
    foreign = tmp_path / ".mine.tmp"
    for path in (own, other, earlier, elsewhere, stale, foreign):
        path.write_bytes(b"x")
    os.utime(stale, (1e9, 1e9))
    files.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, other, elsewhere, foreign])
    assert left not in tmp_path.iterdir()
