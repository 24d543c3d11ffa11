"""A network as a method sees it: what it has, and calls of it as passes of the step."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fastgan.engines.context import StepContext


class Network:
    """A network as a method sees it: its calls are passes of the step.

    They have the step's dropout masks and precision; what they return in half precision becomes
    float32. What the network has is had by its attributes, items and methods; modules among it are
    seen likewise. It passes for an instance of the network's class.
    """

    def __init__(self, context: StepContext, which: int, target: Any):
        """A view of a network, or of a part of it."""
        vars(self).update(_context=context, _which=which, _target=target)

    __class__ = property(lambda self: type(self._target))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A pass."""
        out = self._context.call(self._which, self._target, *args, **kwargs)
        out = converted(out, torch.float32, narrower=True)
        if self._which == 0 and args:
            first = next(iter(out)) if isinstance(out, (tuple, list)) and out else out
            self._context.seen(args[0], first)
        return out

    def __getattr__(self, name: str) -> Any:
        """What the network has under that name."""
        found = getattr(self._target, name)
        if not isinstance(getattr(found, "__self__", None), nn.Module):
            return self._view(found)
        if name != "forward" and found.__module__.split(".")[0] == "torch":  # no pass
            return lambda *args, **kwargs: self._view(found(*args, **kwargs))
        return Network(self._context, self._which, found)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it on the network."""
        setattr(self._target, name, value)

    def __getitem__(self, key: Any) -> Any:
        """A part of a ModuleDict, ModuleList or Sequential."""
        return self._view(self._target[key])

    def __iter__(self) -> Iterator[Any]:
        """As the network is gone through."""
        return map(self._view, iter(self._target))

    def __contains__(self, key: object) -> bool:
        """As the network says."""
        return key in self._target

    def __len__(self) -> int:
        """As the network says."""
        return len(self._target)

    def __bool__(self) -> bool:
        """Networks without a length are true, too."""
        return True

    def _view(self, found: Any) -> Any:
        if isinstance(found, nn.Module):
            return Network(self._context, self._which, found)
        if isinstance(found, (ItemsView, ValuesView)):
            return [self._view(part) for part in found]
        if isinstance(found, Iterator):
            return map(self._view, found)
        return tuple(map(self._view, found)) if type(found) is tuple else found


def detached(out: Any) -> Any:
    """What a network returned, without a gradient.

    Args:
        out: a tensor, or tuples, lists and dicts of such.
    """
    if isinstance(out, Tensor):
        return out.detach()
    if type(out) in (tuple, list):
        return type(out)(map(detached, out))
    if type(out) is dict:
        return {key: detached(part) for key, part in out.items()}
    return out


def converted(out: Any, dtype: torch.dtype, *, narrower: bool = False) -> Any:
    """The floating-point tensors of what a network returned in a dtype; all else as it is.

    Args:
        out: a tensor, or tuples, lists and dicts of such.
        dtype: theirs afterwards.
        narrower: convert only those in half precision.
    """
    if isinstance(out, Tensor):
        wide = not out.is_floating_point() or (narrower and out.element_size() > 2)
        return out if wide else out.to(dtype)
    if type(out) in (tuple, list):
        return type(out)(converted(part, dtype, narrower=narrower) for part in out)
    if type(out) is dict:
        return {key: converted(part, dtype, narrower=narrower) for key, part in out.items()}
    return out
