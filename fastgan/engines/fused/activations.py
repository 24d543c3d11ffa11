"""The activations that a plan has: the modules and functions that mean them, and what they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_aten = torch.ops.aten

OPERATORS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda x, slope: x,
    "leaky_relu": _aten.leaky_relu,
    "tanh": lambda x, slope: torch.tanh(x),
    "sigmoid": lambda x, slope: torch.sigmoid(x),
    "elu": _aten.elu,
    "gelu": lambda x, slope: _aten.gelu(x),
    "gelu_tanh": lambda x, slope: _aten.gelu(x, approximate="tanh"),
    "silu": lambda x, slope: _aten.silu(x),
    "selu": lambda x, slope: _aten.selu(x),
    "softplus": lambda x, slope: _aten.softplus(x),
}
"""What each computes, by operators that nobody replaces."""

ACTIVATIONS = tuple(OPERATORS)
"""Their names by their numbers in csrc/step/enums.h."""

BENDS_KEPT = ("gelu", "gelu_tanh", "silu", "softplus")
"""Those whose second derivative is kept along, as their output does not tell it."""

_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}
_SOFTPLUSES = {(1, 20): "softplus"}

FUNCTIONS: dict[Callable, Callable[..., tuple[str | None, float]]] = {
    F.leaky_relu: lambda negative_slope=0.01, inplace=False: ("leaky_relu", negative_slope),
    F.elu: lambda alpha=1.0, inplace=False: ("elu", alpha),
    F.relu: lambda inplace=False: ("leaky_relu", 0.0),
    F.gelu: lambda approximate="none": (_GELUS.get(approximate), 0.0),
    F.silu: lambda inplace=False: ("silu", 0.0),
    F.selu: lambda inplace=False: ("selu", 0.0),
    F.softplus: lambda beta=1, threshold=20: (_SOFTPLUSES.get((beta, threshold)), 0.0),
    torch.selu: lambda: ("selu", 0.0),
    torch.relu: lambda: ("leaky_relu", 0.0),
    torch.tanh: lambda: ("tanh", 0.0),
    F.tanh: lambda: ("tanh", 0.0),
    torch.sigmoid: lambda: ("sigmoid", 0.0),
    F.sigmoid: lambda: ("sigmoid", 0.0),
}
"""Name and slope of what a function does, by its arguments after the tensor; None: it has none."""

METHODS = {
    name + form: getattr(torch, name) for name in ("relu", "tanh", "sigmoid") for form in ("", "_")
}
"""Methods in place are those: what a tensor was before is not taken by anything."""

MODULES: dict[type[nn.Module], Callable[..., tuple[str | None, float]]] = {
    nn.LeakyReLU: lambda m: ("leaky_relu", m.negative_slope),
    nn.ELU: lambda m: ("elu", m.alpha),
    nn.ReLU: lambda m: ("leaky_relu", 0.0),
    nn.Tanh: lambda m: ("tanh", 0.0),
    nn.Sigmoid: lambda m: ("sigmoid", 0.0),
    nn.GELU: lambda m: (_GELUS.get(m.approximate), 0.0),
    nn.SiLU: lambda m: ("silu", 0.0),
    nn.SELU: lambda m: ("selu", 0.0),
    nn.Softplus: lambda m: (_SOFTPLUSES.get((m.beta, m.threshold)), 0.0),
}
"""Likewise of a module."""


def functions() -> dict[str, object]:
    """What torch's layers call: a program may put functions of its own there."""
    own = ("linear", "batch_norm", "layer_norm", "leaky_relu", "relu", "elu", "gelu", "silu")
    own += ("selu", "softplus", "softmax", "gumbel_softmax")
    found = {f"torch.nn.functional.{name}": getattr(F, name) for name in own}
    return found | {
        f"torch.{name}": getattr(torch, name) for name in ("tanh", "sigmoid", "softmax")
    }
