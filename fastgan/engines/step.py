"""The alternating step in PyTorch operations, which the engines `eager` and `graph` share.

They differ in where batches and random numbers come from (`Draws`) and in how an optimiser moves
its weights (`Update`): `eager` works with numbers of the host, `graph` with numbers on the device
that a replayed recording finds changed. The rest of a step is written here, once, and does no more
than the step's work: losses from scores, no gradient from D's update into G, none from G's update
into D's weights, and no waiting for the device.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from fastgan.engines.average import Average
from fastgan.engines.draws import PENALTY_STREAM, Counter, Draws
from fastgan.engines.dropout import Masks, forward_replaced
from fastgan.engines.probe import has_hooks
from fastgan.engines.scores import (
    FinalSigmoid,
    as_logits,
    batch_sizes,
    dtype_of,
    final_sigmoid,
    require_scalar,
    trained,
)
from fastgan.engines.snapshot import Snapshot
from fastgan.engines.updates import Update
from fastgan.random import Stream

if TYPE_CHECKING:
    from fastgan.problem import Problem

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Pass(IntEnum):
    """The passes of a step, by the number that tells their dropout masks apart."""

    D_ON_REAL = 0
    D_ON_FAKE = 1
    D_FOR_G = 2
    G_FOR_D = 3
    G_FOR_G = 4
    D_BETWEEN = 5
    D_REAL_FOR_G = 6


class DUpdate(NamedTuple):
    """What the host must know of an update of D before it is done."""

    size: int
    """Samples in its batch."""
    due: tuple[bool, ...]
    """Which of the penalties it has."""


StepShape = tuple[DUpdate, ...]
"""A step's updates of D; steps of one shape do the same operations on tensors of the same sizes."""


def shape_of(problem: Problem, step: int) -> StepShape:
    """The shape of a step."""
    p = problem
    per_epoch = p.batches_per_epoch
    full, last = batch_sizes(p)
    return tuple(
        DUpdate(
            last if (u + 1) % per_epoch == 0 else full,
            tuple(penalty.due(u) for penalty in p.penalties),
        )
        for u in range(step * p.d_steps, (step + 1) * p.d_steps)
    )


class Step:
    """One step of a problem, for whatever draws and updates it is given.

    Plain `nn.Dropout` modules draw counter-based masks (see `Masks`); other random layers use
    torch's generator. A sigmoid at D's end is left out when the loss works on logits.

    Attributes:
        whole: whether no step is half done.
    """

    def __init__(
        self,
        problem: Problem,
        draws: Draws,
        update_d: Update,
        update_g: Update,
        *,
        cached: bool = True,
    ):
        """Look at how D ends. `cached` is autocast's cache of weights, for one update at a time."""
        self.problem = problem
        self.draws = draws
        self.updates = update_d, update_g
        self.cached = cached
        self.whole = True
        self._masks: list[Masks | None] = [None, None]
        self._look_at_end()

    def describe(self) -> list[str]:
        """What there is to say of the way, in a few words each."""
        parts = [self.problem.precision]
        if isinstance(self.sigmoid, nn.Module):
            parts.append("D's final Sigmoid absorbed into the loss")
        elif self.sigmoid:
            parts.append("D's final sigmoid call absorbed into the loss")
        return parts

    @contextmanager
    def ready(self):
        """The networks are as the step wants them meanwhile."""
        p = self.problem
        if self._seen is not None and self._seen.difference():
            self._look_at_end()
        trained(p)
        # Walking the module trees takes as long as a small layer: once a run, not once a use.
        self._dtypes = dtype_of(p.generator), dtype_of(p.discriminator)
        self._average = None if p.ema is None else Average(p.generator, p.ema, p.ema_decay)
        # What D shares with G is trained by G's optimiser, too, as in a plain loop.
        shared = {w for group in p.optimizer_g.param_groups for w in group["params"]}
        self._frozen = [
            w for w in p.discriminator.parameters() if w.requires_grad and w not in shared
        ]
        without = [
            w for m in (p.generator, p.discriminator) for w in m.parameters() if w.grad is None
        ]
        with ExitStack() as stack:
            for i, network in enumerate((p.discriminator, p.generator)):
                if self._masks[i] is None or not self._masks[i].fits(network):
                    self._masks[i] = Masks(self.draws, network)
                stack.enter_context(self._masks[i].in_place())
            if isinstance(self.sigmoid, nn.Module):
                stack.enter_context(forward_replaced(self.sigmoid, _unchanged))
            self._hooked = has_hooks(p.discriminator)
            yield
        for optimizer in (p.optimizer_d, p.optimizer_g):
            optimizer.zero_grad(set_to_none=True)
        for w in without:
            w.grad = None

    def __call__(self, shape: StepShape) -> tuple[Tensor, ...]:
        """Do it, inside `ready`.

        Returns:
            the step's statistics, scalars on the device, in the order of `STATISTICS`: D's loss of
            the last of its updates and without penalties, G's, and the means of the scores that the
            former is made of.
        """
        for k, (size, due) in enumerate(shape):
            d_loss, real, on_real, on_fake = self._update_d(Counter(len(shape), k), size, due)
        g_loss = self._update_g(Counter(1, 0), shape[-1].size, real)
        self.whole = True
        return d_loss, g_loss, on_real.mean(), on_fake.mean()

    def _update_d(
        self, counter: Counter, size: int, due: tuple[bool, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        p = self.problem
        penalties = [penalty for penalty, now in zip(p.penalties, due, strict=True) if now]
        places = {penalty.at for penalty in penalties}
        real = self.draws.batch(counter, size).to(self._dtypes[1])
        self.whole = False
        if "real" in places:
            real = real.detach().requires_grad_()
        with torch.no_grad(), self._autocast():
            fake = self._generate(Stream.LATENT_D, counter, size, Pass.G_FOR_D)
        if "fake" in places:
            fake = fake.to(self._dtypes[1]).detach().requires_grad_()
        with self._autocast():
            on_real = self._head(real, counter, size, Pass.D_ON_REAL)
            on_fake = self._head(fake, counter, size, Pass.D_ON_FAKE)
        if not (on_real.requires_grad or on_fake.requires_grad):
            raise _cut("discriminator's scores have no gradient", "discriminator")
        points = {"real": (on_real, real), "fake": (on_fake, fake)}
        loss = total = require_scalar(p.loss.d_loss(on_real, on_fake), p.loss, "d_loss")
        if "between" in places:
            eps = torch.special.ndtr(self.draws.normal(PENALTY_STREAM, counter, (size,)))
            eps = eps.to(real.dtype).view(-1, *[1] * (real.dim() - 1))
            between = torch.lerp(fake.detach().to(real.dtype), real.detach(), eps).requires_grad_()
            with self._autocast():
                points["between"] = self._head(between, counter, size, Pass.D_BETWEEN), between
        with self._backward():
            for penalty in penalties:
                total = total + self._penalty(penalty, *points[penalty.at])
            self.updates[0](total, size, narrow=bool(penalties))
        return loss.detach(), real.detach(), on_real.detach(), on_fake.detach()

    def _penalty(self, penalty, scores: Tensor, images: Tensor) -> Tensor:
        p = self.problem
        scale = None
        if p.scalers is not None:
            scale = p.scalers[0].scale(torch.ones((), dtype=torch.float32, device=p.device))
        return penalty.value(scores, images, scale)

    def _update_g(self, counter: Counter, size: int, real: Tensor) -> Tensor:
        p = self.problem
        with _without_gradients(self._frozen):
            with self._autocast():
                fake = self._generate(Stream.LATENT_G, counter, size, Pass.G_FOR_G)
                scores = [self._head(fake, counter, size, Pass.D_FOR_G)]
            if p.loss.needs_real:
                with torch.no_grad(), self._autocast():
                    scores.append(self._head(real, counter, size, Pass.D_REAL_FOR_G))
            if not fake.requires_grad:
                raise _cut("generator's samples have no gradient", "generator")
            if not scores[0].requires_grad:
                what = "discriminator's scores have no gradient with respect to its input"
                raise _cut(what, "generator")
            loss = require_scalar(p.loss.g_loss(*scores), p.loss, "g_loss")
            with self._backward():
                self.updates[1](loss, size)
        if self._average is not None:
            self._average.update()
        return loss.detach()

    def _generate(self, stream: Stream, counter: Counter, size: int, use: Pass) -> Tensor:
        p = self.problem
        latents = self.draws.normal(stream, counter, (size, *p.latent_shape))
        self._masks[1].begin(use, counter, size, grad=torch.is_grad_enabled())
        return p.generator(latents.to(self._dtypes[0]))

    def _head(self, images: Tensor, counter: Counter, size: int, use: Pass) -> Tensor:
        """What the loss is computed from: D's scores, [b], without a sigmoid that it absorbs."""
        d = self.problem.discriminator
        self._masks[0].begin(use, counter, size, grad=torch.is_grad_enabled())
        images = images.to(self._dtypes[1])
        if self.sigmoid != "function" and not self._hooked:
            return as_logits(d(images), len(images))
        with FinalSigmoid() as trace:
            score = d(images)
        logits = trace.input_of(score)
        if logits is not None and score.requires_grad and not logits.requires_grad:
            raise ValueError(
                "the discriminator's final sigmoid is called within a reentrant activation "
                "checkpoint, which hides its input; return the logits, use_reentrant=False, or an "
                "nn.Sigmoid instead of a function"
            )
        if self.sigmoid != "function":
            return as_logits(self._of_hooks(score, logits), len(images))
        if logits is None:
            raise ValueError(
                "discriminator ended in a sigmoid when it was looked at and does not now; return "
                "the logits, without the sigmoid, from every path of its forward"
            )
        return as_logits(logits, len(images))

    def _of_hooks(self, score: Tensor, logits: Tensor | None) -> Tensor:
        """The scores of a D whose hooks, which the look leaves out, may end in a sigmoid."""
        loss = self.problem.loss
        if logits is None or loss.scores == "probabilities":
            return score
        if loss.scores == "logits":
            return logits
        raise ValueError(
            f"a hook of the discriminator returns a sigmoid, and loss {loss.name!r} works on raw "
            "scores; remove the hook, or make it a losses.Loss with scores='logits' or "
            "'probabilities'"
        )

    def _look_at_end(self) -> None:
        p = self.problem
        self.sigmoid, self._seen = None, None
        if p.loss.scores == "logits":
            self.sigmoid, volatile = final_sigmoid(p)
            self._seen = Snapshot({"discriminator": p.discriminator}, tensors=False, but=volatile)

    @contextmanager
    def _backward(self):
        for masks in self._masks:
            masks.in_backward = True
        try:
            yield
        finally:
            for masks in self._masks:
                masks.in_backward = False

    @contextmanager
    def _autocast(self):
        p = self.problem
        if p.precision == "fp32":
            yield
            return
        dtype = AUTOCAST[p.precision]
        with torch.autocast(p.device.type, dtype=dtype, cache_enabled=self.cached):
            yield
        # Inside another autocast, which a program may have around everything, the cache would live
        # on: with weights that have moved since, or that were cast where nothing had a gradient.
        torch.clear_autocast_cache()


def _cut(what: str, untrained: str) -> ValueError:
    return ValueError(
        f"the {what}, so the {untrained} cannot be trained; let the gradient through, without "
        "torch.no_grad(), .detach() or .data, and without reentrant activation checkpointing of an "
        "input that needs no gradient (use_reentrant=False does it)"
    )


def _unchanged(x: Tensor) -> Tensor:
    return x


@contextmanager
def _without_gradients(weights: list[nn.Parameter]):
    """No gradients for these parameters meanwhile."""
    try:
        for w in weights:
            w.requires_grad_(False)
        yield
    finally:
        for w in weights:
            w.requires_grad_(True)
