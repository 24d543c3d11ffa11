"""The engines, fastest first, and the choice between them."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from fastgan.engines.base import CannotRun, Engine, check

__all__ = ["ORDER", "CannotRun", "Engine", "choose", "load"]

if TYPE_CHECKING:
    from fastgan.problem import Problem

logger = logging.getLogger("fastgan")

ORDER = ("fused", "graph", "eager")
"""Modules of this package, in the order in which `auto` tries them; fused.py holds FusedEngine."""


def load(name: str) -> type[Engine]:
    """The class of an engine, imported when first asked for."""
    if name not in ORDER:
        raise ValueError(f"engine {name!r} is unknown; choose one of {', '.join(('auto', *ORDER))}")
    return getattr(import_module(f"fastgan.engines.{name}"), f"{name.capitalize()}Engine")


def choose(problem: Problem, name: str = "auto") -> tuple[Engine, str]:
    """Build the engine that runs a problem.

    Args:
        problem: networks, game, optimisers and data.
        name: an engine's name, or "auto" for the fastest that can run the problem.

    Returns:
        the engine, and a sentence that says which it is and why no faster one.

    Raises:
        ValueError: the networks do not fit the data, the loss or each other; the name is unknown;
            or the engine asked for cannot run this problem (the message has its reason). With
            "auto", an engine that fails when tried is passed over with a warning.
    """
    if name not in ("auto", *ORDER):
        load(name)
    check(problem)
    passed_over = []
    for candidate in ORDER if name == "auto" else (name,):
        kind = load(candidate)
        if reason := kind.unsupported(problem):
            passed_over.append(f"not {candidate}: {reason}")
            continue
        try:
            engine = kind(problem)
        except CannotRun as reason:
            passed_over.append(f"not {candidate}: {reason}")
            if name == "auto":
                logger.warning("engine %s was tried and cannot run this: %s", candidate, reason)
            continue
        return engine, "; ".join([f"engine {candidate}: {engine.describe()}", *passed_over])
    if name == "auto":
        raise ValueError("no engine can run this: " + "; ".join(passed_over))
    raise ValueError(f"engine={name!r} cannot run this ({passed_over[0]}); use engine='auto'")
