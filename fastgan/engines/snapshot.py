"""What a plan or a recording took for granted, and what is different now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from fastgan import torch_private

_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_DEEPEST = 4
"""How far plain attributes are looked into: containers and objects inside one another."""
_MOST = 256
"""Members of a container or object that are looked at; of larger ones only which they are."""

_MODULE_PARTS = {
    "class": "it is of another class",
    "code": "the code of its class was changed",
    "forward": "its forward was replaced",
    "mode": "it was switched between training and evaluation",
    "children": "a layer was added, removed or replaced",
    "parameters": "another parameter, or one changed",
    "buffers": "another buffer, or one changed",
    "hooks": "a hook was added or removed",
    "attributes": "its attributes were changed",
}
_TENSOR_PARTS = (
    "another tensor", "its memory", "its shape", "its strides", "its type", "its requires_grad",
    "its gradient hooks",
)  # fmt: skip


class Snapshot:
    """Modules, optimisers and numbers as they were when this was made.

    Listed of each module: its class and the code of it, its own forward, hooks of every kind, mode,
    children, and the plain attributes that a forward may branch on; of each parameter, buffer and
    moment: which tensor it is and how it lies in memory, requires_grad, gradient hooks; of each
    optimiser: its class, hooks, parameters and options without the learning rate. Not listed: the
    values of tensors, and what a forward reads that belongs to none of these, such as a global.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module | None],
        optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
        *,
        states: bool = False,
        tensors: bool = True,
        but: Collection[tuple[str, str]] = (),
        also: Callable[[], Mapping[str, object]] = dict,
    ):
        """Look at everything.

        Args:
            networks: by the names that sentences call them; None is skipped.
            optimizers: likewise. Default: none.
            states: whether the optimisers' state counts. Default: no.
            tensors: whether parameters and buffers count. Default: yes.
            but: attributes that do not count, as (module, attribute).
            also: other values that count, by what sentences call them.
        """
        self._networks = {name: m for name, m in networks.items() if m is not None}
        self._optimizers = dict(optimizers or {})
        self._states, self._tensors, self._also = states, tensors, also
        self._but = _by_module(self._networks, but)
        # What an id names must not go away, or another object might get the id.
        self._kept: list[object] = []
        self._facts = self._look(self._kept)

    def difference(self) -> str | None:
        """What has changed since, as the first difference in a few words; None if nothing has."""
        now = self._look([])
        if now == self._facts:
            return None
        return next(self._told(now))

    def attributes(self) -> list[tuple[str, str]]:
        """The plain attributes that have changed since: (module, attribute)."""
        found = []
        for path, old, new in self._modules(self._look([])):
            before = dict(old[-1])
            for name in {**before, **dict(new[-1])}:
                if before.get(name, _ABSENT) != dict(new[-1]).get(name, _ABSENT):
                    found.append((path, name))
        return found

    # --- looking ---------------------------------------------------------------------------------

    def _look(self, kept: list) -> tuple:
        classes: dict[type, tuple] = {}
        modules = tuple(
            tuple(self._of_module(m, classes, kept) for m in network.modules())
            for network in self._networks.values()
        )
        optimizers = tuple(self._of_optimizer(o, kept) for o in self._optimizers.values())
        also = {key: _plain(value, kept) for key, value in self._also().items()}
        return modules, optimizers, also, _ids(torch_private.global_hooks(), kept)

    def _of_module(self, m: nn.Module, classes: dict[type, tuple], kept: list) -> tuple:
        kind = type(m)
        if kind not in classes:
            classes[kind] = _code(kind, kept)
        own = vars(m)
        children = tuple((n, _id(child, kept)) for n, child in torch_private.children(m).items())
        hooks = [
            hook
            for table in torch_private.hooks_of(m)
            for hook in table.values()
            if not str(getattr(hook, "__module__", "")).startswith("fastgan.")  # for a while only
        ]
        skipped = ("forward", *torch_private.computed_attributes(m), *self._but.get(m, ()))
        attributes = [
            (name, _plain(value, kept))
            for name, value in own.items()
            if name not in torch_private.MODULE_STATE and name not in skipped
        ]
        return (
            kind,
            classes[kind],
            _id(own.get("forward"), kept),
            m.training,
            children,
            self._of_tensors(torch_private.parameters(m), kept),
            self._of_tensors(torch_private.buffers(m), kept),
            _ids(hooks, kept),
            tuple(attributes),
        )

    def _of_tensors(self, tensors: Mapping[str, Tensor | None], kept: list) -> tuple:
        if not self._tensors:
            return ()
        return tuple((name, tensor_facts(t, kept)) for name, t in tensors.items())

    def _of_optimizer(self, optimizer: torch.optim.Optimizer, kept: list) -> tuple:
        groups = []
        for group in optimizer.param_groups:
            options = tuple(
                (key, _plain(value, kept))
                for key, value in group.items()
                if key not in ("params", "lr", "initial_lr")
            )
            groups.append((options, _ids(group["params"], kept)))
        hooks = torch_private.step_hooks(optimizer)
        replaced = torch_private.replaced_step(optimizer)
        states = ()
        if self._states:
            states = tuple(
                (_id(p, kept), tuple((key, _plain(value, kept)) for key, value in state.items()))
                for p, state in optimizer.state.items()
            )
        return type(optimizer), _ids(hooks, kept), _id(replaced, kept), tuple(groups), states

    # --- saying ----------------------------------------------------------------------------------

    def _modules(self, now: tuple) -> Iterator[tuple[str, tuple, tuple]]:
        """(name, facts before, facts now) of the modules that both looks have."""
        for (label, network), before, after in zip(
            self._networks.items(), self._facts[0], now[0], strict=True
        ):
            paths = (path for path, _ in network.named_modules())
            for path, old, new in zip(paths, before, after, strict=False):
                yield ".".join(filter(None, (label, path))), old, new

    def _told(self, now: tuple) -> Iterator[str]:
        for path, old, new in self._modules(now):
            for part, a, b in zip(_MODULE_PARTS, old, new, strict=True):
                if a != b:
                    yield f"{path}: {_words(part, a, b)}"
        for name, old, new in zip(self._optimizers, self._facts[1], now[1], strict=True):
            if old != new:
                yield f"{name}: {_optimizer_words(old, new)}"
        for key, value in now[2].items():
            if self._facts[2].get(key, _ABSENT) != value:
                yield f"{key} changed"
        yield "hooks for all modules or optimisers were added or removed"


_ABSENT = object()


def _by_module(
    networks: Mapping[str, nn.Module], names: Collection[tuple[str, str]]
) -> dict[nn.Module, list[str]]:
    found: dict[nn.Module, list[str]] = {}
    if names:
        for label, network in networks.items():
            for path, m in network.named_modules():
                where = ".".join(filter(None, (label, path)))
                found.setdefault(m, []).extend(n for place, n in names if place == where)
    return found


def tensor_facts(t: Tensor | None, kept: list) -> tuple:
    """Which tensor it is, how it lies in memory, and what is attached to it."""
    if t is None:
        return ()
    kept.append(t)
    if not isinstance(t, Tensor):  # what torch.fx puts there while it traces
        return id(t), type(t), None, None, None, None, ()
    hooks = _ids(torch_private.gradient_hooks(t), kept) if t.is_leaf and t.requires_grad else ()
    try:
        where = (t.data_ptr(), t.shape, t.stride(), t.dtype)
    except (RuntimeError, ValueError):  # without memory of its own, or without a shape yet
        where = (type(t), None, None, t.dtype)
    return id(t), *where, t.requires_grad, hooks


def _id(value: object, kept: list) -> int | None:
    if value is None:
        return None
    kept.append(value)
    return id(value)


def _ids(values: list, kept: list) -> tuple[int, ...]:
    return tuple(_id(value, kept) for value in values)


def _code(kind: type, kept: list) -> tuple:
    """What a user's classes say, outside of torch and fastgan, whose classes stay as they are."""
    found = [_id(kind.forward, kept)]
    for base in kind.__mro__:
        if base.__module__.split(".")[0] not in ("torch", "fastgan", "builtins"):
            for name, value in tuple(vars(base).items()):
                if not (name.startswith("__") and name.endswith("__")) or name == "__call__":
                    found.append((name, _plain(value, kept, _DEEPEST - 1)))
    return tuple(found)


def _plain(value: object, kept: list, depth: int = 0) -> object:
    """A value as something that compares by what it says, or else by which object it is."""
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, Tensor):
        return tensor_facts(value, kept)
    if depth < _DEEPEST:
        if isinstance(value, (list, tuple)) and len(value) <= _MOST:
            return type(value), tuple(_plain(v, kept, depth + 1) for v in value)
        if isinstance(value, dict) and len(value) <= _MOST:
            return type(value), tuple(
                (_plain(k, kept, depth + 1), _plain(v, kept, depth + 1)) for k, v in value.items()
            )
        if isinstance(value, (set, frozenset)) and len(value) <= _MOST:
            return type(value), frozenset(_plain(v, kept, depth + 1) for v in value)
        if _is_record(value):
            return id(value), _plain(vars(value), kept, depth + 1)
    return _id(value, kept)


def _is_record(value: object) -> bool:
    """An object with fields, such as a configuration, and not code or a part of torch."""
    return (
        hasattr(value, "__dict__")
        and not callable(value)
        and not isinstance(value, (nn.Module, torch.optim.Optimizer))
        and type(value).__module__.split(".")[0] != "torch"
        and type(value).__name__ not in ("module", "ModuleType")
    )


def _words(part: str, old: object, new: object) -> str:
    if part not in ("parameters", "buffers", "attributes"):
        return _MODULE_PARTS[part]
    before, after = dict(old), dict(new)
    name = next(n for n in {**before, **after} if before.get(n) != after.get(n))
    if part == "attributes":
        return f"its attribute {name} was changed"
    a, b = before.get(name), after.get(name)
    if not a or not b:
        return f"{name} was added or removed"
    differing = [text for text, x, y in zip(_TENSOR_PARTS, a, b, strict=True) if x != y]
    return f"{name}: {differing[0]} changed" if a[0] == b[0] else f"{name} is another tensor"


def _optimizer_words(old: tuple, new: tuple) -> str:
    if old[0] != new[0]:
        return "it is of another class"
    if old[1] != new[1]:
        return "a step hook was added or removed"
    if old[2] != new[2]:
        return "its step was replaced"
    if old[3] != new[3]:
        for a, b in zip(old[3], new[3], strict=False):
            if a[1] != b[1]:
                return "its parameters are others"
            before, after = dict(a[0]), dict(b[0])
            for key in {**before, **after}:
                if before.get(key, _ABSENT) != after.get(key, _ABSENT):
                    return f"{key} changed"
        return "a group of parameters was added or removed"
    return "its state is another"
