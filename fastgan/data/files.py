"""Folders and zip archives of image files, decoded one image at a time."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import pictures, ranges
from .errors import DataError
from .items import spread
from .pictures import Form, from_pil, header_shape

log = logging.getLogger("fastgan")

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
    ".pbm",
)
# Pictures that are left out: not every Pillow reads them, or not as pixels of 8 bits
_OTHERS = re.compile(
    r"\.(apng|arw|avif|cr2|dcm|dds|dib|dng|eps|exr|hdr|heic|heif|ico|j2k|jp2|jpe|jpx|jxl|nef|npy|pcx"
    r"|pfm|pnm|psd|sgi|svg|tga|xpm)"
)
# Pillow's own list is longer, and some of its readers start other programs (EPS)
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")
# Files that are looked at in opening to learn how many bits their pixels use
_PROBED = 1024
# 8 bits of a 16-bit channel that uses no more than its lower 12
_DARK = 16


def _is_shown(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


class _Folder:
    """The files under a folder that are not hidden, by their relative paths."""

    def __init__(self, path: Path):
        self.path = path
        self.names: list[str] = []
        seen: dict[str, str] = {}
        for folder, inner, files in os.walk(path, followlinks=True, onerror=self._stop):
            # links are followed, as data sets are often assembled from them; loops must not hang
            real = os.path.realpath(folder)
            if real in seen:
                inner.clear()
                if not Path(folder).is_relative_to(seen[real]):
                    log.warning(
                        f"{folder}: is {seen[real]} by a link, which is read already; left out"
                    )
                continue
            seen[real] = folder
            names = ((Path(folder) / file).relative_to(path).as_posix() for file in files)
            self.names += filter(_is_shown, names)

    @staticmethod
    def _stop(error: OSError) -> None:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); check the path and its rights"
        )

    def where(self, name: str) -> str:
        return str(self.path / name)

    def open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")


class _Zip:
    """The files in a zip archive that are not hidden, by their names."""

    def __init__(self, path: Path):
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0
        try:
            names = self._opened().namelist()
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{path}: not a zip archive, or a damaged one ({error}); fetch it again, or "
                "unpack it and pass the folder"
            ) from error
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror or error}); check the path and its rights"
            ) from error
        self.names = [name for name in names if _is_shown(name) and not name.endswith("/")]

    def _opened(self) -> zipfile.ZipFile:
        # a forked worker shares the file position of its parent's handle, so each has its own
        if self._archive is None or self._owner != os.getpid():
            self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}

    def where(self, name: str) -> str:
        return f"{self.path}: {name}"

    def open(self, name: str) -> BinaryIO:
        return self._opened().open(name)


class ImageFiles(Dataset):
    """A folder or zip as a Dataset of (uint8 [C, H, W], label), all of one shape.

    The headers of all files are read at once, so that mixed sizes are found before training and not
    in the middle of it; the pixels are decoded on access. With channels None the set is RGB if any
    file has colour, else grey. Where each image lies in one of several directories, these are the
    classes, in sorted order, and label is the number of its class (int64 []); else it is None.
    """

    # decoding is pure, so worker processes are safe and no random state needs care
    random = False
    fork_safe = True
    dtype = torch.uint8
    kind = "image"

    def __init__(
        self,
        path: Path,
        form: Form,
        value_range: tuple[float, float] | None = None,
        skip_damaged: bool = False,
    ):
        """List the files and read their headers; the arguments are those of data.open."""
        self._path = path
        self._store = _Zip(path) if path.is_file() else _Folder(path)
        self._names = sorted(n for n in self._store.names if n.lower().endswith(SUFFIXES))
        self._tell_skipped()
        if not self._names:
            raise DataError(
                f"{path}: holds no images ({', '.join(SUFFIXES)}; hidden files are skipped); "
                "check the path, or convert the images to one of these"
            )
        self._skips = skip_damaged
        span = self._scan(form, value_range)
        self._form = Form(form.size, self.shape[0], span)
        if skip_damaged:
            self._keep(self._sound(self._names, self._decoded))
        self.classes, self._labels = _classes(self._names)
        self.no_condition = None if self._labels is None else self._labels[:0]
        folders = {PurePosixPath(name).parent for name in self._names}
        # for the origin: what the directories were taken for
        self.division = "of no classes"
        if self.classes is not None:
            shown = ", ".join(self.classes[:3]) + (", ..." if len(self.classes) > 3 else "")
            self.division = f"of {len(self.classes)} classes by directory ({shown})"
        elif len(folders) > 1:
            self.division = "of no classes, as not each lies in one of several directories"

    def _tell_skipped(self) -> None:
        suffixes = (PurePosixPath(n).suffix.lower() for n in self._store.names)
        skipped = Counter(s for s in suffixes if _OTHERS.fullmatch(s))
        if skipped:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(skipped.items()))
            log.warning(
                f"{self._path}: {sum(skipped.values())} files are left out, as their format is not "
                f"read here ({kinds}); convert them to PNG or JPEG to have them"
            )

    def _keep(self, kept: list[str]) -> None:
        """Go on with the sound files only, and say how many are not."""
        lost = len(self._names) - len(kept)
        if lost:
            log.warning(
                f"{self._path}: {lost} of {len(self._names)} images are damaged and left out "
                f"(skip_damaged); the first: {self._first_damage}"
            )
        if not kept:
            raise DataError(f"{self._path}: all of its images are damaged: {self._first_damage}")
        self._names = kept

    def _sound(self, names: Iterable[str], read: Callable[[str], Any]) -> list[str]:
        """Read files; the names of the sound ones, where damaged ones are to be skipped."""
        self._first_damage, sound = "", []
        for name in names:
            try:
                read(name)
            except DataError as error:
                if not self._skips:
                    raise
                self._first_damage = self._first_damage or str(error)
            else:
                sound.append(name)
        return sound

    def _scan(
        self, form: Form, value_range: tuple[float, float] | None
    ) -> tuple[float, float] | None:
        """Settle the shape from the headers; what pixels of more than 8 bits span."""
        first_of: dict[tuple[int, int, int], str] = {}
        deep: list[str] = []
        colour: list[str] = []

        def look(name: str) -> None:
            with self._image(name) as image:
                if pictures.is_deep(image):
                    deep.append(name)
                elif pictures.loses_low_bytes(image):
                    colour.append(name)
                first_of.setdefault(header_shape(image), name)

        if self._skips:
            looked = self._sound(self._names, look)
            self._keep(looked)
        else:
            # with the form known, a million headers need not be read
            known = form.size is not None and form.channels is not None
            chosen = spread(len(self._names), _PROBED if known else len(self._names))
            looked = self._sound((self._names[i] for i in chosen), look)
        first = next(iter(first_of))
        odd = next((shape for shape in first_of if shape[1:] != first[1:]), None)
        if form.size is None and odd is not None:
            sizes = [f"{self._store.where(first_of[s])} is {s[1]}x{s[2]}" for s in (first, odd)]
            raise DataError(
                f"images of mixed size (height x width): {', '.join(sizes)}; "
                "pass image_size=... to bring all to one size"
            )
        channels = form.channels or max(shape[0] for shape in first_of)
        self.shape = (channels, *(form.size or first[1:]))
        self._tell_dark(colour)
        if value_range is None:
            return self._span_of(deep)
        if len(deep) < len(looked):
            ranges.check_bytes_range(value_range, str(self._path))
        return value_range

    def _span_of(self, deep: list[str]) -> tuple[float, float] | None:
        """What files of 16 bits a pixel span, by the largest value in them; None without any."""
        most = [0]

        def measure(name: str) -> None:
            with self._image(name) as image:
                if image.mode.startswith("I;16"):
                    most.append(int(np.asarray(image).max()))

        self._sound((deep[i] for i in spread(len(deep), _PROBED)), measure)
        if len(most) == 1:
            return None
        span = pictures.span_of_bits(max(most))
        pictures.tell_depth(str(self._path), span)
        return span

    def _tell_dark(self, colour: list[str]) -> None:
        """Say that files of colour with 16 bits a channel are nearly black, if they are."""
        most = [0]

        def measure(name: str) -> None:
            with self._image(name) as image:
                most.extend(high for _, high in image.convert("RGB").getextrema())

        self._sound((colour[i] for i in spread(len(colour), _PROBED)), measure)
        if 0 < max(most) < _DARK:
            log.warning(
                f"{self._path}: colour images of 16 bits a channel that use the lower 12 at most; "
                "of these only the upper 8 are read, so they are nearly black: convert them to 8 "
                "bits"
            )

    @contextmanager
    def _image(self, name: str) -> Iterator[Any]:
        from PIL import Image

        try:
            with self._store.open(name) as file, Image.open(file, formats=_FORMATS) as image:
                yield image
        except DataError as error:
            raise DataError(f"{self._store.where(name)}: {error}") from error
        except Exception as error:
            # decoders raise OSError, SyntaxError, ValueError, zlib.error, struct.error, ... on
            # damaged files
            why = (
                "not recognised as an image"
                if "cannot identify" in str(error)
                else str(error) or repr(error)
            )
            raise DataError(
                f"{self._store.where(name)}: cannot be decoded ({why}); replace the file or "
                "remove it, or pass skip_damaged=True"
            ) from error

    @property
    def names(self) -> list[str]:
        """The files' paths in the folder or archive."""
        return self._names

    def __len__(self) -> int:
        """Number of image files."""
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Decode one image: uint8 [C, H, W]; and its label."""
        label = None if self._labels is None else self._labels[index]
        return self._decoded(self._names[index]), label

    def _decoded(self, name: str) -> Tensor:
        with self._image(name) as image:
            pixels = from_pil(image, self._form)
            if tuple(pixels.shape) != self.shape:
                raise DataError(
                    f"decodes to {tuple(pixels.shape)}, its header promised {self.shape}"
                )
        return pixels


def _classes(names: list[str]) -> tuple[tuple[str, ...] | None, Tensor | None]:
    """The directories that the images lie in by classes, and int64 [N], the number of each's."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    # an archive often holds one folder, which holds the classes
    shared = len(os.path.commonprefix(folders))
    if any(len(parts) == shared for parts in folders):
        return None, None
    own = [parts[shared] for parts in folders]
    classes = sorted(set(own))
    numbers = {name: i for i, name in enumerate(classes)}
    return tuple(classes), torch.tensor(
        [numbers[name] for name in own], dtype=torch.int64, device="cpu"
    )
