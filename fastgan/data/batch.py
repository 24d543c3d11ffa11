"""What one update is made of: samples and, where the data have them, their conditions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .pictures import from_pil, is_picture

log = logging.getLogger("fastgan")


class Batch(NamedTuple):
    """One batch.

    Attributes:
        images: float32 [b, *shape], the samples, whatever their shape.
        condition: what belongs to each sample (its label, say): a tensor [b, ...], a tuple or a
            dict of such tensors where the data have several, None where they have none.
    """

    images: Tensor
    condition: Any = None


def map_condition(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """The condition whose tensors are function(tensors of that place); None stays None."""
    if first is None:
        return None
    if isinstance(first, dict):
        return {
            key: map_condition(function, value, *(other[key] for other in others))
            for key, value in first.items()
        }
    if isinstance(first, tuple):
        return tuple(
            map_condition(function, *values) for values in zip(first, *others, strict=True)
        )
    return function(first, *others)


def tensors_of(condition: Any) -> Iterator[Tensor]:
    """The tensors of a condition, in order."""
    if isinstance(condition, dict):
        condition = tuple(condition.values())
    if isinstance(condition, tuple):
        for part in condition:
            yield from tensors_of(part)
    elif condition is not None:
        yield condition


# Where a tensor stands in what came with a sample: keys of dicts (as text), positions in tuples
Path = tuple["str | int", ...]


def flatten(parts: Iterable[tuple[str | int, Any]]) -> tuple[dict[Path, Tensor], list[str]]:
    """The tensors in named parts by their places, and the parts that are none: "name (type)"."""
    taken: dict[Path, Tensor] = {}
    left: list[str] = []
    for name, value in parts:
        _flatten(value, (name,), taken, left)
    return taken, left


def _flatten(value: Any, path: Path, taken: dict[Path, Tensor], left: list[str]) -> None:
    entries: list[tuple[str | int, Any]] = []
    if isinstance(value, Mapping):
        entries = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, (tuple, list)) and not _is_numbers(value):
        entries = list(enumerate(value))
    if entries:
        inner: list[str] = []
        before = len(taken)
        for key, entry in entries:
            _flatten(entry, (*path, key), taken, inner)
        if len(taken) > before:
            left += inner
            return
    elif value is None:
        return
    else:
        tensor = from_pil(value) if is_picture(value) else as_condition(value)
        if tensor is not None:
            taken[path] = tensor
            return
    left.append(f"{'.'.join(map(str, path))} ({type(value).__name__})")


def tell_left(what: str, left: list[str]) -> None:
    """Say once what came with the samples and is not taken."""
    if left:
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        log.warning(
            f"{what}: not taken as a condition: {', '.join(left[:8])}{more}; numbers, tensors, "
            "arrays and PIL images of one form are"
        )


def nest(entries: dict[Path, Any]) -> Any:
    """One condition from tensors by their places: None of none, the tensor itself of one, else a
    tuple or dict as they came; what holds a single entry is left away."""
    if not entries:
        return None
    if () in entries:
        return entries[()]
    groups: dict[str | int, dict[Path, Any]] = {}
    for path, value in entries.items():
        groups.setdefault(path[0], {})[path[1:]] = value
    inner = {key: nest(group) for key, group in groups.items()}
    if len(inner) == 1:
        return next(iter(inner.values()))
    return inner if isinstance(next(iter(inner)), str) else tuple(inner.values())


def _is_numbers(value: Any) -> bool:
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return isinstance(value, (bool, int, float, np.generic))


def as_condition(value: Any) -> Tensor | None:
    """What came with a sample (or with all samples), as a tensor; None if it cannot be one.

    Numbers, arrays and (nested) lists of numbers are taken. Floats become float32.
    """
    if isinstance(value, (bool, int, float, list, tuple, np.generic)):
        try:
            value = np.asarray(value)
        except ValueError:  # lists of unlike lengths
            return None
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            return None
        try:
            value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
        except TypeError:  # a type that torch lacks, such as long double
            return None
    if not isinstance(value, Tensor) or value.is_complex() or value.layout != torch.strided:
        return None
    value = value.detach()
    return value.to(torch.float32) if value.is_floating_point() else value


def settle(part: Tensor, rank: int) -> Tensor:
    """Integers of at most this rank as int64."""
    small = part.ndim <= rank and not part.is_floating_point() and part.dtype != torch.bool
    return part.to(torch.int64) if small else part


# Where a dict keeps its sample, in the order they are looked for
SAMPLE_KEYS = (
    "image",
    "images",
    "img",
    "pixel_values",
    "png",
    "jpg",
    "jpeg",
    "webp",
    "x",
    "data",
    "sample",
    "samples",
    "input",
    "inputs",
    "features",
)


def sample_key(entries: Mapping, what: str, is_sample: Callable[[Any], bool]) -> Any:
    """The key of a dict's sample: one of SAMPLE_KEYS, else the first that could be one."""
    usable = [key for key, value in entries.items() if is_sample(value)]
    by_name = {str(key).lower(): key for key in reversed(usable)}
    for name in SAMPLE_KEYS:
        if name in by_name:
            return by_name[name]
    if not usable:
        encoded = any(isinstance(value, bytes) for value in entries.values())
        listed = any(isinstance(v, list) and _is_numbers(v) for v in entries.values())
        raise DataError(
            f"{what}: a dict of {', '.join(map(repr, entries)) or 'nothing'}, none of them a "
            "tensor, an array or a PIL image; put the sample under 'image'"
            + ("; bytes are decoded by the data set: .decode('pil')" if encoded else "")
            + (
                "; lists become tensors by torch.tensor, or a data set's .with_format('torch')"
                if listed
                else ""
            )
        )
    return usable[0]


def tell_key(what: str, key: Any) -> None:
    """Say which key of a dict was taken for the sample, if that was a guess."""
    if str(key).lower() not in SAMPLE_KEYS:
        log.warning(
            f"{what}: {key!r} is taken for the sample, as the first tensor; name it 'image' or 'x' "
            "to choose another"
        )
