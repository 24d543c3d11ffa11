"""A BatchNorm and the rectifier behind it as one operation, in networks that do not know.

While a pass is at work such a BatchNorm2d does both, and the rectifier, a module or a call of a
function, hands on what it is given. Where a pass of a copy has shown that anything but one
rectifier uses what the norm returns, they are left alone; a pass that does so later is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import ops, torch_private
from fastgan.engines.dropout import forward_replaced
from fastgan.ops import norm

Slopes = dict[str, float]
"""The rectifiers' factors of negative values, by the names of the BatchNorms before them."""

_WORTH = 1 << 14
"""Numbers of the images from which on the operator is not slower than torch's two."""


class Norms:
    """The BatchNorms of a problem's networks that do the work of their rectifiers."""

    def __init__(self, found: list[tuple[nn.Module, float]]):
        """Of a BatchNorm each, and the factor of its rectifier."""
        self._forwards = [(vars(m), self._both(m, slope)) for m, slope in found]
        self._between: tuple[Tensor, float] | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """A pass of a network is at work; RuntimeError if it parts a norm from its rectifier."""
        self._between = None
        try:
            for own, forward in self._forwards:
                own["forward"] = forward
            yield
            _require(self._between is None)
        finally:
            self._between = None
            for own, _ in self._forwards:
                own.pop("forward", None)

    def rectified(self, func: Callable, args: tuple, kwargs: dict) -> bool:
        """Whether a call is the rectifier whose work is done, for a function mode to ask.

        Raises:
            RuntimeError: it is another one of what the norm has returned.
        """
        if self._between is None:
            return False
        x, slope = self._between
        if not any(t is x for t in _tensors(args, kwargs)):
            return False
        _require(bool(args) and args[0] is x and slope_of(func, args, kwargs) == slope)
        self._between = None
        return True

    def _both(self, m: nn.Module, slope: float):
        plain = m.forward

        def forward(x: Tensor) -> Tensor:
            with torch_private.without_function_modes():  # else each x.shape is a call of the mode
                if m.training and _takes(x):
                    return self._joined(m, slope, x)
            return plain(x)

        return forward

    def _joined(self, m: nn.Module, slope: float, x: Tensor) -> Tensor:
        _require(self._between is None)
        m.num_batches_tracked.add_(1)
        y = ops.batch_norm_leaky_relu(
            x, m.weight, m.bias, m.running_mean, m.running_var, m.momentum, m.eps, slope
        )
        self._between = y, slope
        return y


def _require(together: bool) -> None:
    if not together:
        raise RuntimeError(
            "a BatchNorm2d and the rectifier behind it, which are done as one operation, were "
            "called apart in this pass and were not when the networks were looked at; set "
            "operators='torch'"
        )


def _takes(x: Tensor) -> bool:
    return (
        norm.serves(x)
        and x.numel() >= max(_WORTH, 2 * x.shape[1])
        and not torch_private.saved_tensors_are_hooked()
    )


def _tensors(args: tuple, kwargs: dict) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        for t in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(t, Tensor):
                yield t


_RELUS = {F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_}
_LEAKY = {F.leaky_relu, F.leaky_relu_}


def slope_of(func: Callable, args: tuple, kwargs: dict) -> float | None:
    """The factor of negative values in a call; None if it is no rectifier, or one that folds."""
    if func in _RELUS:
        return 0.0
    if func not in _LEAKY:
        return None
    slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
    return float(slope) if isinstance(slope, (int, float)) and slope >= 0 else None


def norms_of(network: nn.Module) -> list[str]:
    """The BatchNorms that may do the work of a rectifier: of torch's own kind, without hooks."""
    if torch_private.global_hooks():
        return []
    return [name for name, m in network.named_modules() if _normalises(m)]


def _normalises(m: nn.Module) -> bool:
    return (
        type(m) is nn.BatchNorm2d
        and m.affine
        and m.running_mean is not None
        and m.momentum is not None
        and m.num_batches_tracked is not None
        and "forward" not in vars(m)
        and not any(torch_private.hooks_of(m))
    )


class Watched:
    """What a pass of a copy does with the BatchNorms, for a function mode to tell."""

    def __init__(self, network: nn.Module, names: list[str]):
        """Of that copy."""
        self._network, self._names = network, names
        self._kept: dict[int, tuple[Tensor, str]] = {}
        self._open: dict[int, str] = {}
        self._found: dict[str, set[float | None]] = {}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The modules tell meanwhile."""
        with ExitStack() as stack:
            for name in self._names:
                module = self._network.get_submodule(name)
                stack.enter_context(forward_replaced(module, self._made(module.forward, name)))
            yield

    def used(self, func: Callable, args: tuple, kwargs: dict, out: Any) -> None:
        """A function of torch was called with these."""
        for t in _tensors(args, kwargs):
            if id(t) not in self._kept:
                continue
            name = self._kept[id(t)][1]
            # A second use of what a norm has returned is None, too, whatever it does.
            first = self._open.pop(id(t), None) is not None and bool(args) and args[0] is t
            self._found.setdefault(name, set()).add(slope_of(func, args, kwargs) if first else None)
            if out is t:  # in place: what uses it later sees the same in both
                del self._kept[id(t)]

    def whole(self) -> Slopes:
        """The norms whose results were used by a rectifier and nothing else, with its factor."""
        found = {name: slopes for name, slopes in self._found.items() if len(slopes) == 1}
        return {
            name: slope
            for name, (slope,) in found.items()
            if slope is not None and name not in self._open.values()
        }

    def _made(self, plain: Callable, name: str):
        def forward(x: Tensor) -> Tensor:
            out = plain(x)
            self._kept[id(out)] = out, name
            self._open[id(out)] = name
            return out

        return forward
