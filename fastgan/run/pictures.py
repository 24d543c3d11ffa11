"""Pictures of a run: a grid of images, points of a plane, a plot of the statistics."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastgan.run import files

# Of the plot: pixels and colours.
_WIDTH, _HEIGHT = 880, 495
_LEFT, _TOP, _BOTTOM, _MARGIN = 70, 32, 44, 16
_SIDE = 640
_PALE = (221, 221, 221)
_GREY = (170, 170, 170)
_SURFACE = ((158, 190, 222), (255, 255, 255), (250, 200, 150))
"""Of probabilities 0, 1/2 and 1, with the mixtures between."""
_CELLS = 96
_COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75),
    (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207),
)  # fmt: skip

SAMPLES, LOSSES = "samples.png", "loss.png"
MOVING = (".gif", ".mp4")
"""What `animate` writes."""
SERIES = "samples"
"""The folder of one picture a save, named after its step."""
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
    picture = sheet(images, columns)
    files.write(path, lambda file: picture.save(file, format="PNG"))


def sheet(images: Tensor, columns: int | None = None, scale: int | None = None) -> Image.Image:
    """Images side by side as one picture.

    Args:
        images: see `grid`.
        columns: see `grid`.
        scale: by how much they are enlarged. Default: see `grid`.

    Raises:
        ValueError: see `grid`.
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
    scale, gap = scale or max(1, 64 // max(height, width)), 2
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    height, width = height * scale + gap, width * scale + gap
    whole = torch.zeros(
        channels, rows * height + gap, columns * width + gap, dtype=torch.uint8, device="cpu"
    )
    for i, tile in enumerate(pixels):
        top, left = i // columns * height + gap, i % columns * width + gap
        whole[:, top : top + height - gap, left : left + width - gap] = tile
    array = whole[0].numpy() if channels == 1 else whole.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array)


def scatter(samples: Tensor, path: str | os.PathLike, real: Tensor | None = None) -> None:
    """Write `plane` as a PNG."""
    picture = plane(samples, real)
    files.write(path, lambda file: picture.save(file, format="PNG"))


def plane(
    samples: Tensor,
    real: Tensor | None = None,
    surface: Callable[[Tensor], Tensor] | None = None,
) -> Image.Image:
    """Points of a plane as a picture, over those of the data.

    The axes are those of the data, so that pictures along a run can be compared: what the data span
    and a fifth of that on either side, as far on both axes. A sample beyond them is drawn on the
    border.

    Args:
        samples: float [n, 2].
        real: float [m, 2], drawn in grey underneath. Default: the axes are those of the samples.
        surface: points float32 [k, 2] to probabilities [k], which colour the ground: orange near 1,
            white at 1/2, blue near 0. Default: the ground is white.

    Raises:
        ValueError: these are no points of a plane.
    """
    for what, points in (("samples", samples), ("real", real)):
        if points is not None and (points.dim() != 2 or points.shape[1] != 2 or not len(points)):
            raise ValueError(f"{what} is {list(points.shape)}; expected points [n, 2], at least 1")
    samples = samples.detach().double().cpu()
    real = None if real is None else real.detach().double().cpu()
    spanned = samples[samples.isfinite().all(1)] if real is None else real
    low, high = (spanned.amin(0), spanned.amax(0)) if len(spanned) else (spanned.new_zeros(2),) * 2
    middle, reach = (low + high) / 2, float((high - low).max()) / 2 * 1.4 or 1.0
    begin, end = _MARGIN + _LEFT - 20, _SIDE - _MARGIN
    axes = [
        Axis((float(at) - reach, float(at) + reach), *ends, ticks=8)
        for at, ends in zip(middle, ((begin, end), (_SIDE - _BOTTOM, _MARGIN)), strict=True)
    ]
    x, y = axes
    picture = Image.new("RGB", (2 * _SIDE, 2 * _SIDE), "white")
    if surface is not None:
        size = [round(2 * abs(axis.last - axis.first)) for axis in axes]
        ground = _ground(surface, x, y).resize(size, Image.Resampling.BICUBIC)
        picture.paste(ground, (round(2 * x.first), round(2 * y.last)))
    draw = ImageDraw.Draw(picture)
    for tick in x.ticks:
        at = 2 * x.place(tick)
        draw.line([(at, 2 * y.last), (at, 2 * y.first)], _PALE, 2)
    for tick in y.ticks:
        at = 2 * y.place(tick)
        draw.line([(2 * x.first, at), (2 * x.last, at)], _PALE, 2)
    for points, colour in ((real, _GREY), (samples, _COLOURS[0])):
        for point in [] if points is None else points.tolist():
            if all(map(math.isfinite, point)):
                at = [2 * axis.inside(value) for axis, value in zip(axes, point, strict=True)]
                draw.circle(at, 3, colour)
    picture = picture.reduce(2)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    for tick in x.ticks:
        draw.text((x.place(tick), y.first + 6), f"{tick:.10g}", "black", font, "ma")
    for tick in y.ticks:
        draw.text((x.first - 6, y.place(tick)), f"{tick:.10g}", "black", font, "rm")
    return picture


def _ground(surface: Callable[[Tensor], Tensor], x: "Axis", y: "Axis") -> Image.Image:
    """A surface in its colours, a pixel each of some cells between the ends of the axes."""
    across, up = (
        axis.low + (torch.arange(_CELLS, device="cpu") + 0.5) / _CELLS * (axis.high - axis.low)
        for axis in (x, y)
    )
    points = torch.cartesian_prod(up.flip(0), across).flip(1)
    at = surface(points.float()).detach().double().cpu().view(_CELLS, _CELLS, 1).clamp(0, 1)
    low, middle, high = (
        torch.tensor(colour, dtype=torch.float64, device="cpu") for colour in _SURFACE
    )
    low, high = torch.lerp(low, middle, 2 * at), torch.lerp(middle, high, 2 * at - 1)
    return Image.fromarray(torch.where(at < 0.5, low, high).round().to(torch.uint8).numpy())


def palette() -> Image.Image:
    """A picture with the colours of planes and plots, to quantise them by.

    One that is found by counting pixels leaves out what thin lines have.
    """
    low, white, high = _SURFACE
    ways = ((low, white), (white, high), ((0, 0, 0), white), *((c, white) for c in _COLOURS[:2]))
    steps = 50
    mixed = [
        round(x + (y - x) * i / (steps - 1)) for a, b in ways for i in range(steps)
        for x, y in zip(a, b, strict=True)
    ]  # fmt: skip
    picture = Image.new("P", (1, 1))
    picture.putpalette(mixed)
    return picture


def animate(frames: Sequence[Image.Image], path: str | os.PathLike, seconds: float = 0.06) -> None:
    """Write pictures of one size, each seen for so many seconds.

    Args:
        frames: the pictures.
        path: ends in .gif, for one without end, or in .mp4, for a video (H.264), which is written
            by imageio.
        seconds: of each.

    Raises:
        ValueError: the path ends otherwise, or imageio is not here.
    """
    kind = Path(path).suffix.lower()
    if kind not in MOVING:
        raise ValueError(f"{path} ends in {kind!r}; expected {' or '.join(MOVING)}")
    if kind == ".mp4":
        video = _video(frames, seconds)
        files.write(path, lambda file: file.write(video))
        return
    first, *others = frames
    options = {"append_images": others, "duration": round(1000 * seconds), "loop": 0}
    files.write(path, lambda file: first.save(file, format="GIF", save_all=True, **options))


def _video(frames: Sequence[Image.Image], seconds: float) -> bytes:
    try:
        import imageio.v3
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"videos are written by imageio, which is not here ({error}): pip install "
            "'fastgan[video]', or give a path that ends in .gif"
        ) from error
    # The format wants even sides.
    width, height = (side + side % 2 for side in frames[0].size)
    pictures = []
    for frame in frames:
        even = Image.new("RGB", (width, height))
        even.paste(frame, (0, 0))
        pictures.append(np.asarray(even))
    return imageio.v3.imwrite(
        "<bytes>", pictures, extension=".mp4", fps=1 / seconds, macro_block_size=2
    )


def loss_plot(
    history: Sequence[dict],
    path: str | os.PathLike,
    curves: Mapping[str, str] = LOSS_CURVES,
    title: str = "loss, mean since the last log line",
) -> None:
    """Write `plot` as a PNG, with the name of its directory."""
    name = Path(path).resolve().parent.name
    name = name if len(name) < 40 else f"{name[:37]}..."
    picture = plot(history, curves, title, name)
    files.write(path, lambda file: picture.save(file, format="PNG"))


def plot(
    history: Sequence[dict],
    curves: Mapping[str, str],
    title: str,
    name: str = "",
    *,
    until: int | None = None,
    width: int = _WIDTH,
) -> Image.Image:
    """A picture of statistics over the steps.

    Args:
        history: log lines, dicts with "step" and for each curve ``<name>_mean``, else ``<name>``; a
            line that has neither, or no finite number there, is left out of that curve.
        curves: what to draw, and what the legend calls it.
        title: what the numbers are.
        name: whose they are.
        until: draw up to this step only, on the axes of all. Default: all.
        width: of the picture, in pixels.

    Raises:
        ValueError: there are more curves than colours (10).
    """
    if len(curves) > len(_COLOURS):
        raise ValueError(f"curves holds {len(curves)}; expected at most {len(_COLOURS)}")
    # Drawn here, because importing matplotlib and plotting with it take longer than a short run.
    found = {label: numbers(history, name) for name, label in curves.items()}
    colours = dict(zip(found, _COLOURS, strict=False))
    steps = [line["step"] for line in history]
    heights = [value for points in found.values() for _, value in points]
    x = Axis(steps, _LEFT, width - _MARGIN, ticks=width // 88)
    y = Axis(heights, _HEIGHT - _BOTTOM, _TOP, ticks=7, room=0.04)
    # Lines at twice the size, so that shrinking smooths them; text is smooth by itself.
    picture = Image.new("RGB", (2 * width, 2 * _HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for tick in x.ticks:
        at = 2 * x.place(tick)
        draw.line([(at, 2 * _TOP), (at, 2 * (_HEIGHT - _BOTTOM))], _PALE, 2)
    for tick in y.ticks:
        at = 2 * y.place(tick)
        draw.line([(2 * _LEFT, at), (2 * (width - _MARGIN), at)], _PALE, 2)
    for label, points in found.items():
        seen = points if until is None else [p for p in points if p[0] <= until]
        points = [(2 * x.place(step), 2 * y.place(value)) for step, value in seen]
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
    draw.text((width / 2, _HEIGHT - 10), "step", "black", font, "ms")
    draw.text((_MARGIN, 14), title, "black", font, "lm")
    draw.text((width / 2, 14), name, "black", font, "mm")
    right = width - _MARGIN
    for label, colour in reversed(colours.items()):
        draw.text((right, 14), label, "black", font, "rm")
        right -= round(font.getlength(label)) + 6
        draw.line([(right - 20, 14), (right, 14)], colour, 3)
        right -= 40
    return picture


def numbers(history: Sequence[dict], name: str) -> list[tuple[int, float]]:
    """(step, number) of the log lines that have the number, its mean since the line before if told.

    What is not finite is left out.
    """
    points = ((line["step"], line.get(f"{name}_mean", line.get(name))) for line in history)
    return [(s, v) for s, v in points if isinstance(v, (int, float)) and math.isfinite(v)]


class Axis:
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

    def inside(self, number: float) -> float:
        """The pixel of a number, or that of the nearer end."""
        return self.place(min(max(number, self.low), self.high))
