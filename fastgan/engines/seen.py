"""The objects that a look at something went through, and whether a second look may be spared."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat

from torch import Tensor

_OF_A_TENSOR = operator.attrgetter("shape", "dtype", "requires_grad")
_HOOKS = operator.attrgetter("_backward_hooks", "_post_accumulate_grad_hooks")
_ABSENT = object()


class Seen:
    """Containers and tensors that were read, and what was in them.

    If every container holds the same objects as before and every tensor lies where it lay, whoever
    reads them again reads the same. To ask that takes a few microseconds where reading takes
    milliseconds: what is in the containers is compared by identity, in loops that are not Python's.
    """

    def __init__(self):
        """Nothing has been read yet."""
        self._kept: list[object] = []
        self._tables: list[dict] = []
        self._spaces: list[Mapping] = []
        self._sized: list[dict] = []
        self._lists: list[Sequence] = []
        self._parts: list[tuple[Mapping, tuple[str, ...]]] = []
        self._sets: list[tuple[set, frozenset]] = []
        self._owners: dict[str, list[object]] = {}
        self._tensors: list[Tensor] = []
        self._trained: list[Tensor] = []
        self._sure = True
        self._objects: list[object] = []
        self._before: tuple | None = None

    def keep(self, value: object) -> None:
        """Let the object live as long as this: what an id names must not go away."""
        self._kept.append(value)

    def table(self, table: dict) -> None:
        """A dict of which all keys and values count."""
        if isinstance(table, dict):
            self._tables.append(table)
        else:  # what TorchScript puts in its place makes its answers anew
            self._sure = False

    def space(self, space: Mapping) -> None:
        """The members of a class, of which all count."""
        self._spaces.append(space)

    def size(self, table: dict) -> None:
        """A dict of which the number of keys counts.

        With `part` for those that must stay it tells whether another one came.
        """
        self._sized.append(table)

    def part(self, table: Mapping, names: Iterable[str]) -> None:
        """A mapping of which the values under some names count, and that others are missing."""
        self._parts.append((table, tuple(names)))

    def sequence(self, values: Sequence) -> None:
        """A list of which all members count."""
        self._lists.append(values)

    def set(self, values: set) -> None:
        """A set of which all members count."""
        self._sets.append((values, frozenset(values)))

    def attribute(self, owner: object, name: str) -> None:
        """An attribute that is asked for through the owner's class."""
        self._owners.setdefault(name, []).append(owner)

    def tensor(self, t: Tensor) -> None:
        """A tensor of which everything but the values counts."""
        self._kept.append(t)
        try:
            t.data_ptr(), t.stride()
        except (RuntimeError, ValueError):  # without memory of its own, or without a shape yet
            self._sure = False
            return
        self._tensors.append(t)
        if t.requires_grad and t.is_leaf:
            self._trained.append(t)
            self._tables += [hooks for hooks in _HOOKS(t) if hooks is not None]

    def doubt(self) -> None:
        """There was something that cannot be compared in this way."""
        self._sure = False

    def done(self) -> None:
        """Everything has been read: note what is there."""
        self._empty = [table for table in self._tables if not table]
        self._tables = [table for table in self._tables if table]
        self._objects = [*self._found()]
        self._before = self._now()

    def same(self) -> bool:
        """Whether everything is as noted; False may be wrong, True is not."""
        try:
            return (
                self._sure
                and not any(self._empty)
                and self._now() == self._before
                and all(map(operator.is_, self._found(), self._objects))
            )
        except (AttributeError, RuntimeError, ValueError):  # something has lost what it had
            return False

    def _found(self) -> Iterable[object]:
        return chain(
            chain.from_iterable(self._tables),
            chain.from_iterable(map(dict.values, self._tables)),
            chain.from_iterable(self._spaces),
            chain.from_iterable(map(operator.methodcaller("values"), self._spaces)),
            chain.from_iterable(self._lists),
            chain.from_iterable(map(_HOOKS, self._trained)),
            chain.from_iterable(
                map(table.get, names, repeat(_ABSENT)) for table, names in self._parts
            ),
            chain.from_iterable(
                map(operator.attrgetter(name), owners) for name, owners in self._owners.items()
            ),
        )

    def _now(self) -> tuple:
        return (
            [*map(len, chain(self._tables, self._sized, self._spaces))],
            [*map(len, self._lists)],
            [*map(Tensor.data_ptr, self._tensors)],
            [*map(Tensor.stride, self._tensors)],
            [*map(_OF_A_TENSOR, self._tensors)],
            all(now == before for now, before in self._sets),
        )
