"""Operators on CUDA, compiled for the emulator and registered for the CPU.

import native.fused_cuda
kernels = native.fused_cuda.load()      # torch.ops.fastgan.fused_cuda_* then serve CPU tensors
"""

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils import cpp_extension

from . import ROOT, emulator

SOURCES = (
    *("csrc/step/phases.cpp", "csrc/step/decode.cpp", "csrc/step/arguments.cpp"),
    *("csrc/cuda/step/operators.cpp", "csrc/cuda/step/memory.cpp"),
    *("csrc/cuda/step/chain.cu", "csrc/cuda/step/persistent.cu"),
    "tests/native/emulated/exports.cpp",
)
FLAGS = ("-DTORCH_TARGET_VERSION=0x020b000000000000", "-Wno-unused-parameter", "-Wno-comment")
TORCH = ("cuda.cpp", "operators.cpp", "decode.cpp", "arguments.cpp")
"""Ends of the sources that include torch."""
# The stand-in for on_device.h comes before the real one.
INCLUDES = ("tests/native/emulated_ops", *emulator.INCLUDES)


def load():
    """The library of the fused engine, compiled where a source or a header is new."""
    return load_operators("fused", *SOURCES)


@functools.cache
def load_operators(library_name, *sources):
    """A library of these sources, its operators registered."""
    folder = ROOT / "build" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    names = [emulator._fingerprint(source) for source in sources]
    objects = [folder / f"{library_name}-{torch.__version__}-{name}.o" for name in names]
    missing = [(s, o) for s, o in zip(sources, objects, strict=True) if not o.exists()]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: _compile(*pair), missing))
    library = folder / f"{library_name}-{torch.__version__}-{'-'.join(n[:6] for n in names)}.so"
    if not library.exists():
        torchs = [f"-L{path}" for path in cpp_extension.library_paths()]
        torchs += ["-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
        emulator._made(library, ["g++", "-shared", *map(str, objects), *torchs])
    torch.ops.load_library(library)
    return emulator.Kernels(ctypes.CDLL(str(library)))


def _compile(source, target):
    includes = [f"-I{ROOT / folder}" for folder in INCLUDES]
    if source.endswith(TORCH):
        includes += [f"-isystem{path}" for path in cpp_extension.include_paths()]
        includes.append("-fvisibility=hidden")  # as torch's own types
    emulator._made(
        target,
        ["g++", *emulator.FLAGS, *FLAGS, *includes, "-x", "c++", "-c", str(ROOT / source)],
    )
