"""Every private part of torch that fastgan touches, with the reason.

A new torch that moves one of them breaks this file and its test, tests/test_torch_private.py, and
nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

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
