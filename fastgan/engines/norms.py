"""A BatchNorm and the rectifier behind it as one operation, in networks that do not know.

Two neighbours in an nn.Sequential are one operation while a pass is at work: the first does both,
the second hands on what it is given. Where a pass of a copy has shown that anything but the second
uses what the first returns, they are left alone; a pass that does so later is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise

from torch import Tensor, nn

from fastgan import ops, torch_private
from fastgan.engines.dropout import forward_replaced
from fastgan.ops import norm

Names = tuple[str, str]
"""A BatchNorm and a rectifier in a network."""

_WORTH = 1 << 14
"""Numbers of the images from which on the operator is not slower than torch's two."""


class Norms:
    """The pairs of a problem's networks that are one operation."""

    def __init__(self, pairs: list[tuple[nn.Module, nn.Module]]):
        """Of a BatchNorm and a rectifier each."""
        self._forwards = []
        for first, second in pairs:
            self._forwards.append((vars(first), self._both(first, second)))
            self._forwards.append((vars(second), self._nothing(second)))
        self._between: Tensor | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """A pass of a network is at work; RuntimeError if it parts a pair."""
        self._between = None
        try:
            for own, forward in self._forwards:
                own["forward"] = forward
            yield
            self._require(self._between is None)
        finally:
            self._between = None
            for own, _ in self._forwards:
                own.pop("forward", None)

    def _both(self, first: nn.Module, second: nn.Module):
        slope, plain = slope_of(second), first.forward

        def forward(x: Tensor) -> Tensor:
            with torch_private.without_function_modes():  # else each x.shape is a call of the mode
                if first.training and _takes(x):
                    return self._joined(first, slope, x)
            return plain(x)

        return forward

    def _joined(self, first: nn.Module, slope: float, x: Tensor) -> Tensor:
        self._require(self._between is None)
        first.num_batches_tracked.add_(1)
        self._between = ops.batch_norm_leaky_relu(
            x, first.weight, first.bias, first.running_mean, first.running_var,
            first.momentum, first.eps, slope,
        )  # fmt: skip
        return self._between

    def _nothing(self, second: nn.Module):
        plain = second.forward

        def forward(x: Tensor) -> Tensor:
            if self._between is None:
                return plain(x)
            self._require(x is self._between)
            self._between = None
            return x

        return forward

    @staticmethod
    def _require(together: bool) -> None:
        if not together:
            raise RuntimeError(
                "a BatchNorm2d and the rectifier behind it in an nn.Sequential, which are done as "
                "one operation, were called apart in this pass and were not when the networks were "
                "looked at; set operators='torch'"
            )


def _takes(x: Tensor) -> bool:
    return (
        norm.serves(x)
        and x.numel() >= max(_WORTH, 2 * x.shape[1])
        and not torch_private.saved_tensors_are_hooked()
    )


def slope_of(rectifier: nn.Module) -> float:
    """The factor of negative results."""
    return rectifier.negative_slope if isinstance(rectifier, nn.LeakyReLU) else 0.0


def pairs_of(network: nn.Module) -> list[Names]:
    """The neighbours that may be one operation: neither is used elsewhere or has hooks."""
    if torch_private.global_hooks():
        return []
    uses = Counter(id(m) for parent in network.modules() for m in parent._modules.values())
    found = []
    for name, parent in network.named_modules():
        if type(parent) is not nn.Sequential:
            continue
        for (first, a), (second, b) in pairwise(parent.named_children()):
            alone = all(uses[id(m)] == 1 and _is_plain(m) for m in (a, b))
            if alone and _normalises(a) and _rectifies(b):
                prefix = f"{name}." if name else ""
                found.append((prefix + first, prefix + second))
    return found


def _is_plain(m: nn.Module) -> bool:
    return "forward" not in vars(m) and not any(torch_private.hooks_of(m))


def _normalises(m: nn.Module) -> bool:
    return (
        type(m) is nn.BatchNorm2d
        and m.affine
        and m.running_mean is not None
        and m.momentum is not None
        and m.num_batches_tracked is not None
    )


def _rectifies(m: nn.Module) -> bool:
    return type(m) in (nn.ReLU, nn.LeakyReLU) and slope_of(m) >= 0


class Watched:
    """What a pass of a copy does with the pairs, for a function mode to tell."""

    def __init__(self, network: nn.Module, pairs: list[Names]):
        """Of that copy."""
        self._network, self._pairs = network, pairs
        self._parted: set[Names] = set()
        self._kept: dict[int, tuple[Tensor, Names]] = {}
        self._inside: Names | None = None
        self._calls: Counter[Names] = Counter()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The modules tell meanwhile."""
        with ExitStack() as stack:
            for pair in self._pairs:
                for told, name in zip((self._made, self._taken), pair, strict=True):
                    module = self._network.get_submodule(name)
                    stack.enter_context(forward_replaced(module, told(module.forward, pair)))
            yield

    def used(self, args: tuple) -> None:
        """A function of torch is called with these."""
        for value in args:
            for t in value if isinstance(value, (list, tuple)) else (value,):
                if id(t) in self._kept and self._kept[id(t)][1] != self._inside:
                    self._parted.add(self._kept[id(t)][1])

    def whole(self) -> list[Names]:
        """The pairs that were always called one after the other, for nothing else."""
        return [p for p in self._pairs if p not in self._parted and not self._calls[p]]

    def _made(self, plain, pair: Names):
        def forward(x: Tensor) -> Tensor:
            out = plain(x)
            self._calls[pair] += 1
            self._kept[id(out)] = out, pair
            return out

        return forward

    def _taken(self, plain, pair: Names):
        def forward(x: Tensor) -> Tensor:
            if id(x) not in self._kept or self._kept[id(x)][1] != pair:
                self._parted.add(pair)
            self._calls[pair] -= 1
            if self._calls[pair]:
                self._parted.add(pair)
            self._inside = pair
            try:
                y = plain(x)
            finally:
                self._inside = None
            if y is x:  # in place: what uses it later sees the same in both
                self._kept.pop(id(x), None)
            return y

        return forward
