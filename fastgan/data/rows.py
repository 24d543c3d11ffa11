"""Rows of a table as a conditional GAN is trained on them: drawn by their categories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgan import random
from fastgan.random import Stream

from .batch import Batch
from .data import Data
from .errors import whole
from .order import own_rows
from .table import Table


class Rows(Data):
    """A table whose batches are drawn, with a category of each row as its condition.

    Training by sampling (L. Xu et al., "Modeling Tabular Data using Conditional GAN", NeurIPS
    2019): a discrete column is drawn, one of its categories by the logarithm of how frequent it is,
    and a row that has it; so rare categories are seen as well. The condition is one-hot over the
    categories of all discrete columns; without such columns there is none. Rows are drawn with
    replacement, so a batch may be larger than the table.

    Held are the rows as `Table.packed` has them; a batch has their choices one-hot.

    Attributes:
        groups: of each category where the group of its column begins in a row and how wide it is,
            int64 [categories] each; None without discrete columns.
    """

    groups: tuple[Tensor, Tensor] | None = None

    def __init__(self, name: str, origin: str, **held: Any):
        """As Data; table and samples, packed, are needed."""
        super().__init__(name, origin, **held)
        layout = self.table.layout
        self.shape, widths = (layout.width,), layout.categories
        if not widths:
            return
        self._no_condition = torch.empty(0, sum(widths), device="cpu")
        wide = torch.tensor(widths, device=self.device)
        first = wide.cumsum(0) - wide + layout.width - layout.conditions
        self.groups = first.repeat_interleave(wide), wide.repeat_interleave(wide)
        codes = self.samples[:, -len(widths) :].T.to(torch.int32).contiguous()
        counts = [c.bincount(minlength=w) for c, w in zip(codes, widths, strict=True)]
        counts = torch.cat(counts).double().cpu()
        shares = [(part + 1).log() for part in counts.split(widths)]
        bounds = [i + (share / share.sum()).cumsum(0) for i, share in enumerate(shares)]
        # The last of a column is its own end, whatever the sum was rounded to.
        for i, bound in enumerate(bounds):
            bound[int(shares[i].nonzero()[-1]) :] = i + 1
        self._bounds = torch.cat(bounds).to(self.samples.device)
        # The rows of each category, one after another, in the order of the categories.
        self._of_category = codes.argsort(dim=1, stable=True).to(torch.int32).flatten()
        self._counts = counts.long().to(self.samples.device)
        self._first = self._counts.cumsum(0) - self._counts

    @property
    def resident(self) -> bool:
        """False: batches are not slices of an order of the samples."""
        return False

    def batches_per_epoch(self, batch_size: int, drop_last: bool = False) -> int:
        """Batches with as many rows as the table has, but at least one."""
        return max(len(self) // whole(batch_size, "batch_size", 1), 1)

    def batch_sizes(self, batch_size: int, drop_last: bool = False) -> tuple[int, int]:
        """All are whole."""
        return batch_size, batch_size

    def batch(
        self,
        seed: int,
        update: int,
        batch_size: int,
        drop_last: bool = False,
        rows: Callable[[int], range] | None = None,
    ) -> Batch:
        """The rows of a number of an update, and the conditions they were drawn by."""
        device = self.samples.device
        places = random.uniform(seed, Stream.ROWS, update, (3, batch_size), device=device).double()
        places = own_rows(places.T, rows).T
        if self._no_condition is None:
            return self._batch((places[2] * len(self)).long(), None)
        columns = len(self.table.layout.categories)
        wanted = (places[0] * columns).floor() + places[1]
        category = torch.searchsorted(self._bounds, wanted, right=True)
        nth = (places[2] * self._counts[category]).long()
        found = self._of_category[self._first[category] + nth]
        return self._batch(found, self._condition(category))

    def first(self, n: int) -> Batch:
        """The first rows, n or as many as there are, and conditions as `first_conditions`."""
        n = min(n, len(self))
        return self._batch(torch.arange(n, device=self.samples.device), self.first_conditions(n))

    def rows_at(self, rows: Tensor) -> Tensor:
        """Some rows, float32 [n, width]."""
        return self.table.unpacked(super().rows_at(rows))

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as held."""
        return self.samples.nbytes

    def _batch(self, rows: Tensor, condition: Tensor | None) -> Batch:
        condition = None if condition is None else condition.to(self.device)
        packed = self.samples.index_select(0, rows).to(self.device)
        return Batch(self.table.unpacked(packed), condition)

    def _condition(self, category: Tensor) -> Tensor:
        condition = torch.zeros(len(category), len(self._bounds), device=category.device)
        return condition.scatter_(1, category[:, None], 1.0)

    def first_conditions(self, n: int) -> Any:
        """n conditions with categories as frequent as in the table."""
        return frequent(self.table, n, 0).to(self.device) if self.conditional else None


def frequent(table: Table, n: int, seed: int) -> Tensor:
    """n conditions: a discrete column each, and one of its categories as frequent as it is.

    Args:
        table: whose columns.
        n: how many.
        seed: of the draw.
    """
    columns = table.discrete
    counts = [torch.tensor(column.counts, dtype=torch.float64, device="cpu") for column in columns]
    bounds = torch.cat([i + (part / part.sum()).cumsum(0) for i, part in enumerate(counts)])
    places = random.uniform(seed, Stream.ROWS, (1 << 64) - 1, (2, n)).double()
    wanted = (places[0] * len(columns)).floor() + places[1]
    category = torch.searchsorted(bounds, wanted, right=True).clamp_max(len(bounds) - 1)
    return torch.zeros(n, len(bounds), device="cpu").scatter_(1, category[:, None], 1.0)
