"""fastgan's operators against torch's own, on the shapes of a GAN's layers.

    python benchmarks/operators.py            # the whole grid, 1 and 2 threads: about 6 minutes
    python benchmarks/operators.py --conv     # the convolutions, 2 threads: about 3 minutes
    python benchmarks/operators.py --quick    # a corner of it: does everything still run?
    python benchmarks/operators.py --device cuda --dtype bfloat16

`linear_leaky_relu`, forward and backward in eager, stands beside F.leaky_relu(F.linear(...)); the
losses, Adam and the random draws beside what a torch program would call (operator_cells.py); the
convolutions, every pass alone, beside torch's in both memory formats (convolutions.py). A
cell's figure is the median over the turns of the ratio of the two; below 1 fastgan is faster. A
cell counts as slower if three quarters of its turns and the best of all its calls say so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import convolutions
import gpu
import machine
import report
import torch
from operator_cells import SLOPE, gpu_cells, linear_cell, other_cells, race

from fastgan import ops

BATCHES = (1, 4, 16, 64, 256, 1024)
WIDTHS = (64, 256, 1024, 4096)
THREADS = (1, 2)
TURNS, CONV_TURNS = 21, 5


def is_slower(cell: dict) -> bool:
    """Both figures must say so: one alone is decided by what else the machine was doing."""
    return cell["ratio_quartiles"][0] > 1.0 and cell["ratio_of_best"] > 1.0


def grid_table(cells: list[dict], threads: int) -> str:
    """A row for every batch and input width, a column for every output width."""
    mine = {(c["batch"], c["in"], c["out"]): c["ratio"] for c in cells if c["threads"] == threads}
    outs = sorted({out for _, _, out in mine})
    lines = ["| batch | in | " + " | ".join(f"out {out}" for out in outs) + " |"]
    lines.append("|" + "---|" * (len(outs) + 2))
    for batch, features in sorted({key[:2] for key in mine}):
        row = [mine.get((batch, features, out)) for out in outs]
        shown = " | ".join("" if r is None else f"{r:.3f}" for r in row)
        lines.append(f"| {batch} | {features} | {shown} |")
    return "\n".join(lines)


def show(record: dict) -> str:
    facts = record["machine"]
    where = (
        f"{facts['cpu']}, {facts['usable_cores']} cores, instruction set {record['isa']}, core "
        f"round trip {facts['roundtrip_ns']} ns, load {facts['load']}"
    )
    if "gpu" in facts:
        card = facts["gpu"]
        where = f"{card['name']}, copy {card['copy_gbs']} GB/s, {card['matmul_tflops']} TFLOP/s"
    parts = [
        f"{where}, torch {facts['versions']['torch']}, git {facts['git']}",
        f"linear_leaky_relu, forward and backward, {record['dtype']}: time over torch's",
    ]
    cells = record["linear_leaky_relu"]
    for threads in record["threads"]:
        mine = [c for c in cells if c["threads"] == threads]
        worst = max(mine, key=lambda c: c["ratio"])
        ratios = [c["ratio"] for c in mine]
        parts.append(f"{threads} thread{'s' * (threads > 1)}\n\n{grid_table(cells, threads)}")
        parts.append(
            f"geometric mean {statistics.geometric_mean(ratios):.3f}, best {min(ratios):.3f}, "
            f"worst {worst['ratio']:.3f} (batch {worst['batch']}, {worst['in']} to {worst['out']},"
            f" quartiles {worst['ratio_quartiles'][0]:.3f} to {worst['ratio_quartiles'][1]:.3f})"
        )
    lines = ["| operator | threads | ours, us | torch, us | ratio |", "|---|---|---|---|---|"]
    lines += [
        f"| {c['name']} | {c['threads']} | {c['ours_us']} | {c['torch_us']} | {c['ratio']:.3f} |"
        for c in record["others"]
    ]
    parts.append("\n".join(lines))
    slower = record["slower"]
    fine = "No cell of the linear layer's grid is slower than torch, by more than its spread."
    parts.append("Slower than torch: " + "; ".join(slower) if slower else fine)
    return "\n\n".join(parts)


def show_convolutions(record: dict) -> str:
    facts, slower = record["machine"], record["slower"]
    peak = facts.get("peak", {}).get("fp32", {}).get(record["isa"], {}).get("all")
    where = (
        f"{facts['cpu']}, {record['threads']} threads, instruction set {record['isa']}, peak of a "
        f"core {peak} GFLOP/s, load {facts['load']}, torch {facts['versions']['torch']}, "
        f"git {facts['git']}"
    )
    fine = "No pass by the operators is slower than torch, by more than its spread."
    last = "Slower than torch: " + "; ".join(slower) if slower else fine
    return "\n\n".join([where, convolutions.table(record["convolutions"]), last])


def race_convolutions(options: argparse.Namespace, pace: dict) -> int:
    """The record of --conv."""
    threads = max(options.threads)
    torch.set_num_threads(threads)
    record = {
        "topic": "convolutions",
        "machine": machine.facts(threads, native=not options.quick),
        "isa": ops.isa(),
        "libraries": ops.library_status(),
        "threads": threads,
        "convolutions": [],
        "slower": [],
    }
    for shape in convolutions.GRID[::10] if options.quick else convolutions.GRID:
        found = convolutions.cells(shape, pace, is_slower)
        record["convolutions"] += found
        for cell in found:
            if cell["taken"] and is_slower(cell):
                name = f"{convolutions.title(cell)}, {cell['format']}, {cell['way']}"
                record["slower"].append(name)
        _progress(convolutions.title(found[0]))
    record["load_after"] = machine.load()
    return _conclude(record, show_convolutions, options)


def _conclude(record: dict, show, options: argparse.Namespace) -> int:
    _progress("")
    print(json.dumps(record) if options.json else show(record))
    if not options.no_record:
        path = report.save(record, Path(options.out), record["topic"])
        path.with_suffix(".md").write_text(show(record) + "\n")
        print(f"\nrecorded as {path}", file=sys.stderr)
    return 1 if record["slower"] else 0


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    pace = {"turns": 5, "turn_seconds": 1e-3} if options.quick else {}
    turns = options.turns or (CONV_TURNS if options.conv else TURNS)
    pace = {"turns": turns, "turn_seconds": options.turn_seconds, **pace}
    if options.conv:
        return race_convolutions(options, pace)
    dtype = getattr(torch, options.dtype)
    on_gpu = options.device == "cuda"
    facts = machine.facts(max(options.threads), native=not (options.quick or on_gpu))
    if on_gpu:
        try:
            facts["gpu"] = gpu.facts()
        except machine.Missing as reason:
            print(f"SKIPPED: --device cuda: {reason}", file=sys.stderr)
            return 3
        options.threads = options.threads[:1]
    batches, widths = ((1, 64), (64, 256)) if options.quick else (BATCHES, WIDTHS)
    record = {
        "topic": "operators",
        "machine": facts,
        "isa": ops.isa(),
        "libraries": ops.library_status(),
        "dtype": options.dtype,
        "threads": options.threads,
        "negative_slope": SLOPE,
        "linear_leaky_relu": [],
        "others": [],
        "slower": [],
    }
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch in batches:
            for features in widths:
                for out in widths:
                    cell = linear_cell(batch, features, out, dtype, pace, options.device)
                    if is_slower(cell):  # a neighbour's burst must not decide: once more, longer
                        again = {**pace, "turns": 2 * pace["turns"]}
                        cell = linear_cell(batch, features, out, dtype, again, options.device)
                    where = {"batch": batch, "in": features, "out": out, "threads": threads}
                    record["linear_leaky_relu"].append({**where, **cell})
                    if is_slower(cell):
                        record["slower"].append(f"batch {batch}, {features} to {out}, {threads}t")
                    _progress(f"{threads}t batch {batch} {features}->{out}: {cell['ratio']:.3f}")
        others = (
            gpu_cells(pace)
            if on_gpu
            else {name: race(*sides, **pace) for name, sides in other_cells().items()}
        )
        for name, cell in others.items():
            record["others"].append({"name": name, "threads": threads, **cell})
            _progress(f"{threads}t {name}: {cell['ratio']:.3f}")
    record["load_after"] = machine.load()
    return _conclude(record, show, options)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a corner of the grid, short turns")
    parser.add_argument("--conv", action="store_true", help="the convolutions instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=list(THREADS), metavar="N")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32")
    parser.add_argument(
        "--turns", type=int, help=f"turns a cell (default {TURNS}, with --conv {CONV_TURNS})"
    )
    parser.add_argument(
        "--turn-seconds", type=float, default=4e-3, help="length of a turn (default 0.004)"
    )
    parser.add_argument("--no-record", action="store_true", help="leave records/ alone")
    parser.add_argument(
        "--out", default=str(Path(__file__).resolve().parent / "records"), help="record's folder"
    )
    parser.add_argument("--json", action="store_true", help="print the record, not the tables")
    return parser


if __name__ == "__main__":
    sys.exit(main())
