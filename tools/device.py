"""What only a GPU can tell, on a machine that is lent for minutes: one call after the other.

    python tools/device.py --dry-run           # the commands of the first call, with seconds
    python tools/device.py                     # into $OUT, or build/device: does it build, load,
                                               # capture and agree? Under three minutes
    python tools/device.py tests               # then every test that needs a GPU
    python tools/device.py race                # our engines, then all peers, on the reference pair
    python tools/device.py sanitize            # compute-sanitizer's four tools
    python tools/device.py profile             # Nsight Compute: the chain, one persistent launch
    python tools/device.py dcgan               # and so on: `--help` has all calls
    python tools/device.py --parts build,card,pair-ours,ncu    # or any parts, in that order

A call takes at most ten minutes. Both libraries are built into the checkout without the network,
once. A part that hangs or fails costs its own time and no other part's result: each runs in a
process group of its own that is ended when its seconds are over. In the end the folder holds
`summary.json` (every part's outcome), `logs.txt` (all that was said) and what the parts measured,
at most eight files; the last lines printed are a short table. Without a GPU the parts that need one
say SKIPPED; the others run. Settings of the card are left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import gpu
import report
from device_parts import CALLS, ROOT, groups, kept, limit_of, longest, parts
from device_runner import Runner
from machine import Missing
from peers import CATALOGUE


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
        "call", nargs="?", choices=CALLS, default="first", help="what to run (default %(default)s)"
    )
    parser.add_argument(
        "--out",
        default=os.environ.get("OUT"),
        help="folder of the results (default $OUT, else build/device)",
    )
    parser.add_argument("--parts", help="comma-separated, in place of a call")
    parser.add_argument(
        "--limit", type=float, help="seconds for everything (default 175 for first, else 570)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    options = parser.parse_args(argv)
    out = Path(options.out or ROOT / "build" / "device").resolve()
    known = parts(out, options.jobs)
    names = CALLS[options.call]
    if options.parts:
        names = [name.strip() for name in options.parts.split(",") if name.strip()]
    for name in names:
        if name not in known:
            parser.error(f"--parts: no part is called {name!r}; parts: {', '.join(known)}")
    chosen = [part for name in names for part in known[name]]
    limit = options.limit or limit_of("" if options.parts else options.call)
    if options.dry_run:
        print(plan(chosen, limit))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    try:
        gpu.capability()
        has_gpu = True
    except Missing as reason:
        print(f"no GPU: {reason}", flush=True)
        has_gpu = False
    runner = Runner(out, limit, has_gpu, say=lambda text: print(text, flush=True))
    before = set(out.glob("*.json"))
    runner.run(chosen)
    made = sorted(set(out.glob("*.json")) - before - {out / "summary.json", out / "card.json"})
    records = [json.loads(path.read_text()) for path in made]
    print("\n" + show(runner.outcomes, records), flush=True)
    bad = [o for o in runner.outcomes if not o["outcome"].startswith(("ok", "SKIPPED"))]
    return 1 if bad else 0


def plan(chosen: list, limit: float) -> str:
    """Every command line, with the seconds it may take."""
    following = groups(chosen)
    rows = [
        [
            p.name,
            f"{p.seconds:.0f}",
            f"{p.kept:.0f}",
            "yes" if p.beside else "",
            " ".join(p.command),
        ]
        for p in chosen
    ]
    table = report.table(["part", "s", "kept", "beside", "command"], rows, numbers=5)
    return (
        f"{table}\nat most {min(longest(chosen), limit):.0f} s, limit {limit:.0f} s; "
        f"{kept(following[1:]):.0f} s of it are not the first part's"
    )


if __name__ == "__main__":
    sys.exit(main())
