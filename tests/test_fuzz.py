"""Hostile arguments for the compiled operators; tests/fuzz.py says how and CONTRIBUTING.md more."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fuzz import HOSTILE, OPERATORS
from native import emulator

from fastgan import ops

pytestmark = pytest.mark.skipif(
    not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
)
FUZZ = Path(__file__).with_name("fuzz.py")


def fuzz(*arguments):
    done = subprocess.run(
        [sys.executable, str(FUZZ), "--timeout", "600", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_no_call_of_an_operator_ends_the_process():
    said = fuzz("--calls", "4000")
    for name in ("fused_run", "fused_phases", "linear_leaky_relu", "gather_normalize"):
        assert f"{name} done" in said and f"{name} RuntimeError" in said


def test_every_operator_is_called():
    registered = {
        schema.name.removeprefix("fastgan::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fastgan::")
    }
    without_arguments = {"isa", "fused_enums", "conv_release_memory"}
    assert registered == {*OPERATORS, *HOSTILE, *without_arguments}


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"no emulator: {emulator.why_not()}")
def test_no_call_of_an_emulated_operator_ends_the_process():
    from native import fused_cuda

    fused_cuda.load()  # compiled here and not against the child's clock
    assert "fused_cuda_run done" in fuzz("--calls", "300", "--emulator", "--only", "fused_cuda_run")


def test_a_process_that_ends_is_told_with_its_call():
    program = (
        "import sys, os; sys.path[:0] = [sys.argv.pop(1)]\n"
        "import fuzz\n"
        "class Ends:\n"
        "    def __init__(self, rng): pass\n"
        "fuzz.OPERATORS, fuzz.HOSTILE = {'ends': (Ends, lambda case, rng: [1])}, {}\n"
        "fuzz.call = lambda name, arguments: os.abort()\n"
        "fuzz.__file__ = sys.argv[0]\n"
        "sys.exit(fuzz.main())\n"
    )
    script = Path("ends.py")
    script.write_text(program.replace("sys.argv.pop(1)", repr(str(FUZZ.parent))))
    done = subprocess.run(
        [sys.executable, str(script.resolve()), "--calls", "5"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "in call 0 ends" in done.stderr
