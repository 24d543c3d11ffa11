"""Doing work for trial, so that nothing of it remains, and what could not be done again alike.

The engines that record a step and then repeat the recording (`graph`, `compile`) share this.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan import torch_private
from fastgan.engines.probe import attributes_kept, has_hooks
from fastgan.memory import Memory

if TYPE_CHECKING:
    from fastgan.problem import Problem


def hooked(problem: Problem, when: str) -> str | None:
    """Which hooks of the networks would be called only `when` a step is recorded; None if none."""
    p = problem
    for name in ("generator", "discriminator"):
        network = getattr(p, name)
        if has_hooks(network) or any(map(torch_private.gradient_hooks, network.parameters())):
            return f"{name}: hooks would be called while {when} only"
    if torch_private.global_hooks():
        return f"hooks for all modules would be called while {when} only"
    return None


def own_state(problem: Problem) -> dict[str, object]:
    """Plain attributes of what a user's method and terms are."""
    owners = {"method": problem.method} | {f"terms[{t.name!r}]": t.of for t in problem.terms}
    return {
        f"attribute {name} of {what}": value
        for what, owner in owners.items()
        for name, value in getattr(owner, "__dict__", {}).items()
    }


@contextmanager
def untouched(problem: Problem, tensors: Iterable[Tensor]) -> Iterator[None]:
    """What is done meanwhile leaves no trace: tensors are put back where they lie."""
    p, tensors = problem, list(tensors)
    before = [t.detach().clone() for t in tensors]
    generators = [torch.default_generator, *generators_of(p)]
    if p.device.type == "cuda":
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
    states = [generator.get_state() for generator in generators]
    try:
        with attributes_kept((p.generator, p.discriminator)), _own_state_kept(p):
            yield
    finally:
        with torch.no_grad():
            for t, value in zip(tensors, before, strict=True):
                t.copy_(value)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def generators_of(problem: Problem, *kinds: str) -> list[torch.Generator]:
    """Generators of their own that the networks hold, on these kinds of devices or on any."""
    found = {
        id(value): value
        for network in (problem.generator, problem.discriminator)
        for m in network.modules()
        for value in vars(m).values()
        if isinstance(value, torch.Generator) and (not kinds or value.device.type in kinds)
    }
    return list(found.values())


@contextmanager
def _own_state_kept(problem: Problem) -> Iterator[None]:
    """The plain attributes of a user's method are put back, its tensors in place."""
    p = problem
    owners = {"method": p.method} | {t.name: t.of for t in p.terms}
    memory = Memory(owners, but=(p.generator, p.discriminator, p.optimizer_g, p.optimizer_d))
    before = copy.deepcopy(memory.everything())
    try:
        yield
    finally:
        memory.load_state_dict(before)
