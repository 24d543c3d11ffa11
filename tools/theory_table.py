"""The table of docs/theory.md: the divergence of pairs of densities, exact and estimated."""

import argparse
import re
import time
from pathlib import Path

import torch

from fastgan import theory
from fastgan.densities import DENSITIES, Mixture, normal

DOC = Path(__file__).resolve().parents[1] / "docs" / "theory.md"
SAMPLES, STEPS = 20_000, 600


def _without(density, *modes):
    kept = [i for i in range(len(density.modes)) if i not in modes]
    return Mixture(density.means[kept], density.scales[kept], density.weights[kept])


PAIRS = {
    "normal, moved by its deviation": (normal(0.0), normal(1.0)),
    "normal, two normals": (normal(0.0), Mixture([-1.0, 1.5], [0.5, 0.6], [1, 2])),
    "gaussian, itself": (DENSITIES["gaussian"], DENSITIES["gaussian"]),
    "ring8, two modes lost": (DENSITIES["ring8"], _without(DENSITIES["ring8"], 0, 3)),
    "ring8, gaussian": (DENSITIES["ring8"], DENSITIES["gaussian"]),
    "grid25, ring8": (DENSITIES["grid25"], DENSITIES["ring8"]),
}


def row(name):
    """A pair's cells: its name, the numbers, and the seconds of the bound."""
    real, fake = PAIRS[name]
    began = time.perf_counter()
    exact = theory.jsd(real, fake)
    seconds = time.perf_counter() - began
    bound = theory.jsd_lower_bound(
        real.sample(SAMPLES, seed=1)[0], fake.sample(SAMPLES, seed=2)[0], steps=STEPS
    )
    return {
        "pair": name,
        "exact": f"{exact.value:.5f}",
        "quadrature": f"{max(exact.error, 1e-12):.0e}",
        "bound": f"{bound.value:.4f}",
        "standard error": f"{bound.error:.4f}",
        "bound - exact": f"{bound.value - exact.value:+.4f}",
        "seconds": f"{seconds:.1f} + {bound.seconds:.0f}",
    }


def lines(rows):
    """A table in Markdown."""
    heads = list(rows[0])
    cells = [heads, ["---"] * len(heads), *([one[head] for head in heads] for one in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def written(text):
    """The rows of a page, by the names of the pairs."""
    table = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    heads, _, *rows = table
    return {cells[0]: dict(zip(heads, cells, strict=True)) for cells in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into docs/theory.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in PAIRS:
        rows.append(row(name))
        print(rows[-1], flush=True)
    if chosen.write:
        text = re.sub(r"(?m)(^\|.*\n)+", lambda _: lines(rows), DOC.read_text(), count=1)
        DOC.write_text(text)


if __name__ == "__main__":
    main()
