"""data.open: from whatever the user has to Images."""

from __future__ import annotations

import difflib
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import convert, named
from .errors import DataError
from .files import SUFFIXES, ImageFiles
from .images import Images
from .items import Items

NAMES = ("digits", *named.NAMED)


def open(
    source: Any = "digits",
    *,
    root: str | os.PathLike | None = None,
    split: str = "train",
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    value_range: tuple[float, float] | None = None,
    download: bool = True,
    budget_bytes: int | None = None,
    workers: int | None = None,
) -> Images:
    """Open images for training; batches come out as float32 [b, C, H, W] in [-1, 1].

    source: one of
        "digits" (5,000 MNIST digits that come with fastgan), "mnist", "fashion-mnist", "cifar10".
            Spelling and case are free ("FashionMNIST"); a folder called like a set is reached as
            "./digits".
        The path of a folder or a zip archive of images, searched recursively, in sorted order;
            hidden files and other kinds of files are skipped.
        A torch Dataset (or any sequence) yielding an image or (image, label, ...), each a tensor,
            an ndarray or a PIL image. One that augments (reading an item twice differs) is read
            anew in every epoch, its draws seeded by (seed, epoch, item), so that runs repeat.
        A tensor or ndarray, uint8 or floating point: [N, H, W], [N, C, H, W] or [N, H, W, C] with
            C 1 or 3. A contiguous uint8 tensor [N, C, H, W] is shared, not copied.
        An Images, returned as it is.
    root: for named sets, the folder with the data in torchvision's layout or with its files
        directly in it. Default: the environment's FASTGAN_DATA, else ~/.cache/fastgan/data; then
        ./data.
    split: "train" or "test", for the named sets other than digits.
    image_size: side, or (height, width): crop centrally to that aspect ratio and resample with
        antialiasing. Default: as the images are; they must then all have one size.
    channels: 1 (grey) or 3 (RGB). Default: as the images are; RGB where files mix both.
    value_range: what floating-point values span, mapped to [-1, 1]. Default: with negative values
        they must lie in [-1, 1] and are kept; without, in [0, 1], which the log then says.
    download: whether torchvision may download a named set of which no copy was found.
    budget_bytes: how much memory files or a Dataset may take before they are read batch by batch
        instead. Default: a quarter of the memory that is free.
    workers: processes that read ahead in that case. Default: half the processors for files, none
        for a Dataset of yours, whose open file handles may not survive in another process.

    Raises DataError (a ValueError): one line with what is wrong, where, and the way out.
    """
    given = {
        "root": root,
        "image_size": image_size,
        "channels": channels,
        "value_range": value_range,
    }
    form = convert.Form.of(image_size, channels)
    span = convert.check_range(value_range)
    if split not in ("train", "test"):
        raise DataError(f"split={split!r}: expected 'train' or 'test'")
    if workers is not None and (
        isinstance(workers, bool) or not isinstance(workers, int) or workers < 0
    ):
        raise DataError(
            f"workers={workers!r}: expected an integer of at least 0, or None for the default"
        )

    if isinstance(source, Images):
        if any(value is not None for value in given.values()) or split != "train":
            raise DataError(
                "these Images are already open; pass image_size and the like where they were opened"
            )
        return source
    name = _known_name(source) if isinstance(source, str) else None
    if name is None or name == "digits":
        _refuse(source, root, split)
    if name is not None:
        convert.check_bytes_range(span, name)
        images, origin = (
            named.read_digits() if name == "digits" else _read_named(name, root, split, download)
        )
        images = convert.reform(convert.as_nchw(images, name), form, name)
        return Images(name, origin, pixels=images)
    if isinstance(source, (str, os.PathLike)):
        path = _existing(source)
        convert.check_bytes_range(span, str(path))
        files = ImageFiles(path, form)
        label = path.resolve().stem if path.is_file() else path.resolve().name
        images = Images(
            label, f"{len(files)} image files in {path}", dataset=files, workers=workers
        )
        return images.placed(images.device, budget_bytes)
    if isinstance(source, (Tensor, np.ndarray)):
        return _from_array(source, form, span)
    if isinstance(source, torch.utils.data.IterableDataset) or not hasattr(source, "__getitem__"):
        raise DataError(
            f"source: {type(source).__name__} cannot be read by number; pass a map-style Dataset "
            f"(with __len__ and __getitem__), a tensor, a path, or one of {_names()}"
        )
    if isinstance(source, (dict, bytes)):
        raise DataError(
            f"source: got {type(source).__name__}; pass its images as a tensor or a Dataset"
        )
    items = Items(source, form, span)
    images = Images(items.name, f"a data set of type {items.name}", dataset=items, workers=workers)
    return images.placed(images.device, budget_bytes)


def _from_array(source: Any, form: convert.Form, span: tuple[float, float] | None) -> Images:
    kind = "tensor" if isinstance(source, Tensor) else "array"
    images = convert.as_nchw(convert.as_tensor(source, kind), kind)
    if images.dtype == torch.uint8:
        convert.check_bytes_range(span, kind)
    else:
        images = convert.to_signed(images, span or convert.guess_range(images, kind), kind)
    images = convert.reform(images, form, kind)
    return Images(kind, f"a {kind} of {len(images)} images given by the caller", pixels=images)


def _read_named(name: str, root: Any, split: str, download: bool) -> tuple[Tensor, str]:
    return named.read(named.NAMED[name], root, split, download)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _known_name(source: str) -> str | None:
    if os.sep in source:
        return None
    return next((name for name in NAMES if _key(name) == _key(source)), None)


def _names() -> str:
    return ", ".join(NAMES)


def _refuse(source: Any, root: Any, split: str) -> None:
    """Options that mean nothing for this source are an error: ignoring them would mislead."""
    what = repr(source) if isinstance(source, (str, os.PathLike)) else f"a {type(source).__name__}"
    if root is not None:
        raise DataError(
            f"root={str(root)!r}: {what} is not looked up in a root; leave it out, or use one of "
            f"{_names()}"
        )
    if split != "train":
        raise DataError(
            f"split={split!r}: {what} has no such division; leave it out, or open the part you want"
        )


def _existing(source: str | os.PathLike) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            raise DataError(f"{path}: a single image; pass the folder that holds the images")
        if path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
            raise DataError(
                f"{path}: neither a folder nor a zip archive of images; unpack it and pass the "
                "folder"
            )
        return path
    text = str(source)
    if os.sep in text or path.suffix:
        raise DataError(
            f"{path}: no such file or folder; check the path (from {Path.cwd()}), or use one of "
            f"{_names()}"
        )
    close = difflib.get_close_matches(_key(text), [_key(name) for name in NAMES], n=2, cutoff=0.5)
    near = [name for name in NAMES if _key(name) in close]
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise DataError(
        f"{text!r}: no data set of this name and no such path; {hint}valid names: {_names()}"
    )
