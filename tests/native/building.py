"""Compiles C++ and CUDA sources for the tests: each object, library and program once.

from native import building
objects = building.objects(["csrc/cpu/isa.cpp"], ["-O1"])       # paths from the root
building.program("driver", [*objects, ...], ["-pthread"])       # its path

A file's name is a fingerprint of its sources, of every header and of how it was made, so that what
lies under build/ is never out of date: workers, libraries and later runs share it.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import ROOT

FOLDER = ROOT / "build" / "compiled"
COMPILER = "g++" if shutil.which("g++") else "c++"


def objects(sources, flags, compiler=COMPILER, also=()):
    """The objects of these sources; `also` is what decides about them and is not in the flags."""
    flags = [*flags, f"-I{ROOT / 'csrc'}"]

    def compiled(source):
        parts = (source, compiler, flags, also, (ROOT / source).read_bytes(), _headers())
        target = FOLDER / f"{Path(source).stem}-{_fingerprint(parts)}.o"
        return made(target, [compiler, *flags, "-c", str(ROOT / source)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, sources))


def library(name, parts, flags=(), compiler=COMPILER):
    """The path of a shared library of these objects."""
    return _linked(name, parts, ["-shared", *flags], compiler, ".so")


def program(name, parts, flags=(), compiler=COMPILER):
    """The path of a program of these objects."""
    return _linked(name, parts, flags, compiler, "")


def made(target, command):
    """Run a compiler where its file is not there; returns the file.

    One worker does and the others wait. The file gets its name when it is whole.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_name(f"{target.name}.lock")):
        if not target.exists():
            partial = target.with_name(f"{target.name}.{os.getpid()}")
            _run([*command, "-o", str(partial)])
            partial.rename(target)
    return target


def _linked(name, parts, flags, compiler, suffix):
    paths = [str(part) for part in parts]
    target = FOLDER / f"{name}-{_fingerprint((paths, flags, compiler))}{suffix}"
    return made(target, [compiler, *paths, *flags])


def _fingerprint(parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@functools.cache
def _headers():
    digest = hashlib.sha256()
    for folder in ("csrc", "tests/native"):
        for path in sorted((ROOT / folder).rglob("*.*h")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(path):
    """Holds off other processes and threads that want to make the same file."""
    import fcntl  # there is none on Windows, where nothing is compiled for the tests

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
