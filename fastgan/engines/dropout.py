"""nn.Dropout and Heads with draws of seed and step, in networks that do not know."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import torch_private
from fastgan.heads import Heads
from fastgan.nn import runs, sequences
from fastgan.random import Stream

if TYPE_CHECKING:
    from fastgan.engines.draws import Counter, Draws


class Masks:
    """Gives a network's nn.Dropout modules the masks of the step, and its Heads their noise.

    In a Sequential a LinearLeakyReLU and the Dropout after it are one operation. Left to torch's
    own generator are layers inside a module that torch.compile has compiled, which would be
    compiled again for every mask, and those that activation checkpointing does again in the
    backward pass: it puts torch's generator back for that, and knows of no other.

    Attributes:
        in_backward: set it during a backward pass.
        heads: the network's Heads that the pass at hand has called, and what each was given.
    """

    def __init__(self, draws: Draws, network: nn.Module):
        """Look where the layers are."""
        self.in_backward = False
        self.heads: list[tuple[Heads, Tensor]] = []
        self._draws = draws
        # The index tells streams apart, and counts every layer whether it is served or not.
        layers = [m for m in network.modules() if type(m) is nn.Dropout]
        compiled = _compiled(network)
        self._layers = layers
        self._places = _places(network)
        self._drawn = [0] * len(layers)
        self._number, self._counter, self._size, self._grad = 0, None, 1, True
        index_of = {layer: index for index, layer in enumerate(layers)}
        self._forwards: list[tuple[nn.Module, object]] = []
        for index, layer in enumerate(layers):
            if layer not in compiled:
                self._forwards.append((layer, self._forward_of(index)))
        self._heads = [m for m in network.modules() if type(m) is Heads]
        self._chosen = [0] * len(self._heads)
        for index, heads in enumerate(self._heads):
            if heads not in compiled:
                self._forwards.append((heads, self._forward_of_heads(index)))
        for parent, parts in self._places[2]:
            if parent not in compiled and any(layer is not None for _, layer in parts):
                self._forwards.append((parent, self._forward_of_sequence(parts, index_of)))

    def fits(self, network: nn.Module) -> bool:
        """Whether a network is still as it was when this was made.

        Then it serves on: compiled code that has seen its functions knows them again.
        """
        return self._places == _places(network)

    @contextmanager
    def in_place(self):
        """The masks are drawn here meanwhile."""
        with ExitStack() as stack:
            for m, forward in self._forwards:
                stack.enter_context(forward_replaced(m, forward))
            yield
        self.heads = []

    def begin(self, number: int, counter: Counter, size: int, *, grad: bool) -> None:
        """A pass begins.

        Args:
            number: of the pass, which tells its masks from those of other passes.
            counter: the number of the update.
            size: rows of the whole batch.
            grad: whether autograd records it.
        """
        self._number, self._counter, self._size, self._grad = number, counter, size, grad
        self._drawn[:] = [0] * len(self._drawn)
        self.heads = []
        self._chosen[:] = [0] * len(self._chosen)

    def taken(self) -> list[tuple[Heads, Tensor]]:
        """`heads`, which are not kept."""
        found, self.heads = self.heads, []
        return found

    def _torchs_own(self) -> bool:
        return (
            self.in_backward
            or (self._grad and not torch.is_grad_enabled())
            or torch_private.saved_tensors_are_hooked()
        )

    def _start(self, index: int, count: int) -> int:
        """Where in its stream a call's elements begin.

        A layer that a pass calls twice goes on, or both calls would drop the same elements.
        """
        rows = self._draws.rows(self._size)
        own = max(1, len(rows))  # a rank without rows has no elements either
        start = self._drawn[index] + count * rows.start // own
        self._drawn[index] += count * self._size // own
        return start

    def _stream(self, index: int, base: int = Stream.DROPOUT) -> int:
        later, first = divmod(self._number, 8)
        return base + 8 * index + first + (later << 16)

    def _forward_of(self, index: int):
        layer = self._layers[index]

        def forward(x: Tensor) -> Tensor:
            if not layer.training or layer.p == 0:
                return x
            if torch.compiler.is_compiling() or self._torchs_own():
                return F.dropout(x, layer.p, True, layer.inplace)
            start = self._start(index, x.numel())
            out = self._draws.drop(x, self._stream(index), self._counter, layer.p, start)
            return x.copy_(out) if layer.inplace else out

        return forward

    def _forward_of_heads(self, index: int):
        heads = self._heads[index]
        forward_of = type(heads).forward

        def forward(x: Tensor, normals: Tensor | None = None) -> Tensor:
            whole = len(x) == len(self._draws.rows(self._size))
            own = torch.compiler.is_compiling() or self._torchs_own() or not whole
            self.heads.append((heads, x))
            if heads.choices and normals is None and not own:
                # Of another call in the pass another stream, or both would choose the same.
                stream = self._stream(index, Stream.CHOICE) + (self._chosen[index] % 64 << 24)
                self._chosen[index] += 1
                shape = self._size, heads.choices
                normals = self._draws.normal(stream, self._counter, shape)
            return forward_of(heads, x, normals)

        return forward

    def _forward_of_sequence(self, parts: list, index_of: dict[nn.Module, int]):
        def forward(x: Tensor) -> Tensor:
            for module, layer in parts:
                if layer is None or not layer.training or layer.p == 0:
                    x = module(x)
                elif torch.compiler.is_compiling() or self._torchs_own():
                    x = F.dropout(module(x), layer.p)
                else:
                    index = index_of[layer]
                    count = x.numel() // x.shape[-1] * module.out_features
                    where = self._stream(index), self._counter, layer.p
                    x = self._draws.drop_after(module, x, *where, self._start(index, count))
            return x

        return forward


@contextmanager
def forward_replaced(module: nn.Module, forward):
    """A module's forward replaced on the instance; what stood there comes back at the end."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _places(network: nn.Module) -> tuple:
    modules = list(network.modules())
    together = [(parent, runs(parent)) for parent in sequences(network)]
    return modules, [torch_private.is_compiled(m) for m in modules], together


def _compiled(network: nn.Module) -> set[nn.Module]:
    return {part for m in network.modules() if torch_private.is_compiled(m) for part in m.modules()}
