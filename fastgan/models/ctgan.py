"""Networks for the rows of a table whose columns are encoded as heads.

L. Xu, M. Skoularidou, A. Cuesta-Infante and K. Veeramachaneni, "Modeling Tabular Data using
Conditional GAN", NeurIPS 2019: two residual layers of 256 units with BatchNorm in G, whose inputs
stay beside their outputs; in D two layers of 256 with dropout that see several rows at once (Z.
Lin, A. Khetan, G. Fanti and S. Oh, "PacGAN", NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastgan.models import heads as heads_room
from fastgan.models import sizes
from fastgan.packs import Pack

PACK = 10


class CTGANGenerator(nn.Module):
    """Latent vectors, and conditions if there are any, to rows.

    Args:
        heads: what a row consists of, in order: (kind, width) each. "tanh": numbers in [-1, 1];
            "softmax": one of `width` classes, nearly one-hot by Gumbel's noise of temperature 0.2,
            drawn from torch's generator where it is not given.
            Heads of one kind and width that stand together are made together.
        latent_dim: length of a latent vector. Default 128.
        width: units of a layer. Default 256.
        condition_dim: length of a condition, or the number of classes where it is one. Default 0:
            there is none.

    Shape:
        ``[batch, latent_dim]``, ``[batch, condition_dim]`` or classes ``[batch]`` -> ``[batch,
        row]``, the sum of the heads' widths.
    """

    def __init__(
        self,
        heads: Iterable[tuple[str, int]],
        latent_dim: int = 128,
        width: int = 256,
        condition_dim: int = 0,
    ):
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.heads = tuple((kind, size) for kind, size in heads)
        heads_room.check(self.heads)
        sizes.check(latent_dim=latent_dim, width=width)
        self.latent_dim, self.width, self.condition_dim = latent_dim, width, condition_dim
        inputs = latent_dim + condition_dim
        self.blocks = heads_room.blocks_of(self.heads)
        self.choices = sum(size for kind, size in self.heads if kind == "softmax")
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(n, width), nn.BatchNorm1d(width), nn.ReLU())
            for n in (inputs, inputs + width)
        )
        self.last = nn.Linear(inputs + 2 * width, sum(size for _, size in self.heads))

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        return {
            "heads": [list(head) for head in self.heads],
            "latent_dim": self.latent_dim,
            "width": self.width,
            "condition_dim": self.condition_dim,
        }

    def logits(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """What the heads are made of, for losses that compare a class with what was asked for."""
        x = _beside(z, condition, self)
        for layer in self.layers:
            x = torch.cat([layer(x), x], 1)
        return self.last(x)

    def activated(self, logits: Tensor, noise: Tensor | None = None) -> Tensor:
        """Rows of such logits, [batch, row].

        Args:
            logits: [batch, row].
            noise: uniform numbers [batch, choices], by which the classes are chosen. Default: of
                torch's generator.
        """
        if noise is None:
            noise = torch.rand(logits.shape[0], self.choices, device=logits.device)
        return heads_room.columns(self.blocks, logits, noise).t().contiguous()

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Rows for a batch of latent vectors and conditions."""
        return self.activated(self.logits(z, condition))


class CTGANDiscriminator(nn.Module):
    """Rows, and conditions if there are any, to raw scores.

    Args:
        row: numbers in a row.
        width: units of a layer. Default 256.
        condition_dim: as of the generator.
        pack: rows that have one score together; a batch is a multiple of it. Default 1.

    Shape:
        ``[batch, row]``, conditions -> ``[batch / pack, 1]``.
    """

    def __init__(self, row: int, width: int = 256, condition_dim: int = 0, pack: int = 1):
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        sizes.check(row=row, width=width, pack=pack)
        self.row, self.width, self.condition_dim, self.pack = row, width, condition_dim, pack
        self.side_by_side = Pack(pack)
        layers: list[nn.Module] = []
        for n in (pack * (row + condition_dim), width):
            layers += [nn.Linear(n, width), nn.LeakyReLU(0.2), nn.Dropout(0.5)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def arguments(self) -> dict:
        """What its like is made of, as plain values."""
        return {n: getattr(self, n) for n in ("row", "width", "condition_dim", "pack")}

    def masks(self, packs: int) -> tuple[Tensor, ...]:
        """What the dropouts of a pass multiply by, [packs, width] each."""
        ones = self.layers[-1].weight.new_ones(packs, self.width)
        return tuple(m(ones) for m in self.layers if isinstance(m, nn.Dropout))

    def forward(self, rows: Tensor, condition: Tensor | None = None) -> Tensor:
        """Raw scores of packs of rows."""
        return self.layers(self.side_by_side(_beside(rows, condition, self)))


def _beside(x: Tensor, condition: Tensor | None, network: nn.Module) -> Tensor:
    if not network.condition_dim:
        return x
    if condition is None:
        raise ValueError(f"{type(network).__name__} was made for conditions and was given none")
    if condition.dim() == 1:
        # Without F.one_hot, which waits for the device.
        classes = torch.arange(network.condition_dim, device=condition.device)
        condition = condition[:, None] == classes
    return torch.cat([x, condition.to(x.dtype)], 1)
