"""Many small pairs at once: an ensemble, the same runs one after the other, and JAX's vmap of scan.

    pip install '.[bench]'
    python benchmarks/ensembles.py                     # about a minute and a half
    python benchmarks/ensembles.py --rounds 3 --no-record

16 pairs (latents of 8, two hidden layers of 64, samples of two numbers, batch 128, Adam, fp32),
each peer in a process of its own, in turns over the same minutes (harness.py). A step is one step
of one pair. fastgan's times are those of whole calls of `fit`, 500 steps of each pair, log lines
included.

The exit status is 0 if an ensemble's step takes at most MOST_MS, else 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import harness
import machine
import report
from peers import MANY
from plans import MEMBERS, POINTS

MOST_MS = 0.12


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each peer (default: 9)")
    parser.add_argument("--threads", type=int, help="cores (default: all)")
    parser.add_argument("--no-record", action="store_true", help="keep nothing")
    chosen = parser.parse_args()
    facts = machine.facts(chosen.threads)
    entries = list(MANY.values())

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with harness.Field(entries, facts["threads"], say=say) as field:
        # Blocks take a second or so each, and the harness takes one of them a turn.
        a_turn = harness.BLOCK_SECONDS * harness.BLOCKS_A_TURN
        results = field.race(POINTS, chosen.rounds * a_turn)
    text = summary(results)
    print(text)
    if not chosen.no_record:
        record = {
            "machine": facts, "members": MEMBERS, "plan": POINTS.to_fields(), "results": results,
            "peers": {entry.name: dataclasses.asdict(entry) for entry in entries},
            "load_after": machine.load(),
        }  # fmt: skip
        path = report.save(record, Path(__file__).resolve().parent / "records", "ensembles")
        path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
        print(path)
    ours = results["at-once"]
    return 0 if "median" in ours and ours["median"] * 1e3 <= MOST_MS else 1


def summary(results: dict[str, dict]) -> str:
    """A table, fastest first, and what is missing."""
    timed = {name: r for name, r in results.items() if "median" in r}
    ours = timed.get("at-once")
    rows = [
        [
            name,
            *(f"{r[key] * 1e3:.4f}" for key in ("best", "median")),
            f"{(r['q3'] - r['q1']) * 1e3:.4f}",
            f"{r['cores_used']:.2f}",
            f"{r['median'] / ours['median']:.2f}" if ours else "",
            f"{r.get('others') or 0:.2f}",
        ]
        for name, r in sorted(timed.items(), key=lambda item: item[1]["median"])
    ]
    heads = ["peer", "best ms a step", "median", "IQR", "cores", "x at-once", "others' cores"]
    missing = [f"- {name}: {r['missing']}" for name, r in results.items() if "missing" in r]
    return "\n".join([report.table(heads, rows), *missing])


if __name__ == "__main__":
    sys.exit(main())
