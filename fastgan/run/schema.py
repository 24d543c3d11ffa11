"""What a file's fields may hold, said once and checked when it is written and when it is read.

A `Check` is called with a value and where it stands ("log.lines"); it raises `Wrong` if the value
is not what it expects. torch's safe loader promises plain types; this says which, and where.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Check = Callable[[Any, str], None]

_DEPTH = 64
_SHOWN = 40
MISSING = object()
"""Stands for the value of a field that is not there."""


class Wrong(ValueError):
    """A field is not what was expected: "field 'a.b' is 'x' (str); expected an integer"."""

    def __init__(self, where: str, value: Any, expected: str):
        """Say so in one line."""
        super().__init__(f"field {where!r} is {shown(value)}; expected {expected}")


def shown(value: Any) -> str:
    """A value in few words, with its type."""
    if value is MISSING:
        return "missing"
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    if value is None or isinstance(value, (Mapping, list, tuple)):
        return "None" if value is None else f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    text = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
    return f"{' '.join(text.split())} ({type(value).__name__})"


def integer(least: int, most: int = 2**63 - 1) -> Check:
    """An int, not a bool, within bounds."""
    bounds = f"of at least {least}" if most == 2**63 - 1 else f"in [{least}, {most}]"

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise Wrong(where, value, f"an integer {bounds}")

    return check


def number(least: float = -math.inf, *, above: bool = False, below: float = math.inf) -> Check:
    """A finite int or float of at least `least` (`above`: more than it), and less than `below`."""
    bounds = f" {'above' if above else 'of at least'} {least:g}" if least > -math.inf else ""
    bounds += f" and below {below:g}" if below < math.inf else ""

    def check(value: Any, where: str) -> None:
        good = type(value) in (int, float) and math.isfinite(value)
        if not good or value < least or (above and value == least) or value >= below:
            raise Wrong(where, value, f"a finite number{bounds}")

    return check


def of_type(kind: type, words: str) -> Check:
    """Exactly that type."""

    def check(value: Any, where: str) -> None:
        if type(value) is not kind:
            raise Wrong(where, value, words)

    return check


text = of_type(str, "a text")
flag = of_type(bool, "True or False")


def optional(inner: Check) -> Check:
    """None, or what `inner` takes."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def sequence(inner: Check, lengths: tuple[int, ...] | None = None) -> Check:
    """A list or tuple of what `inner` takes, of any length or one of `lengths`."""
    count = "" if lengths is None else f" of {' or '.join(map(str, lengths))}"

    def check(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)) or (lengths and len(value) not in lengths):
            raise Wrong(where, value, f"a list{count}")
        for i, item in enumerate(value):
            inner(item, f"{where}[{i}]")

    return check


def mapping(inner: Check, keys: type = str) -> Check:
    """A dict from keys of one type to what `inner` takes."""
    words = {str: "texts", int: "integers"}[keys]

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict) or any(type(key) is not keys for key in value):
            raise Wrong(where, value, f"a dict whose keys are {words}")
        for key, item in value.items():
            inner(item, f"{where}.{key}" if keys is str else f"{where}[{key}]")

    return check


@dataclass(frozen=True)
class Record:
    """A dict with the fields of `required`, perhaps those of `may_have`, and no others."""

    required: Mapping[str, Check]
    may_have: Mapping[str, Check] = field(default_factory=dict)
    others: Check | None = None
    """What fields of any other name hold, if they may exist."""

    def __call__(self, value: Any, where: str = "") -> None:
        """Check the dict and every field."""
        if not isinstance(value, dict) or any(type(name) is not str for name in value):
            raise Wrong(where or "all", value, "a dict whose keys are texts")
        prefix = f"{where}." if where else ""
        for name, check in self.required.items():
            # What a check says of a value that it cannot take tells what was expected.
            check(value.get(name, MISSING), f"{prefix}{name}")
        for name in value.keys() - self.required.keys():
            check = self.may_have.get(name, self.others)
            if check is None:
                raise Wrong(f"{prefix}{name}", value[name], "no field of this name")
            check(value[name], f"{prefix}{name}")


def tensor(
    dtype: torch.dtype, shape: tuple[int | None, ...], expected: str, *, finite: bool = False
) -> Check:
    """A tensor on the CPU of a dtype and shape; None in the shape: any size."""

    def check(value: Any, where: str) -> None:
        good = (
            type(value) is Tensor
            and value.dtype == dtype
            and value.layout == torch.strided
            and value.dim() == len(shape)
            and all(want in (None, size) for want, size in zip(shape, value.shape, strict=True))
        )
        if not good or (finite and not torch.isfinite(value).all()):
            raise Wrong(where, value, expected)

    return check


def settings(value: Any, where: str) -> None:
    """What `plain` takes, without tensors: what JSON could hold."""
    plain(value, where, tensors=False)


def plain(value: Any, where: str, *, tensors: bool = True, _depth: int = 0) -> None:
    """A tensor, number, text, flag or None, or a dict or list of such."""
    if value is None or type(value) in (bool, int, float, str):
        return
    if tensors and type(value) is Tensor:
        return
    if _depth < _DEPTH and isinstance(value, dict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise Wrong(where, value, "a dict whose keys are texts or integers")
            plain(item, f"{where}.{key}", tensors=tensors, _depth=_depth + 1)
    elif _depth < _DEPTH and isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            plain(item, f"{where}[{i}]", tensors=tensors, _depth=_depth + 1)
    else:
        words = "tensors, numbers, texts" if tensors else "numbers, texts"
        raise Wrong(where, value, f"plain values ({words}, dicts and lists)")
