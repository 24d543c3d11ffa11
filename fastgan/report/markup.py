"""HTML that cannot be broken by what stands in it: every text is escaped, unless it is HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

_VOID = ("br", "img", "input", "link", "meta")


class Markup(str):
    """A text that is HTML already."""

    __slots__ = ()


def text(*parts: Any) -> Markup:
    """The parts one after the other; None is left out, and a list or tuple is more of them."""
    found = []
    for part in parts:
        if isinstance(part, (list, tuple)) or (
            isinstance(part, Iterable) and not isinstance(part, str)
        ):
            found.append(text(*part))
        elif part is not None:
            found.append(part if isinstance(part, Markup) else html.escape(str(part)))
    return Markup("".join(found))


def tag(name: str, /, *parts: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: of the element.
        *parts: what is in it, as `text` takes it.
        **attributes: by name, "_" for "-" and a "_" after a word of Python's. True: the name alone;
            False or None: left out.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{html.escape(str(value))}"')
    begin = f"<{' '.join(words)}>"
    return Markup(begin if name in _VOID else f"{begin}{text(*parts)}</{name}>")


def data(value: Any) -> Markup:
    """An element that a script of the page reads, and nothing in the values can end."""
    plain = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return tag("script", Markup(plain), type="application/json")


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], caption: str) -> Markup:
    """A table whose first column names its rows; it scrolls by itself where it is too wide."""
    head = [tag("th", cell, scope="col") for cell in head]
    body = []
    for first, *others in rows:
        cells = [tag("td", cell) for cell in others]
        body.append(tag("tr", tag("th", first, scope="row"), cells))
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", head)),
            tag("tbody", body),
        ),
        class_="wide",
        tabindex=0,
        role="region",
        aria_label=caption,
    )
