"""Settings shared by all tests."""

import os
import shutil
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several workers share the cores, so that a thread that waits must not spin. Read at loading.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings

import fastgan
import fastgan.ops

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
        for name in (
            *("agreement", "bench", "bench_peers", "device", "device_commands"),
            *("same_bits", "structure"),
        )
    ]


def pytest_collection_modifyitems(items):
    """The marker gpu is the one way in which a test says that it needs a GPU, so that `-m gpu`
    takes all of them: gpu() or, with what else it needs there, gpu(library=True), gpu(nvcc=True).
    """
    for item in items:
        for mark in item.iter_markers("gpu"):
            if reason := _why_not_on_gpu(**mark.kwargs):
                item.add_marker(pytest.mark.skip(reason=reason))


def _why_not_on_gpu(library=False, nvcc=False):
    if not torch.cuda.is_available():
        return "needs a GPU"
    if library and not fastgan.ops.has_kernels(torch.device("cuda")):
        return f"needs the CUDA library, which is {fastgan.ops.library_status()['cuda']}"
    if nvcc and shutil.which("nvcc") is None:
        return "needs nvcc to compile kernels for the GPU"
    return None


@pytest.fixture(autouse=True, scope="session")
def heard():
    """nohup and some CI start what they run with SIGINT ignored, and children inherit it: tests
    that send the signal are about a program that hears it."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture(autouse=True, scope="session")
def elsewhere(tmp_path_factory):
    """Python puts a child's own folder before PYTHONPATH, so no test starts in the checkout."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True, scope="session")
def without_a_past(tmp_path_factory):
    """What earlier runs of this user have kept and measured decides nothing here."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture
def two_threads():
    """More threads than cores would make torch's own wait for each other without end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread():
    """A fixed order of the CPU's sums."""
    threads, tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = tf32


@pytest.fixture
def kernels():
    """The fused engine's kernels for CUDA in the emulator, on a small device."""
    from native import fused_cuda

    found = fused_cuda.load()
    found.device(4)
    found.seed(0)
    yield found
    found.device()
    found.seed(0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """What the command line writes goes to a temporary directory, and its --threads does not
    outlive a test."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
