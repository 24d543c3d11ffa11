"""The description of a run: `Config`, its kinds of values, its files and presets."""

from fastgan.config.config import LIMITS, Config, field_of, settings_of
from fastgan.config.files import load, read
from fastgan.config.forms import described, table, takes_limits, takes_settings
from fastgan.config.kinds import ConfigError
from fastgan.config.objects import needs, owned
from fastgan.config.presets import PRESETS, preset

__all__ = [
    "LIMITS",
    "PRESETS",
    "Config",
    "ConfigError",
    "described",
    "field_of",
    "load",
    "needs",
    "owned",
    "preset",
    "read",
    "settings_of",
    "table",
    "takes_limits",
    "takes_settings",
]
