"""Folders and zip archives of image files, decoded one image at a time."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .convert import Form, from_pil, header_shape
from .errors import DataError

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
# Pillow's own list is longer, and some of its readers start other programs (EPS)
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and name.lower().endswith(SUFFIXES)


class _Folder:
    """The image files under a folder, in sorted order of their relative paths."""

    def __init__(self, path: Path):
        self.path = path
        names, seen = [], set()
        for folder, inner, files in os.walk(path, followlinks=True, onerror=self._stop):
            # links are followed, as data sets are often assembled from them; loops must not hang
            real = os.path.realpath(folder)
            if real in seen:
                inner.clear()
                continue
            seen.add(real)
            names += [(Path(folder) / file).relative_to(path).as_posix() for file in files]
        self.names = sorted(filter(_is_image, names))

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
    """The image files in a zip archive, in sorted order of their names."""

    def __init__(self, path: Path):
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0
        try:
            self.names = sorted(filter(_is_image, self._opened().namelist()))
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{path}: not a zip archive, or a damaged one ({error}); fetch it again, or "
                "unpack it and pass the folder"
            ) from error
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror or error}); check the path and its rights"
            ) from error

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
    """A folder or zip as a Dataset of uint8 [C, H, W], all of one shape.

    The headers of all files are read at once, so that mixed sizes are found before training and not
    in the middle of it; the pixels are decoded on access. With channels None the set is RGB if any
    file has colour, else grey.
    """

    # decoding is pure, so worker processes are safe and no random state needs care
    random = False
    fork_safe = True
    dtype = torch.uint8

    def __init__(self, path: Path, form: Form):
        """List the files and read their headers."""
        self._store = _Zip(path) if path.is_file() else _Folder(path)
        self._names = self._store.names
        if not self._names:
            raise DataError(
                f"{path}: holds no images ({', '.join(SUFFIXES)}; hidden files are skipped); "
                "check the path, or convert the images to one of these"
            )
        self.shape = (form.channels, *(form.size or ()))
        if form.size is None or form.channels is None:
            self.shape = self._scan(form)
        self._form = Form(form.size, self.shape[0])

    def _scan(self, form: Form) -> tuple[int, int, int]:
        channels, first = 1, None
        for name in self._names:
            with self._image(name) as image:
                shape = header_shape(image)
            channels = max(channels, shape[0])
            first = first or (name, shape[1:])
            if form.size is None and shape[1:] != first[1]:
                sizes = [
                    f"{self._store.where(n)} is {h}x{w}" for n, (h, w) in (first, (name, shape[1:]))
                ]
                raise DataError(
                    f"images of mixed size (height x width): {', '.join(sizes)}; "
                    "pass image_size=... to bring all to one size"
                )
        return (form.channels or channels, *(form.size or first[1]))

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
                "remove it"
            ) from error

    def __len__(self) -> int:
        """Number of image files."""
        return len(self._names)

    def __getitem__(self, index: int) -> Tensor:
        """Decode one image: uint8 [C, H, W]."""
        with self._image(self._names[index]) as image:
            pixels = from_pil(image, self._form)
            if tuple(pixels.shape) != self.shape:
                raise DataError(
                    f"decodes to {tuple(pixels.shape)}, its header promised {self.shape}"
                )
        return pixels
