"""What the rows of a table consist of, as networks make them: heads, from logits to values.

E. Jang, S. Gu and B. Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017: the
class of the largest logit with Gumbel's noise is drawn, and a softmax of low temperature is nearly
that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.models import sizes

KINDS, TEMPERATURE = ("tanh", "softmax"), 0.2


class Block(NamedTuple):
    """Heads of one kind and width that stand together."""

    kind: str
    width: int
    many: int


def check(heads: Sequence[tuple[str, int]]) -> None:
    """ValueError for what is no head; each is (kind, width)."""
    for kind, width in heads:
        if kind not in KINDS:
            raise ValueError(f"heads: {kind!r} is no kind; expected one of {', '.join(KINDS)}")
        sizes.check(**{f"the width of a head {kind!r}": width})
    sizes.check(**{"number of heads": len(heads)})


def blocks_of(heads: Sequence[tuple[str, int]]) -> list[Block]:
    """The blocks of heads, in order: what is made at once."""
    return [Block(*head, len(list(same))) for head, same in groupby(heads)]


def columns(blocks: Sequence[Block], logits: Tensor, noise: Tensor) -> Tensor:
    """The values of heads, [row, batch]: a softmax over a few numbers that lie together is slow.

    Args:
        blocks: of the heads.
        logits: [batch, row].
        noise: uniform numbers [batch, choices], for each class of a softmax one.
    """
    # Away from 0 and 1, whose logarithms are infinite.
    noise = noise.float().clamp(6e-8, 1 - 6e-8).log_().neg_().log_()
    values, noise = logits.t().contiguous(), noise.t().contiguous()
    found, at = [], 0
    parts = values.split([width * many for _, width, many in blocks])
    for (kind, width, many), part in zip(blocks, parts, strict=True):
        if kind == "softmax":
            own, at = noise[at : at + width * many], at + width * many
            part = ((part - own) / TEMPERATURE).unflatten(0, (many, width)).softmax(1).flatten(0, 1)
        found.append(torch.tanh(part) if kind == "tanh" else part)
    return torch.cat(found).to(logits.dtype)
