"""Settings in files: YAML, TOML, JSON, and the config.json of a run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastgan.config.config import Config
from fastgan.config.kinds import ConfigError
from fastgan.config.presets import preset


def load(path: str | os.PathLike, base: Config | None = None) -> Config:
    """The settings of a YAML, TOML or JSON file, such as a run's config.json.

    A key `preset` names a preset that the file's own values are laid over. A run's config.json is
    taken without its `out`: that directory is the other run's.

    Args:
        path: the file.
        base: what the file leaves out, if it names no preset. Default: `Config()`.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    values = dict(read(path))
    if "preset" in values:
        try:
            base = preset(values.pop("preset"))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return Config.from_dict(values, where=str(path), base=base)


def read(path: str | os.PathLike) -> Mapping[str, Any]:
    """The settings in a file, by the ending of its name; ConfigError if it cannot be read."""
    path = Path(path).expanduser()
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in (".yaml", ".yml"):
            import yaml

            top = yaml.compose(content, yaml.SafeLoader)
            if isinstance(top, yaml.MappingNode):
                _once([(name.value, None) for name, _ in top.value])
            values = yaml.safe_load(content)
        elif path.suffix.lower() == ".toml":
            if sys.version_info >= (3, 11):
                import tomllib
            else:
                import tomli as tomllib
            values = tomllib.loads(content)
        elif path.suffix.lower() == ".json":
            values = json.loads(content, object_pairs_hook=_once)
        else:
            raise ValueError("its name does not end in .yaml, .yml, .toml or .json")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # of each format's own reader
        line = " ".join(str(error).split())
        raise ConfigError(f"{path}: is no file of settings ({line})") from None
    if isinstance(values, Mapping) and isinstance(values.get("settings"), Mapping):
        # A run's config.json.
        values = {name: value for name, value in values["settings"].items() if name != "out"}
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{path}: expected names and values, one a line, such as `lr: 2e-4`")
    return values


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Names and values, as the readers give them; ValueError where a name stands twice.

    TOML's reader says so itself, the others would take the last.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found
