"""Settings shared by all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import fastgan

# No deadline: the first call of anything loads libraries, and other work shares the machine.
# Derandomised: the same commit gives the same verdict.
settings.register_profile("fastgan", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("fastgan")

# A child process gets the fastgan under test, wherever it starts.
_paths = [str(Path(fastgan.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _paths))


@pytest.fixture(autouse=True, scope="session")
def elsewhere(tmp_path_factory):
    """Python puts a child's own folder before PYTHONPATH, so no test starts in the checkout."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture
def two_threads():
    """More threads than cores would make torch's own wait for each other without end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
