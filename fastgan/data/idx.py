"""Reader of IDX image files, the format of MNIST and its kin; plain or gzipped."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from .errors import DataError

_UBYTE = 8
_HEADER = 16
# deflate cannot shrink by more than about 1032 to 1, so a header that claims more than this is
# wrong; without the check a damaged header would ask for the memory it claims
_MOST_DEFLATE = 1100


def read_images(path: Path) -> Tensor:
    """The images of an IDX file of unsigned bytes in three dimensions, as uint8 [N, H, W].

    The header, the length, and for gzip the checksum are verified. Raises DataError, naming the
    file.
    """
    try:
        zipped = _is_gzip(path)
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            count, height, width = _header(path, file.read(_HEADER))
            size = count * height * width
            stored = os.path.getsize(path)
            if size > (stored * _MOST_DEFLATE if zipped else stored - _HEADER):
                raise _wrong_length(
                    path, f"the header promises {count} images of {height}x{width}", "is too short"
                )
            # one byte more than promised: it tells a file that is too long, and reading to the end
            # is what makes gzip compare its checksum
            pixels = file.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: damaged or cut short ({error}); delete it and fetch it again, or copy it "
            "from another place"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its rights"
        ) from error
    if len(pixels) != size:
        what = "is longer" if len(pixels) > size else f"ends after {len(pixels)} of {size} bytes"
        raise _wrong_length(path, f"the header promises {count} images of {height}x{width}", what)
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(count, height, width)


def _is_gzip(path: Path) -> bool:
    # by content: browsers and mirrors unpack or rename these files freely
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _header(path: Path, head: bytes) -> tuple[int, int, int]:
    if len(head) < _HEADER:
        raise DataError(
            f"{path}: only {len(head)} bytes, too short for an IDX image file; fetch it again"
        )
    zero, kind, rank, count, height, width = struct.unpack(">HBB3I", head)
    if zero == 0 and kind == _UBYTE and rank == 1:
        raise DataError(
            f"{path}: holds labels (IDX rank 1), not images; point at the ...-images-idx3-ubyte "
            "file"
        )
    if (zero, kind, rank) != (0, _UBYTE, 3):
        raise DataError(
            f"{path}: not an IDX file of images: it starts with {head[:4].hex()}, expected "
            "00000803; fetch it again"
        )
    if 0 in (count, height, width):
        raise DataError(f"{path}: holds no images ({count} of {height}x{width}); fetch it again")
    return count, height, width


def _wrong_length(path: Path, promised: str, found: str) -> DataError:
    return DataError(f"{path}: {promised}, but the file {found}; delete it and fetch it again")
