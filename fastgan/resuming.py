"""A run as its files hold it, and from a checkpoint back to the parts of a run."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastgan import callbacks as callback_room
from fastgan import config as config_room
from fastgan import data as data_room
from fastgan import models, sharded, wrapped
from fastgan.config import Config, ConfigError
from fastgan.memory import Memory
from fastgan.run import checkpoint, directory, restore, torch_rng
from fastgan.run.checkpoint import CheckpointError
from fastgan.run.machine import machine
from fastgan.version import __version__

if TYPE_CHECKING:
    from fastgan.problem import Problem
    from fastgan.trainer import Trainer

NETWORKS = ("generator", "discriminator")


# --- what is written -----------------------------------------------------------------------------


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The fields of a checkpoint; where networks are divided, all ranks ask for it together."""
    p, own = trainer.problem, trainer.own_callbacks
    return {
        "step": trainer.step,
        "seconds": trainer.seconds,
        "goal": trainer.goal,
        "config": trainer.config.to_dict(),
        "models": described(p),
        "threads": torch.get_num_threads(),
        "engine": trainer.engine.name,
        "data": trainer.data_identity,
        "generator": wrapped.state_dict(p.generator),
        "discriminator": wrapped.state_dict(p.discriminator),
        "ema": None if p.ema is None else wrapped.state_dict(p.ema),
        "optimizer_g": sharded.optimizer_state(p.optimizer_g),
        "optimizer_d": sharded.optimizer_state(p.optimizer_d),
        "scalers": [scaler.state_dict() for scaler in p.scalers or ()],
        "loss": trainer.memory.state_dict(),
        "callbacks": dict(
            zip(callback_room.names_of(own), (c.state_dict() for c in own), strict=True)
        ),
        "random": trainer.random_states.state_dict(),
        "log": trainer.log.state_dict(),
        "versions": {
            "fastgan": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def saves(trainer: Trainer) -> bool:
    """Whether a trainer's rank takes part in a save.

    The first writes; where networks are divided, others have parts of what it writes.
    """
    helps = trainer.problem.divided and not trainer.world.leads
    return trainer.out is not None or (helps and trainer.config.out is not None)


def save(trainer: Trainer) -> Path:
    """Write the checkpoint of a trainer, as far as its rank takes part in that; where it is."""
    with trainer.world.named():
        state = state_of(trainer)
    if trainer.out is None:
        return Path(trainer.config.out) / checkpoint.FILE
    path = trainer.out / checkpoint.FILE
    with nullcontext(directory.make(trainer.out)) if trainer.at_work else trainer.alone():
        checkpoint.save(path, state, keep=trainer.config.keep)
        if trainer.data.table is not None:
            trainer.data.table.write(trainer.out)
        trainer.known = directory.mark(trainer.out)
    return path


def export(trainer: Trainer, place: str | os.PathLike | None) -> None:
    """Write the weights of both networks; see `Trainer.export`."""
    networks = trainer.problem.sampled, trainer.discriminator
    for name, network in zip(NETWORKS, networks, strict=True):
        weights = wrapped.state_dict(network)
        if trainer.problem.divided and not trainer.world.leads:
            continue
        folder = Path(place).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_weights(folder / f"{name}.pth", weights)


def about(trainer: Trainer) -> dict[str, Any]:
    """What config.json says: the settings, and what became of them."""
    p = trainer.problem
    return {
        "settings": p.config.to_dict(),
        "about": {
            "models": described(p),
            "data": p.data.name,
            "origin": p.data.origin,
            "sample_shape": list(p.data.shape),
            "engine": trainer.explanation,
            "precision": p.precision,
            "device": str(p.device),
            "machine": machine(p.device),
        },
    }


def how_to_continue(trainer: Trainer) -> str:
    """The command or the call that continues what a run has saved."""
    p = trainer.problem
    missing = needed({"config": p.config.to_dict(), "models": described(p)})
    return command(trainer.out, missing)


def command(out: str | os.PathLike, missing: Sequence[str] = ()) -> str:
    """What continues the run in a directory: a command, or where something is missing a call."""
    if missing:
        return f"Trainer.resume({str(out)!r}, {', '.join(missing)})"
    return f"fastgan train --resume {shlex.quote(str(out))}"


def described(problem: Problem) -> dict[str, Any]:
    """Both networks as the models' registry writes them down; None for a user's own."""
    return {name: models.describe(getattr(problem, name)) for name in NETWORKS}


def memory_of(problem: Problem) -> Memory:
    """What the functions of a problem remember."""
    p = problem
    plain = p.loss is not None
    return Memory(
        {
            "d_loss": p.loss.d_loss if plain else None,
            "g_loss": p.loss.g_loss if plain else None,
            "method": None if plain else p.method,
            **{f"terms[{term.name!r}]": term.of for term in p.terms},
            **{f"terms[{t.name!r}].weight": t.weight for t in p.terms if callable(t.weight)},
            **_of_schedule(p.lr_schedule),
            "augment": p.augmentation,
            **{f"penalties[{i}]": penalty.of for i, penalty in enumerate(p.penalties)},
        },
        but=(p.generator, p.discriminator, p.ema, p.optimizer_g, p.optimizer_d, p.data),
    )


def _of_schedule(schedule: Any) -> dict[str, Any]:
    if not isinstance(schedule, tuple):
        return {"lr_schedule": schedule}
    return {f"lr_schedule[{i}]": one for i, one in enumerate(schedule)}


# --- what is read --------------------------------------------------------------------------------


@torch.inference_mode(False)
def read(path: str | os.PathLike) -> tuple[Path, dict[str, Any]]:
    """The checkpoint file that a path means, and what it holds."""
    file = checkpoint.find(path)
    return file, checkpoint.load(file)


def needed(state: Mapping[str, Any]) -> list[str]:
    """What a program must pass to resume, because a checkpoint cannot hold it."""
    own = [name for name in NETWORKS if state["models"][name] is None]
    data = ["data"] if state["config"]["data"] is None else []
    return [*(f"{name}=..." for name in (*own, *data, *config_room.needs(state["config"])))]


def config_of(file: Path, state: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    """The settings of the run, with those that a resume may change as they are now wanted.

    Raises:
        CheckpointError: a setting of the checkpoint is none, or the user's own and not passed.
        ConfigError: one that a resume may not change.
    """
    own = {n: overrides[n] for n in config_room.needs(state["config"]) if n in overrides}
    try:
        saved = Config.from_dict(state["config"], **own)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None
    for name in own:
        was, now = state["config"][name], saved.to_dict()[name]
        if was != now:
            raise ConfigError(
                f"{name} is {_in_words(now)}, saved {_in_words(was)}: a resume cannot change that; "
                "Trainer.from_checkpoint begins a new run with the weights of this one"
            )
    changes = {name: value for name, value in overrides.items() if name not in own}
    config = saved.with_(**changes)
    if differences := config.differences(saved):
        raise ConfigError(
            f"{differences[0]}: a resume cannot change that; Trainer.from_checkpoint begins a new "
            "run with the weights of this one"
        )
    # The same number of threads gives the same bits; a GPU may be missing; a run may have moved.
    here: dict[str, Any] = {"out": str(file.parent)}
    if "threads" not in changes:
        here["threads"] = state["threads"]
    if "device" not in changes and (config.device or "").startswith("cuda"):
        here["device"] = config.device if torch.cuda.is_available() else None
    return config.with_(**here)


def _in_words(plain: Any) -> str:
    """A setting's plain value, an object of the user's by its name."""
    parts = plain if isinstance(plain, list) else [plain]
    return ", ".join(repr(config_room.owned(part) or part) for part in parts)


def new_config_of(
    file: Path, state: Mapping[str, Any], overrides: Mapping[str, Any], data: Any
) -> Config:
    """The settings of a run that starts from the weights of another: its own where none are given.

    Where the run goes is not taken over, nor how data are read that are open already.
    """
    left = {"out", "if_exists"}
    if isinstance(data, data_room.Data):
        left |= {f.name for f in fields(Config) if f.metadata["group"] == "data"}
    values = {name: value for name, value in state["config"].items() if name not in left}
    own = {n: overrides[n] for n in config_room.needs(values) if n in overrides}
    changes = {name: value for name, value in overrides.items() if name not in own}
    if not torch.cuda.is_available() and str(values.get("device")).startswith("cuda"):
        changes.setdefault("device", None)
    try:
        saved = Config.from_dict(values, **own)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return saved.with_(**changes)


def start_of(
    file: Path,
    state: Mapping[str, Any],
    generator: nn.Module | None,
    discriminator: nn.Module | None,
    data: Any,
    average: str | None,
    overrides: Mapping[str, Any],
) -> tuple[tuple[nn.Module, nn.Module], Any, Config]:
    """What a run begins with that starts from the weights of another: networks, data, settings.

    The arguments are those of `Trainer.from_checkpoint`.
    """
    config = new_config_of(file, state, overrides, data)
    if average == "keep" and not config.averages:
        raise ConfigError("average is 'keep', and the new run keeps none; give ema= as well")
    networks = networks_of(file, state, generator, discriminator)
    if data is None and config.data is None:
        raise ConfigError(f"{file} was trained on data that its program passed; pass data=")
    load_weights(file, state, networks, average)
    if data is None and config.data == state["config"]["data"]:
        data = learned_of(state, config)
    return networks, data, config


@torch.inference_mode(False)
def load_weights(
    file: Path, state: Mapping[str, Any], networks: tuple[nn.Module, nn.Module], average: str | None
) -> None:
    """The weights of a run into two networks; see `Trainer.from_checkpoint` for `average`."""
    if average not in (None, "keep", "generator"):
        raise ConfigError(f"average is {average!r}; expected 'keep', 'generator' or None")
    if average is not None and state["ema"] is None:
        raise CheckpointError(f"average is {average!r}, and {file} holds no average of G's weights")
    for name, network in zip(NETWORKS, networks, strict=True):
        field = "ema" if (name, average) == ("generator", "generator") else name
        with restore.reading(file, field):
            fitting = restore.require_fit(file, name, network, state[field])
            sharded.load_state_dict(network, fitting)


@torch.inference_mode(False)
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
    described = state["models"].get(name)
    restore.require(file, name, given, described)
    try:
        network = models.rebuild(described) if given is None else given
    except ValueError as error:
        raise CheckpointError(f"{file}: models.{name}: {error}") from None
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name} is a {type(network).__name__}; expected an nn.Module")
    restore.require_fit(file, name, network, state[name])
    return network


def data_of(
    file: Path, state: Mapping[str, Any], config: Config, given: Any, changed: bool
) -> data_room.Data:
    """The data: what was given, or what the run's name or path opens.

    Raises:
        CheckpointError: they are not what the run was trained on, and `changed` does not say that
            the user knows.
    """
    source = restore.require(file, "data", given, config.data)
    opened = learned_of(state, config) if given is None else None
    if opened is None:
        opened = source
        if not isinstance(source, data_room.Data):
            opened = data_room.open(source, **config.data_options())
    if changed:
        return opened
    saved = state["data"]
    if differs := opened.differs(saved):
        # Those that know what they are without are parted already.
        kept = saved.get("held_out") if opened.held_out is None else None
        if given is not None and kept:
            way = "leave data out" if config.data is not None else "pass those alone"
            raise CheckpointError(
                f"{file}: a share of {kept['share']:g} of the rows is held out of this run, and "
                f"these {len(opened)} are not the {saved['count']} that it learns; {way}"
            )
        raise CheckpointError(f"{file}: {differs}")
    if opened.held_out is None:
        opened.held_out = saved.get("held_out")
    return opened


def learned_of(state: Mapping[str, Any], config: Config) -> data_room.Data | None:
    """The rows of its file that a run learns, if it holds a share of them out; None if not."""
    kept = state["data"].get("held_out")
    if kept is None or config.data is None:
        return None
    # Here, as most runs have no table.
    from fastgan.tabular.held_out import HeldOut

    rows = HeldOut(kept["share"], kept["rule"])
    return rows.opened(config.data, kept["seed"], config.data_options())[0]


@torch.inference_mode(False)
def load(trainer: Trainer, file: Path, state: Mapping[str, Any]) -> None:
    """Put a new trainer where a checkpoint was written."""
    p, own = trainer.problem, trainer.own_callbacks
    restore.restore(
        file,
        state,
        networks={name: getattr(p, name) for name in (*NETWORKS, "ema")},
        optimizers={"optimizer_g": p.optimizer_g, "optimizer_d": p.optimizer_d},
        scalers=p.scalers or (),
    )
    for name, callback in zip(callback_room.names_of(own), own, strict=True):
        if name in state["callbacks"]:
            with restore.reading(file, f"callbacks.{name}"):
                callback.load_state_dict(state["callbacks"][name])
    with restore.reading(file, "loss"):
        trainer.memory.load_state_dict(state["loss"] or {})
    if (step := trainer.world.first(state["step"])) != state["step"]:
        raise CheckpointError(
            f"{file} holds step {state['step']}, and what the first rank has read holds {step}; "
            "give all ranks one file, on a disk that all of them see"
        )
    # The first rank writes for all.
    trainer.out, trainer.new = file.parent if trainer.world.leads else None, False
    trainer.engine.step = trainer.saved_step = state["step"]
    trainer.saved, trainer.known = file, directory.mark(file.parent)
    trainer.seconds = state["seconds"]
    trainer.goal = {**dict.fromkeys(config_room.LIMITS), **state["goal"]}
    if trainer.world.leads:
        with restore.reading(file, "random"):
            trainer.random_states.load_state_dict(state["random"])
    else:
        # Its states were not saved, and there may be another number of ranks now: numbers that no
        # rank has had up to this step.
        seed = (p.config.seed + trainer.world.rank + 1_000_003 * state["step"]) % 2**64
        trainer.random_states = torch_rng.OwnStates(seed, p.device)
    trainer.log.load_state_dict(state["log"], file)
