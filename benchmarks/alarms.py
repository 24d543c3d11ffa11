"""Do the alarms tell runs that go wrong from runs that do not?

    python benchmarks/alarms.py              # 24 runs that go wrong, 10 that do not
    python benchmarks/alarms.py mlp          # those of one pair
    python benchmarks/alarms.py --keep DIR   # what is done is kept there, and not done again

Two pairs on the bundled digits: the reference pair of MLPs at 28 x 28, and a narrow DCGAN at
16 x 16. WRONG says how a run is spoiled, by settings that somebody could choose, and within how
many steps which alarm is to be raised, none before it, with three seeds each. (A minimax loss
starves where D is sure, so that both are said of it.) Five seeds of each pair with sound settings
are to raise none in HEALTHY steps, as long as the longest of the others. `fastgan.Alarms()` is as
it comes, and looks every 100 steps.

The exit status is 0 if every run was told for what it is, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import machine
import report
import torch

import fastgan
from fastgan.alarms import COLLAPSE, DIVERGING, SATURATED, STARVED
from fastgan.models import DCGANDiscriminator, DCGANGenerator

RECORDS = Path(__file__).resolve().parent / "records"
SEEDS, HEALTHY_SEEDS, HEALTHY = (0, 1, 2), (0, 1, 2, 3, 4), 1500
SOUND = {
    "mlp": {"lr": (1e-3, 5e-4), "batch_size": 64},
    "dcgan": {"lr": 2e-4, "batch_size": 16, "image_size": 16, "latent_dim": 32},
}
"""Of the presets mnist-mlp and dcgan-32."""
WRONG = {
    "collapsed": ("D hardly learns", {"lr": (5e-3, 1e-6)}, COLLAPSE, 1500),
    "saturated": ("G hardly learns", {"lr": (1e-5, 1e-3)}, SATURATED, 1000),
    "diverging": ("a critic without bounds", {"loss": "wasserstein", "lr": 1e-2}, DIVERGING, 1000),
    "starved": ("a loss without slope", {"loss": "minimax", "lr": (1e-5, 1e-3)}, STARVED, 1000),
}
"""Name: what is wrong, the settings, the alarm, and the step by which it is to be raised."""


def trainer(pair: str, seed: int, changed: dict, steps: int, **alarms) -> tuple:
    """A run and its alarms."""
    networks: tuple = (None, None)
    if pair == "dcgan":
        torch.manual_seed(seed)
        networks = (DCGANGenerator(32, 16, 1, 4), DCGANDiscriminator(16, 1, 4, False))
    watch = fastgan.Alarms(**alarms)
    made = fastgan.Trainer(
        *networks, "digits", seed=seed, steps=steps, callbacks=watch, console="none", device="cpu",
        **{**SOUND[pair], **changed},
    )  # fmt: skip
    return made, watch


def train(pair: str, way: str, seed: int) -> dict:
    """One run, and what was raised."""
    _, changed, right, within = WRONG.get(way, (None, {}, (), HEALTHY))
    made, watch = trainer(pair, seed, changed, within, stop=right)
    try:
        made.fit()
        ended = made.stopped or "done"
    except fastgan.NonFiniteLossError as error:
        ended = str(error)
    return {
        "engine": made.engine.name,
        "steps": made.step,
        "ended": ended,
        "raised": [list(alarm) for alarm in watch.raised],
        "lines": [
            {k: line.get(k) for k in ("step", "d_loss_mean", "g_loss_mean", "diversity")}
            for line in made.history
        ],
    }


def wanted(pairs: list[str]) -> list[tuple[str, str, int]]:
    """Every run: pair, way, seed."""
    wrong = [(pair, way, seed) for pair in pairs for way in WRONG for seed in SEEDS]
    return [*wrong, *((pair, "healthy", seed) for pair in pairs for seed in HEALTHY_SEEDS)]


def told(way: str, run: dict) -> bool:
    """Whether a run was told for what it is."""
    raised = [alarm[0] for alarm in run["raised"]]
    if way == "healthy":
        return not raised
    right = WRONG[way][2]
    allowed = {right, SATURATED} if right == STARVED else {right}
    return right in raised and allowed.issuperset(raised)


def show(record: dict) -> str:
    """The record as markdown."""
    facts = record["machine"]
    lines = []
    for pair in dict.fromkeys(run["pair"] for run in record["runs"]):
        for way in (*WRONG, "healthy"):
            what, changed, right, within = WRONG.get(way, ("nothing", {}, "none", HEALTHY))
            runs = [r for r in record["runs"] if (r["pair"], r["way"]) == (pair, way)]
            good = sum(told(way, run) for run in runs)
            first = [", ".join(f"{a[0]} at {a[1]}" for a in r["raised"]) for r in runs]
            lowest = min((x["diversity"] for r in runs for x in r["lines"][-1:]), default=0.0)
            cells = [pair, runs[0]["engine"], what, _words({**SOUND[pair], **changed}), right]
            cells += [str(within), f"{good} of {len(runs)}", "; ".join(f or "none" for f in first)]
            lines.append([*cells, f"{lowest:.3f}"])
    heads = ["pair", "engine", "wrong", "settings", "alarm", "within steps", "told"]
    heads += ["raised, by seed", "least diversity at the end"]
    return "\n".join(
        [
            f"# alarms, {facts['date']}",
            "",
            f"- {facts['cpu']}, torch {facts['versions']['torch']}, source {facts['git']}",
            f"- seeds {', '.join(map(str, SEEDS))} of runs that go wrong and end at their alarm, "
            f"{', '.join(map(str, HEALTHY_SEEDS))} of the others",
            "",
            report.table(heads, lines, 5),
        ]
    )


def _words(settings: dict) -> str:
    return ", ".join(f"{k} {v}" for k, v in settings.items() if k in ("lr", "loss", "batch_size"))


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", nargs="*", metavar="PAIR", help=", ".join(SOUND))
    parser.add_argument("--keep", help="folder of what is done (default: a new one)")
    parser.add_argument("--no-record", action="store_true", help="leave records/ alone")
    options = parser.parse_args(arguments)
    if wrong := set(options.pairs) - SOUND.keys():
        parser.error(f"there is no {wrong.pop()}; expected {', '.join(SOUND)}")
    keep = Path(options.keep or tempfile.mkdtemp(prefix="alarms-"))
    keep.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    record = {"machine": machine.facts(1, native=False), "runs": []}
    for pair, way, seed in wanted(options.pairs or [*SOUND]):
        file = keep / f"{pair}-{way}-{seed}.json"
        if not file.exists():
            file.write_text(json.dumps(train(pair, way, seed)))
        run = json.loads(file.read_text())
        print(pair, way, seed, told(way, run), run["raised"][:1], file=sys.stderr, flush=True)
        record["runs"].append({"pair": pair, "way": way, "seed": seed, **run})
    print(show(record))
    if not options.no_record:
        path = report.save(record, RECORDS, "alarms")
        path.with_suffix(".md").write_text(show(record) + "\n")
    return 0 if all(told(run["way"], run) for run in record["runs"]) else 1


if __name__ == "__main__":
    sys.exit(main())
