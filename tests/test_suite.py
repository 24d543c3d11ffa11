"""The suite itself: what it asks of the machine that runs it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def pytest_output(*arguments, before=()):
    command = [*before, sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_only_the_marker_says_that_a_test_needs_a_gpu():
    """A condition of its own would keep a test out of `pytest -m gpu` on a borrowed machine."""
    found = []
    for path in sorted(TESTS.rglob("*.py")):
        if path.name in ("conftest.py", Path(__file__).name):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("skipif", "skip")):
                text = ast.unparse(node)
                if re.search(r"not torch\.cuda\.is_available|\b(no|needs a) (GPU|CUDA)", text):
                    found.append(f"{path.name}:{node.lineno}")
    assert not found


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_every_test_with_the_marker_skips_for_want_of_a_gpu():
    done = pytest_output("-m", "gpu", "-rs", str(TESTS))
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-2000:]
    reasons = re.findall(r"^SKIPPED \[(\d+)\] \S+ (.*)$", done.stdout, re.M)
    for_want_of_one = sum(int(number) for number, reason in reasons if reason == "needs a GPU")
    marked = re.search(r"(\d+) skipped", last)
    assert "passed" not in last and "failed" not in last
    assert marked and for_want_of_one == int(marked[1]) > 150


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_suite_that_was_started_with_sigint_ignored_still_hears_it(tmp_path):
    test = tmp_path / "test_it.py"
    test.write_text(
        "import os, signal, subprocess, sys, pytest\n"
        "def test_it():\n"
        "    with pytest.raises(KeyboardInterrupt):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        signal.pause()\n"
        "    child = 'import os, signal; os.kill(os.getpid(), signal.SIGINT)'\n"
        "    done = subprocess.run([sys.executable, '-c', child], capture_output=True)\n"
        "    assert done.returncode == -signal.SIGINT, done\n"
    )
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    deaf = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")
    done = pytest_output(str(test), before=deaf)
    assert done.returncode == 0, done.stdout
