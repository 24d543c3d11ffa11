"""Rows that a discriminator judges together.

Z. Lin, A. Khetan, G. Fanti and S. Oh, "PacGAN: The power of two samples in generative adversarial
networks", NeurIPS 2018: a discriminator that sees several samples at once sees, too, that they are
too much alike.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from .plain import whole

__all__ = ["Pack"]


class Pack(nn.Module):
    """Rows of a batch side by side, as the first layer of a discriminator that judges packs.

    ``nn.Sequential(Pack(10), nn.Linear(10 * features, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1))``
    is all that training takes: losses are means over packs, real samples are never in one pack
    with fake ones, and a penalty is of the slope of a pack's score by all of its rows.

    Args:
        rows: how many stand together, those that follow each other in a batch. At least 1.

    Shape:
        ``[batch, ...]`` -> ``[batch / rows, rows * features]``, where a row's features are all of
        its numbers.

    Raises:
        ValueError: rows is no such number; or, when it is called, a batch is no multiple of it.
    """

    def __init__(self, rows: int):
        """See the class."""
        super().__init__()
        taken = whole(rows)
        if taken is None or taken < 1:
            raise ValueError(f"Pack: rows is {rows!r}; expected an integer of at least 1")
        self.rows = taken

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> [batch / rows, rows * features]."""
        if len(x) % self.rows:
            raise ValueError(
                f"Pack({self.rows}) was given {len(x)} rows; use a batch_size that is a multiple "
                f"of {self.rows}, and drop_last=True"
            )
        # Without -1, which is any number where there are no rows.
        return x.reshape(len(x) // self.rows, self.rows * math.prod(x.shape[1:]))

    def extra_repr(self) -> str:
        """What print(module) shows in the parentheses."""
        return str(self.rows)


def rows_of(scores: Tensor, batch: int) -> int:
    """How many rows of a batch one score is of; 1 where there are no rows."""
    return max(1, batch // max(1, len(scores)))


def first_of_each(x: Tensor, pack: int) -> Tensor:
    """What the first row of a pack has, for each of the pack's rows: [b, ...] -> the same."""
    if pack == 1:
        return x
    packs = x.unflatten(0, (-1, pack))
    return packs[:, :1].expand_as(packs).flatten(0, 1)


def slopes_of(slope: Tensor, scores: Tensor) -> Tensor:
    """Slopes of scores by the rows that each is of, [scores, ...], from those by rows, [b, ...]."""
    count = len(scores) if scores.dim() else 0
    packed = 0 < count < len(slope) and len(slope) % count == 0
    return slope.unflatten(0, (count, -1)) if packed else slope
