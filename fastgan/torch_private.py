"""Every private part of torch that fastgan touches, with the reason; those of traces are in
torch_graphs.py.

A new torch that changes one of them breaks this file and its tests, and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _module
from torch.optim import optimizer as _optimizer
from torch.utils._python_dispatch import TorchDispatchMode

OperationMode = TorchDispatchMode
"""Sees every operation while it is entered; torch documents it under its private name."""

# --- modules --------------------------------------------------------------------------------------

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where a module keeps what is called around its passes. There is no public way to list it."""

TABLES = ("_parameters", "_buffers", "_modules", *HOOKS)
"""Attributes of a module that hold what it consists of, and what is called around its passes."""

MODULE_STATE = frozenset(vars(nn.Module()))
"""Attributes that every module has; the others are its own."""

GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


def hooks_of(m: nn.Module) -> Iterator[dict]:
    """The tables of hooks that a pass of a module calls, by number; they may be empty."""
    return (getattr(m, name) for name in HOOKS)


def global_hooks() -> list:
    """Hooks that torch calls around the passes of every module, and the steps of every optimiser.

    torch.nn.modules.module.register_module_forward_hook and its siblings put them there.
    """
    return [hook for table in global_tables() for hook in table.values()]


def global_tables() -> list[dict]:
    """Where torch keeps the hooks that it calls for every module and every optimiser."""
    return [getattr(_module, name) for name in GLOBAL_HOOKS] + _global_step_tables()


@contextmanager
def without_global_hooks() -> Iterator[None]:
    """No hook for all modules is called meanwhile."""
    tables = [getattr(_module, name) for name in GLOBAL_HOOKS]
    kept = [dict(table) for table in tables]
    try:
        for table in tables:
            table.clear()
        yield
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)


def global_step_hooks() -> list:
    """Those of them that are called around the steps of optimisers."""
    return [hook for table in _global_step_tables() for hook in table.values()]


def _global_step_tables() -> list[dict]:
    return [_optimizer._global_optimizer_pre_hooks, _optimizer._global_optimizer_post_hooks]


def gradient_hooks(t: Tensor) -> list:
    """Hooks that are called with a tensor's gradient."""
    tables = (t._backward_hooks, getattr(t, "_post_accumulate_grad_hooks", None))
    return [hook for table in tables if table for hook in table.values()]


def is_compiled(m: nn.Module) -> bool:
    """Whether torch.compile wraps a module, or m.compile() has compiled it in place."""
    return "_orig_mod" in m._modules or m.__dict__.get("_compiled_call_impl") is not None


def compiler_loaded() -> bool:
    """Whether the program has compiled anything, without importing the compiler to ask."""
    return "torch._dynamo" in sys.modules


def computed_attributes(m: nn.Module) -> list[str]:
    """Plain attributes that a hook of torch's own computes anew in each pass: weight_norm's weight.

    Under such a name the module's parameter is looked for in vain.
    """
    return [
        hook.name
        for hook in m._forward_pre_hooks.values()
        if type(hook).__module__.startswith("torch.nn.utils") and hasattr(hook, "name")
    ]


# --- optimisers -----------------------------------------------------------------------------------


def step_hooks(optimizer: torch.optim.Optimizer) -> list:
    """Hooks that are called around an optimiser's step."""
    return [hook for table in step_tables(optimizer) for hook in table.values()]


def step_tables(optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    """Where an optimiser keeps them."""
    return optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks


def replaced_step(optimizer: torch.optim.Optimizer) -> object | None:
    """A step or zero_grad put on the instance, but for the step by which lr_scheduler counts."""
    step = vars(optimizer).get("step")
    counts = hasattr(step, "_wrapped_by_lr_sched") or hasattr(step, "_with_counter")
    return vars(optimizer).get("zero_grad") or (None if counts else step)


def forget_unscaled(scaler: torch.amp.GradScaler) -> None:
    """Let a GradScaler forget an update that broke off: its next one would refuse to begin."""
    scaler._per_optimizer_states.clear()


def scaler_tensors(scaler: torch.amp.GradScaler) -> list[Tensor]:
    """What a GradScaler keeps on the device; made when it first scales something."""
    return [scaler._scale, scaler._growth_tracker]


# --- autograd -------------------------------------------------------------------------------------


def saved_tensors_are_hooked() -> bool:
    """Whether hooks on saved tensors are active, as within activation checkpointing.

    torch.utils.checkpoint does its non-reentrant form by them, and says in no other way that it is
    at work.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def without_function_modes() -> AbstractContextManager:
    """No torch function mode sees what is called meanwhile, attributes of tensors included."""
    return torch._C.DisableTorchFunction()


# --- devices --------------------------------------------------------------------------------------


def end_allocation_to_pool(device: int, pool: tuple) -> None:
    """Tell the CUDA allocator that a capture which broke off no longer goes on.

    Raises:
        RuntimeError: nothing was going on.
        AttributeError: this torch has no such function.
    """
    torch._C._cuda_endAllocateToPool(device, pool)


def release_pool(device: int, pool: tuple) -> None:
    """Take back the claim that a capture has on a pool of the CUDA allocator.

    Raises:
        RuntimeError: nothing has a claim on it.
        AttributeError: this torch has no such function.
    """
    torch._C._cuda_releasePool(device, pool)


def graphs_tidy_up() -> bool:
    """Whether CUDA graphs find the generators that they draw from, and give back broken captures.

    Since 2.14 a graph registers a generator at its first draw, and register_generator_state() does
    nothing but warn (pytorch#176753); reset() releases the pool of a capture that did not end
    (pytorch#190348).
    """
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)


def cpu_has(precision: str) -> bool:
    """Whether this processor computes products in bf16 or fp16 itself; else torch emulates them.

    True where it cannot be asked.
    """
    try:
        if not torch.cpu._is_avx2_supported():  # no x86: torch does not say
            return True
        if precision == "bf16":
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.cpu._is_amx_fp16_supported()
    except AttributeError:
        return True


# --- operators ----------------------------------------------------------------------------------

leaky_relu, leaky_relu_ = torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_
"""What F.leaky_relu calls: its Python function costs a microsecond a layer."""

functorch_is_active = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func is at work: autograd.Functions without rules for it fail."""


def forward_mode_is_active() -> bool:
    """Whether torch differentiates in forward mode, which autograd.Functions would have to know."""
    return forward_ad._current_level >= 0


def add_to_all(tensors: list[Tensor], value: float) -> None:
    """value added to each in one call, as torch's optimisers count their steps."""
    torch._foreach_add_(tensors, value)


def subtract_from_all(tensors: list[Tensor], others: list[Tensor]) -> None:
    """From each its own, in place."""
    torch._foreach_sub_(tensors, others)


def mix_into_all(tensors: list[Tensor], others: list[Tensor], weight: float | Tensor) -> None:
    """Each becomes itself + weight * (the other - itself): a running average, in one call.

    A weight on the device takes a call a tensor.
    """
    if isinstance(weight, Tensor):
        for tensor, other in zip(tensors, others, strict=True):
            tensor.lerp_(other, weight.to(tensor.dtype))
    else:
        torch._foreach_lerp_(tensors, others, weight)


def copy_to_all(tensors: list[Tensor], others: list[Tensor]) -> None:
    """The others' values copied to each in one call."""
    torch._foreach_copy_(tensors, others)


def uncompiled(method):
    """A method of torch's optimisers without the wrapper that keeps torch's compiler out of it.

    That wrapper imports the compiler: 0.8 s for every program that never compiles anything.
    """
    return getattr(method, "__wrapped__", method)


def unhooked(step):
    """An optimiser's step without its hooks.

    torch wraps the step of every class it has constructed, so that a subclass which calls it would
    run the hooks twice.
    """
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """A module's own submodules by name; writing to it replaces them where they stand.

    named_children() leaves out what stands in two places.
    """
    return module._modules


def reads_its_state(module: nn.Module) -> bool:
    """Whether a module has a say in how its state dict is loaded: a hook, or code of its own."""
    own = (
        method
        for kind in type(module).__mro__
        if kind.__module__.split(".")[0] not in ("torch", "fastgan", "builtins")
        for method in ("load_state_dict", "_load_from_state_dict")
        if method in vars(kind)
    )
    return bool(module._load_state_dict_pre_hooks) or any(own)


def parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own parameters by name, those that are None included."""
    return module._parameters


def buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """A module's own buffers by name, those that are None included."""
    return module._buffers


def has_hooks(module: nn.Module) -> bool:
    """Whether anything runs before, after or instead of a part of a module's call or state."""
    return any(
        value
        for name, value in vars(module).items()
        if name.endswith(("_hooks", "_hooks_always_called"))
    )
