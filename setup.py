"""Builds fastgan's two compiled libraries, or fewer, or none.

The install itself never fails for lack of a compiler. FASTGAN_BUILD chooses: auto (default:
whatever this machine can build), cuda (both libraries), cpu (fastgan._C only), none (pure Python).
A forced choice that cannot be met ends with the reason; under auto the reason is written to
fastgan/_build.json, where `fastgan info` reads it.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CHOICE = os.environ.get("FASTGAN_BUILD", "auto")
CHOICES = ("auto", "cuda", "cpu", "none")
ABI = "0x020b000000000000"  # stable ABI of torch 2.11, the oldest release the binary runs under
ARCHS = "8.0;9.0;10.0+PTX"

if CHOICE not in CHOICES:
    sys.exit(f"FASTGAN_BUILD={CHOICE!r} is not a choice; set it to one of {', '.join(CHOICES)}")


def find_cuda() -> None:
    """Names the CUDA toolkit to torch, which otherwise takes the folder above any nvcc on the PATH.

    That folder need not be a toolkit: the nvcc on the PATH may be a link or a wrapper.
    """
    nvcc = shutil.which("nvcc")
    on_path = [Path(nvcc).resolve(), Path(nvcc)] if nvcc else []
    homes = [*(program.parents[1] for program in on_path), Path("/usr/local/cuda")]
    for home in homes:
        if Path(home, "bin", "nvcc").exists() and Path(home, "include", "cuda_runtime.h").exists():
            os.environ.setdefault("CUDA_HOME", str(home))
            return


find_cuda()
try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    torch, cpp_extension = None, None
    NO_TORCH = f"torch cannot be imported at build time ({error}); install torch>=2.11 first"


def why_no_cpu() -> str | None:
    """The reason why the CPU library cannot be built here, or None."""
    if CHOICE == "none":
        return "FASTGAN_BUILD=none"
    if torch is None:
        return NO_TORCH
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        return f"torch {torch.__version__} is older than 2.11"
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if not shutil.which(compiler.split()[0]):
        name = compiler.split()[0]
        return f"no C++ compiler ({name} is not on the PATH; install g++ 12, clang 14 or newer)"
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.cpp")
        probe.write_text("#include <Python.h>\n#include <concepts>\nint main() { return 0; }\n")
        command = [
            *compiler.split(),
            "-std=c++20",
            "-fsyntax-only",
            f"-I{sysconfig.get_path('include')}",
            str(probe),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        first = next(
            (line for line in result.stderr.splitlines() if "error" in line), "unknown error"
        )
        message = first.split("error:")[-1].strip()
        return f"{compiler} cannot compile a C++20 file that includes Python.h: {message}"
    return None


def why_no_cuda() -> str | None:
    """The reason why the CUDA library cannot be built here, or None."""
    if CHOICE in ("cpu", "none"):
        return f"FASTGAN_BUILD={CHOICE}"
    if torch is None:
        return NO_TORCH
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if cpp_extension.CUDA_HOME is None:
        return "no nvcc (it is not on the PATH and CUDA_HOME is not set)"
    nvcc = Path(cpp_extension.CUDA_HOME, "bin", "nvcc")
    version = (
        subprocess.run([str(nvcc), "--version"], capture_output=True, text=True).stdout
        if nvcc.exists()
        else ""
    )
    release = version.partition("release ")[2].partition(",")[0]
    if not release:
        return f"{nvcc} does not run"
    if not Path(cpp_extension.CUDA_HOME, "include", "cuda_runtime.h").exists():
        return f"{cpp_extension.CUDA_HOME} has nvcc but no headers (include/cuda_runtime.h)"
    if release.split(".")[0] != torch.version.cuda.split(".")[0]:
        return (
            f"nvcc is CUDA {release} but torch was built with CUDA {torch.version.cuda}; "
            "the major versions must match"
        )
    return None


def extensions() -> tuple[list, dict]:
    """The extensions to build and the record of what is left out and why."""
    skipped = {}
    if reason := why_no_cpu():
        skipped = {"cpu": reason, "cuda": reason}
    elif reason := why_no_cuda():
        skipped = {"cuda": reason}
    wanted = {"cpu": ("cpu",), "cuda": ("cpu", "cuda")}.get(CHOICE, ())
    for part in wanted:
        if part in skipped:
            sys.exit(f"FASTGAN_BUILD={CHOICE} cannot be met: {skipped[part]}")

    cxx = ["-std=c++20", "-pthread", "-fvisibility=hidden"]
    # These come after CFLAGS, so they would undo the -O1 -g of a sanitizer, which names lines
    # and compiles far longer with -O3.
    if "-fsanitize" not in os.environ.get("CFLAGS", ""):
        cxx += ["-O3", "-g0"]
    cxx += ["-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
    # About passing vectors between functions, which happens only where they are inlined.
    cxx += ["-Wno-psabi"]
    stable = [f"-DTORCH_TARGET_VERSION={ABI}"]
    found = []
    if "cpu" not in skipped:
        found.append(
            cpp_extension.CppExtension(
                "fastgan._C",
                [
                    *("csrc/module.cpp", "csrc/schema.cpp"),
                    *sorted(glob("csrc/step/*.cpp")),
                    *sorted(glob("csrc/cpu/*.cpp")),
                    *sorted(glob("csrc/ops/*/cpu.cpp")),
                    *sorted(glob("csrc/cpu/step/*.cpp")),
                ],
                include_dirs=[str(Path("csrc").resolve())],
                extra_compile_args={"cxx": [*cxx, *stable, "-DFASTGAN_MODULE_NAME=_C"]},
                extra_link_args=["-pthread"],
                py_limited_api=True,
            )
        )
    if "cuda" not in skipped:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHS)
        stable_cuda = [*stable, "-DUSE_CUDA", "-DFASTGAN_MODULE_NAME=_C_cuda"]
        strict = ["-std=c++20", "-O3", "--Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"]
        found.append(
            cpp_extension.CUDAExtension(
                "fastgan._C_cuda",
                [
                    "csrc/module.cpp",
                    *sorted(glob("csrc/step/*.cpp")),
                    *sorted(glob("csrc/cuda/*.cpp")),
                    *sorted(glob("csrc/cuda/*.cu")),
                    *sorted(glob("csrc/ops/*/cuda.cpp")),
                    *sorted(glob("csrc/ops/*/*.cu")),
                    *sorted(glob("csrc/cuda/step/*.cpp")),
                    *sorted(glob("csrc/cuda/step/*.cu")),
                ],
                include_dirs=[str(Path("csrc").resolve())],
                extra_compile_args={"cxx": [*cxx, *stable_cuda], "nvcc": [*strict, *stable_cuda]},
                py_limited_api=True,
            )
        )
    return found, skipped


EXTENSIONS, SKIPPED = extensions()


class RecordedBuildPy(build_py):
    """Puts the record of this build beside the Python files."""

    def run(self):
        """Copy the Python files, then write the record."""
        super().run()
        folder = Path("fastgan" if self.editable_mode else Path(self.build_lib, "fastgan"))
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "choice": CHOICE,
            "torch": torch.__version__ if torch else None,
            "cuda": torch.version.cuda if torch and "cuda" not in SKIPPED else None,
            "archs": os.environ["TORCH_CUDA_ARCH_LIST"] if "cuda" not in SKIPPED else None,
            "python": platform.python_version(),
            "skipped": SKIPPED,
        }
        Path(folder, "_build.json").write_text(json.dumps(record, indent=1) + "\n")
        for part, reason in SKIPPED.items():
            print(f"fastgan: building without the {part} library: {reason}", file=sys.stderr)


COMMANDS = {"build_py": RecordedBuildPy}
if EXTENSIONS:

    class TolerantBuildExtension(cpp_extension.BuildExtension):
        """Under FASTGAN_BUILD=auto a library that fails to compile is left out, with its reason."""

        def build_extension(self, ext):
            """Build one library."""
            try:
                super().build_extension(ext)
            except Exception as error:
                if CHOICE != "auto":
                    raise
                ext.optional = True  # so that setuptools does not look for the file
                part = "cuda" if ext.name.endswith("_cuda") else "cpu"
                last = str(error).strip().splitlines()[-1]
                SKIPPED[part] = f"it did not compile ({last}); see pip install -v"
                print(f"fastgan: {SKIPPED[part]}", file=sys.stderr)
                self.get_finalized_command("build_py").run()

    COMMANDS["build_ext"] = TolerantBuildExtension

setup(
    ext_modules=EXTENSIONS,
    cmdclass=COMMANDS,
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if EXTENSIONS else {},
)
