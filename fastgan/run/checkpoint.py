"""One file that a run can be continued from, whole at every moment.

A checkpoint is written to a temporary file, synced and renamed, so that a kill or a power cut
leaves the previous one. It holds dicts of tensors, numbers and strings only and loads with
``torch.load(path, weights_only=True)``.
"""

import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

FILE = "checkpoint.pt"
FORMAT = "fastgan checkpoint"
VERSION = 2
"""1: neither penalties nor GradScalers."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or does not fit what it is loaded into."""


def save(path: str | os.PathLike, state: Mapping[str, Any], *, keep: int = 1) -> None:
    """Write a checkpoint.

    Args:
        path: the file; after every save it holds the newest state, at any moment a whole one.
        state: nested dicts and lists of tensors, numbers, strings, booleans and None. ``"step"`` is
            required. Tensors are stored from the CPU.
        keep: how many of the last saves stay on disk. With 2 or more, each also has the name
            ``<stem>-<step><suffix>`` beside `path` (a second link, so the newest takes no space).

    Raises:
        CheckpointError: the state holds something else, such as an object in a network's extra
            state; the message says where.
    """
    path = Path(path)
    sweep(path)
    plain = {"format": FORMAT, "version": VERSION, **_plain(state, "state")}
    temporary = _temporary(path)
    with open(temporary, "wb") as file:
        torch.save(plain, file)
        _sync(file)
    if keep > 1:
        numbered = path.with_name(f"{path.stem}-{plain['step']}{path.suffix}")
        _link(temporary, numbered)
        earlier = sorted(saves(path), key=lambda p: p.stat().st_mtime_ns)
        for old in earlier[:-keep]:
            old.unlink(missing_ok=True)
    os.replace(temporary, path)
    _sync_directory(path.parent)


def load(path: str | os.PathLike) -> dict[str, Any]:
    """Read and verify a checkpoint, tensors on the CPU.

    Args:
        path: the file, or the directory of a run.

    Raises:
        CheckpointError: no such file, damaged (every byte of content is verified), not a fastgan
            checkpoint, or of a newer format. The message names the file and the way out.
    """
    path = find(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"checksum of {damaged} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can break the readers in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint ({reason}); {_way_out(path)}"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a fastgan checkpoint; {_way_out(path)}")
    if state["version"] > VERSION:
        raise CheckpointError(
            f"{path} has format {state['version']}, but this fastgan reads up to {VERSION}; "
            "upgrade fastgan to the version that wrote it"
        )
    return state


def find(path: str | os.PathLike) -> Path:
    """The checkpoint file that a path means: itself, or checkpoint.pt in a run's directory."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE
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


def sweep(path: Path) -> None:
    """Remove what a killed save of this checkpoint left behind."""
    for stale in path.parent.glob(f".{path.stem}*{path.suffix}.tmp"):
        stale.unlink(missing_ok=True)


def write(path: str | os.PathLike, fill: Callable[[BinaryIO], None]) -> None:
    """Write any file so that `path` holds the old or the new content at every moment."""
    path = Path(path)
    temporary = _temporary(path)
    with open(temporary, "wb") as file:
        fill(file)
        _sync(file)
    os.replace(temporary, path)


def mismatch(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str | None:
    """How two state dicts differ in names or shapes, the first few of each; None if they agree."""
    parts = []
    for label, names in (
        ("missing in the checkpoint", [name for name in own if name not in saved]),
        ("only in the checkpoint", [name for name in saved if name not in own]),
    ):
        if names:
            parts.append(f"{label}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")
    for name, tensor in own.items():
        if isinstance(tensor, Tensor) and name in saved and tensor.shape != saved[name].shape:
            parts.append(f"{name} is {list(tensor.shape)}, saved {list(saved[name].shape)}")
            if len(parts) == 4:
                break
    return "; ".join(parts) or None


def require(file: Path, name: str, given: Any, saved: Any) -> Any:
    """What was given, else what the checkpoint holds; CheckpointError if it is neither."""
    if given is None and saved is None:
        raise CheckpointError(
            f"{file} was trained with a {name} of your own, which a checkpoint cannot hold; "
            f"pass {name}= to resume it"
        )
    return saved if given is None else given


def require_fit(file: Path, name: str, network: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """CheckpointError with the first differences if a saved state dict is not the network's."""
    if differs := mismatch(network.state_dict(), saved):
        raise CheckpointError(f"{name} does not fit {file}: {differs}")


def save_weights(path: str | os.PathLike, network: nn.Module) -> None:
    """Write a network's state dict, from the CPU, for torch.load and load_state_dict."""
    weights = network.state_dict()
    for key, value in weights.items():
        weights[key] = compact(value) if isinstance(value, Tensor) else value
    write(path, lambda file: torch.save(weights, file))


def compact(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, without gradient and without storage that it does not use."""
    tensor = tensor.detach().cpu()
    # Saving a view would save all that it is a view of.
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    # Windows cannot open a directory; its rename is durable without it.
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _link(source: Path, target: Path) -> None:
    temporary = _temporary(target)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        with open(source, "rb") as original:
            write(target, lambda file: shutil.copyfileobj(original, file))
        return
    os.replace(temporary, target)
    # Linking keeps the source's time of writing; the saves are pruned in this order.
    os.utime(target)


def _way_out(path: Path) -> str:
    others = [p for p in saves(path) if p != path]
    if path.name != FILE and path.with_name(FILE).exists():
        others.append(path.with_name(FILE))
    if others:
        return f"try another save of this run: {others[-1]}"
    return "no other save lies beside it; start the run again"


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Tensor):
        return compact(value)
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise CheckpointError(
        f"{where} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, dicts "
        "and lists only, so that it can be loaded safely"
    )
