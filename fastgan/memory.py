"""What the functions of a user's program remember: BEGAN's k, a history of fakes, a network.

A loss, a method, a penalty or a schedule may keep a state, and a run that is continued needs it. It
is found where a function can have it: in a `state_dict` of its own or of the object that it belongs
to, in that object's attributes and in those of a user's objects among them, or in the variables
that an inner function shares with the outer. Only what has changed since the run began is a state;
all else is how the function was made, which is the user's to change.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from fastgan import torch_private
from fastgan.engines.facts import FIXED

logger = logging.getLogger("fastgan")

_PLAIN = (bool, int, float, str)
_DEEPEST = 3
"""How far objects are looked into that are attributes of one another."""
_Place = tuple[str, Any, Callable[[Any], None]]


class Memory:
    """The states of some functions, for a checkpoint."""

    def __init__(self, functions: Mapping[str, Callable | None], but: Iterable[object] = ()):
        """Look at the functions before they are called for the first time.

        Args:
            functions: by the names that their states have in the checkpoint; None for none.
            but: objects whose state is none of theirs.
        """
        self._but = tuple(but)
        self._owners = {name: _owner(f) for name, f in functions.items() if f is not None}
        self._first = {
            name: {place: _mark(value) for place, value, _ in self._places(owner)}
            for name, owner in self._owners.items()
        }

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The states of those that have one, by name."""
        found = {}
        for name, owner in self._owners.items():
            first = self._first[name]
            state = {
                place: value
                for place, value, _ in self._places(owner)
                if place not in first or first[place] != _mark(value)
            }
            if state:
                found[name] = state
        return found

    def everything(self) -> dict[str, dict[str, Any]]:
        """As `state_dict`, with what has not changed."""
        return {
            name: {place: value for place, value, _ in self._places(owner)}
            for name, owner in self._owners.items()
        }

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take them back; what was not saved stays as it is."""
        for name, owner in self._owners.items():
            state = dict(states.get(name, {}))
            for place, _, put in list(self._places(owner)):
                if place in state:
                    put(state.pop(place))
            for place, value in state.items():  # what comes to be in the first step
                *way, last = place.split(".")
                try:
                    setattr(functools.reduce(getattr, way, owner), _name(last), value)
                except AttributeError:
                    logger.warning(
                        "%s of %s was saved, and there is none to take it back; make it before "
                        "the run is resumed", place, name,
                    )  # fmt: skip

    def _places(self, owner: Any, prefix: str = "", depth: int = 0) -> Iterator[_Place]:
        """(name, value, how to put another there) of what an object keeps."""
        if any(owner is other for other in self._but):
            return
        if isinstance(owner, torch.Generator):
            yield f"{prefix}get_state()", owner.get_state(), owner.set_state
            return
        if _explicit(owner):
            yield f"{prefix}state_dict()", dict(owner.state_dict()), owner.load_state_dict
            if not isinstance(owner, nn.Module):
                return
        for name, value, put in _variables(owner):
            if isinstance(value, deque) and _is_plain(list(value)):
                yield f"{prefix}{name}", list(value), functools.partial(_refill, value)
            elif _is_plain(value):
                yield f"{prefix}{name}", value, functools.partial(_replace, value, put)
            elif depth < _DEEPEST and _is_looked_into(value, owner):
                yield from self._places(value, f"{prefix}{name}.", depth + 1)


def _owner(function: Any) -> Any:
    """The object that keeps what a function remembers."""
    while isinstance(function, functools.partial):
        function = function.func
    bound = getattr(function, "__self__", None)
    return function if bound is None else bound


def _explicit(owner: Any) -> bool:
    return hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict")


def _name(place: str) -> str:
    """The name of an attribute; AttributeError for a call, and for what Python itself looks up."""
    if not place.isidentifier() or place.startswith("__"):
        raise AttributeError(place)
    return place


def _is_looked_into(value: Any, owner: Any) -> bool:
    """An object with a state: one that says so, or one of a user's classes.

    Into what an installed package has made, such as the connection to a server, nobody should
    write: only into what its own package keeps.
    """
    if isinstance(value, (type, ModuleType)):
        return False
    if isinstance(value, torch.Generator) or _explicit(value):
        return True
    package, its = (type(one).__module__.split(".")[0] for one in (value, owner))
    if callable(value) or package in FIXED:
        return False
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return package == its or not {"site-packages", "dist-packages"} & set(Path(file).parts)


def _variables(owner: Any) -> Iterator[_Place]:
    """(name, value, how to set it) of an object's attributes and a function's inner variables."""
    frozen = getattr(getattr(owner, "__dataclass_params__", None), "frozen", False)
    if frozen or isinstance(owner, (type, ModuleType)):
        return
    slots = (vars(base).get("__slots__", ()) for base in type(owner).__mro__)
    names = [name for some in slots for name in ((some,) if isinstance(some, str) else some)]
    for name in (*names, *getattr(owner, "__dict__", ())):
        if name not in torch_private.MODULE_STATE and hasattr(owner, name):
            yield name, getattr(owner, name), functools.partial(setattr, owner, name)
    code, cells = getattr(owner, "__code__", None), getattr(owner, "__closure__", None)
    for name, cell in zip(code.co_freevars, cells, strict=True) if code and cells else ():
        try:
            yield name, cell.cell_contents, functools.partial(setattr, cell, "cell_contents")
        except ValueError:  # a variable that has no value yet
            continue


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, (str, int)) and _is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if value is None or type(value) in _PLAIN or isinstance(value, numpy.generic):
        return True
    return type(value) is Tensor and not value.is_inference()


class _Seen:
    """A tensor as it was, without a copy: another one, or the same changed in place, is unequal."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor  # while it lives nothing else lies where it does
        self.what = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Seen) and self.what == other.what

    __hash__ = None


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Seen(value)
    if isinstance(value, dict):
        return {key: _mark(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mark(item) for item in value]
    return value


def _refill(old: deque, new: Iterable[Any]) -> None:
    old.clear()
    old.extend(new)


@torch.no_grad()
def _replace(old: Any, put: Callable[[Any], None], new: Any) -> None:
    """In place where that is possible: others may hold the same list, dict or tensor."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        if old.shape == new.shape and old.is_leaf:
            old.copy_(new)
        else:
            put(new.to(old.device))
    elif isinstance(old, dict) and isinstance(new, dict):
        old.clear()
        old.update(new)
    elif isinstance(old, list) and isinstance(new, list):
        old[:] = new
    else:
        put(new)
