"""The fused engine in threads, child processes and on every instruction set."""

import copy
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import native
import pytest
import torch
from fused_plans import PATHS, child_environment, problem
from native import building

from fastgan import ops
from fastgan.engines.fused import FusedEngine

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]
ROOT = Path(__file__).parents[1]


def test_several_python_threads():
    expected = FusedEngine(problem("deep")).run(6)
    got = [None] * 3

    def work(i):
        got[i] = FusedEngine(problem_in_thread[i]).run(6)

    problem_in_thread = [problem("deep") for _ in got]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(expected, x) for x in got)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_trains_too():
    engine = FusedEngine(problem("reference"))
    engine.run(1)
    expected = FusedEngine(copy.deepcopy(engine.problem))
    expected.step = 1
    expected = expected.run(3)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if torch.equal(engine.run(3), expected) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    # the child worked on its own copy of the memory
    assert torch.equal(engine.run(3), expected)


ISAS = ["baseline", "avx2", "avx512", "amx"]


def said_with(isa, program):
    """What a program, which has `problem` and `FusedEngine`, prints under an instruction set.

    Skips where the processor lacks it.
    """
    start = (
        "import sys, torch; sys.path[:0] = sys.argv[1:]\n"
        "from fastgan import ops\n"
        "try: name = ops.isa()\n"
        "except RuntimeError as error: print('missing', error); sys.exit()\n"
        "from fastgan.engines.fused import FusedEngine\n"
        "from fused_plans import problem, tensors\n"
        "print(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start + program, *PATHS],
        env=child_environment(FASTGAN_ISA=isa),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    name, *values = done.stdout.split()
    if name == "missing":
        pytest.skip(f"this processor has no {isa}")
    assert name == isa
    return values


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    values = said_with(
        isa,
        "runs = [FusedEngine(problem(n)).run(20) for n in ('reference, ragged', 'deep', 'norms')]\n"
        "print(*(f'{x:.9g}' for x in torch.cat(runs).flatten().tolist()))\n",
    )
    expected = torch.cat(
        [FusedEngine(problem(n)).run(20) for n in ("reference, ragged", "deep", "norms")]
    )
    got = torch.tensor([float(x) for x in values])
    assert (got - expected.flatten()).abs().max() < 1e-4


@pytest.mark.parametrize("isa", ISAS)
def test_1_to_16_threads_give_the_same_bits(isa):
    # D's hidden layer has 8 panels: beyond 8 threads its batch is divided, too.
    values = said_with(
        isa,
        "import hashlib\n"
        "for precision in ('fp32', 'bf16'):\n"
        "    for threads in range(1, 17):\n"
        "        torch.set_num_threads(threads)\n"
        "        p = problem(batch_size=64, precision=precision)\n"
        "        parts = [FusedEngine(p).run(2), *tensors(p).values()]\n"
        "        whole = b''.join(x.detach().numpy().tobytes() for x in parts)\n"
        "        print(hashlib.sha256(whole).hexdigest())\n",
    )
    assert len(values) == 32
    fp32, bf16 = set(values[:16]), set(values[16:])
    assert len(fp32) == len(bf16) == 1 and fp32 != bf16


def driver(flags, kernels, **compiler):
    """tests/native/step_main.cpp, the torch-free half of the fused step and these objects of the
    kernels as a program of their own."""
    files = [ROOT / "csrc/step/phases.cpp", ROOT / "csrc/cpu/team.cpp"]
    files += sorted((ROOT / "csrc/cpu/step").glob("*.cpp"))
    sources = [str(f.relative_to(ROOT)) for f in files if f.name != "operators.cpp"]
    parts = building.objects([*sources, "tests/native/step_main.cpp"], flags, **compiler)
    return building.program("step_main", [*parts, *kernels], flags, **compiler)


FLAGS = ("-pthread", "-Wno-psabi", *native.FLAGS)


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_native_driver_against_a_plain_step_in_double():
    # The kernels are those of test_kernels.py.
    program = driver(("-O1", *FLAGS), native.kernels())
    done = subprocess.run([program], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout
    assert "all passed" in done.stdout


def test_arm64():
    name, emulator = "aarch64-linux-gnu-g++", shutil.which("qemu-aarch64")
    if not shutil.which(name) or emulator is None:
        pytest.skip("needs Debian's g++-aarch64-linux-gnu and qemu-user")
    flags = ("-O2", "-static", *FLAGS)
    program = driver(flags, native.kernels(flags, compiler=name), compiler=name)
    done = subprocess.run(
        [emulator, program, "no-fork"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    assert "instruction set baseline" in done.stdout
