"""Settings as options of a command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from fastgan import config as config_room
from fastgan import models
from fastgan.config import Config, ConfigError
from fastgan.config.config import HINTS
from fastgan.words import nearest

TITLES = {
    "networks": "networks",
    "data": "data",
    "training": "training",
    "length": "length (the first limit counts)",
    "machine": "machine",
    "run": "run",
}
_NEGATIVE = re.compile(r"-(\d|\.\d|inf|nan)")


def add(parser: argparse.ArgumentParser) -> None:
    """One option for each setting, --with-dashes; what is not given is None."""
    groups = {name: parser.add_argument_group(title) for name, title in TITLES.items()}
    for f in fields(Config):
        kind = f.metadata["kind"]
        if not kind.metavar:  # an object of the user's program, which no word can name
            continue
        help = f"{f.metadata['help']} (default: {_shown(kind.plain(f.default))})"
        options: dict[str, Any] = {"default": None, "help": help.replace("%", "%%")}
        if kind.flag:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = kind.metavar
            if kind.several:
                options["nargs"] = "+"
        groups[f.metadata["group"]].add_argument(option(f.name), **options)


def option(name: str) -> str:
    """What a command line calls a setting."""
    return f"--{name.replace('_', '-')}"


def readable(arguments: Sequence[str]) -> list[str]:
    """The arguments so that argparse takes a negative number for one, -1e-3 too, and no option."""
    return [f" {word}" if _NEGATIVE.match(word) else word for word in arguments]


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, read; ConfigError in the words of the command line."""
    found = {}
    for f in fields(Config):
        value = getattr(options, f.name, None)
        if isinstance(value, bool):
            found[f.name] = value
        elif value is not None:
            words = " ".join(value) if isinstance(value, list) else value
            found[f.name] = f.metadata["kind"].take_text(option(f.name), words.strip())
    return found


def config_of(options: argparse.Namespace, chosen: dict[str, Any]) -> Config:
    """The settings of a new run: a preset, a file over it, options over both.

    Without a preset and a file, the preset is that of the model.
    """
    base = None if options.preset is None else config_room.preset(options.preset)
    if options.config is not None:
        base = config_room.load(options.config, base)
    elif base is None:
        base = config_room.preset(preset_of(chosen))
    return base.with_(**chosen)


def preset_of(chosen: dict[str, Any]) -> str:
    """The preset that suits the model that was chosen."""
    return models.MODELS[chosen.get("model", config_room.field_of("model").default)].preset


def refuse_unknown(unknown: list[str], parser: argparse.ArgumentParser) -> None:
    """ConfigError that names the nearest right option for the first that there is not."""
    if unknown:
        word = unknown[0].split("=")[0].strip()
        if not word.startswith("-"):
            raise ConfigError(f"{word!r} belongs to no option")
        names = [name for action in parser._actions for name in action.option_strings]
        hints = {option(other): option(ours) for other, ours in HINTS.items()}
        raise ConfigError(f"there is no option {word!r}{nearest(word, names, hints)}")


def _shown(plain: Any) -> str:
    if isinstance(plain, list):
        return " ".join(map(str, plain)) or "none"
    return "none" if plain is None else str(plain)
