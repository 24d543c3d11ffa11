"""The engines, fastest first, and the choice between them."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from torch import Tensor

from fastgan.engines import kept
from fastgan.engines.base import CannotRun, Engine
from fastgan.engines.scores import check
from fastgan.engines.updates import require_numbers

if TYPE_CHECKING:
    from fastgan.problem import Problem

__all__ = ["ORDER", "CannotRun", "Engine", "advance", "choose", "faster", "load", "order"]

logger = logging.getLogger("fastgan")

ORDER = ("fused", "graph", "compile", "eager")
"""Modules of this package, the fastest first; fused holds FusedEngine. See `order`, too."""


def load(name: str) -> type[Engine]:
    """The class of an engine, imported when first asked for."""
    if name not in ORDER:
        raise ValueError(f"engine {name!r} is unknown; choose one of {', '.join(('auto', *ORDER))}")
    return getattr(import_module(f"fastgan.engines.{name}"), f"{name.capitalize()}Engine")


def order(problem: Problem) -> tuple[tuple[str, ...], dict[str, str]]:
    """The engines in the order in which `auto` tries them for a problem.

    Returns:
        names, and for one that stands further back than in `ORDER` the reason.
    """
    names, behind = list(ORDER), {}
    if problem.device.type == "cuda":
        from fastgan.engines.fused.support import outgrown

        if reason := outgrown(problem):
            names[:2], behind["fused"] = ["graph", "fused"], reason
    if "compile" in names and (reason := kept.why_not(problem)):
        names.append(names.pop(names.index("compile")))
        behind["compile"] = reason
    return tuple(names), behind


def choose(problem: Problem, name: str = "auto", failed: str | None = None) -> tuple[Engine, str]:
    """Build the engine that runs a problem.

    Args:
        problem: networks, loss, optimisers and data.
        name: an engine's name, or "auto" for the fastest that can run the problem.
        failed: an engine whose reason the caller tells: it is not warned of again.

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
    names, behind = order(problem) if name == "auto" else ((name,), {})
    for candidate in names:
        kind = load(candidate)
        if reason := kind.unsupported(problem):
            passed_over.append(f"not {candidate}: {reason}")
            continue
        try:
            engine = kind(problem)
        except CannotRun as reason:
            passed_over.append(f"not {candidate}: {reason}")
            if name == "auto" and candidate != failed:
                logger.warning("engine %s was tried and cannot run this: %s", candidate, reason)
            continue
        later = names[names.index(candidate) :]
        faster = ORDER[: ORDER.index(candidate)]
        passed_over += [
            f"not {one}: {why}" for one, why in behind.items() if one in later and one in faster
        ]
        return engine, "; ".join([f"engine {candidate}: {engine.describe()}", *passed_over])
    if name == "auto":
        raise ValueError("no engine can run this: " + "; ".join(passed_over))
    raise ValueError(f"engine={name!r} cannot run this ({passed_over[0]}); use engine='auto'")


def faster(engine: Engine) -> tuple[Engine, str] | None:
    """A faster engine that can go on where this one stands, for a run that fell back from it.

    Returns:
        the engine, in place of the other, and a sentence that says which it is; None if there is
        none.
    """
    names, _ = order(engine.problem)
    for candidate in names[: names.index(engine.name)]:
        kind = load(candidate)
        if kind.unsupported(engine.problem) is not None:
            continue
        try:
            other = kind(engine.problem)
        except CannotRun:  # which was told when it was tried first
            continue
        other.step = engine.step
        engine.close()
        return other, f"engine {candidate}: {other.describe()}"
    return None


def advance(engine: Engine, n: int, name: str = "auto") -> tuple[Engine, Tensor]:
    """Do n steps, or find another engine where this one cannot run what was made of the networks.

    A hook, a frozen layer or parameter groups that differ may come after an engine was chosen. The
    change of engines is told once, by a warning.

    Args:
        engine: the engine at work.
        n: steps.
        name: what was asked for; only "auto" allows another engine.

    Returns:
        the engine to go on with, and the statistics of the steps that were done: of all n, or of
        fewer where the engine is another one.

    Raises:
        ValueError: the engine cannot go on, and was asked for by name; or no engine can; or a
            value of an optimiser's group is no number.
    """
    require_numbers(engine.problem)
    try:
        return engine, engine.run(n)
    except CannotRun as reason:
        if name != "auto":
            raise ValueError(
                f"engine={name!r} cannot go on at step {engine.step}: {reason}; undo the change, "
                "or use engine='auto'"
            ) from reason
        other, said = choose(engine.problem, failed=engine.name)
        if type(other) is type(engine) or engine.unreported is None:
            raise
        other.step = engine.step
        logger.warning(
            "engine %s cannot go on at step %d (%s); from here on %s",
            engine.name, engine.step, reason, said,
        )  # fmt: skip
        engine.close()
        return other, engine.unreported
