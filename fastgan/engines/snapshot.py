"""What a plan or a recording took for granted, and what is different now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import nn

from fastgan import torch_private
from fastgan.engines.facts import Facts
from fastgan.engines.seen import Seen

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
_STATE = torch_private.MODULE_STATE
_OF_EVERY_MODULE = ("training", "forward", *torch_private.TABLES)
_TENSOR_PARTS = (
    "another tensor", "its memory", "its shape", "its strides", "its type", "its requires_grad",
    "its gradient hooks",
)  # fmt: skip


class Snapshot:
    """Modules, optimisers and numbers as they were when this was made.

    Listed of each module: its class and the code of it, its own forward, hooks of every kind, mode,
    children, and the plain attributes that a forward may branch on; of a user's functions among
    these: what they read that nobody hands them, such as a global; of each parameter, buffer and
    moment: which tensor it is and how it lies in memory, requires_grad, gradient hooks; of each
    optimiser: its class, hooks, parameters and options without the learning rate. Not listed: the
    values of tensors.
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
            but: what does not count, as `changed` lists it.
            also: other values that count, by what sentences call them.
        """
        self._networks = {name: m for name, m in networks.items() if m is not None}
        self._optimizers = dict(optimizers or {})
        self._states, self._tensors, self._also = states, tensors, also
        self._but = _by_module(self._networks, but)
        self._but_outside = {name for place, name in but if place == OUTSIDE}
        self._facts, self._seen = self._look()

    def difference(self) -> str | None:
        """What has changed since, as the first difference in a few words; None if nothing has."""
        # Asked before every call of an engine, and nearly always in vain.
        if self._seen.same() and self._others(Facts()) == self._facts[3]:
            return None
        now, seen = self._look()
        if now == self._facts:
            self._seen = seen
            return None
        return next(self._told(now))

    def changed(self) -> list[tuple[str, str]]:
        """Plain attributes that have changed since, as (module, attribute), and what functions
        read, as (OUTSIDE, name)."""
        now, _ = self._look()
        found = []
        for path, old, new in self._modules(now):
            found += [(path, name) for name in _differing(dict(old[-1]), dict(new[-1]))]
        return found + [(OUTSIDE, name) for name in _differing(self._facts[2], now[2])]

    # --- looking ---------------------------------------------------------------------------------

    def _look(self) -> tuple[tuple, Seen]:
        known = {m for network in self._networks.values() for m in network.modules()}
        facts, classes = Facts(known), {}
        modules = tuple(
            tuple(self._of_module(m, classes, facts) for m in network.modules())
            for network in self._networks.values()
        )
        optimizers = tuple(self._of_optimizer(o, facts) for o in self._optimizers.values())
        outside = facts.outside(self._but_outside)
        for table in torch_private.global_tables():
            facts.seen.table(table)
        hooks = facts.ids(torch_private.global_hooks())
        facts.seen.done()
        return (modules, optimizers, outside, self._others(facts), hooks), facts.seen

    def _others(self, facts: Facts) -> dict[str, object]:
        return {key: facts.value(value) for key, value in self._also().items()}

    def _of_module(self, m: nn.Module, classes: dict[type, tuple], facts: Facts) -> tuple:
        kind, own, seen = type(m), vars(m), facts.seen
        if kind not in classes:
            classes[kind] = facts.code(kind)
        children = torch_private.children(m)
        seen.attribute(m, "__class__")
        seen.attribute(m, "__dict__")
        seen.table(children)
        tables = list(torch_private.hooks_of(m))
        for table in tables:
            seen.table(table)
        hooks = [
            hook
            for table in tables
            for hook in table.values()
            if not str(getattr(hook, "__module__", "")).startswith("fastgan.")  # for a while only
        ]
        skipped = ("forward", *torch_private.computed_attributes(m), *self._but.get(m, ()))
        counting = {name: value for name, value in own.items() if name not in skipped}
        seen.size(own)
        seen.part(own, (*_OF_EVERY_MODULE, *(n for n in counting if n not in _STATE)))
        attributes = tuple(
            (name, facts.value(value)) for name, value in counting.items() if name not in _STATE
        )
        return (
            kind,
            classes[kind],
            facts.id(own.get("forward")),
            m.training,
            tuple((n, facts.id(child)) for n, child in children.items()),
            facts.tensors(torch_private.parameters(m)) if self._tensors else (),
            facts.tensors(torch_private.buffers(m)) if self._tensors else (),
            facts.ids(hooks),
            attributes,
        )

    def _of_optimizer(self, optimizer: torch.optim.Optimizer, facts: Facts) -> tuple:
        groups, seen = [], facts.seen
        seen.attribute(optimizer, "__class__")
        seen.part(vars(optimizer), ("step", "zero_grad", "state", "param_groups"))
        for table in torch_private.step_tables(optimizer):
            seen.table(table)
        seen.sequence(optimizer.param_groups)
        for group in optimizer.param_groups:
            names = [key for key in group if key not in ("params", "lr", "initial_lr")]
            seen.size(group)
            seen.part(group, (*names, "params"))
            seen.sequence(group["params"])
            options = tuple((key, facts.value(group[key])) for key in names)
            groups.append((options, facts.ids(group["params"])))
        hooks = torch_private.step_hooks(optimizer)
        replaced = torch_private.replaced_step(optimizer)
        states = ()
        if self._states:
            seen.table(optimizer.state)
            states = tuple((facts.id(p), facts.value(s)) for p, s in optimizer.state.items())
        return type(optimizer), facts.ids(hooks), facts.id(replaced), tuple(groups), states

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
        for key in (*_differing(self._facts[2], now[2]), *_differing(self._facts[3], now[3])):
            yield f"{key} was changed"
        yield "hooks for all modules or optimisers were added or removed"


OUTSIDE = "outside"
"""The place of what belongs to no module."""
_ABSENT = object()


def _differing(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    names = {**before, **now}
    return [n for n in names if before.get(n, _ABSENT) != now.get(n, _ABSENT)]


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
