"""Heads: the columns of a network's output, each with an activation of its own.

E. Jang, S. Gu and B. Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017; C. J.
Maddison, A. Mnih and Y. W. Teh, "The Concrete Distribution", ICLR 2017: the class of the largest
logit with Gumbel's noise is drawn, and a softmax of low temperature is nearly that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgan.ops.reference_table import gumbel
from fastgan.plain import real

COLUMNS = ("none", "tanh", "sigmoid", "relu")
"""Kinds of heads whose columns do not know of each other."""
KINDS = (*COLUMNS, "softmax", "gumbel")


class Head(NamedTuple):
    """Columns that stand together."""

    kind: str
    """One of `KINDS`."""
    width: int
    temperature: float = 1.0
    """Of "softmax" and "gumbel": logits are divided by it."""
    hard: bool = False
    """Of "gumbel": a one-hot row, with the gradient of the soft one (straight-through)."""


class Heads(nn.Module):
    """Cuts rows into heads and activates each: the end of a generator of tables, for example.

    ``Heads([("tanh", 1), ("softmax", 4), ("gumbel", 5, 0.2, True)])``

    In a step the noise of "gumbel" is a function of seed and step, the same on every engine, with
    any number of ranks and after a resume, as an nn.Dropout's masks are; elsewhere, and in modules
    that torch.compile has compiled, it is drawn from torch's generator. It is drawn in eval mode,
    too.

    Args:
        heads: in the order of the columns, (kind, width), (kind, width, temperature) or (kind,
            width, temperature, hard) each. Kinds: "none", "tanh", "sigmoid" and "relu" of each
            column; "softmax" over the head's columns; "gumbel", a softmax of logits with Gumbel's
            noise, by default of temperature 1. `hard` makes its largest share 1 and the others 0,
            with the gradient of the shares.

    Shape:
        ``[batch, columns]``, the sum of the widths -> the same, in at least float32.

    Raises:
        ValueError: a head is none.
    """

    def __init__(self, heads: Iterable[tuple]):
        """See the class."""
        super().__init__()
        self.heads = tuple(_read(i, head) for i, head in enumerate(heads))
        if not self.heads:
            raise ValueError("heads is empty; expected (kind, width) for each")
        self.columns = sum(head.width for head in self.heads)
        self.choices = sum(head.width for head in self.heads if head.kind == "gumbel")

    def forward(self, x: Tensor, normals: Tensor | None = None) -> Tensor:
        """The values of logits.

        Args:
            x: [batch, columns].
            normals: standard normals [batch, choices], whose places among all are those of
                Gumbel's noise: one for each column of the heads "gumbel", in order. Default: of
                torch's generator.
        """
        if x.dim() != 2 or x.shape[1] != self.columns:
            raise ValueError(
                f"Heads has {self.columns} columns and is given {list(x.shape)}; expected "
                f"[batch, {self.columns}]"
            )
        x = x if x.dtype == torch.float64 else x.float()
        if self.choices and normals is None:
            normals = torch.randn(len(x), self.choices, device=x.device)
        noise = gumbel(normals.to(x.dtype)) if self.choices else x[:, :0]
        found, at, choice = [], 0, 0
        for head, same in groupby(self.heads):
            many = sum(1 for _ in same)
            part, at = x.narrow(1, at, many * head.width), at + many * head.width
            if head.kind == "gumbel":
                part = part + noise.narrow(1, choice, many * head.width)
                choice += many * head.width
            found.append(_activated(head, part))
        return torch.cat(found, 1)

    def extra_repr(self) -> str:
        """What print(module) shows in the parentheses."""
        shown = ", ".join(str(tuple(head)) for head in self.heads[:8])
        return shown + (f", ... {len(self.heads)} heads" if len(self.heads) > 8 else "")


def _activated(head: Head, x: Tensor) -> Tensor:
    """Of heads that are equal and stand together; with noise already."""
    if head.kind in COLUMNS:
        return x if head.kind == "none" else getattr(torch, head.kind)(x)
    shares = (x.unflatten(1, (-1, head.width)) / head.temperature).softmax(2)
    return (straight_through(shares, 2) if head.hard else shares).flatten(1)


def straight_through(shares: Tensor, dim: int) -> Tensor:
    """1 in the place of the largest share along a dimension, else 0, with the shares' gradient."""
    best = shares.max(dim, keepdim=True).indices
    return torch.zeros_like(shares).scatter_(dim, best, 1.0) - shares.detach() + shares


def _read(i: int, given: Any) -> Head:
    try:
        head = Head(*given)
    except TypeError:
        raise ValueError(
            f"heads[{i}] is {given!r}; expected (kind, width), or (kind, width, temperature, hard)"
        ) from None
    kind, width, temperature, hard = head
    if kind not in KINDS:
        raise ValueError(f"heads[{i}] is of kind {kind!r}; expected one of {', '.join(KINDS)}")
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"heads[{i}] has width {width!r}; expected a whole number from 1 on")
    number = real(temperature)
    if number is None or not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"heads[{i}] has temperature {temperature!r}; expected a finite number above 0"
        )
    if kind in COLUMNS and number != 1:
        raise ValueError(f"heads[{i}], {kind!r}, takes no temperature; softmax and gumbel do")
    if hard not in (True, False) or (hard and kind != "gumbel"):
        raise ValueError(f"heads[{i}] has hard={hard!r}; expected True or False, True of 'gumbel'")
    return Head(kind, width, number, bool(hard))
