"""Pictures of a run: a grid of images, a plot of the statistics."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastgan.run import files

# Of the plot: pixels and colours.
_WIDTH, _HEIGHT = 880, 495
_LEFT, _TOP, _BOTTOM, _MARGIN = 70, 32, 44, 16
_PALE = (221, 221, 221)
_COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75),
    (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207),
)  # fmt: skip

SAMPLES, LOSSES, ALONG = "samples.png", "loss.png", "samples"
LOSS_CURVES = {"d_loss": "discriminator", "g_loss": "generator"}
"""What `loss_plot` draws: the statistics and what the legend calls them."""


def drawable(shape: Sequence[int]) -> bool:
    """Whether samples of a shape (without the batch) are images: [1, H, W] or [3, H, W]."""
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape) > 0


def grid(images: Tensor, path: str | os.PathLike, columns: int | None = None) -> None:
    """Write images side by side as a PNG.

    Args:
        images: float [n, C, H, W] in [-1, 1]; grey if C is 1, RGB if 3.
        path: the file.
        columns: images in a row. Default: as near to a square as can be.

    Images under 64 pixels are enlarged by a whole factor, so that they can be looked at.

    Raises:
        ValueError: these are no images that can be drawn (see `drawable`).
    """
    if not drawable(images.shape[1:]) or not len(images):
        raise ValueError(
            f"images is {list(images.shape)}; expected [n, 1, H, W] (grey) or [n, 3, H, W] (RGB) "
            "with n at least 1: other samples are not drawn"
        )
    if columns is not None and columns < 1:
        raise ValueError(f"columns is {columns}; expected at least 1")
    images = images.detach().float().cpu()
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
    files.write(path, lambda file: picture.save(file, format="PNG"))


def loss_plot(
    history: Sequence[dict],
    path: str | os.PathLike,
    curves: Mapping[str, str] = LOSS_CURVES,
    title: str = "loss, mean since the last log line",
) -> None:
    """Write a PNG with statistics over the steps.

    Args:
        history: log lines, dicts with "step" and for each curve ``<name>_mean``, else ``<name>``; a
            line that has neither, or no finite number there, is left out of that curve.
        path: the file.
        curves: what to draw, and what the legend calls it. Default: both losses.
        title: what the numbers are.

    Raises:
        ValueError: there are more curves than colours (10).
    """
    if len(curves) > len(_COLOURS):
        raise ValueError(f"curves holds {len(curves)}; expected at most {len(_COLOURS)}")
    # Drawn here, because importing matplotlib and plotting with it take longer than a short run.
    found = {label: _points(history, name) for name, label in curves.items()}
    colours = dict(zip(found, _COLOURS, strict=False))
    steps = [line["step"] for line in history]
    heights = [value for points in found.values() for _, value in points]
    x = _Axis(steps, _LEFT, _WIDTH - _MARGIN, ticks=10)
    y = _Axis(heights, _HEIGHT - _BOTTOM, _TOP, ticks=7, room=0.04)
    # Lines at twice the size, so that shrinking smooths them; text is smooth by itself.
    picture = Image.new("RGB", (2 * _WIDTH, 2 * _HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for tick in x.ticks:
        at = 2 * x.place(tick)
        draw.line([(at, 2 * _TOP), (at, 2 * (_HEIGHT - _BOTTOM))], _PALE, 2)
    for tick in y.ticks:
        at = 2 * y.place(tick)
        draw.line([(2 * _LEFT, at), (2 * (_WIDTH - _MARGIN), at)], _PALE, 2)
    for label, points in found.items():
        points = [(2 * x.place(step), 2 * y.place(value)) for step, value in points]
        draw.line(points, colours[label], 4, joint="curve")
        if len(points) < 3:
            for point in points:
                draw.circle(point, 8, colours[label])
    picture = picture.reduce(2)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    for tick in x.ticks:
        draw.text((x.place(tick), _HEIGHT - _BOTTOM + 6), f"{tick:.10g}", "black", font, "ma")
    for tick in y.ticks:
        draw.text((_LEFT - 6, y.place(tick)), f"{tick:.10g}", "black", font, "rm")
    draw.text((_WIDTH / 2, _HEIGHT - 10), "step", "black", font, "ms")
    draw.text((_MARGIN, 14), title, "black", font, "lm")
    name = Path(path).resolve().parent.name
    draw.text((_WIDTH / 2, 14), name if len(name) < 40 else f"{name[:37]}...", "black", font, "mm")
    right = _WIDTH - _MARGIN
    for label, colour in reversed(colours.items()):
        draw.text((right, 14), label, "black", font, "rm")
        right -= round(font.getlength(label)) + 6
        draw.line([(right - 20, 14), (right, 14)], colour, 3)
        right -= 40
    files.write(path, lambda file: picture.save(file, format="PNG"))


def _points(history: Sequence[dict], name: str) -> list[tuple[int, float]]:
    points = ((line["step"], line.get(f"{name}_mean", line.get(name))) for line in history)
    return [(s, v) for s, v in points if isinstance(v, (int, float)) and math.isfinite(v)]


class _Axis:
    """Where numbers lie between two pixels, and the round ones among them."""

    def __init__(
        self, numbers: Sequence[float], first: float, last: float, *, ticks: int, room: float = 0.0
    ):
        """Over the range of the numbers and a part of it, `room`, on either side.

        The ticks are as many as asked for, or fewer down to half of that.
        """
        low, high = min(numbers, default=0.0), max(numbers, default=1.0)
        if low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        room *= high - low
        self.low, self.high, self.first, self.last = low - room, high + room, first, last
        least = (self.high - self.low) / ticks
        power = 10.0 ** math.floor(math.log10(least))
        width = next(m * power for m in (1, 2, 5, 10) if m * power >= least)
        whole = range(math.ceil(self.low / width), math.floor(self.high / width) + 1)
        self.ticks = [i * width for i in whole]

    def place(self, number: float) -> float:
        """The pixel of a number."""
        along = (number - self.low) / (self.high - self.low)
        return self.first + along * (self.last - self.first)
