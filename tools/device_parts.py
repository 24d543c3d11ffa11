"""What is run on a borrowed GPU: every command, its seconds, and the calls that they make up."""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu  # noqa: E402
from machine import Missing  # noqa: E402

PYTHON = sys.executable
LIMIT = 570.0
FIRST_LIMIT = 175.0  # of the first call, which has to answer in under three minutes
DCGAN = "network=dcgan,hidden=64,image=3x64x64,batch=128"
TOOLS = ("racecheck", "memcheck", "synccheck", "initcheck")
MOST_AT_ONCE = 6  # sanitizers: each takes several times the memory of what it looks at
SECTIONS = (
    *("SpeedOfLight", "LaunchStats", "Occupancy"),
    *("WarpStateStats", "MemoryWorkloadAnalysis", "SourceCounters"),
)


@dataclasses.dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        seconds: its share of the time; it is ended after that.
        gpu: needs one.
        env: of its process, besides what all parts get.
        beside: runs at the same time as the part before it. Timings never do.
        kept: seconds that those before it leave to it, whatever they would have taken.
    """

    name: str
    command: list[str]
    seconds: float
    gpu: bool = True
    env: dict = dataclasses.field(default_factory=dict)
    beside: bool = False
    kept: float = 0.0


CALLS = {
    "first": ("build", "load", "capture", "agree"),
    "tests": ("build", "tests"),
    "race": ("build", "card", "pair-ours", "pair"),
    "sanitize": ("build", "sanitizers"),
    "profile": ("build", "card", "ncu", "profile"),
    "dcgan": ("build", "card", "dcgan"),
    "sweep": ("build", "card", "sweep"),
    "sweep-all": ("build", "card", "sweep-all"),
    "max": ("build", "card", "max"),
    "dcgan-max": ("build", "card", "dcgan-max"),
    "operators": ("build", "card", "operators"),
}
"""What one call of device.py runs, in the order in which a new machine is met."""


def limit_of(call: str) -> float:
    """Seconds that a call may take."""
    return FIRST_LIMIT if call == "first" else LIMIT


def parts(out: Path, jobs: int) -> dict[str, list[Part]]:
    """All parts by the name that CALLS and --parts know them by."""
    return {
        "card": [Part("card", [PYTHON, str(BENCHMARKS / "gpu.py"), str(out / "card.json")], 40)],
        # What was compiled stays in the checkout: a build that was ended goes on where it was.
        "build": [
            Part(
                "build",
                [PYTHON, "setup.py", "build_ext", "--inplace"],
                160,
                gpu=False,
                env=_build_environment(jobs),
            )
        ],
        "load": [_contact("load", 15, kept=8)],
        "capture": [_contact("capture", 25, kept=12)],
        "agree": [
            _contact("agree eager", 25, kept=12),
            _contact("agree graph", 25, beside=True),
            _contact("agree chain", 25, beside=True),
            # Alone: a grid whose blocks wait for one that never starts holds the whole device.
            _contact("agree persistent", 25, kept=12),
        ],
        "tests": _tests(),
        "sanitizers": _sanitizers(),
        "pair-ours": [
            _bench(
                "pair-ours",
                out,
                70,
                "--batch=64 --seconds=1",
                "eager fastgan-eager graph graph-bf16 fused-chain fused-chain-bf16 fused "
                "fused-tf32 fused-bf16",
            )
        ],
        "pair": [
            _bench(
                "pair",
                out,
                260,
                "--batch=64 --seconds=1",
                "reference eager amp compile-reduce amp-compile-reduce jax-scan "
                "jax-scan-tf32 jax-scan-graph jax-scan-bf16 fastgan-eager graph graph-bf16 "
                "fused-chain fused-chain-bf16 fused fused-tf32 fused-bf16",
            )
        ],
        "dcgan": [
            # The compiler takes most of this time, and with R1 it takes more: see "dcgan-max".
            _bench(
                "dcgan",
                out,
                80,
                f"--plan='name=DCGAN,{DCGAN}' --seconds=1.5 --patience=65",
                "amp amp-compile-reduce fastgan-eager-bf16 graph-bf16",
            ),
            _bench(
                "dcgan-r1",
                out,
                40,
                f"--plan='name=DCGAN with R1,{DCGAN},penalty=r1' --seconds=1.5",
                "amp fastgan-eager-bf16 graph-bf16",
            ),
        ],
        "sweep": [
            _bench(
                "sweep",
                out,
                120,
                "--seconds=0.5 --plan=hidden=2048,batch=64 --plan=hidden=256,batch=8192 "
                "--plan=hidden=1024,batch=512",
                "jax-scan jax-scan-tf32 jax-scan-bf16 compile-reduce-tf32 amp-compile-reduce "
                "auto auto-tf32 auto-bf16",
            )
        ],
        "profile": [
            _bench(
                "profile",
                out,
                50,
                "--batch=64 --profile",
                "eager graph fused-chain fused",
            )
        ],
        "ncu": [
            # A step of the chain is some twenty kernels; the first steps touch cold memory.
            _ncu(out, "chain", 1, "--kernel-name=regex:fastgan", "--launch-skip=60", "20"),
            # One launch is a call of that many steps; the first is left out.
            _ncu(out, "persistent", 50, "--kernel-name=regex:persistent", "--launch-skip=1", "1"),
        ],
        "max": [
            _bench(
                "max",
                out,
                240,
                "--batch=64 --seconds=1 --patience=110",
                "eager compile-max amp-compile-max jax-scan-graph jax-scan-graph-tf32 graph fused",
            )
        ],
        "dcgan-max": [
            _bench(
                "dcgan-max",
                out,
                330,
                "--dcgan --seconds=1.5 --patience=200",
                "amp amp-compile amp-compile-reduce amp-compile-max graph-bf16 "
                "fastgan-compile-bf16",
            )
        ],
        "sweep-all": [
            _bench(
                "sweep-all",
                out,
                370,
                "--sweep --seconds=0.5",
                "compile-reduce compile-reduce-tf32 amp-compile-reduce jax-scan jax-scan-tf32 "
                "jax-scan-bf16 auto auto-tf32 auto-bf16",
            )
        ],
        "operators": [
            Part(
                f"operators-{dtype}",
                [
                    *(PYTHON, str(BENCHMARKS / "operators.py"), "--device=cuda"),
                    *(f"--dtype={dtype}", "--turns=7", f"--out={out}"),
                ],
                90,
            )
            for dtype in ("float32", "bfloat16")
        ],
    }


def _build_environment(jobs: int) -> dict:
    # Not "cuda": where that library does not compile, the other and the graph engine go on.
    environment = {"MAX_JOBS": str(jobs), "FASTGAN_BUILD": "auto"}
    try:
        major, minor = gpu.capability()
        # One architecture compiles in a third of the time of the three that a wheel has.
        environment["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    except Missing:
        environment["FASTGAN_BUILD"] = "cpu"
    return environment


def _contact(question: str, seconds: float, **options) -> Part:
    command = [PYTHON, str(HERE / "contact.py"), *question.split()]
    return Part(question, command, seconds, **options)


def _tests() -> list[Part]:
    """Alone and one file after the other, the kernels first: a hang costs its own file."""
    groups = {
        "kernels": "emulator cuda_kernels ops random optim",
        "fused": "fused_cuda",
        "graph": "graph_cuda",
        "rest": "",
    }
    # A name stands for every file that begins with it, as in .ci/run.
    files_of = {
        name: [
            str(path)
            for begin in begins.split()
            for path in sorted((ROOT / "tests").glob(f"test_{begin}*.py"))
        ]
        for name, begins in groups.items()
    }
    named = [file for files in files_of.values() for file in files]
    out = []
    for name, files in files_of.items():
        command = [PYTHON, "-m", "pytest", "-m", "gpu", "-rs", "-vv", "--tb=short"]
        if files:
            command += files
        else:
            command += [str(ROOT / "tests"), *(f"--ignore={file}" for file in named)]
        if importlib.util.find_spec("xdist"):
            command += ["-n", "6", "--dist", "worksteal"]
        if importlib.util.find_spec("pytest_timeout"):
            # By a thread, which ends the process: a call that never returns hears no signal.
            command += ["--timeout", "60", "--timeout-method", "thread"]
        out.append(Part(f"tests {name}", command, 120 if files else 60, gpu=False, kept=30))
    return out


def _sanitizers() -> list[Part]:
    """Over the operators with one allocation a tensor, so that the allocator hides no overrun; over
    the engines with PyTorch's own allocator, which captures need."""
    runs = [(what, tool) for tool in TOOLS for what in ("persistent", "chain", "operators")]
    return [
        Part(
            f"{tool} {what}",
            [PYTHON, str(HERE / "sanitize.py"), tool, what],
            180,
            env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if what == "operators" else {},
            beside=number % MOST_AT_ONCE > 0,
        )
        for number, (what, tool) in enumerate(runs)
    ]


def _bench(name: str, out: Path, seconds: float, options: str, peers: str) -> Part:
    # A plan begun at the last moment gets the rest.
    command = [PYTHON, str(BENCHMARKS / "bench.py"), "--device=cuda", *shlex.split(options)]
    command += [f"--peers={','.join(peers.split())}", f"--out={out}", f"--topic={name}"]
    command += [f"--card={out / 'card.json'}"]
    command += [f"--limit={0.6 * seconds:g}"]
    if "--patience" not in options:
        command += [f"--patience={0.5 * seconds:g}"]
    return Part(name, command, seconds)


def _ncu(out: Path, program: str, steps: int, kernels: str, skip: str, count: str) -> Part:
    return Part(
        f"ncu {program}",
        [
            *("ncu", "--clock-control=none", "--kernel-name-base=mangled"),
            *(kernels, skip, f"--launch-count={count}"),
            *(f"--section={name}" for name in SECTIONS),
            # The file holds what the terminal has no room for: the counters of every line.
            *("--import-source=yes", f"--export={out / f'ncu-{program}'}", "--force-overwrite"),
            *("--page=details", PYTHON, str(HERE / "exercise.py"), program),
            *("--pair", f"--steps={steps}"),
        ],
        90,
    )


def groups(chosen: list[Part]) -> list[list[Part]]:
    """Parts that run side by side stand in one list."""
    out: list[list[Part]] = []
    for part in chosen:
        if part.beside and out:
            out[-1].append(part)
        else:
            out.append([part])
    return out


def longest(chosen: list[Part]) -> float:
    """Seconds that they take if every one takes all of its own."""
    return sum(max(part.seconds for part in group) for group in groups(chosen))


def kept(following: list[list[Part]]) -> float:
    """Seconds that are to be left to these groups."""
    return sum(max(part.kept for part in group) for group in following)
