"""What it costs to measure the step of every log line, on each engine that runs here.

    python benchmarks/measures.py                        # about a minute and a half
    python benchmarks/measures.py --only fused --no-record

One engine a case, its steps in turns: one that is measured and one that is not, in an order that
changes, many pairs. The cost is the median of the pairs' differences, once in an interval of log
lines (the default, 100 steps), over the least that the steps of an interval took in one call.
Told besides: an interval with its last step measured over one without, in turns likewise, which is
what a run does, and of which a noisy machine says less.

The exit status is 0 if no case costs more than MOST, else 1.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

import machine
import report
import torch

MOST = 0.02
CASES = {
    "fused MLP": {"engine": "fused"},
    "fused MLP bf16": {"engine": "fused", "precision": "bf16"},
    "eager MLP": {"engine": "eager"},
    "compile MLP": {"engine": "compile"},
    "eager DCGAN 32": {"engine": "eager", "model": "dcgan", "width": 16},
}
SIDES = {"mlp": 28, "dcgan": 32}
SECONDS = {"pairs": 8.0, "intervals": 6.0}
"""How long a case may take."""
LEAST = {"pairs": 11, "intervals": 2}


def made(case: dict) -> tuple:
    """An engine and the steps from one log line to the next."""
    from fastgan import data, engines
    from fastgan.config import Config
    from fastgan.problem import make_problem

    settings = dict(case)
    side = SIDES[settings.get("model", "mlp")]
    pixels = torch.randint(
        0, 256, (4096, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    settings = {"seed": 0, "device": "cpu", "precision": "fp32", "batch_size": 64, **settings}
    problem = make_problem(None, None, data.open(pixels), Config(**settings))
    engine, _ = engines.choose(problem, settings["engine"])
    return engine, problem.config.log_every


def taken(engine, steps: int, measured: bool) -> float:
    """Seconds of a call."""
    engine.measuring = measured
    since = time.perf_counter()
    engine.run(steps)
    return time.perf_counter() - since


def in_turns(engine, steps: int, seconds: float, least: int) -> tuple[list[float], list[float]]:
    """Seconds of calls without and with measures, pair by pair."""
    found: tuple[list[float], list[float]] = [], []
    until = time.perf_counter() + seconds
    while len(found[0]) < least or time.perf_counter() < until:
        for measured in random.sample((False, True), 2):
            found[measured].append(taken(engine, steps, measured))
    return found


def measure(case: dict) -> dict:
    """The numbers of a case."""
    engine, interval = made(case)
    for measured in (False, True, True):
        taken(engine, 3, measured)
    whole = in_turns(engine, interval, SECONDS["intervals"], LEAST["intervals"])
    single = in_turns(engine, 1, SECONDS["pairs"], LEAST["pairs"])
    extra = statistics.median(b - a for a, b in zip(*single, strict=True))
    least, plain = min(whole[0]), statistics.median(whole[0])
    said = engine.describe()
    engine.close()
    return {
        "engine": said,
        "interval": interval,
        "best_ms": round(1e3 * least / interval, 4),
        "step_ms": round(1e3 * plain / interval, 4),
        "extra_ms": round(1e3 * extra, 4),
        "cost": round(extra / least, 5),
        "of_intervals": round(statistics.median(whole[1]) / plain - 1, 5),
        "pairs": len(single[0]),
        "intervals": len(whole[0]),
    }


def summary(results: dict[str, dict]) -> str:
    """A table."""
    rows = [
        [
            name, f"{r['best_ms']:.3f}", f"{r['step_ms']:.3f}", f"{r['extra_ms']:+.3f}",
            f"{r['cost']:+.2%}", f"{r['of_intervals']:+.2%}", str(r["pairs"]), str(r["intervals"]),
        ]
        for name, r in results.items()
    ]  # fmt: skip
    heads = [
        "case", "best ms a step", "median", "ms more of a measured one", "cost", "by intervals",
        "pairs", "intervals",
    ]  # fmt: skip
    return report.table(heads, rows)


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose names begin with this")
    parser.add_argument("--threads", type=int, help="cores (default: all)")
    parser.add_argument("--no-record", action="store_true", help="keep nothing")
    chosen = parser.parse_args()
    facts = machine.facts(chosen.threads)
    torch.set_num_threads(facts["threads"])
    results = {}
    for name, case in CASES.items():
        if name.startswith(chosen.only):
            results[name] = measure(case)
            print(f"{name}: {results[name]['cost']:+.2%}", file=sys.stderr, flush=True)
    text = summary(results)
    print(text)
    if not chosen.no_record:
        record = {"machine": facts, "results": results, "load_after": machine.load()}
        path = report.save(record, Path(__file__).resolve().parent / "records", "measures")
        path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
        print(path)
    return int(any(r["cost"] > MOST for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
