"""Settings as options of a command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from fastgan import config as config_room
from fastgan import models
from fastgan.config import Config, ConfigError, field_of
from fastgan.config.config import HINTS
from fastgan.data.sources import known_name
from fastgan.data.table import is_table
from fastgan.densities import DENSITIES
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


def start(add: Callable[..., Any]) -> None:
    """What `train`, `sweep` and `demo` take besides the settings."""
    add(
        "--preset",
        metavar="NAME",
        help="; ".join(f"{name}: {p.help}" for name, p in config_room.PRESETS.items()),
    )
    add(
        "--config",
        metavar="FILE",
        help="settings from a YAML, TOML or JSON file, or a run's config.json; options win over it",
    )
    add("--alarms", action="store_true", help="tell of collapse, saturation, divergence, starving")
    add(
        "--measure",
        metavar="NAME,NAME",
        help="write metrics into every tenth log line: jsd, or of those of `fastgan evaluate`",
    )
    add("--tensorboard", action="store_true", help="also write for TensorBoard, to RUN/tensorboard")
    add(
        "--until",
        metavar="RULE",
        help="also end the run when a number is reached, 'jsd<0.05', or becomes no better, "
        "'plateau:fid:5': a metric of `fastgan evaluate`, jsd, or a number of log.jsonl",
    )


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


def config_of(options: argparse.Namespace, chosen: dict[str, Any]) -> tuple[Config, str | None]:
    """The settings of a new run: a preset, a file over it, options over both.

    Where neither the command line nor the file names a preset, it is that of the model; and where
    they name no model either, densities have the pair for points, and tables that for rows.

    Returns:
        the settings, and the preset; None where a file says every setting.
    """
    values = {} if options.config is None else dict(config_room.read(options.config))
    named = values.pop("preset", None)
    if named is not None and options.preset not in (None, named):
        raise ConfigError(
            f"--preset is {options.preset!r}, and {options.config} names preset {named!r}; leave "
            "one of them out"
        )
    name = options.preset or named
    if name is None:
        source = str(chosen.get("data", values.get("data")))
        default = field_of("model").default
        if known_name(source) in DENSITIES:
            default = "points"
        elif is_table(source):
            default = "ctgan"
        model = chosen.get("model", values.get("model", default))
        # A word that is no model is refused with the file's other values.
        name = models.MODELS[model if model in [*models.MODELS] else default].preset
    base = Config.from_dict(values, where=str(options.config), base=config_room.preset(name))
    left = config_room.PRESETS[name].values.keys() - values.keys()
    return base.with_(**chosen), name if left or options.preset else None


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line: ConfigError."""

    def error(self, message: str) -> NoReturn:
        """What was found, what was expected, the nearest right word, and where to look."""
        found = re.fullmatch(r"argument ([^:]+): (.*)", message, re.DOTALL)
        names, problem = found.groups() if found else ("", message)
        action = next((a for a in self._actions if found and names in _names_of(a)), None)
        if action is not None and "ignored explicit argument" in problem:
            message = f"{names} takes no value"
        elif action is not None and "invalid choice" in problem:
            word = re.search(r"'(.*?)'", problem).group(1)
            message = f"there is no {names.lower()} {word!r}; expected {', '.join(action.choices)}"
            message += nearest(word, action.choices)
        elif action is not None:
            message = f"{names}: {problem}"
            if action.dest in Config.__dataclass_fields__:
                message += f": {field_of(action.dest).metadata['kind'].expected}"
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def _names_of(action: argparse.Action) -> tuple[str, ...]:
    """What argparse may call an argument in a message."""
    return "/".join(action.option_strings), str(action.metavar), action.dest


_AS_KEYWORD = re.compile(
    rf"\b({'|'.join(f.name for f in fields(Config) if f.metadata['kind'].metavar)})="
    r"(True|False|'[^']*'|\.\.\.|[\w.+-]*\w)"
)


def in_options(message: str) -> str:
    """A message of the library with its keywords as a command line has them."""

    def replaced(found: re.Match) -> str:
        name, value = found.groups()
        if value in ("True", "False"):
            return option(name if value == "True" else f"no_{name}")
        return f"{option(name)} {value.strip(chr(39))}"

    return _AS_KEYWORD.sub(replaced, message)


_ELSEWHERE = {"--resume": " here; `fastgan train --resume RUN` goes on with a run"}
"""What to say of options that other commands have."""


def refuse_unknown(unknown: list[str], parser: argparse.ArgumentParser) -> None:
    """ConfigError that names the nearest right option for the first that there is not."""
    if unknown:
        word = unknown[0].split("=")[0].strip()
        if not word.startswith("-"):
            raise ConfigError(f"{word!r} belongs to no option; see `{parser.prog} --help`")
        names = [name for action in parser._actions for name in action.option_strings]
        hints = {option(other): option(ours) for other, ours in HINTS.items()}
        near = _ELSEWHERE.get(word) or nearest(word, names, hints)
        near = near or f"; see `{parser.prog} --help`"
        raise ConfigError(f"there is no option {word!r}{near}")


def _shown(plain: Any) -> str:
    if isinstance(plain, list):
        return " ".join(map(str, plain)) or "none"
    return "none" if plain is None else str(plain)
