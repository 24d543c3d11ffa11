"""The members of an ensemble: what each is, and how it is written down."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import nn

from fastgan import config as config_room
from fastgan import data as data_room
from fastgan.config import Config, ConfigError
from fastgan.config.kinds import integer
from fastgan.run import checkpoint, files, schema, torch_rng
from fastgan.run.checkpoint import CheckpointError

if TYPE_CHECKING:
    from fastgan.trainer import Trainer

FILE = "ensemble.json"
STATUSES = ("waiting", "begun", "done", "diverged", "failed")
_OF_THE_WHOLE = ("out", "if_exists", "console")
_ENTRY = schema.Record(
    {
        "name": schema.text,
        "settings": schema.settings,
        "status": schema.text,
        "reason": schema.optional(schema.text),
        "scores": schema.mapping(schema.optional(schema.number())),
        "line": schema.Record({}, others=schema.settings),
        "config": schema.Record({}, others=schema.settings),
        "own_pair": schema.flag,
    }
)
_WHOLE = schema.Record(
    {
        "format": schema.text,
        "version": schema.integer(1),
        "goal": schema.optional(schema.settings),
        "members": schema.sequence(_ENTRY),
    }
)
FORMAT, VERSION = "fastgan ensemble", 1


@dataclass
class Member:
    """One run of an ensemble.

    Attributes:
        name: that of its directory.
        settings: those in which members differ, as a file holds them.
        config: all of its settings, likewise: what it is begun with.
        own_pair: its networks are the program's own.
        trainer: the run.
        status: waiting (not begun), begun (stopped in the middle), done; diverged: its losses or
            weights were no longer finite; failed: something else was raised.
        reason: why it failed, in one line.
        scores: what was measured of it, by the names of metrics.
        line: the last of its log when it ended.
    """

    name: str
    settings: dict[str, Any]
    status: str = "waiting"
    reason: str | None = None
    scores: dict[str, float | None] = field(default_factory=dict)
    line: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    own_pair: bool = False
    trainer: Trainer = field(init=False)

    @property
    def beside(self) -> bool:
        """Whether its steps need nothing of Python's, so that others can be at work meanwhile."""
        return self.trainer.engine.beside and self.trainer.data.resident

    def entry(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "name": self.name,
            "settings": self.settings,
            "config": self.config,
            "own_pair": self.own_pair,
            "status": self.status,
            "reason": self.reason,
            "scores": self.scores,
            "line": self.line,
        }


def grid(**settings: Any) -> list[dict[str, Any]]:
    """Every combination of some settings, for `Ensemble(members=...)`.

    Args:
        **settings: a list, a range or a 1-D array are the values that a setting takes in turn;
            anything else, a tuple too, is one value.

    Returns:
        a dict for each combination; the last setting changes fastest.
    """
    several = {
        name: list(values.tolist() if isinstance(values, numpy.ndarray) else values)
        if isinstance(values, (list, range, numpy.ndarray))
        else [values]
        for name, values in settings.items()
    }
    for name, values in several.items():
        if not values:
            raise ConfigError(f"{name} has no values; give at least one")
    return [dict(zip(several, row, strict=True)) for row in itertools.product(*several.values())]


def configs_of(members: Any, base: Config) -> tuple[list[Config], list[dict], list[dict]]:
    """Of each member its settings, what it was given by name, and that as a file holds it.

    Objects of the user's program, such as a loss with a state, are copied for each member.
    """
    if not isinstance(members, Sequence) or isinstance(members, str):
        try:
            count = integer(1).take("members", members)
        except ConfigError as error:
            raise ConfigError(f"{error}, or a list with a dict of settings for each") from None
        first = base.seeded().seed
        members = [{"seed": (first + i) % 2**64} for i in range(count)]
    if not members:
        raise ConfigError("members is empty; give a number, or a dict of settings for each")
    configs = []
    for i, given in enumerate(members):
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"members[{i}] is a {type(given).__name__}; expected a dict of settings, such as "
                "{'seed': 1, 'lr': 1e-4}; fastgan.grid makes a list of them"
            )
        for name in _OF_THE_WHOLE:
            if name in given:
                raise ConfigError(f"members[{i}] has {name}, which is of the whole ensemble")
        configs.append(_member_config(base, given, i))
    varied = list(dict.fromkeys(name for given in members for name in given))
    plain = []
    for i, (given, config) in enumerate(zip(members, configs, strict=True)):
        values = config.to_dict()
        plain.append({name: values[name] for name in varied})
        if given.get("data") is not None and not isinstance(given["data"], str):
            own = given["data"]
            plain[i]["data"] = own.name if isinstance(own, data_room.Data) else f"data {i}"
    return configs, [dict(given) for given in members], plain


def _member_config(base: Config, given: Mapping[str, Any], i: int) -> Config:
    changes = {n: v for n, v in given.items() if n != "data" or v is None or isinstance(v, str)}
    try:
        config = base.with_(**changes)
    except ConfigError as error:
        raise ConfigError(f"members[{i}]: {error}") from None
    own = {}
    for name in config_room.needs(config.to_dict()):
        if name in given or name == "optimizer":
            continue
        try:
            own[name] = copy.deepcopy(getattr(config, name))
        except Exception as error:
            raise ConfigError(
                f"{name} cannot be copied for each member ({checkpoint.first_line(error)}); give "
                "each its own in members, or give it a __deepcopy__"
            ) from error
    return config.with_(**own).seeded()


def begun(place: Path) -> bool:
    """Whether a member was saved before whatever ended the ensemble."""
    return (place / checkpoint.FILE).exists() or bool(checkpoint.saves(place / checkpoint.FILE))


def runs_of(path: str | os.PathLike) -> list[Path]:
    """The directories of an ensemble's members that were saved; of what is none, itself."""
    path = Path(path).expanduser()
    if not (path / FILE).is_file():
        return [path]
    places = [path / entry["name"] for entry in read(path)["members"]]
    return [place for place in places if begun(place)]


def config_of(place: Path, plain: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """The settings of a member that was not saved yet, with those that a resume may change."""
    own = {name: changes[name] for name in config_room.needs(plain) if name in changes}
    config = Config.from_dict({**plain, "out": None, "if_exists": "fail"}, **own)
    rest = {name: value for name, value in changes.items() if name not in own}
    return config.with_(**rest).with_(out=place)


def goal_of(saved: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The limits that the last call of `fit` had, if it had some and a resume has no others."""
    goal = saved["goal"] or {}
    limits = {
        name: config_room.field_of(name).metadata["kind"].take(f"goal.{name}", goal.get(name))
        for name in config_room.LIMITS
    }
    told = any(value is not None for value in limits.values())
    return limits if told and not changes.keys() & set(config_room.LIMITS) else None


def pair_of(
    make_pair: Callable | None, config: Config
) -> tuple[nn.Module | None, nn.Module | None]:
    """The networks of a member, their weights drawn from its seed; None for those of `model`."""
    if make_pair is None:
        return None, None
    if not callable(make_pair):
        raise ConfigError(
            f"make_pair is a {type(make_pair).__name__}; expected a function of a member's Config "
            "that makes its (generator, discriminator): each member needs networks of its own"
        )
    with torch_rng.seeded(config.seed, torch.device("cpu")):
        pair = make_pair(config)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ConfigError(
            f"make_pair gave a {type(pair).__name__}; expected (generator, discriminator)"
        )
    return tuple(pair)


class Shared:
    """Data that several members are trained on: read once, where all of them are in memory."""

    def __init__(self):
        """Nothing has been read."""
        self._kept: dict[str, tuple[Any, data_room.Data]] = {}

    @staticmethod
    def _key(given: Any, config: Config) -> str:
        how = {
            name: value
            for name, value in config.to_dict().items()
            if config_room.field_of(name).metadata["group"] == "data"
        }
        return f"{None if given is None else id(given)} {json.dumps(how, sort_keys=True)}"

    def of(self, given: Any, config: Config) -> Any:
        """What a member is to open: the data of another with the same, or what was given."""
        held = self._kept.get(self._key(given, config))
        return given if held is None else held[1]

    def keep(self, given: Any, config: Config, opened: data_room.Data) -> None:
        """A member with these settings has opened its data."""
        options, plain = config.data_options().keys() - {"budget_bytes"}, config.to_dict()
        # Open data are not told again how to be opened.
        if opened.resident and all(plain[n] == opened.options.get(n) for n in options):
            # With what was given, so that its id stays its own.
            self._kept.setdefault(self._key(given, config), (given, opened))


def write(out: Path, members: Sequence[Member], goal: dict[str, Any] | None) -> None:
    """The whole, in the ensemble's directory."""
    whole = {
        "format": FORMAT,
        "version": VERSION,
        "goal": goal,
        "members": [member.entry() for member in members],
    }
    text = json.dumps(whole, indent=1) + "\n"
    files.write(out / FILE, lambda file: file.write(text.encode()))


def read(out: Path) -> dict[str, Any]:
    """What `write` wrote.

    Raises:
        CheckpointError: there is none, or it is damaged; one line that names the file and field.
    """
    path = out / FILE
    if not path.exists():
        hint = ""
        if (out / checkpoint.FILE).exists():
            hint = "; it is a single run, which Trainer.resume continues"
        raise CheckpointError(f"{out} holds no ensemble: there is no {FILE}{hint}")
    try:
        found = json.loads(path.read_text())
        _WHOLE(found, "")
        if found["format"] != FORMAT or found["version"] > VERSION:
            raise ValueError(
                f"it is of format {found['format']!r}, version {found['version']}; this fastgan "
                f"reads {FORMAT!r} up to version {VERSION}"
            )
        if not found["members"]:
            raise schema.Wrong("members", found["members"], "at least one")
        for i, entry in enumerate(found["members"]):
            if entry["status"] not in STATUSES:
                raise schema.Wrong(f"members[{i}].status", entry["status"], ", ".join(STATUSES))
            if Path(entry["name"]).name != entry["name"] or not entry["name"].strip("."):
                raise schema.Wrong(f"members[{i}].name", entry["name"], "the name of a directory")
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged ({checkpoint.first_line(error)}); each member is a run of its own, "
            "which Trainer.resume continues"
        ) from None
    return found
