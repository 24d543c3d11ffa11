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


_CHECKOUT = Path(__file__).resolve().parents[1]
if not (_CHECKOUT / "benchmarks" / "bench.py").exists():
    collect_ignore = [
        f"test_{name}.py"
        for name in ("agreement", "bench", "bench_peers", "device", "same_bits", "structure")
    ]


def pytest_collection_modifyitems(items):
    """The marker gpu is the one way in which a test says that it needs a GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True, scope="session")
def elsewhere(tmp_path_factory):
    """Python puts a child's own folder before PYTHONPATH, so no test starts in the checkout."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)
