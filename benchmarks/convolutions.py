"""What `benchmarks/operators.py --conv` times: every convolution of a grid against torch's own.

A cell is one pass of one layer, forward, backward to the data or backward to the weights, in one
memory format, beside torch's convolution in the same format; results that torch gives NCHW are
brought into it. The operator is timed on every cell, those too that fastgan.ops.conv2d leaves to
torch. Slower counts only where the operator is taken.
"""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F
from operator_cells import race

from fastgan.ops import conv, reference

WAYS = ("forward", "data", "weight")
FORMATS = {"channels last": torch.channels_last, "NCHW": torch.contiguous_format}

GRID = (
    # kernel, batch, channels in, channels out, rows and columns of the output
    # DCGAN 64x64
    *((4, 64, *layer) for layer in ((3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4))),
    *((4, 16, *layer) for layer in ((3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4))),
    *((4, 4, *layer) for layer in ((3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4))),
    # DCGAN 32x32, of widths 32 and 64
    *((4, 64, *layer) for layer in ((3, 32, 16), (32, 64, 8), (64, 128, 4))),
    *((4, 16, *layer) for layer in ((3, 32, 16), (32, 64, 8), (64, 128, 4))),
    *((4, 64, *layer) for layer in ((3, 64, 16), (64, 128, 8), (128, 256, 4))),
    # 28x28, and what is odd
    *((4, 64, *layer) for layer in ((1, 64, 14), (64, 128, 7), (16, 32, 16), (48, 96, 5))),
    # SN-ResNet 32x32
    *((3, 64, *layer) for layer in ((3, 64, 32), (64, 64, 16), (64, 64, 8), (64, 3, 32))),
    *((3, 16, *layer) for layer in ((3, 64, 32), (64, 64, 32), (64, 64, 16), (64, 64, 8))),
    *((3, 16, *layer) for layer in ((3, 128, 32), (128, 128, 16), (128, 128, 8), (128, 3, 32))),
    *((3, 4, *layer) for layer in ((64, 64, 32), (128, 128, 16), (256, 256, 8), (64, 3, 32))),
    # Deeper ones, and what is odd
    *((3, 16, *layer) for layer in ((256, 256, 8), (256, 512, 4), (512, 512, 4), (32, 32, 32))),
    *((3, 64, *layer) for layer in ((1, 64, 14), (64, 64, 7), (16, 32, 16), (48, 96, 5))),
    # 1x1
    *((1, 64, *layer) for layer in ((3, 64, 16), (64, 64, 16), (64, 128, 8), (128, 256, 4))),
    *((1, 16, *layer) for layer in ((3, 128, 16), (64, 64, 16), (128, 128, 8), (256, 512, 8))),
    *((1, 4, *layer) for layer in ((64, 128, 16), (128, 256, 8), (512, 512, 8), (64, 3, 32))),
)


def cells(shape: tuple[int, ...], pace: dict, slower) -> list[dict]:
    """All passes of a layer in both formats; `slower` says of a cell whether to time it again."""
    kernel, batch, inside, outside, size = shape
    stride, padding = reference.CONV_PLACES[kernel]
    torch.manual_seed(0)
    made = (
        torch.randn(batch, inside, size * stride, size * stride),
        torch.randn(outside, inside, kernel, kernel) * 0.02,
        torch.randn(batch, outside, size, size),
    )
    flop = 2 * batch * inside * outside * size**2 * kernel**2
    found = []
    for name, format in FORMATS.items():
        x, weight, grad = (t.to(memory_format=format) for t in made)
        last = format is torch.channels_last

        def backward(*mask, x=x, weight=weight, grad=grad):
            places = None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1
            return torch.ops.aten.convolution_backward(grad, x, weight, *places, [*mask, False])

        def ours(operator, *arguments, format=format):
            return lambda: operator(*arguments).contiguous(memory_format=format)

        own = torch.ops.fastgan
        sides = {
            "forward": (
                ours(own.conv2d_leaky_relu, x, weight, None, 1.0),
                lambda x=x, weight=weight: F.conv2d(x, weight, None, stride, padding),
            ),
            "data": (
                ours(own.conv_transpose2d_leaky_relu, grad, weight, None, 1.0),
                lambda backward=backward: backward(True, False),
            ),
            "weight": (
                ours(own.conv2d_grad_weight, x, grad, kernel, last),
                lambda backward=backward: backward(False, True),
            ),
        }
        for way, (mine, theirs) in sides.items():
            where = {"shape": list(shape), "format": name, "way": way}
            taken = conv.is_faster(way, kernel, batch, inside, outside, size, size, last)
            cell = race(mine, theirs, **pace)
            if taken and slower(cell):
                cell = race(mine, theirs, **{**pace, "turns": 3 * pace["turns"]})
            found.append({**where, "taken": taken, "gflop": flop / 1e9, **cell})
    return found


def title(cell: dict) -> str:
    kernel, batch, inside, outside, size = cell["shape"]
    return f"{kernel}x{kernel} {inside} to {outside} at {size}, batch {batch}"


def table(found: list[dict]) -> str:
    """A row for every layer and format: GFLOP/s, ours and torch's, by their best calls."""
    lines = ["| layer | format | " + " | ".join(WAYS) + " |", "|---|---|---|---|---|"]
    by_row: dict[tuple[str, str], dict[str, str]] = {}
    for cell in found:
        mine, theirs = (cell["gflop"] * 1e6 / cell[f"{side}_best_us"] for side in ("ours", "torch"))
        mark = "" if cell["taken"] else " (torch)"
        row = by_row.setdefault((title(cell), cell["format"]), {})
        row[cell["way"]] = f"{mine:.0f} / {theirs:.0f}{mark}"
    lines += [
        f"| {layer} | {format} | " + " | ".join(row[way] for way in WAYS) + " |"
        for (layer, format), row in by_row.items()
    ]
    parts = ["GFLOP/s of the plain sum, ours / torch's; (torch): left to torch", "\n".join(lines)]
    for name in FORMATS:
        taken = [c["ratio_of_best"] for c in found if c["taken"] and c["format"] == name]
        if taken:
            parts.append(
                f"{name}: {len(taken)} passes by the operators, time over torch's: geometric mean "
                f"{statistics.geometric_mean(taken):.3f}, worst {max(taken):.3f}"
            )
    return "\n\n".join(parts)
