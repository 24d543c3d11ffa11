"""One score a sample or one of several samples together: how many, and of what batches."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgan.data.batch import map_condition
from fastgan.distributed import World
from fastgan.engines import probe
from fastgan.packs import Pack, rows_of

if TYPE_CHECKING:
    from fastgan.problem import Problem

logger = logging.getLogger("fastgan")


def as_logits(score: object, batch: int) -> Tensor:
    """D's output as [batch], or [batch / n] of n samples together, in float32 or better.

    Raises:
        ValueError: it is neither one score per sample nor one per so many of them.
    """
    if not isinstance(score, Tensor) or not (score.numel() == batch or _are_of_packs(score, batch)):
        raise not_scores(score, batch)
    score = score.reshape(score.numel())
    return score if score.dtype == torch.float64 else score.float()


def _are_of_packs(score: Tensor, batch: int) -> bool:
    """Whether a tensor may have one score for each so many of a batch."""
    count = score.numel()
    return 0 < count < batch and batch % count == 0 and score.shape in ((count,), (count, 1))


def not_scores(score: object, batch: int) -> ValueError:
    """What to say of a D whose output is no such scores."""
    got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
    return ValueError(
        f"discriminator returned {got} for a batch of {batch}; expected one score per image, "
        "a tensor of shape [batch] or [batch, 1], or one for each n images that it judges "
        "together, [batch / n] or [batch / n, 1]"
    )


def pack_of(problem: Problem, d: nn.Module, samples: Tensor, scores: Tensor) -> int:
    """How many samples a discriminator judges together, which a batch has whole packs of.

    Args:
        problem: whose discriminator.
        d: the one to try.
        samples: a batch.
        scores: its scores of them.

    Raises:
        ValueError: its scores are of the whole batch, whatever that is; or a part of a batch, of a
            rank or of `accumulate`, is no whole packs.
    """
    p, size = problem, len(samples)
    pack = rows_of(scores, size)
    if pack == 1:
        return 1

    def twice(part: Tensor) -> Tensor:
        return torch.cat([part, part])

    # A score of the whole batch, such as a mean, is none of its packs.
    try:
        count = as_logits(d(*map_condition(twice, probe.given_d(p, d, samples))), 2 * size).numel()
    except Exception:
        count = None
    if count != 2 * len(scores):
        raise not_scores(scores, size)
    many = p.config.accumulate
    for whole in p.data.batch_sizes(p.batch_size, p.drop_last):
        ranks = [World(rank, p.world.size) for rank in range(p.world.size)]
        parts = [part for rank in ranks for part in rank.parts(whole, many)]
        sizes = sorted({len(part.rows(whole)) for part in parts})
        if len(parts) > 1 and any(rows % pack for rows in sizes):
            raise ValueError(
                f"discriminator judges {pack} samples together, and a batch of {whole} comes in "
                f"parts of {' and '.join(map(str, sizes))} samples (ranks: {p.world.size}, "
                f"accumulate={many}), which are no whole packs; use a batch_size that is a "
                f"multiple of {pack * len(parts)}, and drop_last=True"
            )
    # A reshape by the wrong number of features is one as well.
    if not any(isinstance(m, Pack) for m in d.modules()):
        logger.warning(
            "the discriminator has one score for %d samples together; if each is to have its own, "
            "look for a reshape such as view(-1, features) in it; fastgan.nn.Pack(%d) in its place "
            "says that packs are meant",
            pack,
            pack,
        )
    return pack
