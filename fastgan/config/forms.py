"""The settings in other forms: signatures, docstrings, a table."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import Field, fields

from fastgan.config.config import Config


def takes_settings(*without: str) -> Callable:
    """Gives a function with ``**overrides`` the signature and the docstring that it truly has."""

    def give(function: Callable) -> Callable:
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {p.name for p in parameters} | set(without)
        chosen = [f for f in fields(Config) if f.name not in taken]
        parameters += [
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=f.default,
                annotation=f.metadata["kind"].annotation,
            )
            for f in chosen
        ]
        function.__signature__ = signature.replace(parameters=parameters)
        return function

    return give


def described(*without: str) -> str:
    """The settings as the lines of a docstring."""
    lines = []
    for f in fields(Config):
        if f.name not in without:
            kind = f.metadata["kind"]
            lines.append(
                f"    {f.name}: {f.metadata['help']}; {kind.expected}. Default {_shown_default(f)}."
            )
    return "\n".join(lines)


def _shown_default(f: Field) -> str:
    return json.dumps(f.metadata["kind"].plain(f.default))


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
