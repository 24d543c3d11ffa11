"""Hostile calls of the operators, a short run; CONTRIBUTING.md has the long one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fuzz_operators import OPERATORS

from fastgan import ops

pytestmark = pytest.mark.skipif(
    not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
)
CALLS = 1700
PATH = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
CODE = """
import collections, random, sys, torch, fastgan.ops
from fuzz_operators import OPERATORS
torch.set_num_threads(2)
outcomes = collections.Counter()
for call in range(int(sys.argv[1])):
    rng = random.Random(call)
    name, arguments = OPERATORS[call % len(OPERATORS)]
    given = arguments(rng)
    print(call, name, file=sys.stderr)
    try:
        getattr(torch.ops.fastgan, name)(*given)
        outcomes["result"] += 1
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        outcomes["error"] += 1
print(outcomes["result"], outcomes["error"])
"""


def test_hostile_calls_end_no_process():
    done = subprocess.run(
        [sys.executable, "-c", PATH + CODE, str(CALLS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-300:]
    results, errors = map(int, done.stdout.split())
    assert results + errors == CALLS and min(results, errors) > CALLS / 5


def test_every_operator_is_called():
    named = {name for name, _ in OPERATORS}
    registered = {
        schema.name.removeprefix("fastgan::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fastgan::")
    }
    assert {name for name in registered if not name.startswith("fused_")} == named | {"isa"}
