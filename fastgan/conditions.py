"""What goes with a sample (a label, an image, a row) and which network is given it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan.data.batch import map_condition, tensors_of
from fastgan.wrapped import unwrapped

__all__ = ["FAKE", "asked_for", "is_drawn", "taken", "to_sample_by"]

if TYPE_CHECKING:
    from fastgan.problem import Problem

FAKE = ("auto", "drawn", "same")
"""Where the conditions of fake samples come from; see the setting `fake_condition`."""

_NAMES = ("y", "c", "cond", "condition", "conditions", "label", "labels", "class_labels")


def asked_for(network: nn.Module, first: bool = True) -> tuple[bool, bool]:
    """Whether a network is given the condition where the data have one, and whether it needs one.

    It is given it if its forward takes another argument after the sample or latent, which either
    has no default (then it needs it) or one of the names that conditions go by (`y`, `label`, ...).

    Args:
        network: whose forward.
        first: whether it is given something else before it.
    """
    try:
        parameters = inspect.signature(unwrapped(network).forward).parameters.values()
    except (TypeError, ValueError):
        return False, False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [p for p in parameters if p.kind in kinds][int(first) :][:1]
    needs = any(p.default is p.empty for p in places)
    return needs or any(p.name in _NAMES for p in places), needs


def is_drawn(how: str, condition: Any) -> bool:
    """Whether fake samples get conditions of their own, and not those of the real batch.

    Labels do ("auto"): a generator is asked for classes as often as the data have them. What is
    more than a number, an image say, is what the fake sample is to be made from.
    """
    if how != "auto":
        return how == "drawn"
    return all(t.dim() == 1 and not t.is_floating_point() for t in tensors_of(condition))


def taken(condition: Any, rows: Tensor) -> Any:
    """Some rows of a condition."""
    return map_condition(lambda part: part.index_select(0, rows), condition)


def to_sample_by(problem: Problem, n: int, given: Any) -> Any:
    """The conditions of n samples to look at, on the device; None for a G that takes none.

    Args:
        problem: whose generator.
        n: how many.
        given: one class for all, n conditions, or None: the classes in turn, or what the data
            begin with.

    Raises:
        ValueError: the generator takes none, or they do not fit.
    """
    p = problem
    if not p.conditioned[1]:
        if given is not None:
            raise ValueError("condition is given, but the generator takes none")
        return None
    like = p.data.blank(1).condition
    if given is None:
        return _by_default(p, n, like)
    if isinstance(given, (int, float, list)) or hasattr(given, "__array__"):
        given = torch.as_tensor(given)
    if isinstance(given, Tensor) and given.dim() == 0:
        given = given.expand(n)

    def fitting(mine: Any, part: Any) -> Tensor:
        if not isinstance(part, Tensor) or part.shape != (n, *mine.shape[1:]):
            got = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"condition is {got}; expected {[n, *mine.shape[1:]]}")
        return part.to(p.device, mine.dtype)

    try:
        return map_condition(fitting, like, given)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"condition is {type(given).__name__}; expected what the data have beside each sample"
        ) from error


def _by_default(problem: Problem, n: int, like: Any) -> Any:
    data, device = problem.data, problem.device
    rows = torch.arange(n, device=device)
    labels = isinstance(like, Tensor) and like.dim() == 1 and not like.is_floating_point()
    if labels and data.classes:
        return rows % len(data.classes)
    if labels and data.condition is not None:
        return rows % (int(data.condition.max()) + 1)
    first = data.first_conditions(n)
    return data.blank(n).condition if first is None else first
