"""A pytest plugin: the CUDA operators, emulated, take the place of the CPU's.

python -m pytest -p native.cuda_operators tests/test_ops_*.py      # with tests/ on the path
"""

import warnings

from . import fused_cuda

OPERATORS = ("adam", "gather", "linear", "losses", "random")
KERNELS = (
    *("adam/adam", "adam/ema", "gather/gather", "linear/linear", "linear/tiles"),
    *("losses/losses", "random/philox"),
)

import fastgan.ops  # noqa: E402, F401  registers the CPU's operators, before they are replaced

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the replacement, which is the purpose
    kernels = fused_cuda.load_operators(
        "operators",
        *(f"csrc/ops/{name}/cuda.cpp" for name in OPERATORS),
        *(f"csrc/ops/{name}.cu" for name in KERNELS),
        "tests/native/emulated/exports.cpp",
    )


def pytest_terminal_summary(terminalreporter):
    """Say that the tests did reach the kernels."""
    terminalreporter.write_line(f"emulated launches: {kernels.launches()}")
