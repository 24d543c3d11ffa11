"""Which run a command means."""

from __future__ import annotations

import argparse
import sys

from fastgan.run import directory

HELP = "(default: the run that was saved last of those in runs/)"


def add(parser: argparse.ArgumentParser) -> None:
    """The argument RUN, which may be left out."""
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help=f"directory of a run, or a checkpoint in it {HELP}"
    )


def run_of(given: str | None) -> str:
    """The run that was given, or the newest, which is said on stderr.

    Raises:
        FileNotFoundError: none was given, and there is none.
    """
    if given is not None:
        return given
    found = str(directory.newest())
    print(f"fastgan: the newest run is {found}", file=sys.stderr)
    return found
