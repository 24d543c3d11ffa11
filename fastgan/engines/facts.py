"""What things are, as something that compares equal as long as they say the same."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from fastgan import torch_private
from fastgan.engines.seen import Seen

_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_DEEPEST = 4
"""How far plain attributes are looked into: containers and objects inside one another."""
_MOST = 256
"""Members of a container or object that are looked at; of larger ones only which they are."""
FIXED = {"torch", "fastgan", "builtins", "numpy", *sys.stdlib_module_names} - {"__main__"}
"""Packages whose code does not change while a program runs."""
_RECORDS = ("types.SimpleNamespace", "argparse.Namespace")
"""Classes of theirs that hold a program's own settings."""


class Facts:
    """Reads things once, and remembers in `seen` where it looked."""

    def __init__(self, known: Collection[nn.Module] = ()):
        """Nothing has been read yet.

        Args:
            known: modules that are read elsewhere.
        """
        self.seen = Seen()
        self._known = known
        self._functions: list[types.FunctionType] = []

    # --- values ----------------------------------------------------------------------------------

    def id(self, value: object) -> int | None:
        """Which object it is."""
        if value is None:
            return None
        self.seen.keep(value)
        return id(value)

    def ids(self, values: Collection[object]) -> tuple[int, ...]:
        """Which objects they are."""
        return tuple(map(self.id, values))

    def value(self, value: object, depth: int = 0) -> object:
        """What it says, where that can be told, or else which object it is."""
        if isinstance(value, _SIMPLE):
            return value
        if isinstance(value, Tensor):
            return self.tensor(value)
        if depth < _DEEPEST:
            if isinstance(value, (list, tuple)) and len(value) <= _MOST:
                self.seen.sequence(value)
                return type(value), tuple(self.value(v, depth + 1) for v in value)
            if isinstance(value, dict) and len(value) <= _MOST:
                self.seen.table(value)
                return type(value), tuple(
                    (self.value(k, depth + 1), self.value(v, depth + 1)) for k, v in value.items()
                )
            if isinstance(value, (set, frozenset)) and len(value) <= _MOST:
                self.seen.set(value)
                return type(value), frozenset(self.value(v, depth + 1) for v in value)
            if isinstance(value, functools.partial):
                self._functions += _functions_in(value)
                parts = value.func, value.args, value.keywords
                return self.id(value), tuple(self.value(part, depth + 1) for part in parts)
            unknown = isinstance(value, nn.Module) and value not in self._known
            if unknown or _is_record(value):
                return self._record(value, depth + 1)
        self._functions += _functions_in(value)
        return self.id(value)

    def _record(self, value: object, depth: int) -> tuple:
        """The fields of an object, and what is called when it is."""
        if callable(value):
            self.seen.attribute(type(value), "__call__")
            self._functions += _functions_in(type(value).__call__)
        self.seen.attribute(value, "__class__")
        found = [self.id(value), self.id(type(value))]
        if hasattr(value, "__dict__"):
            self.seen.attribute(value, "__dict__")
            found.append(self.value(vars(value), depth))
        for name in _slots_of(type(value)):
            if hasattr(value, name):
                self.seen.attribute(value, name)
                found.append((name, self.value(getattr(value, name), depth)))
            else:
                self.seen.doubt()
        return tuple(found)

    def tensor(self, t: Tensor | None) -> tuple:
        """Which tensor it is, how it lies in memory, and what is attached to it."""
        if t is None:
            return ()
        if not isinstance(t, Tensor):  # what torch.fx puts there while it traces
            return self.id(t), type(t), None, None, None, None, ()
        self.seen.tensor(t)
        hooked = t.is_leaf and t.requires_grad
        hooks = self.ids(torch_private.gradient_hooks(t)) if hooked else ()
        try:
            where = (t.data_ptr(), t.shape, t.stride(), t.dtype)
        except (RuntimeError, ValueError):  # without memory of its own, or without a shape yet
            where = (type(t), None, None, t.dtype)
        return id(t), *where, t.requires_grad, hooks

    def tensors(self, table: Mapping[str, Tensor | None]) -> tuple:
        """Each by its name."""
        self.seen.table(table)
        return tuple((name, self.tensor(t)) for name, t in table.items())

    # --- code ------------------------------------------------------------------------------------

    def code(self, kind: type) -> tuple:
        """What a user's classes say; those of torch and fastgan stay as they are."""
        self.seen.attribute(kind, "__mro__")
        found = []
        if hasattr(kind, "forward"):  # TorchScript's classes have it on their instances only
            self.seen.attribute(kind, "forward")
            found.append(self.id(kind.forward))
        for base in kind.__mro__:
            if base.__module__.split(".")[0] not in ("torch", "fastgan", "builtins"):
                self.seen.space(vars(base))
                for name, value in tuple(vars(base).items()):
                    if not (name.startswith("__") and name.endswith("__")) or name == "__call__":
                        found.append((name, self.value(value, _DEEPEST - 1)))
        return tuple(found)

    def outside(self, but: Collection[str] = ()) -> dict[str, object]:
        """What the functions met so far read that nobody hands them, by names for sentences.

        That is globals, variables of an enclosing function, defaults of arguments, and members of
        the modules and classes among these; of functions they call likewise.
        """
        found: dict[str, object] = {}
        known: set[int] = set()
        while self._functions:
            function = self._functions.pop()
            if id(function) in known:
                continue
            known.add(self.id(function))
            for name, value in self._read(function):
                if name in but:
                    continue
                if not _is_settings(value):
                    self._functions += _functions_in(value)
                    fact = self.id(value)
                else:
                    fact = self.value(value)
                # One factory makes many functions of one name.
                found[name] = (*found.get(name, ()), fact)
        return found

    def _read(self, function: types.FunctionType) -> Iterator[tuple[str, object]]:
        names, globals_, code = (
            _globals_in(function.__code__),
            function.__globals__,
            function.__code__,
        )
        read = {n: globals_[n] for n in names if n in globals_}
        self.seen.part(globals_, names)
        where = function.__module__
        yield from ((f"{where}.{name}", value) for name, value in read.items())
        for name, value in tuple(read.items()):
            if _is_open_space(value):
                self.seen.part(vars(value), _names_in(code))
                members = [n for n in _names_in(code) if n in vars(value)]
                yield from ((f"{where}.{name}.{n}", vars(value)[n]) for n in members)
        self.seen.attribute(function, "__defaults__")
        self.seen.attribute(function, "__kwdefaults__")
        where = f"{where}.{function.__qualname__}"
        self.seen.attribute(function, "__code__")  # which reloading puts into the same function
        yield f"the code of {where}", code
        yield f"the defaults of {where}", (function.__defaults__, function.__kwdefaults__)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not filled yet
                self.seen.doubt()
                continue
            if name != "__class__":
                self.seen.attribute(cell, "cell_contents")
                yield f"{name} in {where}", value


def _functions_in(value: object) -> Iterator[types.FunctionType]:
    """A user's functions that are called when this is."""
    if isinstance(value, property):
        value = value.fget
    while isinstance(value, (functools.partial, staticmethod, classmethod, types.MethodType)):
        value = value.func if isinstance(value, functools.partial) else value.__func__
    if isinstance(value, types.FunctionType) and _is_users(value.__module__):
        yield value


def _is_users(module: str | None) -> bool:
    return (module or "").split(".")[0] not in FIXED


def _is_open_space(value: object) -> bool:
    """A user's module or class, whose members a function reads by their names."""
    if isinstance(value, types.ModuleType):
        return _is_users(value.__name__)
    return isinstance(value, type) and _is_users(value.__module__)


def _is_settings(value: object) -> bool:
    """What a function may branch on or call, and not code or an object with its own life."""
    containers = list, tuple, dict, set, frozenset, functools.partial
    if isinstance(value, (*_SIMPLE, Tensor, nn.Module, *containers)):
        return True
    kind = type(value)
    known = f"{kind.__module__}.{kind.__qualname__}" in _RECORDS or _is_users(kind.__module__)
    return known and _is_record(value)


def _is_record(value: object) -> bool:
    """An object with fields, such as a configuration, and not code or a part of torch."""
    kind = type(value)
    users = _is_users(kind.__module__)
    return (
        (hasattr(value, "__dict__") or (users and bool(_slots_of(kind))))
        and (users or not callable(value))
        and not isinstance(value, (type, nn.Module, torch.optim.Optimizer, types.ModuleType))
        and kind.__module__.split(".")[0] != "torch"
    )


@functools.lru_cache(maxsize=1024)
def _slots_of(kind: type) -> tuple[str, ...]:
    """The names of a class's slots."""
    found = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        found += [slots] if isinstance(slots, str) else slots
    return tuple(name for name in found if not name.startswith("__"))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@functools.lru_cache(maxsize=1024)
def _globals_in(code: types.CodeType) -> tuple[str, ...]:
    """Names that it looks for among the globals, functions inside it included."""
    found = {
        i.argval for c in _codes(code) for i in dis.get_instructions(c) if i.opname == "LOAD_GLOBAL"
    }
    return tuple(sorted(found))


@functools.lru_cache(maxsize=1024)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    """All names in it that are not its own variables: attributes as well."""
    return tuple(sorted({name for c in _codes(code) for name in c.co_names}))
