"""Tensors and arrays of any layout, and what kind of sample their shapes make."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

KINDS = ("image", "vector", "signal", "tensor")
LAYOUTS = ("NCHW", "NHWC")
_CHANNELS = (1, 3)
# Dimensions of a tensor of samples, with that of their number, for the kinds that say so
_RANKS = {"vector": (2,), "signal": (3,), "image": (3, 4)}
_SHAPES = {
    "vector": "[N, features]",
    "signal": "[N, channels, length]",
    "image": "[N, C, H, W], [N, H, W, C] or [N, H, W]",
}


def one_of(value: Any, name: str, allowed: tuple[str, ...]) -> str | None:
    """A word of `allowed`, or None; DataError with the nearest word else."""
    if value is None or value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"{name}={value!r}: expected {', '.join(map(repr, allowed))} or None (as it looks){hint}"
    )


def kind_of(shape: tuple[int, ...]) -> str:
    """The kind of samples of this shape, where nothing else says it."""
    if len(shape) == 3:
        return "image" if shape[0] in _CHANNELS else "tensor"
    return {1: "vector", 2: "signal"}.get(len(shape), "tensor")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.generic)) and not isinstance(value, bool)


def is_array(value: Any) -> bool:
    """Whether this is a tensor or a numpy array."""
    return isinstance(value, (Tensor, np.ndarray))


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor or ndarray as a tensor of uint8 or a floating type, sharing memory if possible."""
    if isinstance(value, np.ndarray):
        if np.ma.is_masked(value):
            raise DataError(f"{what}: holds masked values; fill them first, as by x.filled(0)")
        try:
            # torch refuses negative strides and foreign byte orders, and warns of read-only memory
            plain = value.dtype.isnative and min(value.strides, default=0) >= 0
            if plain and not value.flags.writeable and _is_mapped(value):
                value = _of_a_file(value)
            elif not (plain and value.flags.writeable):
                value = value.astype(value.dtype.newbyteorder("="))
            value = value if isinstance(value, Tensor) else torch.from_numpy(value)
        except TypeError:
            raise DataError(
                f"{what}: dtype {value.dtype}; expected uint8, or floats with value_range=(lo, hi)"
            ) from None
    if not isinstance(value, Tensor):
        raise DataError(
            f"{what}: got {type(value).__name__}; expected a tensor, a numpy array or a PIL image"
            f"{'; pass rows of numbers as torch.tensor(rows)' if _is_number(value) else ''}"
        )
    if value.layout != torch.strided or value.is_nested or value.is_meta:
        raise DataError(
            f"{what}: a sparse, nested or meta tensor; expected a dense one with values, such as "
            "x.to_dense()"
        )
    if value.dtype != torch.uint8 and not value.is_floating_point():
        raise DataError(
            f"{what}: dtype {str(value.dtype).removeprefix('torch.')}; expected uint8 (0..255), "
            "or floats with value_range=(lo, hi); convert with .to(torch.uint8) if all lie in "
            "0..255, else with .float()"
        )
    return value.detach()


def _is_mapped(array: Any) -> bool:
    """Whether an array's memory is a file, of which a copy may be larger than the memory is."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def _of_a_file(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # Nothing here writes to samples.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def arrange(
    samples: Tensor, what: str, kind: str | None, layout: str | None, one: bool = False
) -> tuple[Tensor, str]:
    """Samples [N, ...] as contiguous [N, *shape], and their kind; images get channels first.

    kind, layout: as data.open takes them. one: the message is about the only sample, without N.
    """
    shape = tuple(samples.shape[1:] if one else samples.shape)
    if 0 in shape:
        raise DataError(f"{what}: shape {shape} holds no samples; pass at least one")
    if samples.ndim < 2:
        raise DataError(
            f"{what}: shape {shape} is one number a sample; a sample has at least one dimension: "
            f"reshape to {'[1]' if one else '[N, 1]'}"
        )
    if kind in _RANKS and samples.ndim not in _RANKS[kind]:
        expected = _SHAPES[kind].replace("[N, ", "[") if one else _SHAPES[kind]
        raise DataError(f"{what}: shape {shape} with kind={kind!r}; expected {expected}")
    if layout is not None:
        if samples.ndim != 4 or kind not in (None, "image"):
            raise DataError(
                f"{what}: layout={layout!r} is of images [N, C, H, W] or [N, H, W, C], these are "
                f"{f'of kind {kind!r}' if kind not in (None, 'image') else f'of shape {shape}'}; "
                "leave it out"
            )
        return _channels_first(samples, layout)
    if kind not in (None, "image"):
        return samples.contiguous(), kind
    if samples.ndim == 3 and (kind == "image" or _looks_grey(samples)):
        return samples[:, None].contiguous(), "image"
    if samples.ndim == 4:
        layout = _layout_of(samples, what, shape, kind)
        if layout is not None:
            return _channels_first(samples, layout)
    return samples.contiguous(), "tensor" if samples.ndim == 4 else kind_of(samples.shape[1:])


def _looks_grey(samples: Tensor) -> bool:
    # floats with one side of 1 are rows of a table or a signal; no image is as thin
    return samples.dtype == torch.uint8 or min(samples.shape[1:]) > 1


def _channels_first(samples: Tensor, layout: str) -> tuple[Tensor, str]:
    samples = samples if layout == "NCHW" else samples.permute(0, 3, 1, 2)
    return samples.contiguous(), kind_of(samples.shape[1:])


def _layout_of(samples: Tensor, what: str, shape: tuple[int, ...], kind: str | None) -> str | None:
    """The layout of a tensor with four dimensions by its channels; None: these are no images."""
    first, last = samples.shape[1] in _CHANNELS, samples.shape[3] in _CHANNELS
    if first != last:
        return "NCHW" if first else "NHWC"
    if samples.shape[1:] == (1, 1, 1):
        return "NCHW"
    if first:
        raise DataError(
            f"{what}: shape {shape}, either side could be the channels; say which with "
            "layout='NCHW' (channels first) or layout='NHWC' (channels last)"
        )
    if kind is None and samples.dtype != torch.uint8:
        return None
    raise DataError(
        f"{what}: shape {shape}, no side of 1 or 3 channels; say where they are with "
        "layout='NCHW' or layout='NHWC', or take the samples as they are with kind='tensor'"
    )
