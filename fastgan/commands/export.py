"""fastgan export: a generator for others to use."""

from __future__ import annotations

import argparse

from fastgan.commands import newest


def add(commands: argparse._SubParsersAction) -> None:
    """What the command takes."""
    parser = commands.add_parser(
        "export",
        help="write a run's generator for others to use",
        description="Write the generator of a run, with the weights that samples are made by, as a "
        "state dict, in safetensors, as a program of torch.export and as a graph of ONNX, with a "
        "README.md that says how each is loaded. What cannot be written is left out, and why is "
        "said.",
    )
    parser.set_defaults(command=run, parser=parser)
    newest.add(parser)
    parser.add_argument("--out", metavar="DIR", help="a directory (default: RUN/export)")


def run(chosen: argparse.Namespace) -> int:
    """Write it, and say what."""
    # Here, as no other command needs it.
    from fastgan.export import export

    found = export(newest.run_of(chosen.run), chosen.out)
    print(found.place)
    for name, words in found.written.items():
        print(f"  {name}: {words}")
    for name, why in found.left_out.items():
        print(f"  left out {name}: {why}")
    return 0
