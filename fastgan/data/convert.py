"""Pictures and arrays of any layout and range, made [C, H, W] of uint8 or float32 in [-1, 1]."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

log = logging.getLogger("fastgan")

# A float image may miss its range by rounding (0.1 + 0.2 > 0.3); this share of the range is
# forgiven and clamped
_SLACK = 1e-5
_GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N")
# EXIF orientations that turn the picture by a quarter
_QUARTER_TURNS = (5, 6, 7, 8)


@dataclass(frozen=True)
class Form:
    """What was asked for: size (H, W) and channels (1 grey, 3 RGB); None keeps the images'."""

    size: tuple[int, int] | None = None
    channels: int | None = None

    @classmethod
    def of(cls, image_size: Any, channels: Any) -> Form:
        """Check the two arguments of data.open and put them together."""
        if channels not in (None, 1, 3):
            raise DataError(
                f"channels={channels!r}: expected 1 (grey), 3 (RGB) or None (as the images are)"
            )
        if image_size is None:
            return cls(None, channels)
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise DataError(
                f"image_size={image_size!r}: expected a positive integer or (height, width)"
            )
        return cls(size, channels)

    def is_met_by(self, shape: tuple[int, ...]) -> bool:
        """Whether an image of this [C, H, W] needs no change."""
        return self.size in (None, tuple(shape[1:])) and self.channels in (None, shape[0])


def header_shape(image: Any) -> tuple[int, int, int]:
    """The (C, H, W) a PIL image will have after from_pil, from its header alone."""
    width, height = image.size
    # only where it was met in the header: else PNG is decoded to look for it, and TIFF turned twice
    if "exif" in image.info and image.getexif().get(0x0112) in _QUARTER_TURNS:
        width, height = height, width
    return (1 if image.mode in _GREY_MODES else 3, height, width)


def from_pil(image: Any, form: Form = Form()) -> Tensor:
    """A PIL image as uint8 [C, H, W] of the given form.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey keeps its upper 8
    bits. A new size crops centrally to its aspect ratio and resamples bicubically with
    antialiasing.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"pixels of mode {image.mode} have no known range; save it with 8 or 16 bits a channel"
        )
    grey = image.mode in _GREY_MODES
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if (form.channels or (1 if grey else 3)) == 1 else "RGB")
    if form.size is not None and image.size != form.size[::-1]:
        image = ImageOps.fit(image, form.size[::-1], method=Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def reform(pixels: Tensor, form: Form, what: str) -> Tensor:
    """Images [N, C, H, W] in the asked size and channels; only uint8 ones can be changed."""
    if form.is_met_by(tuple(pixels.shape[1:])):
        return pixels
    if pixels.dtype != torch.uint8:
        raise DataError(
            f"{what}: image_size and channels work on 8-bit images, these are floats of shape "
            f"{tuple(pixels.shape[1:])}; convert them first "
            "(torch.nn.functional.interpolate(..., antialias=True))"
        )
    from PIL import Image

    out = None
    for i, image in enumerate(pixels.cpu()):
        array = image[0] if len(image) == 1 else image.permute(1, 2, 0).contiguous()
        one = from_pil(Image.fromarray(array.numpy()), form)
        out = torch.empty(len(pixels), *one.shape, dtype=torch.uint8) if out is None else out
        out[i] = one
    return out.to(pixels.device)


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor or ndarray as a tensor of uint8 or a floating type, sharing memory if possible."""
    if isinstance(value, np.ndarray):
        try:
            # torch refuses negative strides and foreign byte orders, and warns of read-only memory
            plain = (
                value.flags.writeable
                and value.dtype.isnative
                and min(value.strides, default=0) >= 0
            )
            value = torch.from_numpy(
                value if plain else value.astype(value.dtype.newbyteorder("="))
            )
        except TypeError:
            raise DataError(
                f"{what}: dtype {value.dtype}; expected uint8, or floats with value_range=(lo, hi)"
            ) from None
    if not isinstance(value, Tensor):
        raise DataError(
            f"{what}: got {type(value).__name__}; expected a tensor, a numpy array or a PIL image"
        )
    if value.dtype != torch.uint8 and not value.is_floating_point():
        raise DataError(
            f"{what}: dtype {str(value.dtype).removeprefix('torch.')}; expected uint8 (0..255), "
            "or floats with value_range=(lo, hi); convert with .to(torch.uint8) or .float()"
        )
    return value.detach()


def as_nchw(images: Tensor, what: str) -> Tensor:
    """[N, H, W], [N, C, H, W] or [N, H, W, C] as contiguous [N, C, H, W], C in (1, 3)."""
    return _as_nchw(images, what, tuple(images.shape), "[N, C, H, W]", "[N, H, W]", "[N, H, W, C]")


def as_chw(image: Tensor, what: str) -> Tensor:
    """[H, W], [C, H, W] or [H, W, C] as contiguous [C, H, W], C in (1, 3)."""
    return _as_nchw(image[None], what, tuple(image.shape), "[C, H, W]", "[H, W]", "[H, W, C]")[0]


def _as_nchw(
    images: Tensor, what: str, shape: tuple, first_c: str, no_c: str, last_c: str
) -> Tensor:
    if images.ndim not in (3, 4):
        raise DataError(
            f"{what}: shape {shape}; expected {first_c}, {no_c} or {last_c}: reshape it first"
        )
    if 0 in shape:
        raise DataError(f"{what}: shape {shape} holds no images; pass at least one")
    if images.ndim == 3:
        return images[:, None].contiguous()
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        why = "either side could be the channels" if first else "no side of 1 or 3 channels"
        raise DataError(
            f"{what}: shape {shape}, {why}; expected {first_c} or {last_c} with C 1 or 3"
        )
    return (images if first else images.permute(0, 3, 1, 2)).contiguous()


def check_range(value_range: Any) -> tuple[float, float] | None:
    """The argument value_range of data.open, checked."""
    if value_range is None:
        return None
    try:
        low, high = (float(side) for side in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(
            f"value_range={value_range!r}: expected two finite numbers (lo, hi) with lo < hi"
        )
    return low, high


def check_bytes_range(value_range: tuple[float, float] | None, what: str) -> None:
    """8-bit images have one range; refuse another instead of ignoring it."""
    if value_range not in (None, (0.0, 255.0)):
        raise DataError(
            f"{what}: 8-bit images always span (0, 255); leave value_range={value_range} out"
        )


def guess_range(images: Tensor, what: str) -> tuple[float, float]:
    """The range of floats without a stated one: (-1, 1) if any is negative, else (0, 1), logged."""
    low, high = _extremes(images, what)
    if low < 0 and low >= -1 - 2 * _SLACK and high <= 1 + 2 * _SLACK:
        return (-1.0, 1.0)
    if low >= 0 and high <= 1 + _SLACK:
        log.warning(
            f"{what}: taken as values in [0, 1] and mapped to [-1, 1]; value_range=(lo, hi) "
            "overrides this"
        )
        return (0.0, 1.0)
    raise DataError(
        f"{what}: values from {low:g} to {high:g}; expected [-1, 1] or [0, 1]; else say what "
        "they span with value_range=(lo, hi), such as (0, 255)"
    )


def to_signed(images: Tensor, value_range: tuple[float, float], what: str) -> Tensor:
    """Floats that span value_range as float32 in [-1, 1]; those already there are kept."""
    low, high = value_range
    least, most = _extremes(images, what)
    # beside that share, what float32 cannot resolve at this distance from zero
    slack = _SLACK * (high - low) + 2.0**-22 * max(abs(low), abs(high))
    if least < low - slack or most > high + slack:
        raise DataError(
            f"{what}: values from {least:g} to {most:g} leave the range ({low:g}, {high:g}); "
            "pass the value_range=(lo, hi) that they span"
        )
    images = images.to(torch.float32)
    if (low, high) != (-1.0, 1.0):
        images = (images - low) * (2.0 / (high - low)) - 1.0
    elif least >= low and most <= high:
        return images
    return images.clamp(-1.0, 1.0)


def _extremes(images: Tensor, what: str) -> tuple[float, float]:
    low, high = (side.item() for side in torch.aminmax(images))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(
            f"{what}: holds NaN or infinite values; replace them first (torch.nan_to_num)"
        )
    return low, high
