"""Everything that a GPU is needed for, in one call of under ten minutes on a borrowed machine.

    python benchmarks/device.py --dry-run            # the plan, with the seconds of each part
    python benchmarks/device.py                      # into $OUT, or build/device
    python benchmarks/device.py --parts build,max,sweep-all,operators

Builds both libraries into the checkout without the network, runs the tests that need a GPU and
compute-sanitizer over them, then the benchmarks. A part that hangs or fails costs its own time and
no other part's result: each runs in a process group of its own that is ended when its seconds are
over. In the end the folder holds `summary.json` (every part's outcome), `logs.txt` (all that was
said), `card.json` and one record of each benchmark; the last lines printed are a short table.
Without a GPU the parts that need one say SKIPPED; the others run. Settings of the card are left
alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu
import report
from machine import Missing
from peers import CATALOGUE

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYTHON = sys.executable
LIMIT = 570.0
GRACE = 12.0  # between asking a part to end, in which it saves what it has, and ending it
MOST_TEXT = 500_000  # characters of a part's output that are kept, of both its ends
ELSEWHERE = ("test_fused_cuda", "test_cuda_kernels", "test_emulator", "test_graph")
ON_GPU = f"gpu or on_cuda or (cuda and {' and '.join(f'not {name}' for name in ELSEWHERE)})"
"""Tests that need a GPU, for pytest -k; in four files most of them need the emulator instead."""
LIBRARIES = (
    "from fastgan.ops import library_status as status; print(status()); "
    "raise SystemExit(any(how != 'loaded' for how in status().values()))"
)
DCGAN = "network=dcgan,hidden=64,image=3x64x64,batch=128"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclasses.dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        seconds: its share of the time; it is ended after that.
        gpu: needs one.
        env: of its process, besides what all parts get.
        beside: runs at the same time as the part before it. Timings never do.
    """

    name: str
    command: list[str]
    seconds: float
    gpu: bool = True
    env: dict = dataclasses.field(default_factory=dict)
    beside: bool = False


def parts(out: Path, jobs: int) -> dict[str, list[Part]]:
    """All parts by the name under which --parts knows them, in the order in which they run."""
    return {
        "card": [Part("card", [PYTHON, str(HERE / "gpu.py"), str(out / "card.json")], 40)],
        "build": [
            Part(
                "build",
                [PYTHON, "setup.py", "build_ext", "--inplace"],
                100,
                gpu=False,
                env=_build_environment(jobs),
            ),
            Part("libraries", [PYTHON, "-c", LIBRARIES], 20),
        ],
        "checks": [_tests(), *_sanitizers()],
        "pair": [
            _bench(
                "pair",
                out,
                150,
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
                90,
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
            ),
            _ncu(),
        ],
        # Not in the ten minutes of the first call.
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
                "amp amp-compile amp-compile-reduce amp-compile-max graph-bf16",
            )
        ],
        "sweep-all": [
            _bench(
                "sweep-all",
                out,
                500,
                "--sweep --seconds=0.5",
                "compile-reduce compile-reduce-tf32 amp-compile-reduce jax-scan jax-scan-tf32 "
                "jax-scan-bf16 auto auto-tf32 auto-bf16",
            )
        ],
        "operators": [
            Part(
                f"operators-{dtype}",
                [
                    *(PYTHON, str(HERE / "operators.py"), "--device=cuda", f"--dtype={dtype}"),
                    *("--turns=7", f"--out={out}"),
                ],
                90,
            )
            for dtype in ("float32", "bfloat16")
        ],
    }


FIRST = ("card", "build", "checks", "pair", "dcgan", "profile", "sweep")
"""All their seconds together are more than the limit: the last of them get what the others left."""
SURE = FIRST[:5]


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


def _tests() -> Part:
    command = [
        *(PYTHON, "-m", "pytest", str(ROOT / "tests")),
        # A line for each test as it ends: the summary is lost if time is up before.
        *("-k", ON_GPU, "-rs", "-vv", "--tb=short"),
    ]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "6", "--dist", "worksteal"]
    if importlib.util.find_spec("pytest_timeout"):
        # By a thread, which ends the process: a signal is not heard in a call that never returns.
        command += ["--timeout", "60", "--timeout-method", "thread"]
    return Part("tests", command, 110, gpu=False)


def _sanitizers() -> list[Part]:
    """Over the operators with one allocation a tensor, so that the allocator hides no overrun; over
    the engines with PyTorch's own allocator, which captures need."""
    runs = [("operators", tool) for tool in TOOLS]
    runs += [(engine, tool) for engine in ("chain", "persistent") for tool in TOOLS]
    return [
        Part(
            f"{tool} {what}",
            [
                *("compute-sanitizer", "--tool", tool, "--error-exitcode", "9"),
                *("--kernel-name", "kernel_substring=fastgan", "--report-api-errors", "no"),
                *("--print-limit", "20", PYTHON, str(HERE / "exercise.py"), what),
            ],
            110,
            env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if what == "operators" else {},
            beside=True,
        )
        for what, tool in runs
    ]


def _bench(name: str, out: Path, seconds: float, options: str, peers: str) -> Part:
    # A plan begun at the last moment gets the rest.
    command = [PYTHON, str(HERE / "bench.py"), "--device=cuda", *shlex.split(options)]
    command += [f"--peers={','.join(peers.split())}", f"--out={out}", f"--topic={name}"]
    command += [f"--card={out / 'card.json'}"]
    command += [f"--limit={0.6 * seconds:g}"]
    if "--patience" not in options:
        command += [f"--patience={0.5 * seconds:g}"]
    return Part(name, command, seconds)


def _ncu() -> Part:
    sections = [f"--section={name}" for name in ("SpeedOfLight", "LaunchStats", "Occupancy")]
    return Part(
        "ncu",
        [
            *("ncu", "--clock-control=none", "--kernel-name-base=mangled"),
            *("--kernel-name=regex:fastgan", "--launch-skip=20", "--launch-count=20", *sections),
            *(PYTHON, str(HERE / "exercise.py"), "chain"),
        ],
        40,
    )


class Runner:
    """Runs parts within the time that is left and keeps what they said."""

    def __init__(self, out: Path, limit: float, has_gpu: bool, say=print):
        self.out, self.has_gpu, self.say = out, has_gpu, say
        self.end = time.monotonic() + limit
        self.outcomes: list[dict] = []
        # Toolkits put their tools here, and not always on the path.
        tools = [str(place) for place in Path("/opt/nvidia").glob("nsight-compute/*")]
        homes = dict.fromkeys([os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"])
        for home in filter(None, homes):
            tools += [str(Path(home, "bin")), str(Path(home, "compute-sanitizer"))]
        self.environment = dict(os.environ) | {
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *tools]),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
            ),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, group: list[Part]) -> None:
        """Run parts that may run side by side, and note how each ended."""
        running = []
        for part in group:
            reason = self._why_not(part)
            if reason:
                self._note(part, reason, 0.0, "")
                continue
            log = open(self.out / f".{part.name.replace(' ', '-')}.log", "w+b")  # noqa: SIM115
            self.say(f"{part.name}: at most {min(part.seconds, self.left):.0f} s")
            process = subprocess.Popen(
                part.command,
                cwd=ROOT,
                env=self.environment | part.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            running.append((part, process, log, time.monotonic()))
        last, asked = {}, {part.name: 0 for part, *_ in running}
        deadline = {part.name: min(begun + part.seconds, self.end) for part, _, _, begun in running}
        while len(last) < len(running):
            for part, process, _, begun in running:
                if part.name in last:
                    continue
                late = time.monotonic() - deadline[part.name]
                code = process.poll()
                if code is not None or late > 2 * GRACE:
                    how = "TIMED OUT" if asked[part.name] else _ended(code)
                    last[part.name] = (how, time.monotonic() - begun)
                # Asked first, then ended, and neither holds up those beside it.
                elif late > asked[part.name] * GRACE:
                    number = signal.SIGKILL if asked[part.name] else signal.SIGTERM
                    asked[part.name] += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
            time.sleep(0.05)
        for part, process, _, _ in running:
            if asked[part.name]:
                # What it has started does not run on beside the next part.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for part, _, log, _ in running:
            with log:
                log.seek(0)
                text = log.read().decode(errors="replace")
            Path(log.name).unlink()
            self._note(part, *last[part.name], text)

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def _why_not(self, part: Part) -> str | None:
        if part.gpu and not self.has_gpu:
            return "SKIPPED: no GPU"
        if shutil.which(part.command[0], path=self.environment["PATH"]) is None:
            return f"SKIPPED: {part.command[0]} is not on the path"
        if self.left < 10:
            return "SKIPPED: no time left"
        return None

    def _note(self, part: Part, how: str, seconds: float, text: str) -> None:
        said = [line for line in text.splitlines() if line.strip()]
        if len(text) > MOST_TEXT:
            half = MOST_TEXT // 2
            left_out = f"\n[{len(text) - MOST_TEXT} characters left out]\n"
            text = text[:half] + left_out + text[-half:]
        self.outcomes.append(
            {
                "part": part.name,
                "outcome": how,
                "seconds": round(seconds, 1),
                "last": said[-1][:160] if said else "",
                "command": part.command,
            }
        )
        self.say(f"{part.name}: {how} after {seconds:.0f} s")
        with open(self.out / "logs.txt", "a") as file:
            file.write(f"\n===== {part.name}: {how}, {seconds:.1f} s\n{text}\n")
        # Kept up to date: what was learned survives whatever ends this program.
        (self.out / "summary.json").write_text(json.dumps(self.outcomes, indent=1) + "\n")


def _ended(code: int) -> str:
    # bench.py and its kin: a GPU that is not there, which is no failure.
    return {0: "ok", 3: "SKIPPED: no GPU"}.get(code, f"FAILED ({code})")


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


def show(outcomes: list[dict], records: list[dict]) -> str:
    """The last lines: every part, every race's fastest, and what was asked for against what is."""
    text = [
        report.table(
            ["part", "outcome", "s", "last line"],
            [[o["part"], o["outcome"], f"{o['seconds']:.0f}", o["last"][:70]] for o in outcomes],
            numbers=2,
        )
    ]
    rows = []
    for record in records:
        for race in record.get("races", []):
            units = report.Units.of(record["machine"])
            timed = {n: r["median"] for n, r in race["results"].items() if "median" in r}
            title = f"{race['plan']['name']}, batch {race['plan']['batch']}"
            for name in sorted(timed, key=timed.get):
                rows.append([title, name, CATALOGUE[name].precision, units.show(timed[name])])
    if rows:
        text.append(report.table(["plan", "peer", "precision", "median step"], rows, numbers=3))
    asked = [line for record in records for line in goals(record)]
    if asked:
        text.append(report.table(["asked for", "at least", "measured"], asked, numbers=1))
    return "\n\n".join(text)


SCANS = ("jax-scan", "jax-scan-graph")
COMPILED = ("amp-compile", "amp-compile-reduce", "amp-compile-max")
GOALS = (
    # Plan, the peers of which the fastest counts, fastgan's, at least: the ratio of the medians.
    ("reference pair", ("eager",), "graph", 3.0),
    ("reference pair", ("eager",), "fused-chain", 10.0),
    ("reference pair", SCANS, "fused-chain", 2.0),
    ("reference pair", ("eager",), "fused", 25.0),
    ("reference pair", SCANS, "fused", 4.0),
    ("DCGAN", COMPILED, "graph-bf16", 1.3),
    ("DCGAN", ("amp",), "graph-bf16", 2.0),
    ("DCGAN with R1", ("amp",), "graph-bf16", 2.0),
)


def goals(record: dict) -> list[list[str]]:
    """What a record says of the ratios that were asked for: (which, at least, measured)."""
    rows = []
    for race in record.get("races", []):
        plan = race["plan"]
        medians = {n: r["median"] for n, r in race["results"].items() if "median" in r}
        for name, slower, faster, least in GOALS:
            best = min((p for p in slower if p in medians), key=medians.get, default=None)
            wanted_batch = 128 if plan.get("network") == "dcgan" else 64
            if best and faster in medians and (plan["name"], plan["batch"]) == (name, wanted_batch):
                ratio = medians[best] / medians[faster]
                rows.append([f"{name}: {best} over {faster}", f"{least:g}", f"{ratio:.2f}"])
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the parts. Returns 0, or 1 if one failed or ran out of time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        default=os.environ.get("OUT"),
        help="folder of the results (default $OUT, else build/device)",
    )
    parser.add_argument(
        "--parts", default=",".join(FIRST), help="comma-separated (default %(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help="seconds for everything (default %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    options = parser.parse_args(argv)
    out = Path(options.out or ROOT / "build" / "device").resolve()
    known = parts(out, options.jobs)
    names = [name.strip() for name in options.parts.split(",") if name.strip()]
    for name in names:
        if name not in known:
            parser.error(f"--parts: no part is called {name!r}; parts: {', '.join(known)}")
    chosen = [part for name in names for part in known[name]]
    if options.dry_run:
        rows = [
            [p.name, f"{p.seconds:.0f}", "yes" if p.beside else "", " ".join(map(str, p.command))]
            for p in chosen
        ]
        print(report.table(["part", "s", "beside", "command"], rows, numbers=4))
        print(f"at most {min(longest(chosen), options.limit):.0f} s, limit {options.limit:.0f} s")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    try:
        gpu.capability()
        has_gpu = True
    except Missing as reason:
        print(f"no GPU: {reason}", flush=True)
        has_gpu = False
    runner = Runner(out, options.limit, has_gpu, say=lambda text: print(text, flush=True))
    before = set(out.glob("*.json"))
    for group in groups(chosen):
        runner.run(group)
    made = sorted(set(out.glob("*.json")) - before - {out / "summary.json", out / "card.json"})
    records = [json.loads(path.read_text()) for path in made]
    print("\n" + show(runner.outcomes, records), flush=True)
    bad = [o for o in runner.outcomes if not o["outcome"].startswith(("ok", "SKIPPED"))]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
