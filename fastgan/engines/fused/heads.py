"""The end of a generator whose columns have activations of their own.

It fits when the last Linear's output is cut into pieces, by slices, split, chunk and the like or by
changes of shape, each of which goes through Tanh, Sigmoid, ReLU, LeakyReLU, a softmax,
F.gumbel_softmax or nothing, and is put together again in the same order; or when it goes through
`fastgan.nn.Heads`.

A traced forward is followed by numbers in the place of the output's: each says which number of
which row it is, so that torch itself says what a cut or a change of shape leaves where.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastgan.engines.fused import activations
from fastgan.engines.fused.trace import NoPlan
from fastgan.engines.probe import first_line
from fastgan.heads import COLUMNS, Heads, straight_through
from fastgan.plain import real

KINDS = ("columns", "softmax", "gumbel")
"""What heads are, by their numbers in csrc/step/enums.h."""
EACH = ("none", "leaky_relu", "tanh", "sigmoid")
"""Activations of single columns: those whose output tells their derivative."""

_aten = torch.ops.aten


class Head(NamedTuple):
    """Columns that stand together."""

    kind: str
    width: int
    activation: str = "none"
    """Of "columns"."""
    by: float = 0.0
    """LeakyReLU's negative slope; the temperature of the others."""
    hard: bool = False
    asked: bool = False
    """Whether labels name its classes, for `terms.Conditional`."""


class Call(NamedTuple):
    """What some numbers of the output go through together."""

    places: Tensor
    """int64: which, counted through the whole batch."""
    function: Callable[[Tensor], Tensor]
    """By operators that nobody replaces."""


@dataclass
class Ends:
    """What becomes of the columns of a layer's output."""

    heads: list[Head] = field(default_factory=list)
    """In the order of the columns, all of them."""
    calls: list[Call] = field(default_factory=list)
    """In the order of the forward."""
    index: int = 0
    """Which of the network's Heads it is, in the order of modules()."""
    module: Heads | None = None

    def computed(self, x: Tensor) -> Tensor:
        """The output of what the layer has made, [batch, columns], the batch that was followed."""
        flat = x.reshape(-1)
        for places, function in self.calls:
            made = function(flat[places]).reshape(-1)
            flat = flat.index_copy(0, places.reshape(-1), made.to(flat.dtype))
        return flat.view_as(x)


_CUTS = {torch.split, torch.chunk, torch.tensor_split, torch.narrow, torch.unbind, operator.getitem}
_JOINS = {torch.cat, torch.concat, torch.concatenate, torch.hstack, torch.stack}
_SHAPES = {torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten}
_FUNCTIONS = _CUTS | _JOINS | _SHAPES
_METHODS = {
    *("split", "chunk", "tensor_split", "narrow", "unbind", "view", "reshape", "flatten"),
    *("unflatten", "squeeze", "unsqueeze", "contiguous"),
}
_SOFTMAXES = {F.softmax, torch.softmax, "softmax"}
_BEGIN = _CUTS | _SOFTMAXES | {F.gumbel_softmax, "split", "chunk", "tensor_split", "narrow"}
"""What of a whole output begins its heads."""


class Cutter:
    """Follows the pieces of a layer's output through a traced forward."""

    def __init__(self, network: nn.Module, values: dict[fx.Node, object], batch: int):
        """Begin.

        Args:
            network: whose forward it is.
            values: of the nodes of the graph, tensors without data among them.
            batch: theirs.
        """
        self._network, self._values, self._batch = network, values, batch
        self._pieces: dict[fx.Node, Any] = {}
        self._width = 0
        self._taken: list[tuple[int, Head]] = []
        self._calls: list[Call] = []
        self._index = 0
        self._whole: Heads | None = None

    def takes(self, node: fx.Node, current: fx.Node | None) -> bool:
        """Whether a call is of pieces, or begins to cut the current output."""
        if any(n in self._pieces for n in node.all_input_nodes):
            return True
        if not node.args or node.args[0] is not current:
            return False
        if node.op == "call_module":
            return type(self._network.get_submodule(node.target)) in (nn.Softmax, Heads)
        return node.target in _BEGIN

    def step(
        self, node: fx.Node, x: Tensor, current: fx.Node, where: str, what: str
    ) -> Ends | None:
        """Take a call; the ends, where its result is the whole output again.

        Args:
            node: the call.
            x: the current output, without data.
            current: its node.
            where: what a message calls the place.
            what: likewise the call.
        """
        if not self._pieces:
            self._width = x.numel() // self._batch
            self._pieces[current] = torch.arange(x.numel(), device="cpu").view(x.shape)
        self._pieces[node] = made = (
            self._module(node, where, what)
            if node.op == "call_module"
            else self._function(node, where, what)
        )
        self._values[node] = _without_data(made)
        if not isinstance(made, Tensor) or made.shape[:1] != (self._batch,):
            return None
        whole = torch.arange(self._batch * self._width, device="cpu")
        # A cut that leaves all in place is no end yet.
        if not self._calls or not torch.equal(made.reshape(-1), whole):
            return None
        self._pieces.clear()
        return Ends(self._heads(), self._calls, self._index, self._whole)

    def _module(self, node: fx.Node, where: str, what: str) -> Any:
        m = self._network.get_submodule(node.target)
        places = self._places(node, where, what)
        if type(m) is Heads:
            self._of_heads(m, places, where)
            return places
        if isinstance(m, nn.Identity):
            return places
        if type(m) in (nn.Flatten, nn.Unflatten):
            return self._moved(lambda: m.forward(places), where, what)
        if type(m) is nn.Softmax:
            return self._softmax(places, where, what, m.dim)
        if (said := activations.MODULES.get(type(m))) is not None:
            return self._each(places, where, what, *said(m))
        raise NoPlan(f"{where}: {what} of some columns has no fused form")

    def _function(self, node: fx.Node, where: str, what: str) -> Any:
        target = node.target

        def given(n: fx.Node) -> Any:
            return self._pieces[n] if n in self._pieces else self._values.get(n)

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), given)
        if target in _FUNCTIONS or (node.op == "call_method" and target in _METHODS):
            known = {n: self._pieces[n] for n in node.all_input_nodes if n in self._pieces}
            if target in _JOINS and len(known) < len(node.all_input_nodes):
                raise NoPlan(f"{where}: {what} of columns and something else has no fused form")
            function = getattr(args[0], target) if node.op == "call_method" else target
            rest = args[1:] if node.op == "call_method" else args
            return self._moved(lambda: function(*rest, **kwargs), where, what)
        places = self._places(node, where, what)
        if target in _SOFTMAXES:
            return self._softmax(places, where, what, *args[1:], **kwargs)
        if target is F.gumbel_softmax:
            return self._gumbel(places, where, *args[1:], **kwargs)
        function = activations.METHODS.get(target) if node.op == "call_method" else target
        if (said := activations.FUNCTIONS.get(function)) is not None:
            return self._each(places, where, what, *said(*args[1:], **kwargs))
        raise NoPlan(f"{where}: {what} of some columns has no fused form")

    def _places(self, node: fx.Node, where: str, what: str) -> Tensor:
        places = self._pieces.get(node.args[0]) if node.args else None
        if not isinstance(places, Tensor):
            raise NoPlan(f"{where}: {what} is not applied to columns alone")
        return places

    def _moved(self, function: Callable[[], Any], where: str, what: str) -> Any:
        try:
            return function()
        except Exception as error:
            raise NoPlan(f"{where}: {what} of columns failed ({first_line(error)})") from error

    # --- what is done with columns ---------------------------------------------------------------

    def _each(
        self, places: Tensor, where: str, what: str, kind: str | None, slope: float
    ) -> Tensor:
        if kind not in EACH or not 0 <= slope < float("inf"):
            raise NoPlan(f"{where}: {what} of some columns has no fused form")
        self._take(places.flatten(1)[:, None], where, Head("columns", 0, kind, float(slope)))
        self._calls.append(Call(places, partial(_each_of, kind, float(slope))))
        return places

    def _softmax(
        self,
        places: Tensor,
        where: str,
        what: str,
        dim: int | None = None,
        _stacklevel: int = 3,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        if dtype not in (None, torch.float32):
            raise NoPlan(f"{where}: {what} in another dtype than float32 has no fused form")
        dim = 1 if dim is None and places.dim() == 2 else dim
        self._shares(places, dim, where, what, Head("softmax", 0, by=1.0))
        self._calls.append(Call(places, partial(_softmax_of, dim)))
        return places

    def _gumbel(
        self,
        places: Tensor,
        where: str,
        tau: float = 1,
        hard: bool = False,
        eps: float = 1e-10,
        dim: int = -1,
    ) -> Tensor:
        what, temperature = "gumbel_softmax", real(tau)
        if temperature is None or not 1e-30 < temperature < 1e30:
            raise NoPlan(f"{where}: {what} is fused with a number above 0 as tau; it is {tau!r}")
        hard = bool(hard)
        self._shares(places, dim, where, what, Head("gumbel", 0, by=temperature, hard=hard))
        self._calls.append(Call(places, partial(_gumbel_of, temperature, hard, dim)))
        return places

    def _of_heads(self, m: Heads, places: Tensor, where: str) -> None:
        if places.shape != (self._batch, m.columns) or self._calls:
            raise NoPlan(f"{where}: Heads is fused on the whole output of a layer")
        of_network = [other for other in self._network.modules() if type(other) is Heads]
        self._index, self._whole = of_network.index(m), m
        at = 0
        for kind, width, temperature, hard in m.heads:
            head = Head(kind, width, by=temperature, hard=hard)
            if kind in COLUMNS:
                head = Head("columns", width, "leaky_relu" if kind == "relu" else kind)
            self._taken.append((at, head))
            at += width
        self._calls.append(Call(places, partial(Heads.forward, m)))

    def _shares(self, places: Tensor, dim: int | None, where: str, what: str, head: Head) -> None:
        if not isinstance(dim, int) or not -places.dim() <= dim < places.dim():
            raise NoPlan(f"{where}: {what} is fused with the number of a dimension")
        groups = places.movedim(dim, -1).reshape(-1, places.shape[dim])
        rows = groups // self._width
        if not torch.equal(rows, rows[:, :1].expand_as(rows)):
            raise NoPlan(f"{where}: {what} mixes the samples of a batch")
        in_order = groups[groups[:, 0].argsort()]
        if len(groups) % self._batch:
            raise NoPlan(f"{where}: {what} is not of the same columns in every row")
        self._take(in_order.view(self._batch, -1, groups.shape[1]), where, head)

    def _take(self, groups: Tensor, where: str, head: Head) -> None:
        """Columns [batch, groups, columns of a group], in order, become heads."""
        first = groups[:1]
        shift = torch.arange(self._batch, device="cpu").view(-1, 1, 1) * self._width
        width = groups.shape[2]
        if head.kind == "columns":
            first = first.sort(2).values
            groups = groups.sort(2).values
        if not torch.equal(groups, first + shift) or not torch.equal(
            first - first[:, :, :1], torch.arange(width, device="cpu").expand_as(first)
        ):
            raise NoPlan(
                f"{where}: columns that do not lie side by side, the same in every row, have no "
                "fused form"
            )
        free = set(range(self._width)).difference(
            *(range(at, at + other.width) for at, other in self._taken)
        )
        if not free.issuperset(first.flatten().tolist()):
            raise NoPlan(f"{where}: columns with more than one activation have no fused form")
        self._taken += [(int(at), head._replace(width=width)) for at in first[0, :, 0]]

    def _heads(self) -> list[Head]:
        """All of the output, in order; columns that nothing is done with among them."""
        heads, at = [], 0
        for begin, head in [*sorted(self._taken), (self._width, None)]:
            if begin > at:
                heads.append(Head("columns", begin - at))
            if head is not None:
                heads.append(head)
                at = begin + head.width
        together: list[Head] = []
        for key, same in groupby(heads, lambda h: h._replace(width=0)):
            if key.kind == "columns":
                together.append(key._replace(width=sum(h.width for h in same)))
            else:
                together += same
        return together


def _without_data(made: Any) -> Any:
    if isinstance(made, (tuple, list)):
        return tuple(map(_without_data, made))
    return torch.empty(made.shape, device="meta")


def _each_of(kind: str, slope: float, x: Tensor) -> Tensor:
    return activations.OPERATORS[kind](x, slope)


def _softmax_of(dim: int, x: Tensor) -> Tensor:
    return _aten.softmax(x, dim)


def _gumbel_of(temperature: float, hard: bool, dim: int, x: Tensor) -> Tensor:
    """As F.gumbel_softmax, by the same draws of torch's generator."""
    noise = -torch.empty_like(x, memory_format=torch.contiguous_format).exponential_().log()
    shares = _aten.softmax((x + noise) / temperature, dim)
    return straight_through(shares, dim) if hard else shares
