"""Every command line for a borrowed GPU, given to the program that it is for.

A machine without a GPU cannot do what they ask, but it can tell whether they are understood: each
program reads its arguments, plans and peers first and only then says that there is no GPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import bench
import contact
import device_parts
import exercise
import gpu
import machine
import operators
import pytest
import sanitize
import torch
from checkout import ROOT

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would run")
PYTHON = sys.executable
ABSENT = 3


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """What stands for NVIDIA's programs: its options in a file, then the program that is given."""
    said = tmp_path / "options"
    for name in ("ncu", "compute-sanitizer"):
        program = tmp_path / name
        program.write_text(
            "#!/bin/sh\n"
            f': > "{said}"\n'
            f'while [ "$1" != "{PYTHON}" ]; do echo "$1" >> "{said}"; shift; done\n'
            "exit 3\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def absent(*_):
        raise machine.Missing("torch finds no GPU")

    monkeypatch.setattr(gpu, "facts", absent)  # which would ask in a process of its own
    return said


def run(command: list[str]) -> int:
    """What a command of ours ends with, done in this process."""
    if command[0] == "ncu":
        at = command.index(PYTHON)
        # All options of it have a value but the last two, and the page.
        assert all(word.startswith("--") for word in command[1:at])
        return run(command[at:])
    assert command[0] == PYTHON
    name, arguments = Path(command[1]).name, command[2:]
    if name == "gpu.py":
        return {1: ABSENT}[gpu.main(*arguments)]
    programs = {
        "bench.py": bench,
        "contact.py": contact,
        "exercise.py": exercise,
        "operators.py": operators,
        "sanitize.py": sanitize,
    }
    return programs[name].main(arguments)


def commands() -> list:
    """All of them, but for the build and the tests."""
    known = device_parts.parts(Path("out"), 1)
    return [
        pytest.param(part.command, id=part.name.replace(" ", "-"))
        for name, group in known.items()
        if name not in ("build", "tests")
        for part in group
    ]


@pytest.mark.parametrize("command", commands())
def test_a_command_is_understood_and_says_that_there_is_no_gpu(command, tools, tmp_path, capfd):
    assert run(command) == ABSENT
    said = "".join(capfd.readouterr())
    if command[1].endswith("sanitize.py"):
        options = tools.read_text().split()
        assert options[:2] == ["--tool", command[2]]
    else:
        assert "SKIPPED" in said or "finds no GPU" in said


@pytest.mark.parametrize("name", ["device", "contact", "exercise", "sanitize"])
def test_a_program_starts_by_itself(name):
    """In a test every folder is on the path; on a borrowed machine there is the program's alone."""
    asked = ["--dry-run"] if name == "device" else ["--help"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, str(ROOT / "tools" / f"{name}.py"), *asked],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("agree persistent" if name == "device" else "usage:") in done.stdout


@pytest.mark.parametrize(
    "spoil", ["--peers=none-such", "--plan=hidden=lots", "--secnods=1", "--dtype=float3"]
)
def test_a_command_that_is_wrong_is_found(spoil, capfd):
    program = operators if "dtype" in spoil else bench
    with pytest.raises(SystemExit) as left:
        program.main(["--device=cuda", spoil])
    assert left.value.code == 2
