"""Factors on learning rates as functions of the step: by a word, or a user's own function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastgan.words import nearest

__all__ = ["EXPECTED", "Schedule", "both", "needs_end", "of_text", "plain", "read", "with_end"]

EXPECTED = (
    "linear[:END[:START]], cosine[:END[:START]] or warmup:STEPS, joined by +, a function of the "
    "step (counted from 0) that gives a factor, or two of these (generator's, discriminator's)"
)
_HINTS = {"decay": "linear", "lambda": "linear", "polynomial": "linear", "rampup": "warmup"}


@dataclass(frozen=True)
class Schedule:
    """A product of named parts: what a file and a checkpoint can hold.

    Attributes:
        parts: (name, end, start) of each. "linear" and "cosine" are 1 up to step `start` and fall
            to 0 at step `end`, as a line or as half a cosine (I. Loshchilov and F. Hutter, "SGDR",
            ICLR 2017); "warmup" rises as a line from 1 / end at the first step to 1. An end of None
            is that of the run, which is filled in where its length is known.
    """

    parts: tuple[tuple[str, int | None, int], ...]

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        return math.prod(_factor(name, end, start, step) for name, end, start in self.parts)

    def __str__(self) -> str:
        """As `read` takes it."""
        return "+".join(
            name + (f":{end}" if end is not None else "") + (f":{start}" if start else "")
            for name, end, start in self.parts
        )


def _factor(name: str, end: int, start: int, step: int) -> float:
    if name == "warmup":
        return min(1.0, (step + 1) / end)
    done = min(1.0, max(0.0, (step - start) / (end - start)))
    return 0.5 * (1.0 + math.cos(math.pi * done)) if name == "cosine" else 1.0 - done


def read(given: Any) -> Any:
    """A schedule from its words, a function as it is, or two of them; None is 1 at every step.

    Raises:
        ValueError: it is none; the message says why where there is more to say than `EXPECTED`.
    """
    if isinstance(given, (list, tuple)):
        if len(given) != 2:
            raise ValueError(f"expected {EXPECTED}")
        one, other = map(_one, given)
        return None if one is other is None else (one, other)
    return _one(given)


def _one(given: Any) -> Callable[[int], float] | None:
    if isinstance(given, str):
        return None if given == "none" else Schedule(tuple(map(_part, given.split("+"))))
    if given is not None and (not callable(given) or isinstance(given, type)):
        raise ValueError(f"expected {EXPECTED}")
    return given


def _part(text: str) -> tuple[str, int | None, int]:
    name, *numbers = text.strip().split(":")
    most = {"linear": 2, "cosine": 2, "warmup": 1}
    if name not in most or len(numbers) > most[name]:
        raise ValueError(f"expected {EXPECTED}{nearest(name, most, _HINTS)}")
    steps = [int(n) if n.isdecimal() else None for n in numbers]
    if None in steps or (name == "warmup" and not steps):
        raise ValueError(f"expected {EXPECTED}")
    end, start = (*steps, 0)[:2] if steps else (None, 0)
    if end is not None and end <= start:
        raise ValueError(f"{text!r} ends at step {end}; expected a step after {start}")
    return name, end, start


def both(schedule: Any) -> tuple[Any, Any]:
    """The generator's and the discriminator's."""
    return schedule if isinstance(schedule, tuple) else (schedule, schedule)


def needs_end(schedule: Any) -> bool:
    """Whether a part has no end yet."""
    return any(
        end is None
        for one in both(schedule)
        if isinstance(one, Schedule)
        for _, end, _ in one.parts
    )


def with_end(schedule: Any, steps: int) -> Any:
    """A schedule whose parts without an end go on to this step."""

    def filled(one: Any) -> Any:
        if not isinstance(one, Schedule):
            return one
        parts = ((name, steps if end is None else end, start) for name, end, start in one.parts)
        return replace(one, parts=tuple(parts))

    return tuple(map(filled, schedule)) if isinstance(schedule, tuple) else filled(schedule)


def plain(schedule: Any, own: Callable[[Any], Any]) -> Any:
    """As a file has it; `own` says what stands for a function of the user's."""
    if isinstance(schedule, tuple):
        return [plain(one, own) if one is not None else "none" for one in schedule]
    return str(schedule) if isinstance(schedule, Schedule) else own(schedule)


def of_text(words: str) -> Sequence[str] | str:
    """What a command line says: one schedule, or two separated by a blank or a comma."""
    parts = words.replace(",", " ").split()
    return parts[0] if len(parts) == 1 else parts
