"""Do the programs of examples/ train like the plain loops beside them?

    python benchmarks/curves.py              # all twelve, 5 seeds: 5 minutes of one quiet core
    python benchmarks/curves.py cgan began   # some of them

Both ways start from the same weights and then draw their own noise, order and labels: fastgan from
its counter, the loop from torch's generator. A curve is the mean loss in each of PARTS equal parts
of a run. The gap between the two means over the seeds is told in spreads, the standard deviation of
the seeds about the mean of their way, pooled over the two ways; and then as the root of its mean
square over the parts. Five seeds of one distribution each make that about 0.73, and less where
first weights, common to both, decide most; more than LARGEST once in 80 where the parts of a curve
go together (Student's t, 8 degrees of freedom). Both losses of a program are to be below. A rule
that all pass would show nothing: the control is fastgan from the same weights with both learning
rates doubled, and the record says whether it is told apart.

What is done is kept in a folder, a file for each program, and not done again. The exit status is 0
if all programs agree, 1 if not. The networks are narrow and the runs short: only likeness is asked.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path

import machine
import report
import torch

import fastgan

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT / "examples"))

from plain import programs  # noqa: E402

PARTS, LARGEST = 10, 2.0
SEEDS = (10, 11, 12, 13, 14)
WAYS = ("fastgan", "loop", "control")
SMALL = {"batch_size": 16}
SHORT = {
    "mlp_batchnorm": ({"width": 32}, {}, 300),
    "dcgan": ({"width": 4}, {}, 60),
    "wgan_gp": ({"width": 4}, SMALL, 20),
    "cgan": ({"width": 32}, SMALL, 200),
    "acgan": ({"width": 4}, SMALL, 60),
    "infogan": ({"width": 4}, SMALL, 60),
    "pix2pix": ({"width": 4}, {}, 60),
    "srgan": ({"width": 4, "blocks": 1}, {}, 40),
    "sngan": ({"width": 1}, SMALL, 20),
    "ctgan_table": ({"width": 64}, {}, 60),
    "r3gan": ({"width": 4}, SMALL, 40),
    "began": ({"width": 4}, SMALL, 60),
}
"""Sizes of the networks, settings besides those of the program, and steps."""

# --- the runs ------------------------------------------------------------------------------------


def digits(name: str) -> tuple:
    """The images that a program is given, at its size, and their labels."""
    side = None if name in ("mlp_batchnorm", "cgan") else 32
    opened = fastgan.data.open("digits", image_size=side)
    return opened.samples, opened.condition


def curve(losses: list) -> list[list[float]]:
    """The mean of each loss in each part of a run."""
    parts = torch.tensor(losses, dtype=torch.float64).tensor_split(PARTS)
    return [[part[:, i].mean().item() for part in parts] for i in range(2)]


def train(program: programs.Program, way: str, seed: int, steps: int) -> list[list[float]]:
    """One run's two curves."""
    pair = copy.deepcopy(program.pair)
    settings = {"seed": seed, "device": "cpu", "console": "none", **SHORT[program.name][1]}
    run = program.trainer(pair, **settings)
    if way == "loop":
        torch.manual_seed(seed + 1000)
        draw = programs.Draws(run.data.condition)
        batches = programs.batches(run.data, run.config.batch_size, run.config.drop_last)
        return curve(list(itertools.islice(program.losses(pair, batches, draw), steps)))
    if way == "control":
        for optimizer in (run.optimizer_g, run.optimizer_d):
            for group in optimizer.param_groups:
                group["lr"] *= 2
    return curve(run.engine.run(steps)[:, :2].tolist())


def runs(name: str) -> dict:
    """The curves of every way and seed of a program."""
    sizes, settings, steps = SHORT[name]
    found: dict = {way: [] for way in WAYS}
    images = digits(name)
    for seed in SEEDS:
        torch.manual_seed(seed)
        program = programs.Program(name, *images, **sizes)
        for way in WAYS:
            found[way].append(train(program, way, seed, steps))
    return {"sizes": sizes, "settings": settings, "steps": steps, "curves": found}


# --- what they say -------------------------------------------------------------------------------


def gaps(a: list, b: list, loss: int) -> list[float]:
    """The gap between two ways in each part of a run, in spreads."""
    found = []
    for part in range(PARTS):
        values = [[run[loss][part] for run in way] for way in (a, b)]
        means = [statistics.fmean(v) for v in values]
        spread = statistics.fmean(statistics.variance(v) for v in values) ** 0.5
        found.append(abs(means[0] - means[1]) / max(spread, 1e-12))
    return found


def verdict(curves: dict) -> dict:
    """How far fastgan, and the control, lie from the loop."""
    out = {}
    for way in ("fastgan", "control"):
        found = [gaps(curves[way], curves["loop"], loss) for loss in (0, 1)]
        out[way] = [statistics.fmean(g * g for g in one) ** 0.5 for one in found]
        out[f"{way}_within"] = sum(g <= 1 for one in found for g in one)
    out["agree"] = max(out["fastgan"]) <= LARGEST
    out["told_apart"] = max(out["control"]) > LARGEST
    return out


def show(record: dict) -> str:
    """The record as markdown."""
    facts = record["machine"]
    heads = ["program", "steps", "D loss", "loop", "G loss", "loop", "spread of D, G"]
    heads += ["gap of D", "of G", "parts within a spread", "verdict", "control: D", "G"]
    rows = []
    for name, found in record["programs"].items():
        curves, v = found["curves"], found["verdict"]
        cells = [name, str(found["steps"])]
        for loss in (0, 1):
            for way in ("fastgan", "loop"):
                cells.append(f"{statistics.fmean(run[loss][-1] for run in curves[way]):.4f}")
        spreads = [
            statistics.fmean(
                statistics.variance([run[loss][-1] for run in curves[way]]) for way in WAYS[:2]
            )
            for loss in (0, 1)
        ]
        cells.append(", ".join(f"{s**0.5:.4f}" for s in spreads))
        cells += [f"{gap:.2f}" for gap in v["fastgan"]]
        cells += [f"{v['fastgan_within']} of {2 * PARTS}", "agree" if v["agree"] else "DIFFER"]
        rows.append([*cells, *(f"{gap:.2f}" for gap in v["control"])])
    told = [name for name, found in record["programs"].items() if found["verdict"]["told_apart"]]
    return "\n".join(
        [
            f"# examples beside their plain loops, {facts['date']}",
            "",
            f"- {facts['cpu']}, {facts['threads']} threads, torch {facts['versions']['torch']}, "
            f"source {facts['git']}",
            f"- seeds {', '.join(map(str, SEEDS))}; losses are means of the last of {PARTS} parts "
            "of the runs",
            "- gaps in spreads, root of the mean square over the parts; 0.73 is expected of "
            f"equals, {LARGEST:g} passes",
            f"- the control, learning rates doubled, is told apart in {len(told)} of {len(rows)}",
            "",
            report.table(heads, rows),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("programs", nargs="*", metavar="NAME", help=", ".join(programs.NAMES))
    parser.add_argument("--keep", help="folder of what is done (default: a new one)")
    parser.add_argument("--no-record", action="store_true", help="leave records/ alone")
    options = parser.parse_args(arguments)
    if wrong := set(options.programs) - set(programs.NAMES):
        parser.error(f"there is no {wrong.pop()}; expected {', '.join(programs.NAMES)}")
    keep = Path(options.keep or tempfile.mkdtemp(prefix="curves-"))
    keep.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # networks this small wait for a second one
    record = {"machine": machine.facts(1, native=False), "seeds": SEEDS, "programs": {}}
    for name in options.programs or programs.NAMES:
        file = keep / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(runs(name)))
        found = json.loads(file.read_text())
        record["programs"][name] = {**found, "verdict": verdict(found["curves"])}
        print(name, json.dumps(record["programs"][name]["verdict"]), file=sys.stderr, flush=True)
    print(show(record))
    if not options.no_record:
        path = report.save(record, ROOT / "benchmarks" / "records", "curves")
        path.with_suffix(".md").write_text(show(record) + "\n")
    return 0 if all(p["verdict"]["agree"] for p in record["programs"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
