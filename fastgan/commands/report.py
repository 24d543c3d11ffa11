"""fastgan report: runs as a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastgan.commands import newest
from fastgan.run import checkpoint


def add(commands: argparse._SubParsersAction) -> None:
    """What the command takes."""
    parser = commands.add_parser(
        "report",
        help="write a page on a run, or on several side by side",
        description="Write one HTML file that needs nothing beside it: where runs stand, what "
        "differs between them, samples through time, curves, a walk through the latents, alarms, "
        "quality, speed, and how to go on.",
    )
    parser.set_defaults(command=run, parser=parser)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"directories of runs {newest.HELP}")
    parser.add_argument(
        "--out", metavar="FILE", help="the page (default: report.html in the first RUN)"
    )


def run(chosen: argparse.Namespace) -> int:
    """Write the page."""
    # Here, as training must not wait for what only a page needs.
    from fastgan import report

    runs = chosen.runs or [newest.run_of(None)]
    first = Path(runs[0]).expanduser()
    place = checkpoint.find(first).parent if first.is_file() else first
    print(report.of_runs(runs).save(chosen.out or place / report.FILE))
    return 0
