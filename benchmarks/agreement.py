"""Do long runs of the engines end in the same place?

    python benchmarks/agreement.py                # Fashion-MNIST, 10 epochs, 3 seeds: 4 minutes
    python benchmarks/agreement.py --limit 60     # begin no run later; the next call goes on

The reference pair is trained by fastgan's Trainer with each engine and each seed. Rounding makes
two engines part after some hundred steps, so they are compared as distributions, by three
quantities of a run: the mean loss of D and of G over the last half of its epochs, and the Frechet
distance at its end (frechet.py).

Engines agree in a quantity when the means of any two, over the seeds, lie apart by at most

- SPREADS times the spread: the standard deviation of the seeds about the mean of their engine,
  pooled over the engines. What another seed changes, another engine may change.
- NOISES times the noise. With the same seed all engines start from the same weights and see the
  same latents, masks and order, so most of the spread is common to them. The noise is the standard
  deviation of what is left when the means of engines and of seeds are taken away.

For three equal engines and three seeds the range of the means exceeds 4 noises in 1.7 % of all
experiments (Tukey's studentized range, 4 degrees of freedom), and so in 5 % for one of the three
quantities. A rule that all pass would show nothing: a control, `fused` with learning rates a
quarter higher, has to lie more than NOISES from `fused` in at least one quantity. The rule was
fixed on seeds 0 to 2; the seeds of a record are others.

What is done is kept in a folder, a file for each run, and not done again. The exit status is 0 if
all engines agree and the control differs, 1 if not, and 3 as long as runs are missing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
import report
import torch
from frechet import FrechetDistance

import fastgan

SPREADS, NOISES = 2.0, 4.0
"""How far the means of two engines may lie apart, in either measure."""
FIRST_SEED = 10
QUANTITIES = {"d_loss": "D loss", "g_loss": "G loss", "frechet": "Frechet distance"}
BATCH, LR = 64, 2e-4


@dataclass(frozen=True)
class Contender:
    """One way to train."""

    engine: str
    precision: str = "fp32"
    lr: float = LR


CONTENDERS = {
    "eager": Contender("eager"),
    "fused": Contender("fused"),
    "fused-bf16": Contender("fused", "bf16"),
}
CONTROL = {"control": Contender("fused", lr=1.25 * LR)}
ALL = {**CONTENDERS, **CONTROL}

# --- the runs ------------------------------------------------------------------------------------


def train(
    contender: Contender, seed: int, data: str, epochs: int, distance: FrechetDistance
) -> dict:
    """One run, and what is compared of it."""
    images = fastgan.data.open(data)
    trainer = fastgan.Trainer(
        None,
        None,
        images,
        batch_size=BATCH,
        lr=contender.lr,
        precision=contender.precision,
        engine=contender.engine,
        device="cpu",
        seed=seed,
        log_every=images.batches_per_epoch(BATCH),
        console="none",
    )
    summary = trainer.fit(epochs=epochs)
    # A line for each epoch.
    last = trainer.history[-math.ceil(epochs / 2) :]
    result = {
        "d_loss": statistics.fmean(line["d_loss_mean"] for line in last),
        "g_loss": statistics.fmean(line["g_loss_mean"] for line in last),
        "frechet": distance.of(trainer),
        "steps": summary["steps"],
        "ms_per_step": summary["ms_per_step"],
        "how": trainer.explanation,
        "git": machine.git_state(),
    }
    trainer.close()
    return result


def finish(
    options: argparse.Namespace, folder: Path, distance: FrechetDistance
) -> dict[str, list[dict]]:
    """Do the runs that are missing, for as long as allowed; those of each contender, by seed."""
    began = time.monotonic()
    settings = {
        "data": options.data,
        "epochs": options.epochs,
        "classifier": distance.about["crc"],
        "threads": torch.get_num_threads(),
        "library": _library(),
    }
    done: dict[str, list[dict]] = {name: [] for name in ALL}
    for seed in _seeds(options):
        for name, contender in ALL.items():
            path = folder / f"{name}-{seed}.json"
            about = {**settings, "contender": asdict(contender), "seed": seed}
            if not path.is_file():
                if time.monotonic() - began >= options.limit:
                    continue
                result = train(contender, seed, options.data, options.epochs, distance)
                path.write_text(json.dumps({**about, **result}, indent=1) + "\n")
                shown = ", ".join(f"{what} {result[key]:.4f}" for key, what in QUANTITIES.items())
                print(f"{name}, seed {seed}: {shown}", file=sys.stderr, flush=True)
            found = json.loads(path.read_text())
            for key, value in about.items():
                if found[key] != value:
                    raise ValueError(
                        f"{path} is of another experiment ({key} {found[key]!r}, now {value!r}); "
                        "finish that one, or give another --work or remove the folder"
                    )
            done[name].append(found)
    return done


def _seeds(options: argparse.Namespace) -> range:
    return range(options.first_seed, options.first_seed + options.seeds)


def _library() -> str:
    """A checksum of the compiled CPU library, so that runs of two builds are not mixed."""
    files = sorted(Path(fastgan.__file__).parent.glob("_C.*"))
    return " ".join(f"{zlib.crc32(file.read_bytes()):08x}" for file in files) or "not built"


# --- the verdict ---------------------------------------------------------------------------------


def compare(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """The verdict on each quantity; runs as `finish` gives them, the control among them."""
    verdicts = {}
    for quantity in QUANTITIES:
        values = {name: [run[quantity] for run in runs[name]] for name in runs}
        means = {name: statistics.fmean(v) for name, v in values.items()}
        table = torch.tensor([values[name] for name in CONTENDERS], dtype=torch.float64)
        spread = float(table.var(1).mean().sqrt())
        rest = table - table.mean(1, keepdim=True) - table.mean(0) + table.mean()
        engines, seeds = table.shape
        noise = float((rest.square().sum() / ((engines - 1) * (seeds - 1))).sqrt())
        ordered = sorted(CONTENDERS, key=means.__getitem__)
        apart = means[ordered[-1]] - means[ordered[0]]
        control = abs(means["control"] - means["fused"])
        verdicts[quantity] = {
            "means": means,
            "deviations": {name: statistics.stdev(v) for name, v in values.items()},
            "spread": spread,
            "noise": noise,
            "furthest_apart": [ordered[0], ordered[-1]],
            "apart_in_spreads": apart / spread,
            "apart_in_noises": apart / noise,
            "agree": apart <= SPREADS * spread and apart <= NOISES * noise,
            "control_in_noises": control / noise,
            "control_differs": control > NOISES * noise,
        }
    return verdicts


def passed(verdicts: dict[str, dict]) -> bool:
    """All agree, and the rule can tell the control apart."""
    return all(v["agree"] for v in verdicts.values()) and any(
        v["control_differs"] for v in verdicts.values()
    )


def show(record: dict) -> str:
    facts, about = record["machine"], record["classifier"]
    heads = ["quantity", *ALL, "spread", "noise", "furthest apart", "in spreads", "in noises"]
    heads += ["verdict", "control, in noises"]
    rows = []
    for quantity, verdict in record["verdicts"].items():
        means, deviations = verdict["means"], verdict["deviations"]
        rows.append(
            [
                QUANTITIES[quantity],
                *(f"{means[name]:.4f} ± {deviations[name]:.4f}" for name in ALL),
                f"{verdict['spread']:.4f}",
                f"{verdict['noise']:.4f}",
                " and ".join(verdict["furthest_apart"]),
                f"{verdict['apart_in_spreads']:.2f}",
                f"{verdict['apart_in_noises']:.2f}",
                "agree" if verdict["agree"] else "DIFFER",
                f"{verdict['control_in_noises']:.2f}",
            ]
        )
    sources = sorted({run["git"] for runs in record["runs"].values() for run in runs if run["git"]})
    lines = [
        f"# agreement of long runs, {facts['date']}",
        "",
        f"- {facts['cpu']}, {facts['threads']} threads, torch {facts['versions']['torch']}, "
        f"source {' and '.join(sources) or 'not in git'}",
        f"- {record['data']}, {record['epochs']} epochs, mean ± standard deviation over the seeds "
        f"{', '.join(map(str, record['seeds']))}",
        f"- spread: that deviation pooled over {', '.join(CONTENDERS)}; noise: what is left of it "
        "at equal seeds",
        f"- control: fused with learning rates of {CONTROL['control'].lr:g} in place of {LR:g}",
        f"- classifier: {about['accuracy']:.2%} of the {about['images']} test images right; the "
        f"halves of these are {about['frechet_of_halves']:.3f} apart",
        "",
        report.table(heads, rows),
        "",
    ]
    agree = all(v["agree"] for v in record["verdicts"].values())
    sharp = any(v["control_differs"] for v in record["verdicts"].values())
    limits = f"{SPREADS:g} spreads and {NOISES:g} noises"
    lines.append(
        f"The means of the engines lie within {limits} of each other."
        if agree
        else f"The engines DIFFER: their means do not lie within {limits} of each other."
    )
    lines.append(
        "The control is told apart." if sharp else "The control is NOT told apart: too blunt."
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if options.seeds < 2 or options.epochs < 1:
        print("agreement: --seeds must be at least 2 and --epochs at least 1", file=sys.stderr)
        return 2
    threads = options.threads or len(machine.usable_cpus())
    torch.set_num_threads(threads)
    folder = Path(options.work)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        distance = FrechetDistance(options.data, folder)
        runs = finish(options, folder, distance)
    except ValueError as error:
        print(f"agreement: {error}", file=sys.stderr)
        return 2
    count, wanted = sum(map(len, runs.values())), len(ALL) * options.seeds
    if count < wanted:
        print(f"{count} of {wanted} runs are done; call again to go on", file=sys.stderr)
        return 3
    record = {
        "topic": "agreement",
        "machine": machine.facts(threads, native=False),
        "data": options.data,
        "epochs": options.epochs,
        "seeds": list(_seeds(options)),
        "classifier": distance.about,
        "runs": runs,
        "verdicts": compare(runs),
    }
    print(show(record))
    if not options.no_record:
        path = report.save(record, Path(options.out), "agreement")
        path.with_suffix(".md").write_text(show(record) + "\n")
        print(f"\nrecorded as {path}", file=sys.stderr)
    return 0 if passed(record["verdicts"]) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("fashion-mnist", "digits"), default="fashion-mnist")
    parser.add_argument("--epochs", type=int, default=10, help="of every run (default 10)")
    parser.add_argument("--seeds", type=int, default=3, help="runs a contender (default 3)")
    parser.add_argument(
        "--first-seed", type=int, default=FIRST_SEED, help=f"the first (default {FIRST_SEED})"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: all usable cores)")
    parser.add_argument(
        "--limit",
        type=float,
        metavar="S",
        default=math.inf,
        help="begin no run after so many seconds (default: no limit)",
    )
    parser.add_argument(
        "--work", default=str(machine.ROOT / "build" / "agreement"), help="folder of finished runs"
    )
    parser.add_argument("--no-record", action="store_true", help="leave records/ alone")
    parser.add_argument(
        "--out", default=str(Path(__file__).resolve().parent / "records"), help="record's folder"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
