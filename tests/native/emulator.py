"""Builds CUDA kernels for the CPU through cuda_emulator.h and calls them on torch tensors.

from native import emulator
kernels = emulator.load("operators", "tests/native/cuda_module.cpp", "csrc/ops/adam/adam.cu", ...)
kernels.seed(3)                          # how threads are interleaved; 0: in order
kernels.adam(tensor, 4, 0.5, None)       # an extern "C" function of the sources
kernels.launches()                       # how many launches there were so far
"""

import ctypes
import functools
import shutil

import torch

from . import ROOT, building

INCLUDES = tuple(f"-I{ROOT / folder}" for folder in ("tests/native", "tests/native/emulated"))
FLAGS = (
    *(
        "-std=c++20",
        "-O2",
        "-g1",
        "-fPIC",
        "-fno-gnu-unique",
        "-fno-math-errno",
        "-U_FORTIFY_SOURCE",
    ),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"),
    "-ffp-contract=fast",
)


def why_not():
    """The reason why kernels cannot be emulated here, or None."""
    if not (ROOT / "csrc").is_dir():
        return "the kernels' sources are not beside the tests"
    if shutil.which("g++") is None:
        return "no g++ for the CUDA emulator"
    return None


def objects(sources):
    """The objects of torch-free sources, made for the CPU."""
    return building.objects(sources, (*FLAGS, *INCLUDES, "-x", "c++"))


@functools.cache
def load(name, *sources):
    """The library of these sources (paths from the root), compiled if one of them is new."""
    parts = objects([*sources, "tests/native/emulated/exports.cpp"])
    return Kernels(ctypes.CDLL(str(building.library(name, parts))))


def on_gpu(name, source):
    """The same library for the GPU, compiled by nvcc; its functions take CUDA tensors."""
    flags = ("-std=c++20", "-arch=native", "-Xcompiler", "-fPIC", "-x", "cu")
    parts = building.objects([source], flags, "nvcc")
    return Kernels(ctypes.CDLL(str(building.library(name, parts, compiler="nvcc"))), emulated=False)


class EmulationError(RuntimeError):
    """A launch failed; the message says why."""


class Kernels:
    """extern "C" functions that return a cudaError_t and take int64_t, double and pointers."""

    def __init__(self, library, emulated=True):
        """Wrap a loaded library."""
        self._library, self.emulated = library, emulated
        if not emulated:
            return
        library.emulator_error.restype = ctypes.c_char_p
        library.emulator_launches.restype = ctypes.c_uint64

    def seed(self, seed):
        """Choose how threads are interleaved from now on; 0: in order. A GPU does as it likes."""
        if self.emulated:
            self._library.emulator_seed(ctypes.c_uint64(seed))

    def device(self, multiprocessors=132, major=9, minor=0, shared=227):
        """Choose the device; `shared` KiB of shared memory for a block."""
        numbers = multiprocessors, major, minor, shared
        self._library.emulator_device(*map(ctypes.c_int64, numbers))

    def launches(self):
        """How many launches there were so far."""
        return self._library.emulator_launches()

    def __getattr__(self, name):
        """A function of the library: tensors go as pointers, None as a null one."""
        function = getattr(self._library, name)

        def call(*arguments):
            code = function(*map(_argument, arguments))
            if code:
                text = self._library.emulator_error().decode() if self.emulated else ""
                raise EmulationError(text or f"{name} returned {code}")

        return call


def _argument(value):
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_double(value)
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, (list, tuple)):  # tensors: an array of pointers
        return (ctypes.c_void_p * len(value))(*[t.data_ptr() for t in value])
    value = int(value)
    return ctypes.c_uint64(value) if value >= 1 << 63 else ctypes.c_int64(value)
