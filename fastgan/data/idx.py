"""Reader of IDX files, the format of MNIST and its kin; plain or gzipped."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from .errors import DataError

_UBYTE = 8
# deflate cannot shrink by more than about 1032 to 1, so a header that claims more than this is
# wrong; without the check a damaged header would ask for the memory it claims
_MOST_DEFLATE = 1100
_KINDS = {3: "images", 1: "labels"}


def read_images(path: Path) -> Tensor:
    """The images of an IDX file of unsigned bytes in three dimensions, as uint8 [N, H, W].

    The header, the length, and for gzip the checksum are verified. Raises DataError, naming the
    file.
    """
    return _read(path, 3)


def read_labels(path: Path) -> Tensor:
    """The labels of an IDX file of unsigned bytes in one dimension, int64 [N]; verified alike."""
    return _read(path, 1).to(torch.int64)


def _read(path: Path, rank: int) -> Tensor:
    length = 4 + 4 * rank
    try:
        zipped = _is_gzip(path)
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            shape = _header(path, file.read(length), rank)
            size, stored = math.prod(shape), os.path.getsize(path)
            promised = f"the header promises {_counted(shape)}"
            if size > (stored * _MOST_DEFLATE if zipped else stored - length):
                raise _wrong_length(path, promised, "is too short")
            # one byte more than promised: it tells a file that is too long, and reading to the end
            # is what makes gzip compare its checksum
            content = file.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: damaged or cut short ({error}); delete it and fetch it again, or copy it "
            "from another place"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its rights"
        ) from error
    if len(content) != size:
        what = "is longer" if len(content) > size else f"ends after {len(content)} of {size} bytes"
        raise _wrong_length(path, promised, what)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)


def _is_gzip(path: Path) -> bool:
    # by content: browsers and mirrors unpack or rename these files freely
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _counted(shape: tuple[int, ...]) -> str:
    sides = "x".join(map(str, shape[1:]))
    return f"{shape[0]} {_KINDS[len(shape)]}" + (f" of {sides}" if sides else "")


def _header(path: Path, head: bytes, rank: int) -> tuple[int, ...]:
    wanted = _KINDS[rank]
    if len(head) < 4 + 4 * rank:
        raise DataError(
            f"{path}: only {len(head)} bytes, too short for an IDX file of {wanted}; fetch it again"
        )
    zero, kind, found = struct.unpack(">HBB", head[:4])
    if (zero, kind) == (0, _UBYTE) and found != rank and found in _KINDS:
        raise DataError(
            f"{path}: holds {_KINDS[found]} (IDX rank {found}), not {wanted}; point at the "
            f"...-{wanted}-idx{rank}-ubyte file"
        )
    if (zero, kind, found) != (0, _UBYTE, rank):
        raise DataError(
            f"{path}: not an IDX file of {wanted}: it starts with {head[:4].hex()}, expected "
            f"{bytes((0, 0, _UBYTE, rank)).hex()}; fetch it again"
        )
    shape = struct.unpack(f">{rank}I", head[4:])
    if 0 in shape:
        raise DataError(f"{path}: holds no {wanted} ({_counted(shape)}); fetch it again")
    return shape


def _wrong_length(path: Path, promised: str, found: str) -> DataError:
    return DataError(f"{path}: {promised}, but the file {found}; delete it and fetch it again")
