"""fastgan sample: samples of a saved run, as a picture or as rows of a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastgan import data, problem, sampling
from fastgan.commands import newest, table
from fastgan.config import ConfigError
from fastgan.densities import DENSITIES
from fastgan.run import checkpoint, pictures


def add(commands: argparse._SubParsersAction) -> None:
    """What the command takes."""
    parser = commands.add_parser("sample", help="draw samples of a trained generator")
    parser.set_defaults(command=run, parser=parser)
    newest.add(parser)
    add = parser.add_argument
    add("--n", type=int, help="number of samples (default: 64)")
    add("--columns", type=int, help="images in a row (default: a square)")
    add(
        "--classes",
        metavar="all|N,N,...",
        help="draw a row of each of these classes, all rows of the same latents (default: all "
        "classes in turn)",
    )
    add(
        "--truncation",
        type=float,
        metavar="X",
        help="cut latents off at X standard deviations: fewer outliers, less variety (default: no)",
    )
    add(
        "--out",
        metavar="FILE",
        help="PNG to write (default: RUN/grid.png; of 2-D vectors RUN/scatter.png; of rows of a "
        "table a CSV or Parquet file, and without it stdout)",
    )
    add("--seed", type=int, help="seed of the latents (default: the run's, as in its samples.png)")
    add(
        "--condition",
        action="append",
        metavar="COLUMN=VALUE",
        help="of rows: a category that is asked for; may be given for several columns",
    )
    add(
        "--walk",
        action="store_true",
        help="write a film instead, RUN/walk.gif (or --out FILE.mp4): samples (16, or --n) whose "
        "latents go from one to the next and back to the first",
    )
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")


def run(chosen: argparse.Namespace) -> int:
    """Draw them."""
    chosen.run = newest.run_of(chosen.run)
    if chosen.walk:
        return _walk(chosen)
    chosen.n = 64 if chosen.n is None else chosen.n
    if table.makes_rows(chosen.run):
        return table.sample(chosen)
    if chosen.condition is not None:
        raise ConfigError("--condition is of the rows of a table; of images say --classes")
    generator, values = sampling.load_generator(chosen.run)
    device = problem.choose_device(chosen.device)
    latent, seed = sampling.latents_of(values)
    seed = seed if chosen.seed is None else chosen.seed
    classes = sampling.classes_asked_for(generator, chosen.classes)
    samples = sampling.sample_classes(
        generator.to(device), chosen.n, latent, seed, device, classes, chosen.truncation
    )
    columns = chosen.columns
    if columns is None and classes is not None:
        columns = len(samples) // len(classes)
    points = samples.dim() == 2 and samples.shape[1] == 2
    out = _place(chosen, "scatter.png" if points else "grid.png", "picture", (".png",))
    if points:
        if chosen.columns is not None:
            raise ConfigError("--columns is of images; this run makes points of a plane")
        real = None
        if values["data"] in DENSITIES:
            real = data.open(values["data"], split=values["split"]).first(chosen.n).images
        pictures.scatter(samples, out, real)
    else:
        pictures.grid(samples, out, columns)
    print(out)
    return 0


def _place(chosen: argparse.Namespace, name: str, what: str, endings: tuple[str, ...]) -> Path:
    """Where to write, beside the checkpoint if nothing is said."""
    out = Path(chosen.out or checkpoint.find(chosen.run).with_name(name)).expanduser()
    if not out.parent.is_dir():
        raise ConfigError(f"--out: there is no directory {out.parent}")
    if out.suffix.lower() not in endings:
        raise ConfigError(
            f"--out: {out} is to be a {what}; expected a name that ends in {' or '.join(endings)}"
        )
    return out


def _walk(chosen: argparse.Namespace) -> int:
    # Here, as no other samples need them.
    from fastgan import report

    for name in ("columns", "classes", "truncation", "condition"):
        if getattr(chosen, name) is not None:
            raise ConfigError(f"--{name} does not go with --walk; leave one of them out")
    out = _place(chosen, "walk.gif", "film", pictures.MOVING)
    device = problem.choose_device(chosen.device)
    n = 16 if chosen.n is None else chosen.n
    print(report.interpolate(chosen.run, out, n, seed=chosen.seed, device=device))
    return 0
