"""fastgan table, and what other commands do with a run of a table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fastgan import resuming, tabular
from fastgan.callbacks import Callback
from fastgan.config import Config, ConfigError
from fastgan.data import Data
from fastgan.data.table import FILE, is_table, read
from fastgan.run import checkpoint, pictures
from fastgan.tabular.held_out import PLATEAU, HeldOut

__all__ = ["PLATEAU", "evaluate", "held_out", "in_words", "kept_out", "makes_rows", "sample"]


def in_words(arguments: list[str]) -> list[str]:
    """`fastgan table` in the words of the commands that do it."""
    if arguments[:1] == ["sample"]:
        return arguments
    if not arguments or arguments[0].startswith("-"):
        return ["train", *(arguments or ["--help"])]
    return ["train", "--model", "ctgan", "--data", *arguments]


def kept_out(run: str) -> dict[str, Any] | None:
    """What a run has saved of the rows that it holds out; None if it learns all."""
    return resuming.read(run)[1]["data"].get("held_out") if makes_rows(run) else None


def held_out(
    chosen: argparse.Namespace, config: Config, saved: dict[str, Any] | None = None
) -> tuple[Data, tuple[Callback, ...]]:
    """The rows that a run with --held-out learns, and the rule that ends it.

    Args:
        chosen: the command line.
        config: the run's settings.
        saved: of a run that goes on, `kept_out`.
    """
    if not is_table(config.data):
        raise ConfigError(
            f"--held-out is of tables, and data is {config.data!r}; leave it out, or pass a CSV or "
            "Parquet file"
        )
    given = None if chosen.held_out is None else _share(chosen.held_out)
    kept = HeldOut.of_run(saved, given, chosen.until)
    seed = config.seed if saved is None else saved["seed"]
    opened, learned, others = kept.opened(config.data, seed, config.data_options())
    if kept.share is None:
        read(others)  # a file that is not there is refused before the first step
    return opened, kept.callbacks(opened.table, learned, others)


def _share(words: str) -> float | str:
    try:
        return float(words)
    except ValueError:
        return words


def makes_rows(run: str) -> bool:
    """Whether a run was trained on a table."""
    return (checkpoint.find(run).parent / FILE).is_file()


def evaluate(chosen: argparse.Namespace, names: list[str] | None) -> int:
    """Print how good the rows of a run are."""
    for name in ("per_class", "neighbours"):
        if getattr(chosen, name):
            raise ConfigError(f"--{name.replace('_', '-')} is of images; this run makes rows")
    found = tabular.evaluate_run(chosen.run, chosen.data, names, n=chosen.n, device=chosen.device)
    if chosen.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name} {value:.4g}")
    return 0


def sample(chosen: argparse.Namespace) -> int:
    """Write rows of a run."""
    for name in ("columns", "classes", "truncation"):
        if getattr(chosen, name) is not None:
            raise ConfigError(f"--{name} is of pictures; this run makes rows of a table")
    wanted = {}
    for pair in chosen.condition or ():
        name, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(f"--condition is {pair!r}; expected COLUMN=VALUE")
        wanted[name] = value
    rows = tabular.sample_run(
        chosen.run, chosen.n, seed=chosen.seed, device=chosen.device, conditions=wanted
    )
    out = None if chosen.out is None else Path(chosen.out).expanduser()
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out: there is no directory {out.parent}")
    if out is not None and (out.is_dir() or out.suffix.lower() in (".png", *pictures.MOVING)):
        raise ConfigError(f"--out: {out} is to hold rows; expected a CSV or Parquet file")
    if out is not None and out.suffix.lower() in (".parquet", ".pq"):
        rows.to_parquet(out, index=False)
    else:
        rows.to_csv(out or sys.stdout, index=False)
    if out is not None:
        print(out)
    return 0
