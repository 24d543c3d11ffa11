"""One file that a run can be continued from, whole at every moment.

A checkpoint is written to a temporary file, synced and renamed, so that a kill or a power cut
leaves the previous one. It holds dicts of tensors, numbers and strings only, loads with
``torch.load(path, weights_only=True)``, and every field is checked against `FIELDS`, when it is
written as when it is read.
"""

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from fastgan.run import files, schema
from fastgan.run.schema import (
    Record,
    integer,
    mapping,
    number,
    optional,
    plain,
    sequence,
    settings,
    text,
)

FILE = "checkpoint.pt"
WEIGHTS = ("generator.pth", "discriminator.pth")
FORMAT = "fastgan checkpoint"
VERSION = 3
"""1: neither penalties nor scalers. 2: no callbacks, models or state of a loss."""


def _generator_state(value: Any, where: str) -> None:
    expected = "the state of a torch.Generator, a uint8 tensor"
    schema.tensor(torch.uint8, (None,), expected)(value, where)
    if where.endswith("cpu"):
        try:
            torch.Generator().set_state(value)
        except RuntimeError:
            raise schema.Wrong(where, value, expected) from None


_STATE_DICT = mapping(plain)
_OPTIMIZER = Record(
    {
        "state": mapping(mapping(plain), int),
        "param_groups": sequence(Record({"params": sequence(integer(0))}, others=plain)),
    }
)
_SCALER = Record(
    {},
    {
        "scale": number(0, above=True),
        "growth_factor": number(1),
        "backoff_factor": number(0, above=True, below=1),
        "growth_interval": integer(1),
        "_growth_tracker": integer(0),
    },
)
_LIMITS = {
    "epochs": optional(integer(1)),
    "steps": optional(integer(1)),
    "seconds": optional(number(0, above=True)),
}
_LOG = Record(
    {
        "columns": sequence(text),
        "lines": integer(0),
        "unlogged": schema.tensor(torch.float32, (None, None), "a float32 tensor [steps, columns]"),
        "last": optional(sequence(optional(number()))),
    }
)


def _log(value: Any, where: str) -> None:
    _LOG(value, where)
    count, unlogged, last = len(value["columns"]), value["unlogged"], value["last"]
    if unlogged.shape[1] != count:
        raise schema.Wrong(f"{where}.unlogged", unlogged, f"as many columns as 'columns': {count}")
    losses = [i for i, name in enumerate(value["columns"]) if name.endswith("_loss")]
    if not torch.isfinite(unlogged[:, losses]).all():
        raise schema.Wrong(f"{where}.unlogged", unlogged, "losses that are finite")
    if last is not None and len(last) != count:
        raise schema.Wrong(f"{where}.last", last, f"as many numbers as 'columns': {count}")
    for i in losses if last is not None else ():
        if last[i] is None:
            raise schema.Wrong(f"{where}.last[{i}]", None, "a loss that is finite")


_MODEL = optional(Record({"network": text}, others=settings))
_MODELS = Record({"generator": _MODEL, "discriminator": _MODEL})
_DATA = Record(
    {
        "name": text,
        "kind": text,
        "count": integer(1),
        "shape": sequence(integer(0)),
        "dtype": text,
        "condition": optional(text),
        "checksum": optional(text),
        "condition_checksum": optional(text),
        "whole": optional(sequence(optional(text), (2,))),
    },
    {
        "held_out": Record(
            {"share": number(0, above=True, below=1), "seed": integer(0, 2**64 - 1), "rule": text}
        )
    },
)
FIELDS: dict[str, schema.Check] = {
    "step": integer(0),
    "seconds": number(0),
    "goal": Record({}, _LIMITS),
    # Settings that are missing have their defaults; of a seed, that would be another one.
    "config": Record({"seed": integer(0, 2**64 - 1)}, others=settings),
    "models": _MODELS,
    "threads": integer(1, 2**15),
    "engine": text,
    "data": _DATA,
    "generator": _STATE_DICT,
    "discriminator": _STATE_DICT,
    "optimizer_g": _OPTIMIZER,
    "optimizer_d": _OPTIMIZER,
    "ema": optional(_STATE_DICT),
    "scalers": sequence(_SCALER, (0, 2)),
    "random": Record({"cpu": _generator_state}, {"cuda": _generator_state}),
    "log": _log,
    "callbacks": mapping(plain),
    "loss": optional(mapping(plain)),
    "versions": Record({"fastgan": text, "torch": text, "python": text}),
}
"""What a checkpoint holds, and of which type. A new field is one entry."""

_CHECK = Record(FIELDS, {"format": text, "version": integer(1)})


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or does not fit what it is loaded into."""


def save(path: str | os.PathLike, state: Mapping[str, Any], *, keep: int = 1) -> None:
    """Write a checkpoint.

    Args:
        path: the file; after every save it holds the newest state, at any moment a whole one.
        state: the fields of `FIELDS`: nested dicts and lists of tensors, numbers, strings, booleans
            and None. Tensors are stored from the CPU, numpy's numbers as Python's, paths as text.
        keep: how many of the last saves stay on disk. With 2 or more, each also has the name
            ``<stem>-<step><suffix>`` beside `path` (a second link, so the newest takes no space).

    Raises:
        CheckpointError: the state holds something else, such as an object in a network's extra
            state; the message says where.
    """
    path = Path(path)
    saved = {"format": FORMAT, "version": VERSION, **_savable(state, compact)}
    files.sweep(path.parent)
    temporary = files.draft(path, lambda file: torch.save(saved, file))
    numbered = keep if keep > 1 else 0
    if numbered:
        name = path.with_name(f"{path.stem}-{saved['step']}{path.suffix}")
        before = max((p.stat().st_mtime_ns for p in saves(path) if p != name), default=0)
        files.link(temporary, name)
        if (now := name.stat().st_mtime_ns) <= before:  # a clock that was set back
            os.utime(name, ns=(now, before + 1))
    os.replace(temporary, path)
    earlier = sorted(saves(path), key=lambda p: p.stat().st_mtime_ns)
    for old in earlier[: max(0, len(earlier) - numbered)]:
        old.unlink(missing_ok=True)
    files.sync_directory(path.parent)


def try_state(state: Mapping[str, Any]) -> None:
    """Raise what `save` would, without copying or writing anything.

    A run calls this before its first step, so that hours of work do not end in an error.

    Raises:
        CheckpointError: the state cannot be saved; the message says where and why.
    """
    _savable(state, lambda tensor: tensor.detach())


def load(path: str | os.PathLike) -> dict[str, Any]:
    """Read and verify a checkpoint, tensors on the CPU.

    Args:
        path: the file, or the directory of a run.

    Raises:
        CheckpointError: no such file, damaged (every byte of content is verified), not a fastgan
            checkpoint, of another format, or a field is not of the type that `FIELDS` says. One
            line that names the file, the field and the way out.
    """
    path = find(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"checksum of {damaged} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can break the readers in any way
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint ({first_line(error)}); {_way_out(path)}"
        ) from error
    if type(state) is not dict or not isinstance(state.get("format"), str):
        raise CheckpointError(f"{path} is not a fastgan checkpoint; {_way_out(path)}")
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path} is not a fastgan checkpoint; {_way_out(path)}")
    try:
        integer(1)(state.get("version"), "version")
        if state["version"] == VERSION:
            _CHECK(state)
            return state
    except schema.Wrong as wrong:
        raise CheckpointError(f"{path}: {wrong}; {_way_out(path)}") from None
    versions = state.get("versions")
    writer = versions.get("fastgan") if isinstance(versions, dict) else None
    writer = writer if isinstance(writer, str) else "of unknown version"
    way_out = (
        "upgrade fastgan to the version that wrote it"
        if state["version"] > VERSION
        else "continue it with that version, or start the run again"
    )
    raise CheckpointError(
        f"{path} has format {state['version']}, written by fastgan {writer}, but this fastgan "
        f"reads format {VERSION}; {way_out}"
    )


def find(path: str | os.PathLike) -> Path:
    """The checkpoint file that a path means: itself, or a run's directory's newest.

    Raises:
        CheckpointError: there is none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(
            f"path is {path!r}; expected the directory of a run, or a checkpoint in it"
        )
    path = Path(os.path.abspath(Path(path).expanduser()))
    if path.is_dir():
        directory, path = path, path / FILE
        if not path.exists() and (numbered := saves(path)):
            # The run was killed between the two names of its first save.
            return numbered[-1]
        if not path.exists() and (directory / "log.jsonl").exists():
            raise CheckpointError(
                f"there is no checkpoint {path}: the run ended before its first save; start it "
                f"again with out={str(directory)!r}"
            )
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}; give a file, or the directory of a run that saved one"
        )
    return path


def saves(path: Path) -> list[Path]:
    """The numbered saves beside a checkpoint, by step."""
    found = []
    for other in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        step = other.name[len(path.stem) + 1 : len(other.name) - len(path.suffix)]
        if step.isdecimal():
            found.append((int(step), other))
    return [other for _, other in sorted(found)]


def save_weights(path: str | os.PathLike, state_dict: Mapping[str, Any]) -> None:
    """Write a network's state dict, from the CPU, for torch.load and load_state_dict."""
    weights = {k: compact(v) if isinstance(v, Tensor) else v for k, v in state_dict.items()}
    files.write(path, lambda file: torch.save(weights, file))


def compact(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, without gradient and without storage that it does not use."""
    tensor = tensor.detach().cpu()
    # Saving a view would save all that it is a view of.
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _way_out(path: Path) -> str:
    others = [p for p in saves(path.with_name(FILE)) if p != path]
    if path.name != FILE and path.with_name(FILE).exists():
        others.append(path.with_name(FILE))
    if others:
        return f"try another save of this run: {others[-1]}"
    return "no other save lies beside it; start the run again"


def _savable(state: Mapping[str, Any], take: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    saved = _plain(state, "state", take)
    try:
        Record(FIELDS)(saved)
    except schema.Wrong as wrong:
        raise CheckpointError(f"this run cannot be saved: {wrong}") from None
    return saved


def _plain(value: Any, where: str, take: Callable[[Tensor], Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        try:
            if value.is_meta:
                raise TypeError("it is on the meta device and has no values")
            taken = take(value)
            if type(taken) is not Tensor:
                raise TypeError(f"it is a {type(value).__name__}")
            return taken
        except Exception as error:  # subclasses may refuse in any way
            raise CheckpointError(
                f"{where} is a tensor that cannot be saved: {first_line(error)}"
            ) from error
    if isinstance(value, Mapping):
        return {
            _key(key, where): _plain(item, f"{where}[{key!r}]", take) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{where}[{i}]", take) for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, os.PathLike):
        return _plain(os.fspath(value), where, take)
    if isinstance(value, numpy.generic):
        number = value.item()
        if type(number) in (bool, int, float, str):
            return number
    for kind in (int, float, str):  # an IntEnum, a word with methods of its own
        if isinstance(value, kind):
            return kind(value)
    raise CheckpointError(
        f"{where} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, dicts "
        "and lists only, so that it can be loaded safely"
    )


def _key(key: Any, where: str) -> str | int:
    if isinstance(key, numpy.generic):
        key = key.item()
    if type(key) not in (str, int):
        raise CheckpointError(
            f"{where} has the key {key!r}, a {type(key).__name__}; the keys of dicts in a "
            "checkpoint are strings or integers"
        )
    return key
