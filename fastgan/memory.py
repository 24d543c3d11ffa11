"""What the functions of a user's program remember: BEGAN's k, a running average, a count.

A loss, a penalty or a schedule may keep a state, and a run that is continued needs it. It is found
where a function can have it: in a `state_dict` of its own or of the object that it belongs to, in
that object's attributes, or in the variables that an inner function shares with the outer. Of the
last two only what has changed since the run began is a state; all else is how the function was
made, which is the user's to change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor

_PLAIN = (bool, int, float, str)
_Place = tuple[str, Any, Callable[[Any], None]]


class Memory:
    """The states of some functions, for a checkpoint."""

    def __init__(self, functions: Mapping[str, Callable | None]):
        """Look at the functions before they are called for the first time.

        Args:
            functions: by the names that their states have in the checkpoint; None for none.
        """
        self._owners = {name: _owner(f) for name, f in functions.items() if f is not None}
        self._first = {
            name: {place: _mark(value) for place, value, _ in _places(owner)}
            for name, owner in self._owners.items()
        }

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The states of those that have one, by name."""
        found = {}
        for name, owner in self._owners.items():
            if _explicit(owner):
                found[name] = dict(owner.state_dict())
            elif state := self._changed(name, owner):
                found[name] = state
        return found

    def everything(self) -> dict[str, dict[str, Any]]:
        """As `state_dict`, with what has not changed."""
        return {
            name: (
                dict(owner.state_dict())
                if _explicit(owner)
                else {place: value for place, value, _ in _places(owner)}
            )
            for name, owner in self._owners.items()
        }

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take them back; what was not saved stays as it is."""
        for name, owner in self._owners.items():
            state = states.get(name, {})
            if _explicit(owner):
                if name in states:
                    owner.load_state_dict(state)
                continue
            for place, value, put in list(_places(owner)):
                if place in state:
                    _replace(value, state[place], put)

    def _changed(self, name: str, owner: Any) -> dict[str, Any]:
        first = self._first[name]
        return {
            place: value
            for place, value, _ in _places(owner)
            if place not in first or first[place] != _mark(value)
        }


def _owner(function: Any) -> Any:
    """The object that keeps what a function remembers."""
    while isinstance(function, functools.partial):
        function = function.func
    bound = getattr(function, "__self__", None)
    return function if bound is None else bound


def _explicit(owner: Any) -> bool:
    return hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict")


def _places(owner: Any) -> Iterator[_Place]:
    """(name, value, how to put another there) of an object's attributes and inner variables."""
    frozen = getattr(getattr(owner, "__dataclass_params__", None), "frozen", False)
    if frozen or isinstance(owner, (type, ModuleType)):
        return
    for name, value in vars(owner).items() if hasattr(owner, "__dict__") else ():
        if _is_plain(value):
            yield name, value, functools.partial(setattr, owner, name)
    code, cells = getattr(owner, "__code__", None), getattr(owner, "__closure__", None)
    for name, cell in zip(code.co_freevars, cells, strict=True) if code and cells else ():
        try:
            value = cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue
        if _is_plain(value):
            yield name, value, functools.partial(setattr, cell, "cell_contents")


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
        self.tensor, self.version = tensor, tensor._version

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, _Seen) and self.tensor is other.tensor
        return same and self.version == other.version

    __hash__ = None


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Seen(value)
    if isinstance(value, dict):
        return {key: _mark(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mark(item) for item in value]
    return value


@torch.no_grad()
def _replace(old: Any, new: Any, put: Callable[[Any], None]) -> None:
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
