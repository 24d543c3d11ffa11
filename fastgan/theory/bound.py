"""A lower bound on the divergence of two sets of samples."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import random
from fastgan.config.kinds import integer
from fastgan.random import Stream
from fastgan.run import torch_rng
from fastgan.theory.scores import logits_of, value_of_samples


class LowerBound(NamedTuple):
    """What `jsd_lower_bound` found."""

    value: float
    """The Jensen-Shannon divergence is at least this, in nats, give or take the error."""
    error: float
    """The standard error, as the held-out halves are finite."""
    steps: int
    """Updates of the critic."""
    seconds: float
    """What it took."""


def critic(shape: tuple[int, ...], width: int = 128) -> nn.Module:
    """A fresh discriminator of samples of any shape, with three hidden layers; it gives logits."""
    sizes = (math.prod(shape), width, width, width)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def jsd_lower_bound(
    real: Tensor,
    fake: Tensor,
    *,
    network: nn.Module | None = None,
    steps: int = 1000,
    batch_size: int = 256,
    lr: float = 2e-3,
    seed: int = 0,
) -> LowerBound:
    """A lower bound on the Jensen-Shannon divergence of two sets of samples, by a fresh critic.

    Whatever D is, (V(D) + log 4) / 2 is at most the divergence. The critic learns from the first
    halves of both sets, of which a fifth decides when it was best, and V is taken on the second
    halves, which it has never seen: one that learns by heart gives a low bound and not a false one.
    It may lie below 0 by its error. A critic that is too small, or too few samples or steps, make
    the bound loose.

    Args:
        real: samples [n, ...], in no particular order.
        fake: samples [m, ...] of the same shape.
        network: standardised samples to logits, trained in place. Default: `critic`.
        steps: updates of the critic.
        batch_size: of each of the two in an update.
        lr: Adam's learning rate, which falls to 0 by a cosine.
        seed: of the critic's weights and of the batches.

    Raises:
        ValueError: the shapes differ, or there are fewer than 20 samples of one.
    """
    if real.shape[1:] != fake.shape[1:] or real.dim() < 2:
        raise ValueError(
            f"real is {list(real.shape)} and fake {list(fake.shape)}; expected [n, ...] and "
            "[m, ...], samples of one shape"
        )
    if min(len(real), len(fake)) < 20:
        raise ValueError(f"there are {len(real)} real and {len(fake)} fake; expected 20 of each")
    began = time.perf_counter()
    steps = integer(1).take("steps", steps)
    device = real.device
    sets = [x.detach().to(device, torch.float32) for x in (real, fake)]
    halves = [x.tensor_split(2) for x in sets]
    fitted = [half[0][: len(half[0]) * 4 // 5] for half in halves]
    checked = [half[0][len(half[0]) * 4 // 5 :] for half in halves]
    shift = torch.cat(fitted).mean(0)
    scale = torch.cat(fitted).std(0).clamp_min(1e-3)
    if network is None:
        with torch_rng.seeded(seed, device):
            network = critic(tuple(real.shape[1:]))
    network.to(device)

    def scores(x: Tensor) -> Tensor:
        return logits_of(network, (x - shift) / scale)

    def quality() -> float:
        return value_of_samples(_Wrapped(network, scores), *checked).value

    adam = torch.optim.Adam(network.parameters(), lr=lr, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    best, kept = -math.inf, network.state_dict()
    for step in range(steps):
        batches = []
        for i, x in enumerate(fitted):
            drawn = random.words(seed, Stream.ESTIMATE, 2 * step + i, batch_size, device=device)
            batches.append(x[drawn % len(x)])
        adam.zero_grad()
        loss = F.softplus(-scores(batches[0])).mean() + F.softplus(scores(batches[1])).mean()
        loss.backward()
        adam.step()
        falling.step()
        if (step + 1) % max(1, steps // 20) == 0 or step + 1 == steps:
            found = quality()
            if found > best:
                best, kept = found, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    held = value_of_samples(_Wrapped(network, scores), *(half[1] for half in halves))
    seconds = time.perf_counter() - began
    return LowerBound((held.value + math.log(4)) / 2, held.error / 2, steps, seconds)


class _Wrapped(nn.Module):
    """A function of a network as a network, so that its modes are found."""

    def __init__(self, network: nn.Module, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
