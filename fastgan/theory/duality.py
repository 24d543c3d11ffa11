"""How far a run is from an equilibrium."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import random
from fastgan.config.kinds import ConfigError, integer
from fastgan.engines.probe import dtype_of
from fastgan.problem import copy_of
from fastgan.random import Stream
from fastgan.run import torch_rng
from fastgan.theory.scores import logits_of, restore, to_eval

if TYPE_CHECKING:
    from fastgan.trainer import Trainer


class DualityGap(NamedTuple):
    """What `duality_gap` found; 0 where neither network could do better by itself."""

    value: float
    """V(best D', G) - V(D, best G')."""
    here: float
    """V of both networks as they are."""
    d_side: float
    """How much V rises as D alone goes on."""
    g_side: float
    """How much V falls as G alone goes on."""
    steps: int
    """Updates of each of the two."""
    seconds: float
    """What it took."""


def duality_gap(
    trainer: Trainer, steps: int = 200, *, lr: float | None = None, seed: int = 0
) -> DualityGap:
    """How far both networks of a run are from an equilibrium, which none of the losses tells.

    A copy of D goes on against G as it is, and a copy of G against D as it is, by Adam. D goes up V
    and G down by the loss -log D, which D's certainty does not flatten. V is then taken on samples
    and latents that neither copy has seen. It is an estimate from below: more steps find more. The
    run itself is left as it is. The cost is `steps` updates of each network.

    Source: P. Grnarova et al., "A Domain Agnostic Measure for Monitoring and Evaluating GANs",
    NeurIPS 2019.

    Args:
        trainer: the run, of a loss that works on logits: "non-saturating", "minimax" or the like.
        steps: updates of each copy.
        lr: of both. Default: the learning rates of the run.
        seed: of the order of the samples, and of the latents.

    Raises:
        ValueError: the run's loss has another value, or there are less than two batches of data.
    """
    began = time.perf_counter()
    p = trainer.problem
    if p.loss is None or p.loss.scores != "logits":
        name = type(p.method).__name__ if p.loss is None else p.loss.name
        raise ConfigError(
            f"the loss is {name!r}, and the duality gap is of V(D, G), the value of losses on "
            "logits: loss='non-saturating' or 'minimax'"
        )
    steps = integer(1).take("steps", steps)
    batches = p.data.batches_per_epoch(p.batch_size, True) if p.batch_size <= len(p.data) else 1
    if batches < 2:
        raise ConfigError(
            f"batch_size={p.batch_size} of {len(p.data)} samples: one batch to learn from and one "
            "to tell are needed; make it at most half of them"
        )
    seen = max(1, batches * 2 // 3)
    rates = p.config.rates if lr is None else (lr, lr)
    pairing = _Pairing(trainer, seed)
    # Of one epoch, in which every sample comes once.
    held = [pairing.drawn(at, at) for at in range(seen, min(batches, seen + 16))]
    with torch_rng.seeded(seed, p.device):
        here = pairing.value(p.generator, p.discriminator, held)
        better_d = copy_of(p.discriminator, "discriminator", "the duality gap")
        adam = torch.optim.Adam(better_d.parameters(), lr=rates[1], betas=p.config.betas)
        other = copy_of(p.generator, "generator", "the duality gap")
        for step in range(steps):
            adam.zero_grad()
            on_real, on_fake = pairing.scores(
                other, better_d, pairing.drawn(step % seen, batches + step)
            )
            (F.softplus(-on_real).mean() + F.softplus(on_fake).mean()).backward()
            adam.step()
        better_g = copy_of(p.generator, "generator", "the duality gap")
        adam = torch.optim.Adam(better_g.parameters(), lr=rates[0], betas=p.config.betas)
        other = copy_of(p.discriminator, "discriminator", "the duality gap")
        for step in range(steps):
            adam.zero_grad()
            _, on_fake = pairing.scores(better_g, other, pairing.drawn(step % seen, batches + step))
            F.softplus(-on_fake).mean().backward()
            adam.step()
        # Either may also stay as it is, so neither side is below 0.
        d_side = max(0.0, pairing.value(p.generator, better_d, held) - here)
        g_side = max(0.0, here - pairing.value(better_g, p.discriminator, held))
    seconds = time.perf_counter() - began
    return DualityGap(d_side + g_side, here, d_side, g_side, steps, seconds)


class _Pairing:
    """Batches of a run and the scores of any two networks on them."""

    def __init__(self, trainer: Trainer, seed: int):
        self.problem, self.seed = trainer.problem, seed

    def drawn(self, update: int, step: int) -> tuple[Tensor, list, list]:
        """Real samples, what D is given beside them, and what G is fed."""
        p = self.problem
        real, condition = p.data.batch(self.seed, update, p.batch_size, True)
        fed = []
        if p.latent.shape is not None:
            size = (len(real), *p.latent.drawn)
            normals = random.normal(self.seed, Stream.ESTIMATE, step, size, device=p.device)
            fed.append(p.latent.of(normals).to(dtype_of(p.generator)))
        beside = [[condition] if taking else [] for taking in p.conditioned]
        return real.to(dtype_of(p.discriminator)), beside[0], fed + beside[1]

    def scores(
        self, g: nn.Module, d: nn.Module, batch: tuple[Tensor, list, list]
    ) -> tuple[Tensor, Tensor]:
        """D's logits of the real samples, and of those that G makes."""
        real, beside, fed = batch
        return logits_of(d, real, *beside), logits_of(d, g(*fed).to(real.dtype), *beside)

    @torch.no_grad()
    def value(self, g: nn.Module, d: nn.Module, batches: list) -> float:
        """V over some batches, in eval mode."""
        modes = [*to_eval(g), *to_eval(d)]
        try:
            scored = [self.scores(g, d, batch) for batch in batches]
        finally:
            restore(modes)
        on_real, on_fake = (torch.cat(part).double() for part in zip(*scored, strict=True))
        return float(F.logsigmoid(on_real).mean() + F.logsigmoid(-on_fake).mean())
