"""Operators on CUDA, compiled for the emulator and registered for the CPU.

import native.fused_cuda
kernels = native.fused_cuda.load()      # torch.ops.fastgan.fused_cuda_* then serve CPU tensors
"""

import ctypes
import functools

import torch
from torch.utils import cpp_extension

from . import ROOT, building, emulator

SOURCES = (
    *("csrc/step/phases.cpp", "csrc/step/decode.cpp", "csrc/step/arguments.cpp"),
    *("csrc/cuda/step/operators.cpp", "csrc/cuda/step/memory.cpp"),
    *("csrc/cuda/step/chain.cu", "csrc/cuda/step/persistent.cu"),
    "tests/native/emulated/exports.cpp",
)
TORCH = ("cuda.cpp", "operators.cpp", "decode.cpp", "arguments.cpp")
"""Ends of the sources that include torch."""


def load():
    """The library of the fused engine, compiled where a source or a header is new."""
    return load_operators("fused", *SOURCES)


@functools.cache
def load_operators(library_name, *sources):
    """A library of these sources, its operators registered."""
    with_torch = [source for source in sources if source.endswith(TORCH)]
    parts = emulator.objects([source for source in sources if source not in with_torch])
    flags = (
        # The stand-in for on_device.h comes before the real one.
        *(f"-I{ROOT / 'tests/native/emulated_ops'}", *emulator.FLAGS, *emulator.INCLUDES),
        *("-DTORCH_TARGET_VERSION=0x020b000000000000", "-Wno-unused-parameter", "-Wno-comment"),
        *(f"-isystem{path}" for path in cpp_extension.include_paths()),
        "-fvisibility=hidden",  # as torch's own types
    )
    parts += building.objects(with_torch, flags, also=torch.__version__)
    torchs = [f"-L{path}" for path in cpp_extension.library_paths()]
    torchs += ["-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
    library = str(building.library(library_name, parts, torchs))
    torch.ops.load_library(library)
    return emulator.Kernels(ctypes.CDLL(library))
