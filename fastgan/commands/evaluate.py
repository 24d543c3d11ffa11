"""fastgan evaluate: how good a run's samples are."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fastgan.commands import newest, table
from fastgan.config import ConfigError
from fastgan.trainer import Trainer


def add(commands: argparse._SubParsersAction) -> None:
    """What the command takes."""
    parser = commands.add_parser("evaluate", help="say how good a run's samples are")
    parser.set_defaults(command=run, parser=parser)
    newest.add(parser)
    add = parser.add_argument
    add(
        "--metrics",
        metavar="NAME,NAME",
        help="fid, kid, is, precision, recall, density, coverage, swd, agreement; of rows of a "
        "table shapes, pairs, nearest, efficacy (default: all that can be computed here)",
    )
    add("--n", type=int, help="samples, and data (default: 10,000, or all data)")
    add("--per-class", action="store_true", help="also of each class by itself")
    add("--data", metavar="NAME|PATH", help="other data than the run's own")
    add(
        "--neighbours",
        metavar="FILE",
        help="write a PNG: samples, each beside the nearest of the data",
    )
    add("--device", help="cpu, cuda, cuda:1 ... (default: as the run)")
    add("--json", action="store_true", help="print one line of JSON")


def run(chosen: argparse.Namespace) -> int:
    """Measure, and keep what was found beside the run, for its report."""
    # Here, as no other command needs it.
    from fastgan import metrics

    chosen.run = newest.run_of(chosen.run)
    names = chosen.metrics.replace(",", " ").split() if chosen.metrics else None
    if table.makes_rows(chosen.run):
        return table.evaluate(chosen, names)
    out = None if chosen.neighbours is None else Path(chosen.neighbours).expanduser()
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--neighbours: there is no directory {out.parent}")
    device = {} if chosen.device is None else {"device": chosen.device}
    given = {"data": chosen.data, "data_changed": chosen.data is not None, **device}
    trainer = Trainer.resume(chosen.run, console="none", **given)
    found = trainer.evaluate(names, chosen.n, per_class=chosen.per_class)
    if not trainer.world.leads:
        trainer.close()
        return 0
    if chosen.json:
        print(json.dumps(found))
    else:
        by_class = found.pop("per_class", {})
        for label, values in {"": found, **by_class}.items():
            for name, value in values.items():
                shown = f"{value:.4g}" if isinstance(value, float) else value
                print(f"{label + ': ' if label else ''}{name} {shown}")
    if out is not None:
        metrics.draw_neighbours(trainer, out)
        print(out, file=sys.stderr if chosen.json else sys.stdout)
    trainer.close()
    return 0
