"""What a timing must be read with: the machine, its load, its peak, and the versions in use.

``facts()`` returns one dictionary ready for JSON. Nothing heavy is imported: versions come from
package metadata, and the two native programs are compiled once, on demand, under ``build/`` of the
checkout.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# What separates one machine's speed from another's; the other hundred flags do not matter here.
TELLING_FLAGS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl"),
    *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "sve", "sve2", "bf16", "i8mm"),
)
PACKAGES = ("fastgan", "torch", "torchvision", "triton", "numpy", "jax", "jaxlib", "optax")


class Missing(Exception):
    """A fact that this machine cannot give; the text says why."""


def facts(threads: int | None = None, *, native: bool = True) -> dict:
    """Describe the machine as it is now.

    Args:
        threads: the number of cores the timing uses; default all that this process may use.
        native: compile and run the programs of ``native/`` (0.2 s, and 2 s more the first time).

    Returns:
        ``date, cpu, arch, flags, cores, usable_cores, threads, cpus, memory_gib, os, load,
        roundtrip_ns, peak, peak_fp32_gflops, versions, git, missing``. ``peak`` is ``{precision:
        {isa: {"one", "all"}}}`` in GFLOP/s a core; ``peak_fp32_gflops`` is its best fp32 figure
        with all threads busy. A figure that could not be had is None, and ``missing`` says why.
    """
    usable = usable_cpus()
    threads = threads or len(usable)
    cpus = pick_cpus(threads)
    out = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "arch": platform.machine(),
        "flags": flags(),
        "cores": os.cpu_count(),
        "usable_cores": len(usable),
        "threads": threads,
        "cpus": cpus,
        "memory_gib": memory_gib(),
        "os": f"{platform.system()} {platform.release()}",
        "load": load(),
        "roundtrip_ns": None,
        "peak": {},
        "peak_fp32_gflops": None,
        "versions": versions(),
        "git": git_state(),
        "missing": {},
    }
    if native:
        measures = {"roundtrip_ns": roundtrip_ns, "peak": functools.partial(peak, cpus)}
        for key, measure in measures.items():
            try:
                out[key] = measure()
            except Missing as reason:
                out["missing"][key] = str(reason)
        out["peak_fp32_gflops"] = peak_gflops(out["peak"], "fp32")
    return out


def peak_gflops(peak: dict, precision: str) -> float | None:
    """The best figure of a precision over the instruction sets, a core, with every thread busy."""
    return max((isa["all"] for isa in peak.get(precision, {}).values()), default=None)


def usable_cpus() -> list[int]:
    """The cpus that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pick_cpus(n: int) -> list[int]:
    """``n`` cpus to run on: one of each physical core first, hardware twins when cores run out."""
    first, twins, seen = [], [], set()
    for cpu in usable_cpus():
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            core = (
                (topology / "physical_package_id").read_text(),
                (topology / "core_id").read_text(),
            )
        except OSError:
            core = cpu
        (twins if core in seen else first).append(cpu)
        seen.add(core)
    return (first + twins)[:n]


def cpu_model() -> str:
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model name", "Hardware"):
            return value.strip()
    return platform.processor() or platform.machine()


def flags() -> list[str]:
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            have = set(value.split())
            return [flag for flag in TELLING_FLAGS if flag in have]
    return []


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def load() -> list[float] | None:
    """The 1, 5 and 15 minute load averages."""
    try:
        return [round(x, 2) for x in os.getloadavg()]
    except OSError:
        return None


def versions() -> dict[str, str | None]:
    """Python, the compiler and the packages that take part; None for what is missing."""
    out = {"python": platform.python_version(), "compiler": compiler_version()}
    for package in PACKAGES:
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            out[package] = None
    return out


def git_state() -> str | None:
    """The commit of the checkout, with "+changes" when files differ from it; None outside one."""
    try:
        commit = _output(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
        changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "-uno"])
    except Missing:
        return None
    return commit + ("+changes" if changed else "")


def compiler() -> str | None:
    """The C++ compiler in use: $CXX, else the first of c++, g++, clang++ on the path."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name
    return None


def compiler_version() -> str | None:
    found = compiler()
    if not found:
        return None
    try:
        return _output([*found.split(), "--version"]).splitlines()[0]
    except (Missing, IndexError):
        return None


def roundtrip_ns() -> float:
    """A cache line from one core to another and back, nanoseconds (best of many)."""
    pair = pick_cpus(2)
    if len(pair) < 2:
        raise Missing("only one cpu is usable")
    return json.loads(_output([native("core_roundtrip"), *map(str, pair)]))["best"]


def peak(cpus: list[int] | None = None) -> dict:
    """The register peak of the cores, ``{precision: {isa: {"one", "all"}}}``, GFLOP/s a core."""
    return json.loads(_output([native("fma_peak"), *map(str, cpus or usable_cpus())]))


def native(name: str) -> str:
    """Path of a compiled program of ``native/``; compiles it if its source or compiler changed."""
    found = compiler()
    if not found:
        raise Missing("no C++ compiler (looked for $CXX, c++, g++, clang++)")
    source = HERE / "native" / f"{name}.cpp"
    command = [*found.split(), "-std=c++17", "-O2", "-ffp-contract=fast", "-pthread", str(source)]
    key = hashlib.sha256(source.read_bytes() + f"{command}{compiler_version()}".encode())
    program = _build_dir() / f"{name}-{key.hexdigest()[:12]}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        scratch = program.with_suffix(f".{os.getpid()}")
        _output([*command, "-o", str(scratch)], timeout=120)
        os.replace(scratch, program)  # two harnesses may compile at once
    return str(program)


def _build_dir() -> Path:
    place = ROOT / "build" / "native"
    if os.access(ROOT, os.W_OK):
        return place
    return Path(tempfile.gettempdir()) / f"fastgan-native-{os.getuid()}"


def _output(command: list[str], timeout: float = 30) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=True, cwd=HERE
        )
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or f"exit status {error.returncode}").strip()
        raise Missing(f"{Path(command[0]).name}: {said.splitlines()[-1]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{Path(command[0]).name}: {error}") from None
    return done.stdout.strip()


if __name__ == "__main__":
    json.dump(facts(), sys.stdout, indent=1)
    print()
