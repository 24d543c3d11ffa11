"""What kinds of values settings take: how each is read, checked, written down and described.

A kind turns what a user gave (a number of any library, a word on a command line, a value of a YAML
file) into the one value that the rest of the program sees, or refuses it in a sentence.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastgan.plain import item, items, real, whole
from fastgan.words import nearest


class ConfigError(ValueError):
    """A setting that does not exist, or a value that it cannot take; one line says which."""


class Refused(Exception):
    """A kind's own words for why a value is none of its; without words, `expected` says it."""


@dataclass(frozen=True)
class Kind:
    """The values that a setting takes.

    Attributes:
        expected: the values in words, as in "an integer of at least 1".
        read: the value as the program holds it, from one of Python; TypeError, ValueError or
            Refused if it is none.
        parse: the same from a text, before `read`.
        plain: the value as a file holds it: numbers, words, lists, None.
        annotation: of the setting, in a signature.
        metavar: what a command line calls the value.
        names: the words, where the values are words.
        flag: a command line gives it by --name or --no-name.
        several: a command line takes several values, separated by blanks or commas.
        hints: words that others use, and which of `names` each is.
        owns: a value may be an object of the user's program, which no file can hold.
        texts: a value is a list of texts.
    """

    expected: str
    read: Callable[[Any], Any]
    parse: Callable[[str], Any] = str
    plain: Callable[[Any], Any] = lambda value: value
    annotation: str = "str"
    metavar: str = "VALUE"
    names: tuple[str, ...] = ()
    flag: bool = False
    several: bool = False
    hints: Mapping[str, str] = field(default_factory=dict)
    owns: bool = False
    texts: bool = False

    def take(self, name: str, value: Any) -> Any:
        """Read a value, or say in one line what is wrong with it; ConfigError."""
        try:
            return self.read(value)
        except Refused as refusal:
            raise ConfigError(f"{name} is {_shown(value)}; {refusal}") from None
        except (TypeError, ValueError, OverflowError, AttributeError, RuntimeError):
            near = nearest(value, self.names, self.hints) if self.names else ""
            raise ConfigError(
                f"{name} is {_shown(value)}; expected {self.expected}{near}"
            ) from None

    def take_text(self, name: str, text: str) -> Any:
        """The same of a text."""
        try:
            value = self.parse(text)
        except (TypeError, ValueError):
            value = text
        return self.take(name, value)

    def take_from_file(self, name: str, value: Any) -> Any:
        """The same of a value in a file: what the file's format took for text may be a number.

        YAML 1.1 reads 1e-3 as a text, and a word such as none stands for what TOML cannot say.
        """
        if not self.texts and isinstance(value, list) and any(isinstance(v, str) for v in value):
            value = " ".join(map(str, value))
        return (self.take_text if isinstance(value, str) else self.take)(name, value)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def integer(low: int, high: int | None = None) -> Kind:
    """Integers from low to high, of any library; not booleans."""

    def read(value: Any) -> int:
        value = whole(value)
        if value is None or value < low or (high is not None and value > high):
            raise ValueError
        return value

    upto = f"of at least {low}" if high is None else f"from {low} to {high}"
    return Kind(f"an integer {upto}", read, int, annotation="int", metavar="N")


def number(low: float, high: float = math.inf, *, above: bool = False, below: bool = True) -> Kind:
    """Finite numbers from low (or above it) to high (or below it)."""

    def read(value: Any) -> float:
        value = real(value)
        if value is None or not math.isfinite(value):
            raise ValueError
        if value < low or (above and value == low) or value > high or (below and value == high):
            raise ValueError
        return value

    if low == -math.inf and high == math.inf:
        expected = "a finite number"
    elif high == math.inf:
        expected = f"a finite number {'above' if above else 'of at least'} {low:g}"
    else:
        expected = f"a number in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    return Kind(expected, read, float, annotation="float", metavar="X")


def choice(*names: str, hints: Mapping[str, str] | None = None) -> Kind:
    """One of some words."""

    def read(value: Any) -> str:
        return names[names.index(value)]

    return Kind(
        f"one of {', '.join(names)}",
        read,
        metavar="|".join(names) if len(names) < 6 else "NAME",
        names=names,
        hints=hints or {},
    )


def flag() -> Kind:
    """True or False."""

    def read(value: Any) -> bool:
        value = item(value)
        if not isinstance(value, bool):
            raise TypeError
        return value

    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

    def parse(text: str) -> bool:
        return words.get(text.lower(), text)

    return Kind("True or False", read, parse, annotation="bool", flag=True)


def text(what: str = "a word", metavar: str = "TEXT") -> Kind:
    """Any text that is not empty."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise TypeError
        return value

    return Kind(what, read, metavar=metavar)


def names(what: str) -> Kind:
    """Some names; as a text, separated by commas."""

    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        if not all(isinstance(name, str) and name for name in value):
            raise TypeError
        return tuple(value)

    def parse(words: str) -> Any:
        return [name.strip() for name in words.split(",") if name.strip()]

    return Kind(what, read, parse, list, "Sequence[str]", "A,B", texts=True)


def path(what: str) -> Kind:
    """A place on disk, made absolute at once: the directory of the moment may change."""

    def read(value: Any) -> str:
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            raise TypeError
        if "\0" in str(value):
            raise TypeError
        return os.path.abspath(Path(value).expanduser())

    return Kind(what, read, annotation="str | os.PathLike", metavar="PATH")


def optional(kind: Kind, none: str) -> Kind:
    """The values of a kind, or None, which means what `none` says."""

    def read(value: Any) -> Any:
        return None if value is None else kind.read(value)

    def parse(words: str) -> Any:
        return None if words.lower() in ("none", "null") else kind.parse(words)

    def plain(value: Any) -> Any:
        return None if value is None else kind.plain(value)

    return replace(
        kind,
        expected=f"{kind.expected}, or None ({none})",
        read=read,
        parse=parse,
        plain=plain,
        annotation=f"{kind.annotation} | None",
    )


def pair(kind: Kind, of: str, *, single: bool = True) -> Kind:
    """Two values of a kind; with `single`, or one that stands for both."""

    def read(value: Any) -> Any:
        value = items(value)
        if isinstance(value, list):
            both = tuple(kind.read(v) for v in value)
            if len(both) == 1 and single:
                return both[0]
            if len(both) != 2:
                raise ValueError
            return both
        if not single:
            raise TypeError
        return kind.read(value)

    def parse(words: str) -> Any:
        parts = [kind.parse(part) for part in words.replace(",", " ").split()]
        return parts[0] if len(parts) == 1 else parts

    def plain(value: Any) -> Any:
        return [kind.plain(v) for v in value] if isinstance(value, tuple) else kind.plain(value)

    two = f"tuple[{kind.annotation}, {kind.annotation}]"
    return Kind(
        f"{kind.expected}, or two: {of}" if single else f"two numbers, each {kind.expected}: {of}",
        read,
        parse,
        plain,
        f"{kind.annotation} | {two}" if single else two,
        kind.metavar,
        several=True,
    )


def sizes(what: str) -> Kind:
    """A length, or the sides of a shape: integers of at least 1."""
    one = integer(1)

    def read(value: Any) -> int | tuple[int, ...]:
        value = items(value)
        if not isinstance(value, list):
            return one.read(value)
        sides = tuple(one.read(side) for side in value)
        return sides if len(sides) > 1 else one.read(*sides)

    def parse(words: str) -> Any:
        parts = [int(part) for part in words.lower().replace("x", " ").replace(",", " ").split()]
        return parts[0] if len(parts) == 1 else parts

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return Kind(what, read, parse, plain, "int | tuple[int, ...]", "N", several=True)
