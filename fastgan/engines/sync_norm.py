"""What is computed over the whole batch, of which every rank has its rows: BatchNorm, and sums.

torch's SyncBatchNorm takes GPUs only, and one share of rows for every rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgan.distributed import World

logger = logging.getLogger("fastgan")

_told: set[type] = set()
_PLAIN = nn.modules.batchnorm._BatchNorm.forward


class Rows:
    """How many rows the batch of the pass at hand has."""

    def __init__(self, world: World):
        """Of the ranks of a world."""
        self.world, self.size = world, 1

    @property
    def share(self) -> float:
        """This rank's part of them."""
        return self.world.share(self.size)


class _Sum(torch.autograd.Function):
    """The sum over the ranks; what flows back is the sum of what flows back to each."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Rows, share: float) -> Tensor:
        ctx.rows, ctx.share = rows, share
        return rows.world.sum_(x.clone())

    @staticmethod
    def backward(ctx, grad: Tensor):
        # The loss of no rows is not a number, nor is what flows back from it.
        own = grad if ctx.share else torch.zeros_like(grad)
        return _Sum.apply(own, ctx.rows, ctx.share), None, None


def whole(x: Tensor, part: World, rows: Rows) -> Tensor:
    """The rows of all ranks in a pass; what flows back is the sum of what flows back to each rank.

    Args:
        x: this rank's, [b, ...].
        part: whose rows they are: this rank's, or those of a part of them.
        rows: of the whole batch.
    """
    world, parts = rows.world, part.size // rows.world.size
    each = [
        len(World(rank * parts + part.rank % parts, part.size).rows(rows.size))
        for rank in range(world.size)
    ]
    before, after = sum(each[: world.rank]), sum(each[world.rank + 1 :])
    around = (x.new_zeros((n, *x.shape[1:])) for n in (before, after))
    placed = torch.cat([next(around), x, next(around)])
    return _Sum.apply(placed, rows, float(each[world.rank]))


def layers(network: nn.Module) -> list[nn.Module]:
    """The layers of a network that this is for: those that normalise as torch's do.

    nn.SyncBatchNorm is one of them. A class with a forward of its own is left alone, and told: its
    ranks each normalise their own rows.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    synced = (_PLAIN, nn.SyncBatchNorm.forward)
    for kind in {type(m) for m in norms if type(m).forward not in synced} - _told:
        _told.add(kind)
        logger.warning(
            "%s has a forward of its own, so each rank normalises its own rows by it; what several "
            "ranks learn differs from what one does. Use "
            "nn.BatchNorm, or a layer around one",
            kind.__name__,
        )
    return [m for m in norms if type(m).forward in synced]


def forward_of(layer: nn.Module, rows: Rows) -> Callable[[Tensor], Tensor]:
    """What stands for a layer's forward."""

    def forward(x: Tensor) -> Tensor:
        if not layer.training and layer.running_mean is not None:
            return _PLAIN(layer, x)
        layer._check_input_dim(x)
        wide = x if x.element_size() >= 4 else x.float()
        around = [0, *range(2, x.dim())]
        view = (1, -1, *[1] * (x.dim() - 2))

        def total(part: Tensor) -> Tensor:
            return _Sum.apply(part, rows, rows.share)

        count = x.numel() // max(1, x.size(1)) if len(x) else 0
        count = rows.world.sum_(torch.tensor(float(count), device=x.device))
        mean = total(wide.sum(around)) / count
        centred = wide - mean.view(view)
        var = total(centred.square().sum(around)) / count
        if layer.training and layer.track_running_stats:
            with torch.no_grad():
                _remember(layer, mean, var * (count / (count - 1)))
        out = centred * torch.rsqrt(var + layer.eps).view(view)
        if layer.affine:
            out = out * layer.weight.view(view) + layer.bias.view(view)
        return out.to(x.dtype)

    return forward


def _remember(layer: nn.Module, mean: Tensor, var: Tensor) -> None:
    layer.num_batches_tracked.add_(1)
    momentum = layer.momentum
    if momentum is None:
        momentum = 1.0 / float(layer.num_batches_tracked)
    for running, value in ((layer.running_mean, mean), (layer.running_var, var)):
        running.lerp_(value.to(running.dtype), momentum)
