"""data.open: from whatever the user has to Data."""

from __future__ import annotations

import difflib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.densities import DENSITIES

from . import batch, iterables, named, pictures, ranges, rows, table, tensors
from . import pairs as pairs_room
from .budget import default_budget
from .data import Data
from .errors import DataError, whole
from .files import SUFFIXES, ImageFiles
from .items import Items, instead_of, reformed
from .named import NAMES, absolute
from .pairs import Made


def open(
    source: Any = "digits",
    *,
    root: str | os.PathLike | None = None,
    split: str = "train",
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    layout: str | None = None,
    kind: str | None = None,
    pairs: str | Callable[[Tensor], tuple[Any, Any]] | None = None,
    discrete: Sequence[Any] | None = None,
    by_category: bool = False,
    value_range: tuple[float, float] | None = None,
    augmented: bool | None = None,
    skip_damaged: bool = False,
    download: bool = True,
    budget_bytes: int | None = None,
    workers: int | None = None,
) -> Data:
    """Open data for training; a batch is float32 [b, *shape] and the condition of each sample.

    Args:
        source: one of

            - "digits" (5,000 MNIST digits that come with fastgan), "mnist", "fashion-mnist",
              "cifar10". Spelling and case are free ("FashionMNIST"); a folder called like a set is
              reached as "./digits". Their labels are the condition, int64 [b].
            - "ring8", "grid25", "moons", "gaussian": vectors [2] drawn from a density of
              `fastgan.densities`, the same for everybody; the condition is the mode, int64 [b].
            - The path of a folder or a zip archive of images, searched recursively, in sorted
              order; hidden files are skipped, pictures of formats that are not read are counted in
              the log. If each image lies in one of several directories, these are the classes, in
              sorted order, and the condition is the number of the class, int64 [b].
            - The path of a CSV, TSV or Parquet file, or a pandas DataFrame: its rows as vectors of
              numbers, one-hot where a column has categories (`Data.table` has the way back; see
              `fastgan.tabular` for a pair made for them).
            - A tensor or ndarray of N samples, uint8 or floating point. [N, features] are vectors;
              [N, C, H, W] or [N, H, W, C] with C 1 or 3 and [N, H, W] are images, but floats with a
              side of 1, such as [N, 1, length], are signals; all else keeps its shape. A contiguous
              uint8 tensor [N, C, H, W] is shared, not copied.
            - A tuple (samples, condition, ...) or a dict ({"image": ..., "label": ...}) of such.
              The sample of a dict is under "image", "x", "data" or the like, else its first tensor.
            - A torch Dataset (or any sequence but a tuple of tensors) yielding samples, tuples or
              dicts like that; a sample is a tensor, an ndarray or a PIL image. One that augments
              (an item is another at each reading) is read anew in every epoch, its draws seeded by
              (seed, epoch, item), so that runs repeat.
            - What can only be gone through (a WebDataset, a Hugging Face stream, a generator) is
              read once and held in memory; "png", "jpg" and the like are samples of its dicts.
            - A Data, returned as it is.

            A condition keeps its values (bytes are not mapped): numbers and rows of integers become
            int64, floats float32. One is a tensor, several a tuple or dict. What is none (a text)
            is told in the log.
        root: for named sets, the folder with the data in torchvision's layout or its files.
            Default: the environment's FASTGAN_DATA, else ~/.cache/fastgan/data; then ./data.
        split: "train" or "test", for the named sets other than digits, and for densities.
        image_size: side, or (height, width): crop centrally to that aspect ratio and resample with
            antialiasing. Default: as the images are; they must then all have one size.
        channels: 1 (grey) or 3 (RGB). Default: as the images are; RGB where files mix both.
        layout: "NCHW" or "NHWC", for tensors and arrays whose shape does not say where the channels
            are or that have another number of them than 1 or 3. Default: the side of 1 or 3.
        kind: "image", "vector", "signal" or "tensor": what a tensor, an array or a Dataset of these
            holds. Default: by its shape, see above. "tensor" keeps any shape as it is.
        pairs: of pictures of which one is made from the other; the sample is the target and the
            condition its input, float32 in [-1, 1]. "left" or "right": the half of each picture
            that is the input; "A:B": the folders of inputs and of targets in `source`, by file
            names; or a function of a sample: (input, target). Default: samples are single.
        discrete: names of the columns of a table that are categories. Default: all but
            numbers and dates, and numbers with at most 10 different ones.
        by_category: draw a table's rows by the categories of its discrete columns; the
            condition is then which one, float32 [b, their number]; see `fastgan.data.rows.Rows`.
        value_range: what floating-point values span, mapped to [-1, 1]. Default for images: with
            negative values they must lie in [-1, 1] and are kept; without, in [0, 1], which the log
            then says. Default for the other kinds: values are taken as they are. For image files,
            what 16-bit pixels span; default: (0, 2**b - 1) with the least b of 8, 10, 12, 14 and 16
            that holds the largest of them, which the log says if it is not 16.
        augmented: whether a Dataset gives another sample each time an item is read. Default: as up
            to 256 items tell that are read twice or more; what they told is in the log.
        skip_damaged: leave image files out that cannot be decoded, with a count in the log, instead
            of raising. All are decoded once to find them.
        download: whether torchvision may download a named set of which no copy was found.
        budget_bytes: how much memory files or a Dataset may take before they are read batch by
            batch instead. Default: a quarter of the memory that is free.
        workers: processes that read ahead in that case. Default: half the processors for files on
            Linux; none elsewhere, where each needs a script with a main guard; none for a Dataset
            of yours, whose open file handles may not survive in another process.

    Raises:
        DataError: a ValueError; one line with what is wrong, where, and the way out.
    """
    given = {
        "root": None if root is None else str(absolute(root)),
        "split": None if split == "train" else split,
        "image_size": image_size,
        "channels": channels,
        "layout": layout,
        "kind": kind,
        "pairs": pairs_room.check(pairs),
        "discrete": discrete,
        "by_category": by_category or None,
        "value_range": value_range,
        "augmented": augmented,
        "skip_damaged": skip_damaged or None,
    }
    form = pictures.Form.of(image_size, channels)
    span = ranges.check_range(value_range)
    tensors.one_of(layout, "layout", tensors.LAYOUTS)
    tensors.one_of(kind, "kind", tensors.KINDS)
    _check_words(split, augmented, skip_damaged)
    if workers is not None:
        workers = whole(workers, "workers", 0, ", or None for the default")
    if budget_bytes is not None:
        budget_bytes = _check_budget(budget_bytes)

    if callable(pairs):
        rest = {key: value for key, value in given.items() if value is not None and key != "pairs"}
        inner = open(source, budget_bytes=budget_bytes, workers=workers, download=download, **rest)
        return _made_pairs(inner, pairs, augmented, workers, budget_bytes)
    if isinstance(source, Data):
        if any(value is not None for value in given.values()):
            raise DataError(
                "these Data are already open; pass image_size and the like where they were opened"
            )
        return source
    name = known_name(source) if isinstance(source, str) else None
    _refuse(source, given, _takes(source, name))
    plain = _plain(given, form, span)
    if name in DENSITIES:
        samples, modes, origin = named.draw(name, split)
        return Data(
            name,
            origin,
            samples=samples,
            condition=modes,
            classes=DENSITIES[name].modes,
            source=name,
            options=plain,
        )
    if name is not None:
        ranges.check_bytes_range(span, name)
        found = named.read(name, root, split, download)
        images = tensors.arrange(found.images, name, "image", None)[0]
        return Data(
            name,
            found.origin,
            samples=pictures.reform(images, form, name),
            condition=found.labels,
            classes=None if found.labels is None else named.classes_of(name),
            source=name,
            options=plain if download else {**plain, "download": False},
        )
    if table.is_table(source):
        return _from_table(source, discrete, by_category, plain)
    if isinstance(source, (str, os.PathLike)):
        path = _existing(source)
        if pairs is None:
            files = ImageFiles(path, form, span, skip_damaged)
        else:
            files = pairs_room.of_files(path, pairs, form, span, skip_damaged)
        opened = Data(
            path.resolve().stem if path.is_file() else path.resolve().name,
            f"{len(files)} image files in {path}, {files.division}",
            dataset=files,
            classes=files.classes,
            workers=workers,
            source=str(path),
            options=plain,
        )
        return opened.placed(opened.device, budget_bytes)
    if _is_tensors(source):
        return _from_tensors(source, form, span, kind, layout)
    _check_sequence(source)
    if iterables.is_iterable(source):
        budget = default_budget(torch.device("cpu")) if budget_bytes is None else budget_bytes
        source, augmented = iterables.gathered(source, budget), False
    items = Items(source, form, span, kind, layout, augmented)
    opened = Data(
        items.name,
        f"a data set of type {items.name}, {items.conclusion}",
        dataset=items,
        classes=items.classes if items.no_condition is not None else None,
        kind=items.kind,
        workers=workers,
    )
    return opened.placed(opened.device, budget_bytes)


def _made_pairs(
    inner: Data, function: Any, augmented: bool | None, workers: Any, budget_bytes: int | None
) -> Data:
    floats = (-1.0, 1.0) if inner.kind == "image" else None
    bytes_ = inner.dtype == torch.uint8
    made = Items(
        Made(inner, function), pictures.Form(), None if bytes_ else floats, augmented=augmented
    )
    opened = Data(
        f"{inner.name}-pairs",
        f"{inner.origin}; pairs by a function, {made.conclusion}",
        dataset=made,
        kind=made.kind,
        workers=workers,
    )
    return opened.placed(opened.device, budget_bytes)


def _from_table(
    source: Any, discrete: Sequence[Any] | None, by_category: bool, plain: dict[str, Any]
) -> Data:
    path = absolute(source) if isinstance(source, (str, os.PathLike)) else None
    frame = table.read(source if path is None else path)
    learned = table.Table.learned(frame, discrete)
    kinds = Counter(type(column).__name__.lower() for column in learned.columns)
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    packed = learned.packed(frame)
    return (rows.Rows if by_category else Data)(
        "table" if path is None else path.stem,
        f"{len(frame)} rows of {'a DataFrame' if path is None else path}, columns: {shown}",
        samples=packed if by_category else learned.unpacked(packed),
        kind="vector",
        source=None if path is None else str(path),
        options=plain,
        table=learned,
    )


def _check_words(split: Any, augmented: Any, skip_damaged: Any) -> None:
    if split not in ("train", "test"):
        raise DataError(f"split={split!r}: expected 'train' or 'test'")
    if augmented not in (None, True, False):
        raise DataError(f"augmented={augmented!r}: expected True, False or None (find out)")
    if skip_damaged not in (True, False):
        raise DataError(f"skip_damaged={skip_damaged!r}: expected True or False")


def _check_budget(budget_bytes: Any) -> int:
    # 2e9 is how one writes it
    if isinstance(budget_bytes, (float, np.floating)) and float(budget_bytes).is_integer():
        budget_bytes = int(budget_bytes)
    return whole(budget_bytes, "budget_bytes", 0, ", or None for the default")


def _plain(given: dict[str, Any], form: pictures.Form, span: Any) -> dict[str, Any]:
    """The arguments that were given, in values that a file can hold."""
    plain = {key: value for key, value in given.items() if value is not None}
    if form.size is not None:
        plain["image_size"] = list(form.size) if form.size[0] != form.size[1] else form.size[0]
    if form.channels is not None:
        plain["channels"] = form.channels
    if span is not None:
        plain["value_range"] = list(span)
    if "discrete" in plain:
        plain["discrete"] = list(plain["discrete"])
    return plain


def _is_tensors(source: Any) -> bool:
    """Whether this holds all samples at once: a tensor, or a tuple or dict that has one."""
    if isinstance(source, tuple):
        return len(source) > 0 and tensors.is_array(source[0])
    return tensors.is_array(source) or isinstance(source, Mapping)


def _from_tensors(
    source: Any, form: pictures.Form, span: Any, kind: str | None, layout: str | None
) -> Data:
    what, value, parts = "array", source, []
    if isinstance(source, Mapping):
        key = batch.sample_key(source, "source", tensors.is_array)
        batch.tell_key("source", key)
        value, parts = source[key], [(str(k), v) for k, v in source.items() if k != key]
        what = f"array {key!r}"
    elif isinstance(source, tuple):
        value, parts = source[0], list(enumerate(source))[1:]
    if isinstance(value, Tensor):
        what = what.replace("array", "tensor")
    samples, kind = tensors.arrange(tensors.as_tensor(value, what), what, kind, layout)
    taken, left = batch.flatten(parts)
    for path, part in taken.items():
        if part.ndim == 0 or len(part) != len(samples):
            raise DataError(
                f"source: {len(samples)} samples, but {'.'.join(map(str, path))!r} has shape "
                f"{tuple(part.shape)}; a condition has one entry a sample (a list of samples, "
                "not a tuple, is read one by one)"
            )
    batch.tell_left(f"a {what}", left)
    if samples.dtype == torch.uint8:
        ranges.check_bytes_range(span, what)
    else:
        if span is None and kind == "image":
            span = ranges.guess_range(*ranges.extremes(samples, what), what)
        samples = ranges.as_floats(samples, span, what)
    samples = reformed(samples, kind, form, what)
    condition = batch.nest({p: batch.settle(t, 2).to(samples.device) for p, t in taken.items()})
    return Data(
        "tensor" if isinstance(value, Tensor) else "array",
        f"a {what} of {len(samples)} samples, given by the caller, taken for {kind}s of shape "
        f"{tuple(samples.shape[1:])}",
        samples=samples,
        condition=condition,
        kind=kind,
    )


def _check_sequence(source: Any) -> None:
    if isinstance(source, torch.utils.data.DataLoader):
        raise DataError(instead_of(source))
    if isinstance(source, type):
        raise DataError(
            f"source: the class {source.__name__} itself; pass one of its objects, such as "
            f"{source.__name__}(...)"
        )
    if hasattr(source, "to_numpy"):
        raise DataError(
            f"source: a {type(source).__name__}; pass its numbers as an array, source.to_numpy() "
            "or that of some columns, or (samples, labels) as two of these"
        )
    if isinstance(source, bytes):
        raise DataError("source: got bytes; pass the samples as a tensor or an array")
    if not hasattr(source, "__getitem__") and not iterables.is_iterable(source):
        raise DataError(
            f"source: {type(source).__name__} cannot be read by number; pass a map-style Dataset "
            f"(with __len__ and __getitem__), a tensor, a path, or one of {', '.join(NAMES)}"
        )


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def known_name(source: str) -> str | None:
    """The one of NAMES that a text means, however it is spelt; None if it means a path."""
    if os.sep in source:
        return None
    return next((name for name in NAMES if _key(name) == _key(source)), None)


_PICTURES = ("image_size", "channels", "value_range")
_OF_DENSITIES = ("split",)
_NO_TABLE = "is no table; leave it out, or pass a CSV or Parquet file or a DataFrame"
_VECTORS = "is of vectors, and not of images; leave it out, or the model or preset that brings it"


def _takes(source: Any, name: str | None) -> tuple[str, ...]:
    """The options that mean something for a source."""
    if name in DENSITIES:
        return _OF_DENSITIES
    if name is not None:
        return (*_PICTURES, *(() if name == "digits" else ("root", "split")))
    if table.is_table(source):
        return ("discrete", "by_category")
    if isinstance(source, (str, os.PathLike)):
        return (*_PICTURES, "skip_damaged", "pairs")
    if _is_tensors(source):
        return (*_PICTURES, "layout", "kind")
    return (*_PICTURES, "layout", "kind", "augmented")


_MEANING = {
    "root": f"is not looked up in a root; leave it out, or use one of {', '.join(NAMES)}",
    "split": "has no such division; leave it out, or open the part you want",
    "pairs": "is no folder or zip of image files; leave it out, or pass a function of a sample",
    **dict.fromkeys(("discrete", "by_category"), _NO_TABLE),
    **dict.fromkeys(_PICTURES, _VECTORS),
    "layout": "is known to be of images; leave it out",
    "kind": "is known to be of images; leave it out",
    "augmented": "is the same at each reading; leave it out, or pass a Dataset that augments",
    "skip_damaged": "is no folder of image files; leave it out",
}


def _refuse(source: Any, given: dict[str, Any], takes: tuple[str, ...]) -> None:
    """Options that mean nothing for this source are an error: ignoring them would mislead."""
    what = repr(source) if isinstance(source, (str, os.PathLike)) else f"a {type(source).__name__}"
    vectors = takes == _OF_DENSITIES
    harmless = {"kind": "vector" if vectors else "image", "augmented": False}
    meaning = _MEANING | dict.fromkeys(("layout", "kind"), _VECTORS) if vectors else _MEANING
    for option, value in given.items():
        if value is not None and option not in takes and value != harmless.get(option):
            raise DataError(f"{option}={value!r}: {what} {meaning[option]}")


def _existing(source: str | os.PathLike) -> Path:
    if not str(source):
        raise DataError(
            f"source: an empty text; pass a path ('.' is this folder) or one of {', '.join(NAMES)}"
        )
    try:
        path = absolute(source)
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        # too long, a home of nobody, a zero byte: the three that each say so
        raise DataError(
            f"source: {str(source)[:80]!r} cannot be a path ({error}); check it"
        ) from error
    if is_folder:
        return path
    if is_file:
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
            f"{', '.join(NAMES)}"
        )
    close = difflib.get_close_matches(_key(text), [_key(name) for name in NAMES], n=2, cutoff=0.5)
    near = [name for name in NAMES if _key(name) in close]
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise DataError(
        f"{text!r}: no data set of this name and no such path; {hint}valid names: "
        f"{', '.join(NAMES)}"
    )
