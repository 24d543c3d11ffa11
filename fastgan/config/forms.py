"""The settings in other forms: signatures, docstrings, a table."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import Field, fields

from fastgan.config.config import HINTS, LIMITS, Config
from fastgan.words import by_name


class _AsSaved:
    """Stands for a default that is the run's own."""

    def __repr__(self) -> str:
        return "as saved"


AS_SAVED = _AsSaved()


def takes_settings(*without: str, resume: bool = False, saved: bool = False) -> Callable:
    """Gives a function with ``**overrides`` the signature that it truly has.

    Args:
        *without: settings that it does not take; those that it takes by other parameters are known.
        resume: only settings that a resume may change, and those that may be objects of the user's
            program, which a resume must be given again. Each is by default as it was saved.
        saved: each is by default as it was saved.
    """

    def give(function: Callable) -> Callable:
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {p.name for p in parameters} | set(without)
        parameters += [
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=AS_SAVED if resume or saved else f.default,
                annotation=f.metadata["kind"].annotation,
            )
            for f in fields(Config)
            if f.name not in taken
            and (not resume or f.metadata["resume"] or f.metadata["kind"].owns)
        ]
        function.__signature__ = signature.replace(parameters=parameters)
        return function

    return give


def takes_limits(where: str) -> Callable:
    """Gives a method that takes limits by name errors that say the nearest right name.

    Args:
        where: what takes the settings, which belong there.
    """
    return by_name(
        HINTS,
        {
            f.name: f"; it is a setting: {where}(..., {f.name}=...)"
            for f in fields(Config)
            if f.name not in LIMITS
        },
    )


def described(*without: str) -> str:
    """The settings as the lines of a docstring."""
    return "\n".join(
        textwrap.fill(
            f"{f.name}: {f.metadata['help']}; {f.metadata['kind'].expected}. Default "
            f"{_shown_default(f)}.",
            width=100,
            initial_indent=" " * 8,
            subsequent_indent=" " * 12,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for f in fields(Config)
        if f.name not in without
    )


def _shown_default(f: Field) -> str:
    return repr(f.metadata["kind"].plain(f.default))


def table() -> str:
    """All settings as a Markdown table."""
    rows = [
        "| setting | default | what it is | values | a resume may change it |",
        "|---" * 5 + "|",
    ]
    for f in fields(Config):
        kind = f.metadata["kind"]
        cells = (
            f"`{f.name}`",
            f"`{_shown_default(f)}`",
            f.metadata["help"],
            kind.expected,
            "yes" if f.metadata["resume"] else "no",
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
