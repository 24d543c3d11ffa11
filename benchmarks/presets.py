"""What quality do the presets of fastgan's own pairs reach on data that are at hand?

    python benchmarks/presets.py                   # all below, narrowed: 10 minutes of one core
    python benchmarks/presets.py sn-resnet-32      # one of them
    python benchmarks/presets.py --keep DIR        # what is done is kept there, and not done again

Images are the bundled digits. A classifier is trained on 4,000 of them and says: how many of the
digits that G was asked for it recognises, and the Frechet distance of its features from those of
the other 1,000 real ones (frechet.py); 500 real ones against the other 500 say what a distance of
nothing looks like in so few. Rows are those of a made table of three classes, six numbers each: how
like its columns and pairs of columns are, and what a forest learns from them (`shapes`, `pairs` and
`efficacy` of fastgan.metrics). Networks are narrower and runs shorter than the presets', as SHORT
says, so that it can be done beside other work; the first line of a pair is what it was untrained.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
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
    "sn-resnet-32": {"width": 4, "d_steps": 2, "steps": 800, "ema": 0.99},
    "r3gan-32": {"width": 16, "batch_size": 32, "steps": 300, "ema": 0.99},
    "ctgan": {"batch_size": 200, "epochs": None, "steps": 2000},
}
"""What differs from the preset."""


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


def of_images(name: str, options: dict) -> dict:
    """A preset on the digits."""
    digits = fastgan.data.open("digits", image_size=32)
    images, labels = digits.samples / 127.5 - 1, digits.condition
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    known, other = order[:4000], order[4000:]
    classifier = Classifier().learn(images[known], labels[known])
    real = classifier.features(images[other])
    trainer = fastgan.Trainer(None, None, digits, preset(name), console="none", **options)

    def quality() -> dict:
        made = trainer.sample(1000)
        out = {"frechet": frechet.frechet(real, classifier.features(made))}
        if trainer.problem.conditioned[1]:
            out["recognised"] = classifier.right(made, torch.arange(1000) % 10)
        return out

    before = quality()
    trainer.fit()
    return {
        "before": before,
        "after": quality(),
        "of_real": {
            "frechet": frechet.frechet(real[:500], real[500:]),
            "recognised": classifier.right(images[other], labels[other]),
        },
    }


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
    trainer = fastgan.Trainer(None, None, frame, preset(name), console="none", **options)
    table = trainer.data.table

    def quality(made) -> dict:
        return evaluate_table(other, made, table, ["shapes", "pairs", "efficacy"])

    before = quality(table.decoded(trainer.sample(2000)))
    trainer.fit()
    after = quality(table.decoded(trainer.sample(2000)))
    return {"before": before, "after": after, "of_real": quality(frame)}


def show(record: dict) -> str:
    """The record as markdown."""
    facts = record["machine"]
    lines = []
    for name, found in record["presets"].items():
        changed = ", ".join(f"{key} {value}" for key, value in found["changed"].items())
        for key in found["after"]:
            values = (found[when].get(key) for when in ("before", "after", "of_real"))
            lines.append([name, changed, key, *(f"{v:.3f}" for v in values)])
    heads = ["preset", "in place of the preset's", "quality", "untrained", "trained", "real data"]
    return "\n".join(
        [
            f"# quality of presets, {facts['date']}",
            "",
            f"- {facts['cpu']}, torch {facts['versions']['torch']}, source {facts['git']}",
            "- what is measured: the docstring of benchmarks/presets.py",
            "",
            report.table(heads, lines, 3),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Train, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", metavar="NAME", help=", ".join(SHORT))
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
        file = keep / f"{name}.json"
        if not file.exists():
            run = (of_rows if name == "ctgan" else of_images)(name, {**changed, "threads": 1})
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
