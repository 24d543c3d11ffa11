"""The optimisers that have a fused form: their numbers, and what they keep of each weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Rule(NamedTuple):
    """How an optimiser moves a weight, as a plan tells it in Adam's terms."""

    number: int
    """In csrc/step/enums.h."""
    kind: type[torch.optim.Optimizer]
    settings: tuple[str, ...]
    """Of a group, that all groups must have alike, beside the rate and weight_decay."""
    numbers: Callable[[dict], tuple[float, float, float]]
    """beta1, beta2 and eps of a group."""
    step: str | None
    """What its state calls the counter of steps, and the two moments; None: it keeps none."""
    moments: tuple[str | None, str | None]
    refused: tuple[str, ...]
    """Settings that must be as torch has them by default."""


_REFUSED = ("maximize", "capturable", "differentiable")
RULES = (
    Rule(
        0, torch.optim.Adam, ("betas", "eps"), lambda g: (*g["betas"], g["eps"]), "step",
        ("exp_avg", "exp_avg_sq"), ("amsgrad", *_REFUSED),
    ),
    Rule(
        1, torch.optim.AdamW, ("betas", "eps"), lambda g: (*g["betas"], g["eps"]), "step",
        ("exp_avg", "exp_avg_sq"), ("amsgrad", *_REFUSED),
    ),
    Rule(
        2, torch.optim.RMSprop, ("alpha", "eps"), lambda g: (0.0, g["alpha"], g["eps"]), "step",
        (None, "square_avg"), ("momentum", "centered", *_REFUSED),
    ),
    Rule(
        3, torch.optim.SGD, ("momentum",), lambda g: (g["momentum"], 0.0, 1.0), None,
        ("momentum_buffer", None), ("dampening", "nesterov", *_REFUSED),
    ),
)  # fmt: skip
"""By their numbers."""
OF_CUDA = 2
"""So many of them have a fused form on CUDA."""


class Kept(NamedTuple):
    """What is kept of a weight: float32 [], and two of the weight's shape."""

    step: Tensor
    first: Tensor
    second: Tensor


def rule_of(optimizer: torch.optim.Optimizer) -> Rule | None:
    """The rule of an optimiser, if it is torch's or our own; any other subclass may do more."""
    if type(optimizer).__module__.split(".")[0] not in ("torch", "fastgan"):
        return None
    # AdamW is an Adam.
    return next((rule for rule in reversed(RULES) if isinstance(optimizer, rule.kind)), None)


def found(rule: Rule, optimizer: torch.optim.Optimizer, p: Tensor) -> list[Tensor]:
    """What the optimiser keeps of a weight already, and a plan takes: counter, then moments."""
    state = optimizer.state.get(p, {})
    names = (rule.step, *rule.moments)
    return [state[name] for name in names if name and state.get(name) is not None]


def kept(rule: Rule, optimizer: torch.optim.Optimizer, p: Tensor) -> Kept:
    """What a plan takes of a weight.

    What the optimiser keeps and is not there yet is made as torch makes it at the first step; the
    rest has no use beyond a step.
    """
    group = optimizer.param_groups[0]
    device = p.device if group.get("capturable") or group.get("fused") else "cpu"

    def zeros() -> Tensor:
        return torch.zeros_like(p, memory_format=torch.preserve_format)

    def one(name: str | None, new: Callable[[], Tensor]) -> Tensor:
        if name is None or (name == "momentum_buffer" and group["momentum"] == 0):
            return new()
        state = optimizer.state[p]
        if state.get(name) is None:
            state[name] = new()
        return state[name]

    counter = one(rule.step, lambda: torch.zeros((), dtype=torch.float32, device=device))
    return Kept(counter, *(one(name, zeros) for name in rule.moments))
