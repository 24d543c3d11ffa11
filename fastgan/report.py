"""Pictures of a run: a grid of images, a plot of the losses."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fastgan import checkpoint


def grid(images: Tensor, path: str | os.PathLike, columns: int | None = None) -> None:
    """Write images side by side as a PNG.

    Args:
        images: float [n, C, H, W] in [-1, 1]; grey if C is 1, RGB if 3, else the first channel.
        path: the file.
        columns: images in a row. Default: as near to a square as can be.

    Images under 64 pixels are enlarged by a whole factor, so that they can be looked at.
    """
    if images.dim() != 4 or not len(images):
        raise ValueError(f"images is {list(images.shape)}; expected [n, C, H, W] with n at least 1")
    if columns is not None and columns < 1:
        raise ValueError(f"columns is {columns}; expected at least 1")
    images = images.detach().float().cpu()
    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    n, channels, height, width = images.shape
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = -(-n // columns)
    scale, gap = max(1, 64 // max(height, width)), 2
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    height, width = height * scale + gap, width * scale + gap
    sheet = torch.zeros(channels, rows * height + gap, columns * width + gap, dtype=torch.uint8)
    for i, tile in enumerate(pixels):
        top, left = i // columns * height + gap, i % columns * width + gap
        sheet[:, top : top + height - gap, left : left + width - gap] = tile
    array = sheet[0].numpy() if channels == 1 else sheet.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array)
    checkpoint.write(path, lambda file: picture.save(file, format="PNG"))


def loss_plot(history: Sequence[dict], path: str | os.PathLike) -> None:
    """Write a PNG with both losses over the steps.

    Args:
        history: log lines, dicts with "step", "d_loss_mean" and "g_loss_mean".
        path: the file.
    """
    # Costs half a second, and only the plot needs it; Agg draws without a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [line["step"] for line in history]
    marker = "o" if len(steps) < 3 else None
    for name, label in (("d_loss_mean", "discriminator"), ("g_loss_mean", "generator")):
        values = [line[name] for line in history]
        axes.plot(steps, values, label=label, linewidth=1.2, marker=marker)
    axes.set(xlabel="step", ylabel="loss, mean since the last log line")
    axes.set_title(Path(path).resolve().parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    checkpoint.write(path, lambda file: figure.savefig(file, format="png"))
