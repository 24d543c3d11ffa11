"""Reader of CIFAR-10's pickled batches that cannot be made to run code."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

CLASSES = 10


class _Dtype:
    """Stands for numpy.dtype: remembers its name and takes no state."""

    def __init__(self, name, *_):
        self.name = name.decode("ascii") if isinstance(name, bytes) else name

    def __setstate__(self, state):
        pass


class _Array:
    """Stands for numpy.ndarray: keeps what the pickle says of it, for read_batch to judge."""

    def __init__(self, *_):
        self.state = None

    def __setstate__(self, state):
        self.state = state


def _encode(text, encoding):
    # how Python 3 writes bytes in the old pickle protocols
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("unexpected text encoding")
    return text.encode("latin1")


# Everything a CIFAR batch may name, each answered by a stand-in of ours, so that not even numpy is
# called
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which no CIFAR-10 batch does"
            ) from None


def read_batch(path: Path) -> tuple[Tensor, Tensor | None]:
    """One batch file (data_batch_1 ... test_batch): uint8 [N, 3, 32, 32] and the labels, int64 [N].

    The labels are None where the file has none. The file is a pickle; it is read without calling
    anything that it names. Raises DataError, naming the file.
    """
    again = "delete the folder and fetch CIFAR-10 again"
    try:
        with path.open("rb") as file:
            batch = _Reader(file, encoding="bytes").load()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its rights"
        ) from error
    except Exception as error:
        # a damaged pickle can raise nearly anything from the unpickler
        raise DataError(f"{path}: damaged or not a CIFAR-10 batch ({error}); {again}") from error
    array = batch.get(b"data", batch.get("data")) if isinstance(batch, dict) else None
    state = getattr(array, "state", None)
    if not isinstance(array, _Array) or not isinstance(state, tuple) or len(state) != 5:
        raise DataError(f"{path}: not a CIFAR-10 batch (it has no array named data); {again}")
    _, shape, dtype, fortran, pixels = state
    count = len(pixels) // 3072 if isinstance(pixels, bytes) else 0
    name = dtype.name if isinstance(dtype, _Dtype) else None
    if (
        name != "u1"
        or fortran
        or count == 0
        or shape != (count, 3072)
        or len(pixels) != count * 3072
    ):
        raise DataError(
            f"{path}: its array is {shape} of {name}, expected (N, 3072) of u1; {again}"
        )
    images = torch.from_numpy(np.frombuffer(bytearray(pixels), dtype=np.uint8))
    return images.view(count, 3, 32, 32), _labels(path, batch, count, again)


def _labels(path: Path, batch: dict, count: int, again: str) -> Tensor | None:
    labels = batch.get(b"labels", batch.get("labels"))
    if labels is None:
        return None
    sound = isinstance(labels, list) and len(labels) == count
    if not sound or not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise DataError(
            f"{path}: its labels are not {count} integers from 0 to {CLASSES - 1}; {again}"
        )
    return torch.tensor(labels, dtype=torch.int64, device="cpu")
