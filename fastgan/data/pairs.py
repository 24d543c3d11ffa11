"""Pairs of pictures, of which one is to be made from the other (P. Isola et al., CVPR 2017).

The sample is the target; what it is made from is its condition, float32 in [-1, 1].
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .errors import DataError
from .files import ImageFiles
from .pictures import Form

log = logging.getLogger("fastgan")

SIDES = ("left", "right")


def check(pairs: Any) -> Any:
    """What `pairs` of data.open may be; DataError else."""
    folders = isinstance(pairs, str) and len(_folders(pairs)) == 2
    if pairs is None or pairs in SIDES or folders or (callable(pairs) and type(pairs) is not type):
        return pairs
    raise DataError(
        f"pairs={pairs!r}: expected 'left' or 'right' (the half of each picture that is the "
        "input), 'A:B' (the folders of inputs and of targets), or a function of a sample that "
        "returns (input, target)"
    )


def _folders(pairs: str) -> list[str]:
    return [part for part in pairs.split(":") if part]


def of_files(
    path: Path, pairs: str, form: Form, span: tuple[float, float] | None, skip_damaged: bool
) -> Dataset:
    """The pairs in a folder or zip of image files."""
    if pairs in SIDES:
        return _Halves(path, pairs, form, span, skip_damaged)
    return _Folders(path, _folders(pairs), form, span, skip_damaged)


def _as_input(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32).mul_(2 / 255).sub_(1)


class _Files(Dataset):
    """(target, input) of image files: what ImageFiles is for single ones."""

    random = False
    fork_safe = True
    dtype = torch.uint8
    kind = "image"
    classes = None
    shape: tuple[int, ...]
    no_condition: Tensor


class _Halves(_Files):
    """Pictures that show input and target side by side."""

    def __init__(
        self,
        path: Path,
        side: str,
        form: Form,
        span: tuple[float, float] | None,
        skip_damaged: bool,
    ):
        """One half is asked for in the given form."""
        if form.size is not None:
            form = replace(form, size=(form.size[0], 2 * form.size[1]))
        self._files, self._side = ImageFiles(path, form, span, skip_damaged), side
        channels, height, width = self._files.shape
        if width % 2:
            raise DataError(
                f"{path}: its pictures are {width} wide, which are no two halves; pass "
                "image_size=(height, width) of a half"
            )
        self.shape = (channels, height, width // 2)
        self.no_condition = torch.empty(0, *self.shape, device="cpu")
        self.division = f"{side} halves are inputs of the others"

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The target, uint8 [C, H, W], and the input, float32 of its shape."""
        halves = self._files[index][0].chunk(2, 2)
        first = SIDES.index(self._side)
        return halves[1 - first].contiguous(), _as_input(halves[first])


class _Folders(_Files):
    """Two folders whose files belong together by their names, endings aside."""

    def __init__(
        self,
        path: Path,
        names: list[str],
        form: Form,
        span: tuple[float, float] | None,
        skip_damaged: bool,
    ):
        """Names: of the folder of inputs and of that of targets."""
        places = [path / name for name in names]
        for place in places:
            if not place.is_dir():
                raise DataError(
                    f"{path}: has no folder {place.name!r}; pairs='A:B' names the folders of "
                    "inputs and of targets in it"
                )
        self._files = [ImageFiles(place, form, span, skip_damaged) for place in places]
        numbers = [
            {str(PurePosixPath(name).with_suffix("")): i for i, name in enumerate(files.names)}
            for files in self._files
        ]
        alone = [
            str(place / files.names[i])
            for place, files, own, other in zip(
                places, self._files, numbers, numbers[::-1], strict=True
            )
            for name, i in own.items()
            if name not in other
        ]
        if alone and not skip_damaged:
            raise DataError(
                f"{path}: {len(alone)} pictures have no partner of their name in the other "
                f"folder, the first: {alone[0]}; add it, or pass skip_damaged=True to leave them "
                "out"
            )
        if alone:
            log.warning(
                f"{path}: {len(alone)} pictures without a sound partner are left out "
                f"(skip_damaged); the first: {alone[0]}"
            )
        shared = [name for name in numbers[0] if name in numbers[1]]
        if not shared:
            raise DataError(f"{path}: no picture of one folder has the name of one of the other")
        self._at = [[own[name] for name in shared] for own in numbers]
        self.shape = self._files[1].shape
        self.no_condition = torch.empty(0, *self._files[0].shape, device="cpu")
        self.division = f"{names[0]} are inputs of {names[1]}"

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._at[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The target, uint8 [C, H, W], and the input, float32."""
        given, target = (f[at[index]][0] for f, at in zip(self._files, self._at, strict=True))
        return target, _as_input(given)


class Made(Dataset):
    """What a function makes of each sample of some data, as (target, input)."""

    def __init__(self, data: Any, function: Callable[[Tensor], tuple[Any, Any]]):
        """Of a Data, whose samples the function is given as they are held."""
        self._data, self._function = data, function

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """One pair; bytes of an input become floats in [-1, 1], as those of a sample do."""
        data = self._data
        sample = data.dataset[index][0] if data.samples is None else data.samples[index]
        made = self._function(sample)
        if not isinstance(made, (tuple, list)) or len(made) != 2:
            raise DataError(
                f"pairs: the function gave a {type(made).__name__} for sample {index}; expected "
                "(input, target)"
            )
        given, target = made
        if isinstance(given, Tensor) and given.dtype == torch.uint8:
            given = _as_input(given)
        return target, given
