"""Trying networks out without leaving a trace in them.

A forward pass may do more than compute: initialise itself from its first batch, count, keep what it
saw, draw random numbers. What is tried is therefore a copy, and all randomness is put back.
"""

from __future__ import annotations

import copy
import logging
import random as python_random
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan import conditions, sharded, torch_private
from fastgan.data.batch import map_condition
from fastgan.engines import draws
from fastgan.random import Stream, normal, uniform

if TYPE_CHECKING:
    from fastgan.problem import Problem

logger = logging.getLogger("fastgan")

_told: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Networks that cannot be copied, which was said."""


@contextmanager
def tried(problem: Problem, *, hooks: bool = False) -> Iterator[tuple[nn.Module, nn.Module]]:
    """A generator and a discriminator to try things on, in place of a problem's own.

    They are copies in the same mode. Where they cannot be copied they are the networks themselves,
    which is said, and all that can be put back is put back in the end.

    Args:
        problem: whose networks.
        hooks: whether the copies keep hooks that are functions of the user's. Default: no, as such
            a hook may count calls or know the modules it belongs to.
    """
    networks = (problem.generator, problem.discriminator)
    with ExitStack() as stack:
        stack.enter_context(randomness_kept(problem.device))
        stack.enter_context(undisturbed(problem.device))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_uncompiled())
        if not hooks:
            stack.enter_context(torch_private.without_global_hooks())
        if problem.divided:  # no rank has a whole copy
            stack.enter_context(sharded.divided(*networks))
            stack.enter_context(kept(networks))
            stack.enter_context(sharded.divided(*networks))
            yield networks
            return
        if any(_reaches_back(m) for network in networks for m in network.modules()):
            stack.enter_context(kept(networks))
        try:
            yielded = copied(networks, hooks=hooks)
        except Exception as error:
            told = all(network in _told for network in networks)
            _told.update(networks)
            logger.log(
                logging.DEBUG if told else logging.WARNING,
                "the networks cannot be copied (%s), so they are tried out themselves; what their "
                "passes change besides parameters, buffers and plain attributes stays changed",
                first_line(error),
            )
            stack.enter_context(kept(networks))
            yielded = networks
        yield yielded


def copied(networks: tuple[nn.Module, ...], *, hooks: bool = False) -> tuple[nn.Module, ...]:
    """Deep copies that share what the networks share.

    Tensors that a pass has left in a module (what weight_norm has computed, say) are copied without
    their history, which torch's own deepcopy refuses.

    Args:
        networks: to copy.
        hooks: as for `tried`.

    Raises:
        Exception: whatever a module that cannot be copied raises.
    """
    memo: dict[int, object] = {}
    modules = {id(m): m for network in networks for m in network.modules()}
    replaced: list[tuple[dict, dict]] = []
    for m in modules.values():
        for value in vars(m).values():
            _without_history(value, memo)
        if not hooks:
            for table in torch_private.hooks_of(m):
                own = {key: hook for key, hook in table.items() if _belongs(hook, modules)}
                if len(own) < len(table):
                    memo[id(table)] = type(table)()
                    replaced.append((memo[id(table)], own))
    found = copy.deepcopy(networks, memo)
    for table, own in replaced:
        table.update(copy.deepcopy(own, memo))
    return found


def has_hooks(network: nn.Module) -> bool:
    """Whether a network has hooks that `tried` leaves out."""
    modules = {id(m): m for m in network.modules()}
    return any(
        not _belongs(hook, modules)
        for m in modules.values()
        for table in torch_private.hooks_of(m)
        for hook in table.values()
    )


def dtype_of(module: nn.Module) -> torch.dtype:
    """The floating-point type of a network's first parameter; float32 if it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def latents(problem: Problem, size: int) -> Tensor:
    """The latents of D's first update, as far as a batch of that size takes them."""
    p = problem
    shape = (size, *p.latent.drawn)
    return p.latent.of(normal(p.seed, Stream.LATENT_D, 0, shape, device=p.device))


def samples(problem: Problem, size: int) -> Tensor:
    """Samples of the data, [size, *shape].

    Real ones where reading them leaves no trace; uniform in [-1, 1] where they are read from a
    Dataset, whose own randomness is not to be moved.
    """
    p = problem
    if p.data.samples is not None:
        return draws.batch_of(p, 0).images[:size]
    return uniform(p.seed, Stream.SAMPLE, 0, (size, *p.data.shape), device=p.device) * 2 - 1


def condition(problem: Problem, size: int) -> Any:
    """What belongs to `samples`; zeros where reading it leaves a trace."""
    p = problem
    if p.data.samples is not None:
        return map_condition(lambda part: part[:size], draws.batch_of(p, 0).condition)
    return p.data.blank(size).condition


def given_g(problem: Problem, g: nn.Module, size: int) -> tuple:
    """What G is called with."""
    p = problem
    z = None if p.latent.shape is None else latents(p, size).to(dtype_of(g))
    return conditions.arguments(p, 1, z, condition(p, size) if p.conditioned[1] else None)


def given_d(problem: Problem, d: nn.Module, samples: Tensor) -> tuple:
    """What D is called with."""
    own = condition(problem, len(samples)) if problem.conditioned[0] else None
    return conditions.arguments(problem, 0, samples.to(dtype_of(d)), own)


@contextmanager
def kept(networks: tuple[nn.Module, ...]) -> Iterator[None]:
    """Values of parameters and buffers are put back afterwards, like `attributes_kept`."""
    tensors = {
        t: t.detach().clone()
        for network in networks
        for t in (*network.parameters(), *network.buffers())
        if not isinstance(t, nn.parameter.UninitializedTensorMixin)
    }
    try:
        with attributes_kept(networks):
            yield
    finally:
        with torch.no_grad():
            for t, value in tensors.items():
                t.copy_(value)


@contextmanager
def buffers_kept(network: nn.Module) -> Iterator[None]:
    """Buffers are afterwards what they were, those that a pass has replaced included."""
    tables = [torch_private.buffers(m) for m in network.modules()]
    before = [(table, dict(table.items())) for table in tables]
    values = {
        t: (t.clone(), t._version)
        for _, own in before
        for t in own.values()
        if t is not None and not t.is_inference()
    }
    try:
        yield
    finally:
        for table, own in before:
            for name, t in own.items():
                if name not in table or table[name] is not t:
                    table[name] = t
        for t, (value, version) in values.items():
            # One that is expanded cannot be written to, by a pass or by us.
            if t._version != version or (t.layout == torch.strided and not torch.equal(t, value)):
                t.copy_(value)


@contextmanager
def attributes_kept(networks: tuple[nn.Module, ...]) -> Iterator[None]:
    """Which parameters, buffers, layers and plain attributes there are is put back afterwards."""
    tables = (torch_private.parameters, torch_private.buffers, torch_private.children)
    modules = {m: None for network in networks for m in network.modules()}
    before = [(m, dict(vars(m)), [dict(table(m)) for table in tables]) for m in modules]
    try:
        yield
    finally:
        for m, attributes, parts in before:
            vars(m).clear()
            vars(m).update(attributes)
            for table, part in zip(tables, parts, strict=True):
                table(m).clear()
                table(m).update(part)


@contextmanager
def randomness_kept(device: torch.device) -> Iterator[None]:
    """torch's, Python's and NumPy's generators are put back afterwards."""
    cuda = [device] if device.type == "cuda" else []
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    python, numpy = python_random.getstate(), numpy_random and numpy_random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        python_random.setstate(python)
        if numpy is not None:
            numpy_random.set_state(numpy)


def drawn() -> tuple:
    """How far the generators of the CPU are: equal as long as nothing draws from them."""
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    numpy = numpy_random and [str(part) for part in numpy_random.get_state()]
    return python_random.getstate(), numpy, torch.get_rng_state().tolist()


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What a program has switched on around a call does not count: autocast, no_grad, inference."""
    torch.clear_autocast_cache()  # of weights that have moved since, or that had no gradient then
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        yield


def first_line(error: Exception) -> str:
    """An error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _uncompiled():
    """Networks that torch.compile has wrapped are tried without compiling them."""
    if not torch_private.compiler_loaded():
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _belongs(hook: object, modules: dict[int, nn.Module]) -> bool:
    """Whether a hook is part of a network: a method of one of its modules, or torch's own."""
    if id(getattr(hook, "__self__", None)) in modules:
        return True
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return module.split(".")[0] == "torch"


def _reaches_back(m: nn.Module) -> bool:
    """Whether a copy of a module may work on the module itself, by functions that know it."""
    return any(isinstance(v, FunctionType) and v.__closure__ for v in vars(m).values())


def _without_history(value: object, memo: dict[int, object], depth: int = 0) -> None:
    """Note a detached copy of each computed tensor in a module's attribute."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    elif depth < 3 and isinstance(value, (list, tuple, set)):
        for part in value:
            _without_history(part, memo, depth + 1)
    elif depth < 3 and isinstance(value, dict):
        for part in value.values():
            _without_history(part, memo, depth + 1)
