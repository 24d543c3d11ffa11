"""Pictures of any format and mode, made uint8 [C, H, W]."""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, whole

log = logging.getLogger("fastgan")

_GREY_MODES = ("1", "L", "LA", "La")
# More than 8 bits a pixel, and how many of them are used stands nowhere in the file
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_ORIENTATION = 0x0112
# EXIF orientations that turn the picture by a quarter
_QUARTER_TURNS = (5, 6, 7, 8)
_TIFF_SIZE = (256, 257)
_DEPTHS = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class Form:
    """What pictures are brought to.

    size: (H, W), or None for their own. channels: 1 grey, 3 RGB, or None for their own.
    span: what pixels of more than 8 bits span, (lo, hi); None for all 16 bits.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    span: tuple[float, float] | None = None

    @classmethod
    def of(cls, image_size: Any, channels: Any) -> Form:
        """Check the two arguments of data.open and put them together."""
        if channels is not None:
            try:
                channels = whole(channels, "channels", 1)
            except DataError:
                channels = repr(channels)
        if channels not in (None, 1, 3):
            raise DataError(
                f"channels={channels}: expected 1 (grey), 3 (RGB) or None (as the images are)"
            )
        if image_size is None:
            return cls(None, channels)
        try:
            size = tuple(image_size) if np.iterable(image_size) else (image_size, image_size)
            height, width = (whole(side, "image_size", 1) for side in size)
        except (DataError, ValueError, TypeError):
            raise DataError(
                f"image_size={image_size!r}: expected a positive integer or (height, width)"
            ) from None
        return cls((height, width), channels)

    @property
    def given(self) -> bool:
        """Whether a size or a number of channels was asked for."""
        return self.size is not None or self.channels is not None

    def is_met_by(self, shape: tuple[int, ...]) -> bool:
        """Whether an image of this [C, H, W] needs no change."""
        return self.size in (None, tuple(shape[1:])) and self.channels in (None, shape[0])


def is_picture(value: Any) -> bool:
    """Whether this is a PIL image; PIL is not imported to ask."""
    return hasattr(value, "getexif")


def _is_grey(image: Any) -> bool:
    return image.mode in _GREY_MODES or image.mode in _DEEP_MODES


def is_deep(image: Any) -> bool:
    """Whether a PIL image has one channel of more than 8 bits."""
    return image.mode in _DEEP_MODES


def loses_low_bytes(image: Any) -> bool:
    """Whether a PIL image is of colour with 16 bits a channel, of which PIL reads the upper 8."""
    arguments = (tile[3] for tile in getattr(image, "tile", None) or ())
    return not is_deep(image) and any(";16" in str(argument) for argument in arguments)


def span_of_bits(most: int) -> tuple[float, float]:
    """What 16-bit pixels span of which the largest is `most`: (0, 2**bits - 1).

    bits is the least of 8, 10, 12, 14 and 16 that hold it: cameras and scanners store 10 to 14 bits
    in the lower end of 16.
    """
    bits = next(bits for bits in _DEPTHS if most < 2**bits)
    return (0.0, 2.0**bits - 1)


def tell_depth(what: str, span: tuple[float, float]) -> None:
    """Say how many of their 16 bits pictures were taken to use, if not all."""
    bits = int(span[1]).bit_length()
    if bits < 16:
        log.warning(
            f"{what}: 16-bit images without a value of {bits} bits or more, so taken as {bits}-bit "
            f"images; pass value_range=(0, 65535) or whatever they span if they are not"
        )


def header_shape(image: Any) -> tuple[int, int, int]:
    """The (C, H, W) a PIL image will have after from_pil; decoded only if its header cannot say."""
    from PIL import Image

    width, height = image.size
    if image.format == "TIFF":
        # Pillow's versions differ in whether a TIFF's size is that before or after turning
        width, height = (int(image.tag_v2.get(tag, 0)) for tag in _TIFF_SIZE)
    if image.format == "PNG":
        if _has_late_metadata(image):
            image.load()
        # PngImageFile.getexif decodes the whole image in search of what is not there
        exif = Image.Image.getexif(image)
    else:
        exif = image.getexif()
    if exif.get(_ORIENTATION) in _QUARTER_TURNS:
        width, height = height, width
    return (1 if _is_grey(image) else 3, height, width)


def _has_late_metadata(image: Any) -> bool:
    """Whether a PNG has EXIF or XMP behind its pixels, where opening it does not read it."""
    file = image.fp
    place = file.tell()
    try:
        file.seek(8)
        behind = False
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            behind = behind or kind == b"IDAT"
            if behind and kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
                return True
            file.seek(length + 4, 1)
        return False
    finally:
        file.seek(place)


def from_pil(image: Any, form: Form = Form()) -> Tensor:
    """A PIL image as uint8 [C, H, W] of the given form.

    The orientation in EXIF or XMP is applied, transparency is laid over white. Grey of more than 8
    bits is brought to 8: of the span (0, 2**b - 1) the upper 8 of b bits are kept, any other span
    is scaled and rounded. A new size crops centrally to its aspect ratio and resamples bicubically
    with antialiasing.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    grey = _is_grey(image)
    if is_deep(image):
        if form.span is None and image.mode in ("I", "F"):
            raise DataError(
                f"pixels of mode {image.mode} have no known range; pass the value_range=(lo, hi) "
                "that they span, or save it with 8 or 16 bits a channel"
            )
        image = Image.fromarray(_to_bytes(np.asarray(image), form.span or span_of_bits(65535)))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if (form.channels or (1 if grey else 3)) == 1 else "RGB")
    if form.size is not None and image.size != form.size[::-1]:
        image = ImageOps.fit(image, form.size[::-1], method=Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _to_bytes(pixels: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    low, high = span
    least, most = float(pixels.min()), float(pixels.max())
    if not (low <= least and most <= high):
        raise DataError(
            f"values from {least:g} to {most:g} leave the range ({low:g}, {high:g}) taken for "
            "these images; pass the value_range=(lo, hi) that all of them span"
        )
    if low == 0 and pixels.dtype.kind in "ui" and high in [2.0**bits - 1 for bits in _DEPTHS]:
        return (pixels >> (int(high).bit_length() - 8)).astype(np.uint8)
    scaled = (pixels.astype(np.float64) - low) * (255 / (high - low))
    return scaled.round().astype(np.uint8)


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
    if pixels.shape[1] not in (1, 3):
        raise DataError(
            f"{what}: image_size and channels work on images of 1 or 3 channels, these have "
            f"{pixels.shape[1]}; leave them out"
        )
    from PIL import Image

    out = None
    for i, image in enumerate(pixels.cpu()):
        array = image[0] if len(image) == 1 else image.permute(1, 2, 0).contiguous()
        one = from_pil(Image.fromarray(array.numpy()), form)
        if out is None:
            out = torch.empty(len(pixels), *one.shape, dtype=torch.uint8, device="cpu")
        out[i] = one
    return out.to(pixels.device)
