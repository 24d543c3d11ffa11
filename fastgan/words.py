"""The nearest right word for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
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


def _key(word: str) -> str:
    return "".join(c for c in word.lower() if c.isalnum())
