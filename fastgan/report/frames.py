"""Pictures inside a page: as text, and as many of a series as there is room for."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image, features

MOST = 60
"""Pictures of a series at most: more are no better to look at."""
_SIDE = 1200
_Item = TypeVar("_Item")


class Frame(NamedTuple):
    """One picture of a series.

    Attributes:
        at: its step, or its place in the series.
        uri: the picture as a data: URI.
        size: width and height in pixels.
    """

    at: int
    uri: str
    size: tuple[int, int]


def embed(
    series: Sequence[tuple[int, Image.Image | Path]], room: int, most: int = MOST
) -> tuple[list[Frame], list[str]]:
    """Pictures as frames of a page.

    They are kept to the pixel if there is room; else they are compressed with losses, and if that
    is not enough, a spread of them is taken.

    Args:
        series: what each is called by, and the picture or its file.
        room: bytes of text that all may take together.
        most: how many at most.

    Returns:
        the frames, and the names of files that cannot be read.
    """
    found, unread = [], []
    for at, picture in spread(series, most):
        try:
            found.append((at, *_opened(picture)))
        except (OSError, ValueError, Image.DecompressionBombError):
            unread.append(Path(picture).name)
    frames = [_frame(at, image, exact or _saved(image, "png")) for at, image, exact in found]
    if _length(frames) > room:
        frames = _lossy(found, room)
    while len(frames) > 1 and (length := _length(frames)) > room:
        frames = spread(frames, max(1, min(len(frames) - 1, int(len(frames) * room / length))))
    return frames, unread


def spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most so many, evenly, the first and the last among them; the last alone of one."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _opened(picture: Image.Image | Path) -> tuple[Image.Image, bytes | None]:
    """A picture, and its file where that can stand in the page as it is."""
    if isinstance(picture, Image.Image):
        return picture, None
    content = picture.read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        opened.load()
        image = opened.convert("L" if opened.mode in ("1", "L") else "RGB")
        fits = opened.format == "PNG" and max(image.size) <= _SIDE
    image.thumbnail((_SIDE, _SIDE))
    return image, content if fits else None


def _lossy(found: Sequence[tuple[int, Image.Image, bytes | None]], room: int) -> list[Frame]:
    kind = "webp" if features.check("webp") else "jpeg"

    def made(some: Sequence[tuple[int, Image.Image, bytes | None]]) -> list[Frame]:
        return [_frame(at, image, _saved(image, kind), kind) for at, image, _ in some]

    # Some tell how many there is room for, so that few are compressed in vain.
    tried = made(spread(found, 3))
    return made(spread(found, max(1, room * len(tried) // _length(tried))))


def _saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **({} if kind == "png" else {"quality": 80}))
    return file.getvalue()


def _frame(at: int, image: Image.Image, content: bytes, kind: str = "png") -> Frame:
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Frame(at, uri, image.size)


def _length(frames: Sequence[Frame]) -> int:
    return sum(len(frame.uri) for frame in frames)
