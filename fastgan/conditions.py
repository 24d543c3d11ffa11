"""What goes with a sample (a label, an image, a row) and which network is given it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan.data.batch import map_condition, tensors_of
from fastgan.wrapped import unwrapped

__all__ = [
    "FAKE", "arguments", "asked_for", "class_count", "is_drawn", "taken", "to_sample_by",
]  # fmt: skip

if TYPE_CHECKING:
    from fastgan.data import Data
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


def hidden_from(network: nn.Module, first: bool = True) -> str | None:
    """The parameter by which a network may mean to take a condition that it is not given.

    It is given as the second argument, so not to ``*args``, which may be anything, nor by keyword.
    """
    try:
        parameters = inspect.signature(unwrapped(network).forward).parameters.values()
    except (TypeError, ValueError):
        return None
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # What inherits a forward without naming its arguments, as torch's containers may, says nothing.
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL and len(places) <= int(first):
            return f"*{p.name}"
        if p.kind is p.KEYWORD_ONLY and p.name in _NAMES:
            return f"{p.name} by keyword"
    return None


def arguments(problem: Problem, which: int, first: Tensor | None, condition: Any) -> tuple:
    """What D (0) or G (1) is called with.

    Args:
        problem: whose network.
        which: see above.
        first: samples or latents; None for a G that takes no latents.
        condition: what belongs to them; None if there is none.
    """
    given = () if first is None else (first,)
    return (*given, condition) if problem.conditioned[which] and condition is not None else given


def is_drawn(how: str, condition: Any) -> bool:
    """Whether fake samples get conditions of their own, and not those of the real batch.

    Labels do ("auto"): a generator is asked for classes as often as the data have them. What is
    more than a number, an image say, is what the fake sample is to be made from.
    """
    if how != "auto":
        return how == "drawn"
    return all(map(_is_label, tensors_of(condition)))


def _is_label(part: Any) -> bool:
    """Whether a tensor has one whole number a sample, [b] or [b, 1]."""
    return isinstance(part, Tensor) and not part.is_floating_point() and part[:1].numel() == 1


def class_count(data: Data) -> int | None:
    """How many classes the labels of data stand for; None where they have no labels.

    Also None for labels without names that are read as needed: only reading all would tell.
    """
    like = data.blank(1).condition
    return _classes(data) if _is_label(like) and like.dim() == 1 else None


def _classes(data: Data) -> int | None:
    if data.classes:
        return len(data.classes)
    return None if data.condition is None else int(data.condition.max()) + 1


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
        return _by_default(p, n)
    if isinstance(given, (int, float, list)) or hasattr(given, "__array__"):
        given = torch.as_tensor(given, device="cpu")
    if isinstance(given, Tensor) and given.dim() == 0:
        given = given.expand(n)
    if isinstance(given, Tensor) and _is_label(like) and given.shape == (n,):
        given = given.view(n, *like.shape[1:])

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


def _by_default(problem: Problem, n: int) -> Any:
    data, device = problem.data, problem.device
    like = data.blank(1).condition
    if _is_label(like) and (classes := _classes(data)):
        return torch.arange(n, device=device).view(n, *like.shape[1:]) % classes
    first = data.first_conditions(n)
    return data.blank(n).condition if first is None else first
