"""How many times as long does bf16 take as fp32 on this processor?

    python benchmarks/precision.py            # a reference pair and a small DCGAN: about 3 minutes
    python benchmarks/precision.py --seconds 10 --out /tmp

A processor without bf16 instructions emulates them. Each engine of fastgan runs in both precisions,
in turns, as in bench.py; a factor is the median over the blocks in bf16 over that in fp32. The
factor of `eager` is the one that its warning names; `fused` rounds its operands and multiplies in
fp32 there, and should stay below 1.15.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import harness
import machine
import report
from peers import CATALOGUE, Entry
from plans import Plan

PLANS = (
    Plan(batch=64),
    Plan("DCGAN 32", hidden=64, image=(3, 32, 32), batch=64, network="dcgan"),
)
ENGINES = {"fastgan-eager": "fastgan-eager-bf16", "fused": "fused-bf16"}
"""Peers in fp32, and their twins in bf16."""


def factors(results: dict[str, dict]) -> dict[str, dict]:
    """For each engine {"median", "best"}, bf16 over fp32, or {"missing": reason}."""
    out = {}
    for exact, rounded in ENGINES.items():
        missing = [
            f"{name}: {results[name]['missing']}"
            for name in (exact, rounded)
            if "missing" in results[name]
        ]
        if missing:
            out[exact] = {"missing": "; ".join(missing)}
        else:
            out[exact] = {
                key: results[rounded][key] / results[exact][key] for key in ("median", "best")
            }
    return out


def measure(plans: list[Plan], entries: list[Entry], options: argparse.Namespace) -> dict:
    """The record of a run."""
    threads = options.threads or len(machine.usable_cpus())
    say = functools.partial(print, file=sys.stderr, flush=True)
    record = {"schema": 1, "topic": "precision", "machine": machine.facts(threads), "races": []}
    record["before"] = harness.surroundings()
    with harness.Field(entries, threads, inline=options.inline, say=say) as field:
        for plan in plans:
            say(plan.title)
            # A peer that cannot take one plan may take the next.
            field.missing.clear()
            results = field.race(plan, options.seconds)
            race = {"plan": plan.to_json(), "results": results, "factors": factors(results)}
            record["races"].append(race)
            if field.interrupted:
                break
    record["after"] = harness.surroundings()
    return record


def show(record: dict) -> str:
    facts = record["machine"]
    rows = []
    for race in record["races"]:
        title = f"{race['plan']['name']}, batch {race['plan']['batch']}"
        for exact, factor in race["factors"].items():
            if "missing" in factor:
                rows.append([title, exact, "-", "-", "-", "-", factor["missing"]])
                continue
            times = [race["results"][name]["median"] * 1e3 for name in (exact, ENGINES[exact])]
            numbers = [f"{times[0]:.2f}", f"{times[1]:.2f}"]
            numbers += [f"{factor['median']:.2f}", f"{factor['best']:.2f}"]
            rows.append([title, exact, *numbers, ""])
    heads = ["plan", "engine", "fp32, ms", "bf16, ms", "factor", "of the best", "missing"]
    told = ", ".join(flag for flag in facts["flags"] if "bf16" in flag) or "none"
    return (
        f"{facts['cpu']}, {facts['threads']} threads, instructions for bf16: {told}, "
        f"torch {facts['versions']['torch']}, git {facts['git']}\n\n"
        f"{report.table(heads, rows, numbers=2)}"
    )


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 where a factor of `eager` could not be had."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each peer and plan")
    parser.add_argument("--threads", type=int, help="cores for every peer (default: all)")
    parser.add_argument(
        "--plan", action="append", type=Plan.parse, metavar="KEY=VALUE,...", help="as for bench.py"
    )
    parser.add_argument("--inline", action="store_true", help="all in this process, to debug")
    parser.add_argument("--no-record", action="store_true", help="write no record")
    parser.add_argument(
        "--out", default=str(Path(__file__).resolve().parent / "records"), help="record's folder"
    )
    options = parser.parse_args(argv)
    names = [name for pair in ENGINES.items() for name in pair]
    record = measure(options.plan or list(PLANS), [CATALOGUE[name] for name in names], options)
    if not options.no_record:
        path = report.save(record, Path(options.out), "precision")
        print(f"recorded in {path}", file=sys.stderr)
    print(show(record))
    return int(any("missing" in race["factors"]["fastgan-eager"] for race in record["races"]))


if __name__ == "__main__":
    sys.exit(main())
