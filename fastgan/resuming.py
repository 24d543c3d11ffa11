"""From a checkpoint to the parts of the run that it continues."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fastgan import config as config_room
from fastgan import losses, models
from fastgan.config import Config, ConfigError
from fastgan.run import checkpoint, restore
from fastgan.run.checkpoint import CheckpointError

NETWORKS = ("generator", "discriminator")


def read(path: str | os.PathLike) -> tuple[Path, dict[str, Any]]:
    """The checkpoint file that a path means, and what it holds."""
    file = checkpoint.find(path)
    return file, checkpoint.load(file)


def needed(state: Mapping[str, Any]) -> list[str]:
    """What a program must pass to resume, because a checkpoint cannot hold it."""
    own = [name for name in NETWORKS if state["models"][name] is None]
    data = ["data"] if state["config"]["data"] is None else []
    return [*own, *data, *(f"{name}=..." for name in config_room.needs(state["config"]))]


def config_of(file: Path, state: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    """The settings of the run, with those that a resume may change as they are now wanted.

    Raises:
        CheckpointError: a setting of the checkpoint is none, or the user's own and not passed.
        ConfigError: one that a resume may not change.
    """
    saved = state["config"]
    own = config_room.needs(saved)
    for name in overrides:
        if name in own or name not in Config.__dataclass_fields__:
            continue
        if not config_room.field_of(name).metadata["resume"]:
            raise ConfigError(
                f"{name} cannot be changed by a resume; the run keeps its own ({saved.get(name)!r})"
            )
    try:
        config = Config.from_dict(
            saved, **{name: v for name, v in overrides.items() if name in own}
        )
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None
    changed = {name: value for name, value in overrides.items() if name not in own}
    if "threads" not in changed:
        changed["threads"] = state["threads"]  # the same number gives the same bits
    if changed.get("device") is None and not _present(config.device):
        changed["device"] = None
    return config.with_(**changed)


def _present(device: str | None) -> bool:
    import torch

    return device is None or not device.startswith("cuda") or torch.cuda.is_available()


def networks_of(
    file: Path,
    state: Mapping[str, Any],
    generator: nn.Module | None,
    discriminator: nn.Module | None,
) -> tuple[nn.Module, nn.Module]:
    """The two networks: those given, or those that the checkpoint describes, with new weights."""
    return tuple(
        network_of(file, state, name, given)
        for name, given in zip(NETWORKS, (generator, discriminator), strict=True)
    )


def network_of(
    file: Path, state: Mapping[str, Any], name: str, given: nn.Module | None
) -> nn.Module:
    """One network, checked to fit the weights that were saved."""
    described = state["models"][name]
    restore.require(file, name, given, described)
    try:
        network = models.rebuild(described) if given is None else given
    except ValueError as error:
        raise CheckpointError(f"{file}: models.{name}: {error}") from None
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name} is a {type(network).__name__}; expected an nn.Module")
    restore.require_fit(file, name, network, state[name])
    return network


def data_of(file: Path, config: Config, data: Any) -> Any:
    """What was given, or the name or path of the run's data."""
    return restore.require(file, "data", data, config.data)


def check_data(file: Path, state: Mapping[str, Any], data: Any, changed: bool) -> None:
    """CheckpointError if the data is not what the run was trained on, unless the user knows."""
    if changed:
        return
    if differs := data.differs(state["data"]):
        raise CheckpointError(
            f"the data is not what {file} was trained on: {differs}. Pass the original, or, if you "
            "know, resume(..., data_changed=True) (on the command line --data-changed)"
        )


def _stateful(loss: losses.Loss) -> dict[str, Any]:
    parts = {"d_loss": loss.d_loss, "g_loss": loss.g_loss}
    return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}


def loss_state(loss: losses.Loss) -> dict[str, Any]:
    """The state of a loss whose functions keep one (they have a `state_dict`)."""
    return {name: part.state_dict() for name, part in _stateful(loss).items()}


def load_loss_state(loss: losses.Loss, state: Mapping[str, Any]) -> None:
    """Take it back."""
    for name, part in _stateful(loss).items():
        if name in state:
            part.load_state_dict(state[name])
