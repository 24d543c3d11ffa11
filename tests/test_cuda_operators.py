"""The operators around the CUDA kernels pass the tests of the CPU's, in the emulator."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from native import emulator

from fastgan import ops

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))
ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "tests").glob("test_ops_*.py"))

# What of test_ops_*.py holds for operators that do not look at what is on the device.
SHARED = "(opcheck or on_the_shapes or autocast or losses or adam or ema or dropout or draws"
SHARED += " or hostile or averages or columns)"
SHARED += " and not errors_of"
# These have no CUDA side: the emulator leaves them as they are on the CPU.
ON_THE_CPU = "conv or batch_norm or product_ or heads_ or surprise_ or normed_relu"
ON_THE_CPU += " or add_columns or sum_columns"
SHARED += f" and not (opcheck and ({ON_THE_CPU}))"
TILES = "on_the_shapes or test_linear_leaky_relu or (opcheck and linear)"


@pytest.mark.skipif(
    ops.library_status()["cpu"] != "loaded", reason="the CPU library, which has the schemas"
)
@pytest.mark.parametrize(
    ("road", "which"),
    [("library", SHARED), ("tiles", TILES)],
    ids=("library", "tiles"),
)
def test_the_cuda_operators_pass_the_tests_of_the_cpus(road, which):
    paths = os.pathsep.join([str(ROOT / "tests"), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "native.cuda_operators"]
    command += ["-p", "no:cacheprovider", "-k", which, *map(str, FILES)]
    environment = {**os.environ, "PYTHONPATH": paths, "FASTGAN_LINEAR": road}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
    launches = re.search(r"emulated launches: (\d+)", done.stdout)
    assert int(launches[1]) > 100, "the tests ran on the CPU's operators"
