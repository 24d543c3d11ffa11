"""What quality do the presets of fastgan's own pairs reach on data that are at hand?

    python benchmarks/presets.py                   # all below: most of an hour of one core
    python benchmarks/presets.py sn-resnet-32      # one of them
    python benchmarks/presets.py --seed 1          # another seed than the presets' 0
    python benchmarks/presets.py --keep DIR        # runs with their samples stay there, and one
                                                   # that was interrupted goes on

Images are the bundled digits, or what DATA says. A classifier is trained on 4,000 of them and says:
how many of the classes that G was asked for it recognises, and the Frechet distance of its features
from those of 1,000 other real ones (frechet.py); 500 of these against the other 500 say what a
distance of nothing looks like in so few. Rows are those of a made table of three classes, six
numbers each: how like its columns and pairs of columns are, and what a forest learns from them
(`shapes`, `pairs` and `efficacy` of fastgan.metrics). Networks are narrower and runs shorter than
the presets', as SHORT says, so that it can be done beside other work. Seconds are processor time of
the training, on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import frechet
import machine
import numpy as np
import pandas
import report
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan.config import preset
from fastgan.metrics import evaluate_table

RECORDS = Path(__file__).resolve().parent / "records"
SHORT = {
    "mnist-mlp": {},
    "dcgan-32": {"width": 16, "batch_size": 64, "epochs": None, "steps": 2000},
    "dcgan-64": {
        "width": 16,
        "batch_size": 32,
        "lr": 4e-4,
        "ema": 0.99,
        "epochs": None,
        "steps": 2000,
    },
    "sn-resnet-32": {
        **{"width": 4, "batch_size": 16, "d_steps": 2, "lr": (2e-3, 4e-3), "ema": 0.99},
        **{"epochs": None, "steps": 4000},
    },
    "r3gan-32": {
        **{"width": 8, "batch_size": 16, "lr": 1e-3, "penalties": ("r1:0.5:4", "r2:0.5:4")},
        **{"ema": 0.99, "epochs": None, "steps": 3000},
    },
    "ctgan": {"batch_size": 200, "epochs": None, "steps": 2000},
}
"""What differs from the preset. Nobody has tried those of dcgan-64."""
DATA = {"dcgan-64": "fashion-mnist"}
"""Images in place of the digits."""
CLASSIFIER_IMAGES, OTHER_IMAGES, LOOKS = 4000, 1000, 8


class Classifier(nn.Module):
    """A classifier of digits at 32 x 32, by its last features."""

    def __init__(self):
        """Untrained."""
        super().__init__()
        layers = []
        for i, o in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(i, o, 3, 2, 1), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 32), nn.ReLU())
        self.last = nn.Linear(32, 10)

    def learn(self, images: Tensor, labels: Tensor, epochs: int = 8) -> Classifier:
        """Train on them."""
        optimizer = torch.optim.Adam(self.parameters(), 2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                loss = F.cross_entropy(self.last(self.features(images[rows])), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return self.requires_grad_(False)

    def right(self, images: Tensor, labels: Tensor) -> float:
        """The share that it takes for what they are to be."""
        return (self.last(self.features(images)).argmax(1) == labels).float().mean().item()


def labelled(name: str, side: int) -> tuple[fastgan.data.Data, Tensor, Tensor]:
    """A data set of images; images of it as the classifier sees them; and their labels."""
    data = fastgan.data.open(DATA.get(name, "digits"), image_size=side)
    torch.manual_seed(0)
    order = torch.randperm(len(data.samples))[: CLASSIFIER_IMAGES + OTHER_IMAGES]
    return data, seen(data.samples[order] / 127.5 - 1), data.condition[order]


def seen(images: Tensor) -> Tensor:
    """Images of any side as the classifier sees them: at 32 x 32."""
    return images if images.shape[-1] == 32 else F.interpolate(images, 32, mode="area")


def of_images(name: str, options: dict) -> dict:
    """A preset on images."""
    side = preset(name).image_size or 32
    data, images, labels = labelled(name, side)
    known, other = slice(CLASSIFIER_IMAGES), slice(CLASSIFIER_IMAGES, None)
    classifier = Classifier().learn(images[known], labels[known])
    real = classifier.features(images[other])

    def quality(trainer: fastgan.Trainer) -> dict:
        made = seen(trainer.sample(OTHER_IMAGES))
        out = {"frechet": frechet.frechet(real, classifier.features(made))}
        if trainer.problem.conditioned[1]:
            out["recognised"] = classifier.right(made, torch.arange(OTHER_IMAGES) % 10)
        return out

    return {
        "data": DATA.get(name, "digits"),
        **course(data, name, options, quality),
        "of_real": {
            "frechet": frechet.frechet(real[:500], real[500:]),
            "recognised": classifier.right(images[other], labels[other]),
        },
    }


class ProcessorTime(fastgan.Callback):
    """Seconds of this process within `fit`, also over interruptions."""

    seconds = began = 0.0

    def start(self, trainer: fastgan.Trainer) -> None:
        """Look at the clock."""
        self.began = time.process_time()

    def state_dict(self) -> dict:
        """Up to now."""
        now = time.process_time()
        self.seconds, self.began = self.seconds + now - self.began, now
        return {"seconds": self.seconds}

    def end(self, trainer: fastgan.Trainer, error: BaseException | None) -> None:
        """Up to the end."""
        self.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Of the part before."""
        self.seconds = state["seconds"]


def course(source, name: str, options: dict, quality: Callable) -> dict:
    """The quality of a run before, along and after it; one that is begun is continued."""
    out, clock = options["out"], ProcessorTime()
    given = {"callbacks": clock, "console": "none"}
    if (out / "checkpoint.pt").exists():
        trainer = fastgan.Trainer.resume(out, data=source, **given)
    else:
        trainer = fastgan.Trainer(None, None, source, preset(name), **given, **options)
    file, limit = out.with_suffix(".looks"), trainer.problem.config.steps
    looks = json.loads(file.read_text()) if file.exists() else []
    for step in (limit * k // LOOKS for k in range(LOOKS + 1)):
        if trainer.step < step:
            trainer.fit(steps=step)
        if trainer.step == step and step not in {look["step"] for look in looks}:
            looks.append({"step": step, "seconds": round(clock.seconds, 1), **quality(trainer)})
            file.write_text(json.dumps(looks))
            print(looks[-1], file=sys.stderr, flush=True)
    return {"seed": trainer.problem.config.seed, "looks": looks}


def rows(n: int, seed: int) -> pandas.DataFrame:
    """Six numbers of two humps each, and a class that they go by."""
    draw = np.random.default_rng(seed)
    kinds = draw.choice(3, n, p=[0.6, 0.3, 0.1])
    humps = draw.random((n, 6)) < 0.3 + 0.2 * kinds[:, None]
    means = np.where(humps, -0.4, 0.4) + 0.1 * np.arange(6) * (kinds[:, None] - 1)
    numbers = means + 0.1 * draw.normal(size=(n, 6))
    return pandas.DataFrame({**{f"x{i}": numbers[:, i] for i in range(6)}, "kind": kinds})


def of_rows(name: str, options: dict) -> dict:
    """A preset on a made table."""
    frame, other = rows(4000, 0), rows(4000, 1)
    table = fastgan.data.open(frame, by_category=True).table

    def of(made: pandas.DataFrame) -> dict:
        return evaluate_table(other, made, table, ["shapes", "pairs", "efficacy"])

    def quality(trainer: fastgan.Trainer) -> dict:
        return of(trainer.data.table.decoded(trainer.sample(2000)))

    found = course(frame, name, options, quality)
    return {"data": "a made table", **found, "of_real": of(frame)}


def show(record: dict) -> str:
    """The record as markdown."""
    facts = record["machine"]
    lines = []
    for name, found in record["presets"].items():
        changed = ", ".join(f"{key} {value}" for key, value in found["changed"].items())
        first, *along, last = found["looks"]
        spent = [str(found["seed"]), f"{last['step']:,}", f"{last['seconds']:.0f}"]
        for key in (key for key in found["of_real"] if key in first):
            values = [first[key], last[key], found["of_real"][key]]
            halfway = ", ".join(f"{look[key]:.3f} at {look['step']:,}" for look in along)
            told = [name, found["data"], changed, key, halfway]
            lines.append([*told, *spent, *(f"{v:.3f}" for v in values)])
    heads = ["preset", "data", "in place of the preset's", "quality", "on the way"]
    heads += ["seed", "steps", "seconds", "untrained", "trained", "real data"]
    return "\n".join(
        [
            f"# quality of presets, {facts['date']}",
            "",
            f"- {facts['cpu']}, torch {facts['versions']['torch']}, source {facts['git']}",
            "- what is measured: the docstring of benchmarks/presets.py",
            "",
            report.table(heads, lines, 5),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Train, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", metavar="NAME", help=", ".join(SHORT))
    parser.add_argument("--seed", type=int, default=0, help="of each run (default: 0)")
    parser.add_argument("--keep", help="folder of what is done (default: a new one)")
    parser.add_argument("--no-record", action="store_true", help="leave records/ alone")
    options = parser.parse_args(arguments)
    if wrong := set(options.presets) - SHORT.keys():
        parser.error(f"there is no {wrong.pop()}; expected {', '.join(SHORT)}")
    keep = Path(options.keep or tempfile.mkdtemp(prefix="presets-"))
    keep.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine.facts(1, native=False), "presets": {}}
    for name in options.presets or SHORT:
        changed = SHORT[name]
        # Of what is asked, so that no run is taken for one of other settings.
        asked = json.dumps([name, changed, options.seed])
        out = keep / f"{name}-{zlib.crc32(asked.encode()):08x}"
        file = keep / f"{out.name}.json"
        if not file.exists():
            own = {"seed": options.seed, "threads": 1, "out": out}
            run = (of_rows if name == "ctgan" else of_images)(name, {**changed, **own})
            file.write_text(json.dumps(run))
        run = json.loads(file.read_text())
        record["presets"][name] = {"changed": changed, **run}
        print(name, run, file=sys.stderr, flush=True)
    print(show(record))
    if not options.no_record:
        path = report.save(record, RECORDS, "presets")
        path.with_suffix(".md").write_text(show(record) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
