"""Builds and loads module.cpp: every instruction-set variant of every torch-free kernel, on numpy
arrays.

import native  # pytest puts tests/ on the path
kernels = native.load()
kernels.isas(), kernels.normal("avx2", seed, stream, step, begin, n)
"""

import functools
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-std=c++20", "-fno-math-errno", "-fno-trapping-math")


def why_not():
    """The reason why the module cannot be built here, or None."""
    if not (ROOT / "csrc").is_dir():
        return "the kernels' sources are not beside the tests"
    if shutil.which("c++") is None and shutil.which("g++") is None:
        return "no C++ compiler"
    if shutil.which("ninja") is None and not (Path(sys.executable).parent / "ninja").exists():
        return "no ninja"
    return None


@functools.cache
def load():
    """The module, built by ninja where a source or a header has changed since the last time."""
    import torch
    from torch.utils import cpp_extension

    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    folder = ROOT / "build" / f"native-{sys.implementation.cache_tag}-{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    return cpp_extension.load(
        name="fastgan_native",
        sources=[str(ROOT / "tests/native/module.cpp")],
        extra_include_paths=[str(ROOT / "csrc")],
        extra_cflags=["-O3", *FLAGS],
        extra_ldflags=[str(part) for part in kernels()],
        build_directory=str(folder),
    )


def kernels(flags=("-O3", "-fPIC", "-Wno-psabi", *FLAGS), **compiler):
    """The objects of the torch-free kernels for every instruction set, and of its choice."""
    from . import building

    names = [*sorted((ROOT / "csrc/cpu").glob("kernels_*.cpp")), ROOT / "csrc/cpu/isa.cpp"]
    return building.objects([str(path.relative_to(ROOT)) for path in names], flags, **compiler)
