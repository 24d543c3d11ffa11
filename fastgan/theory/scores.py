"""A discriminator's logits, and the value of the game on samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.engines.packs import as_logits
from fastgan.engines.probe import dtype_of
from fastgan.engines.scores import FinalSigmoid


class Estimate(NamedTuple):
    """A number, and by how much it may be wrong.

    Of an integral, the error is the difference between the last two grids, of which the second has
    half the spacing; of samples, the standard error of a mean.
    """

    value: float
    """The number."""
    error: float
    """By how much it may be wrong."""


def scores_of(discriminator: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The logits of any discriminator, without gradients."""
    where: dict[str, Any] = {"dtype": torch.float32}
    if isinstance(discriminator, nn.Module):
        where = place_of(discriminator)

    @torch.no_grad()
    def scores(x: Tensor) -> Tensor:
        found = logits_of(discriminator, x.to(**where)).to(x.device)
        if len(found) != len(x):
            raise ValueError(
                f"the discriminator has {len(found)} scores for {len(x)} samples, as it judges "
                "several together; this is of a score of each sample"
            )
        return found

    return scores


def place_of(network: nn.Module) -> dict[str, Any]:
    """The dtype and the device of what a network takes, as arguments of ``Tensor.to``."""
    first = next(network.parameters(), None)
    return {"dtype": dtype_of(network), "device": None if first is None else first.device}


def logits_of(discriminator: Callable[..., Tensor], x: Tensor, *condition: object) -> Tensor:
    """D's scores [n] as logits: those that its sigmoid was given, if it ends in one."""
    with FinalSigmoid() as trace:
        out = discriminator(x, *condition)
    found = trace.input_of(out)
    return as_logits(out if found is None else found, len(x))


def value_of_samples(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
) -> Estimate:
    """V of a discriminator by the means over samples, in eval mode."""
    scores = scores_of(discriminator)
    modes = to_eval(discriminator)
    try:
        parts = [
            F.logsigmoid(sign * torch.cat([scores(part) for part in x.split(4096)])).double()
            for sign, x in ((1, real), (-1, fake))
        ]
    finally:
        restore(modes)
    error = math.sqrt(sum(float(part.var()) / len(part) for part in parts))
    return Estimate(sum(float(part.mean()) for part in parts), error)


def to_eval(network: object) -> list[tuple[nn.Module, bool]]:
    """Put a network, if it is one, into eval mode; its modes before that, for `restore`."""
    modes = [(m, m.training) for m in network.modules()] if isinstance(network, nn.Module) else []
    for m, _ in modes:
        m.training = False
    return modes


def restore(modes: list[tuple[nn.Module, bool]]) -> None:
    """Put the modes back."""
    for m, training in modes:
        m.training = training
