"""The nearest right word for a wrong one."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

_NONE: Mapping[str, str] = MappingProxyType({})


def nearest(word: object, names: Iterable[str], hints: Mapping[str, str] = _NONE) -> str:
    """What a message may add about a word that is none of the names; "" if none is near.

    Args:
        word: what was given; anything but a text has no neighbours.
        names: the right words.
        hints: words that others use, and which of ours each is, or what says the same here.
    """
    if not isinstance(word, str):
        return ""
    key, names = _key(word), list(names)
    for other, ours in hints.items():
        if _key(other) == key:
            return f"; {word!r} is {ours!r} here" if ours in names else f"; {word!r} is {ours} here"
    by_key = {_key(name): name for name in names}
    close = difflib.get_close_matches(key, by_key, 1, 0.6)
    return f"; did you mean {by_key[close[0]]!r}?" if close else ""


def by_name(hints: Mapping[str, str] = _NONE, elsewhere: Mapping[str, str] = _NONE) -> Callable:
    """Gives a method that takes all by name errors that say the nearest right name.

    Args:
        hints: as for `nearest`.
        elsewhere: names that belong somewhere else, and what to say of each.
    """

    def give(method: Callable) -> Callable:
        names = [*inspect.signature(method).parameters][1:]
        called = f"{method.__name__}()"

        @functools.wraps(method)
        def named(self, *positional, **given):
            if positional:
                raise TypeError(
                    f"{called} takes its arguments by name: {method.__name__}({names[0]}="
                    f"{positional[0]!r})? There are {', '.join(names)}"
                )
            for name in given:
                if name not in names:
                    ours = {other: right for other, right in hints.items() if right in names}
                    way = elsewhere.get(name) or nearest(name, names, ours)
                    raise TypeError(
                        f"{called} has no argument {name!r}{way or f'; it has {_listed(names)}'}"
                    )
            return method(self, **given)

        return named

    return give


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _key(word: str) -> str:
    return "".join(c for c in word.lower() if c.isalnum())
