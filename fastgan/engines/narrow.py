"""The precision of the products, and weights in it, made once an update and not at every use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgan import torch_private

if TYPE_CHECKING:
    from fastgan.problem import Problem

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CAST = torch.ops.aten._to_copy.default


class Narrowed(torch_private.OperationMode):
    """Stands in, while entered, for autocast's casts of weights.

    Autocast has a cache for that, in which the gradients of two uses meet in the narrow precision.
    Here every use has a gradient of its own, as without the cache, so that no number changes. All
    casts of an update are one launch. Each operation goes through Python for it, which a recording
    pays for once.
    """

    def __init__(self, networks: Iterable[nn.Module], dtype: torch.dtype):
        """`dtype`: that of the products."""
        super().__init__()
        networks = list(networks)
        self._dtype = dtype
        self._weights = {
            id(w): w for m in networks for w in m.parameters() if w.dtype == torch.float32
        }
        self._narrow: dict[int, Tensor] = {}
        self._fresh: set[int] = set()
        # torch.compile leaves alone what runs under a mode that it does not know.
        self.allowed = not any(
            torch_private.is_compiled(m) for net in networks for m in net.modules()
        )

    def begin(self, but: nn.Module | None = None) -> None:
        """Weights have changed, except those of a network."""
        self._fresh &= set() if but is None else {id(w) for w in but.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Answer the cast of a weight; do anything else."""
        kwargs = kwargs or {}
        if func is _CAST and kwargs.get("dtype") == self._dtype and id(args[0]) in self._weights:
            return self._of(id(args[0]))
        if func._schema.is_mutable and self._writes(func, args):
            # A pass that writes into its weights or into what they were cast to. It is the first of
            # its kind, which warms up and is forgotten.
            self.allowed = False
        return func(*args, **kwargs)

    def _of(self, key: int) -> Tensor:
        if not self.allowed:
            return self._weights[key].to(self._dtype)
        if key not in self._narrow:
            self._narrow[key] = torch.empty_like(self._weights[key], dtype=self._dtype)
        if key not in self._fresh:
            stale = [k for k in self._narrow if k not in self._fresh]
            torch._foreach_copy_(
                [self._narrow[k] for k in stale], [self._weights[k] for k in stale]
            )
            self._fresh.update(stale)
        return self._narrow[key].detach()  # autograd gives every use a history of its own

    def _writes(self, func, args: tuple) -> bool:
        written = [
            arg.untyped_storage().data_ptr()
            for arg, said in zip(args, func._schema.arguments, strict=False)
            if said.is_write and isinstance(arg, Tensor)
        ]
        ours = chain(self._narrow.values(), self._weights.values())
        return bool(written) and any(t.untyped_storage().data_ptr() in written for t in ours)


@contextmanager
def products_in(problem: Problem, narrow: Narrowed | None) -> Iterator[None]:
    """Products are in the run's precision meanwhile; `narrow`: what casts weights, if not torch."""
    p = problem
    if p.precision == "fp32":
        yield
        return
    # The cache is one update's; a weight cast without a gradient must not get into it.
    cached = narrow is None and torch.is_grad_enabled()
    with (
        torch.autocast(p.device.type, dtype=AUTOCAST[p.precision], cache_enabled=cached),
        narrow if narrow is not None and narrow.allowed else nullcontext(),
    ):
        yield
