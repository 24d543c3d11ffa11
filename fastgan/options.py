"""Settings as options of a command line."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from fastgan import config as config_room
from fastgan.config import ConfigError
from fastgan.config.config import HINTS, Config

TITLES = {
    "networks": "networks",
    "data": "data",
    "training": "training",
    "length": "length (the first limit counts)",
    "machine": "machine",
    "run": "run",
}


def add(parser: argparse.ArgumentParser) -> None:
    """One option for each setting, --with-dashes; what is not given is None."""
    groups = {name: parser.add_argument_group(title) for name, title in TITLES.items()}
    for f in fields(Config):
        kind = f.metadata["kind"]
        if not kind.metavar:  # an object of the user's program, which no word can name
            continue
        default = kind.plain(f.default)
        shown = (
            "none"
            if default is None
            else " ".join(map(str, default))
            if isinstance(default, list)
            else str(default)
        )
        options: dict[str, Any] = {"help": f"{f.metadata['help']} (default: {shown or 'none'})"}
        options["help"] = options["help"].replace("%", "%%")
        if kind.flag:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = kind.metavar
            if kind.several:
                options["nargs"] = "+"
        groups[f.metadata["group"]].add_argument(
            f"--{f.name.replace('_', '-')}", default=None, **options
        )


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, read; ConfigError in the words of the command line."""
    found = {}
    for f in fields(Config):
        value = getattr(options, f.name, None)
        if value is None:
            continue
        kind = f.metadata["kind"]
        if isinstance(value, list):
            value = " ".join(value)
        option = f"--{f.name.replace('_', '-')}"
        if isinstance(value, bool):
            found[f.name] = value
        else:
            found[f.name] = kind.take_text(option, value)
    return found


def config_of(options: argparse.Namespace, chosen: dict[str, Any]) -> Config:
    """The settings of a new run: a preset, a file over it, options over both.

    Without a preset and a file, the preset is that of the model.
    """
    from fastgan import models

    if options.config is not None:
        base = None if options.preset is None else config_room.preset(options.preset)
        base = config_room.load(options.config, base)
    else:
        model = chosen.get("model", config_room.field_of("model").default)
        base = config_room.preset(options.preset or models.MODELS[model].preset)
    if chosen.keys() & {"epochs", "steps", "seconds"}:
        base = base.with_(epochs=None, steps=None, seconds=None)
    return base.with_(**chosen)


def refuse_unknown(unknown: list[str]) -> None:
    """ConfigError that names the nearest right option for the first that there is not."""
    from fastgan.words import nearest

    if unknown:
        word = unknown[0].split("=")[0]
        names = [f"--{f.name.replace('_', '-')}" for f in fields(Config)]
        names += ["--resume", "--preset", "--config", "--name", "--json", "--quiet"]
        hints = {f"--{k.replace('_', '-')}": f"--{v.replace('_', '-')}" for k, v in HINTS.items()}
        raise ConfigError(f"there is no option {word!r}{nearest(word, names, hints)}")
