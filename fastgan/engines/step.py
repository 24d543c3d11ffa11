"""The alternating step in PyTorch operations, which the engines `eager` and `graph` share.

They differ in where batches and random numbers come from (`Draws`) and in how an optimiser moves
its weights (`Update`): `eager` works with numbers of the host, `graph` with numbers on the device
that a replayed recording finds changed. The rest of a step is written here, once, and does no more
than the step's work: losses from logits, no gradient from D's update into G, none from G's update
into D's weights, and no waiting for the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager, nullcontext
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from fastgan.engines.base import (
    PENALTY_STREAM,
    FinalSigmoid,
    as_logits,
    dtype_of,
    final_sigmoid,
)
from fastgan.nn import LinearLeakyReLU, runs, sequences
from fastgan.random import Stream

if TYPE_CHECKING:
    from fastgan.problem import Problem


class Pass(IntEnum):
    """The passes of a step, by the number that tells their dropout masks apart."""

    D_ON_REAL = 0
    D_ON_FAKE = 1
    D_FOR_G = 2
    G_FOR_D = 3
    G_FOR_G = 4
    D_BETWEEN = 5
    D_REAL_FOR_G = 6


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Counter(NamedTuple):
    """The number that an update's draws go by, as a function of the step t.

    It is t * multiplier + offset.
    """

    multiplier: int
    offset: int


class DUpdate(NamedTuple):
    """What the host must know of an update of D before it is done."""

    size: int
    """Images in its batch."""
    penalties: tuple[int, ...]
    """Which of the problem's penalties are due."""


StepShape = tuple[DUpdate, ...]
"""A step's updates of D; steps of one shape do the same operations on the same shapes."""


def shape_of(problem: Problem, step: int) -> StepShape:
    """The shape of a step."""
    p = problem
    per_epoch = p.batches_per_epoch
    last = min(p.batch_size, len(p.data) - (per_epoch - 1) * p.batch_size)
    return tuple(
        DUpdate(
            last if (u + 1) % per_epoch == 0 else p.batch_size,
            tuple(i for i, penalty in enumerate(p.penalties) if penalty.due(u)),
        )
        for u in range(step * p.d_steps, (step + 1) * p.d_steps)
    )


class Draws(ABC):
    """Where a step's batches and random numbers come from."""

    @abstractmethod
    def batch(self, at: Counter, size: int) -> Tensor:
        """The images of an update of D, [size, C, H, W] in [-1, 1]."""

    @abstractmethod
    def normal(self, stream: int, at: Counter, shape: tuple[int, ...]) -> Tensor:
        """As random.normal."""

    @abstractmethod
    def drop(self, x: Tensor, stream: int, at: Counter, p: float, start: int) -> Tensor:
        """Dropout by elements start, start + 1, ... of random.keep_mask, out of place."""

    def drop_after(
        self, layer: LinearLeakyReLU, x: Tensor, stream: int, at: Counter, p: float, start: int
    ) -> Tensor:
        """The same of what a layer makes of x."""
        return self.drop(layer(x), stream, at, p, start)


class Update:
    """Moves a network's weights against the gradient of a loss, by its own optimiser."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None):
        """With a scaler, the backward pass is scaled and a step with infinite gradients skipped."""
        self.optimizer = optimizer
        self.scaler = scaler

    def __call__(self, loss: Tensor) -> None:
        """One update."""
        self.optimizer.zero_grad(set_to_none=True)
        weights = [
            w for group in self.optimizer.param_groups for w in group["params"] if w.requires_grad
        ]
        if self.scaler is None:
            loss.backward(inputs=weights)
            self.step()
        else:
            self.scaler.scale(loss).backward(inputs=weights)
            self.scaled_step()
            self.scaler.update()

    def step(self) -> None:
        """Use the gradients."""
        self.optimizer.step()

    def scaled_step(self) -> None:
        """Use gradients that the scaler has scaled, unless one of them is not finite."""
        self.scaler.step(self.optimizer)


class Step:
    """One step of a problem, for whatever draws and updates it is given.

    Plain `nn.Dropout` modules draw counter-based masks; other random layers use torch's generator.
    A sigmoid at D's end is left out when the loss works on logits.
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
        self.sigmoid = final_sigmoid(problem) if problem.loss.scores == "logits" else None

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
        # Walking the module trees takes as long as a small layer: once a run, not once a use.
        self._dtypes = dtype_of(p.generator), dtype_of(p.discriminator)
        self._trained = [w for w in p.discriminator.parameters() if w.requires_grad]
        if p.ema is not None:
            self._weights = [list(m.parameters()) for m in (p.ema, p.generator)]
            self._buffers = [list(m.buffers()) for m in (p.ema, p.generator)]
        with ExitStack() as stack:
            self._dropouts = [
                stack.enter_context(_counted_dropouts(self.draws, network))
                for network in (p.discriminator, p.generator)
            ]
            if isinstance(self.sigmoid, nn.Module):
                stack.enter_context(_forward(self.sigmoid, lambda x: x))
            yield
        for optimizer in (p.optimizer_d, p.optimizer_g):
            optimizer.zero_grad(set_to_none=True)

    def __call__(self, kind: StepShape) -> tuple[Tensor, ...]:
        """Do it, inside `ready`.

        Returns:
            the values of STATISTICS: scalars on the device.
        """
        for k, (size, penalties) in enumerate(kind):
            d_loss, d_real, d_fake, real = self._update_d(Counter(len(kind), k), size, penalties)
        return d_loss, self._update_g(Counter(1, 0), kind[-1].size, real), d_real, d_fake

    def _update_d(self, at: Counter, size: int, due: tuple[int, ...]) -> tuple[Tensor, ...]:
        p = self.problem
        penalties = [p.penalties[i] for i in due]
        places = {penalty.at for penalty in penalties}
        real = self.draws.batch(at, size).to(self._dtypes[1])
        seen = real
        if "real" in places:
            real = real.detach().requires_grad_()
        with torch.no_grad(), self._autocast():
            fake = self._generate(Stream.LATENT_D, at, size, Pass.G_FOR_D)
        if "fake" in places:
            fake = fake.to(self._dtypes[1]).detach().requires_grad_()
        with self._autocast():
            on_real = self._head(real, at, Pass.D_ON_REAL)
            on_fake = self._head(fake, at, Pass.D_ON_FAKE)
        total = loss = p.loss.d_loss(on_real, on_fake)
        passes = {"real": (on_real, real), "fake": (on_fake, fake)}
        if "between" in places:
            eps = torch.special.ndtr(self.draws.normal(PENALTY_STREAM, at, (size,)))
            eps = eps.to(real.dtype).view(size, *[1] * (real.dim() - 1))
            points = torch.lerp(fake.detach().to(real.dtype), real.detach(), eps).requires_grad_()
            with self._autocast():
                passes["between"] = self._head(points, at, Pass.D_BETWEEN), points
        for penalty in penalties:
            total = total + penalty.value(*passes[penalty.at], self._scale())
        self.updates[0](total)
        return loss.detach(), on_real.detach().mean(), on_fake.detach().mean(), seen

    def _scale(self) -> Tensor | None:
        p = self.problem
        if p.scalers is None:
            return None
        return p.scalers[0].scale(torch.ones((), device=p.device))

    def _update_g(self, at: Counter, size: int, real: Tensor) -> Tensor:
        p = self.problem
        with _frozen(self._trained):
            with self._autocast():
                fake = self._generate(Stream.LATENT_G, at, size, Pass.G_FOR_G)
                scores = [self._head(fake, at, Pass.D_FOR_G)]
                if p.loss.needs_real:
                    with torch.no_grad():
                        scores.append(self._head(real, at, Pass.D_REAL_FOR_G))
            loss = p.loss.g_loss(*scores)
            self.updates[1](loss)
        if p.ema is not None:
            self._average()
        return loss.detach()

    @torch.no_grad()
    def _average(self) -> None:
        torch._foreach_lerp_(*self._weights, 1.0 - self.problem.ema_decay)
        if self._buffers[0]:
            torch._foreach_copy_(*self._buffers)

    def _generate(self, stream: Stream, at: Counter, size: int, use: int) -> Tensor:
        p = self.problem
        latents = self.draws.normal(stream, at, (size, *p.latent_shape))
        self._dropouts[1](use, at)
        return p.generator(latents.to(self._dtypes[0]))

    def _head(self, images: Tensor, at: Counter, use: int) -> Tensor:
        d = self.problem.discriminator
        self._dropouts[0](use, at)
        images = images.to(self._dtypes[1])
        if self.sigmoid != "function":
            return as_logits(d(images), len(images))
        with FinalSigmoid() as trace:
            score = d(images)
        logits = trace.input_of(score)
        if logits is None:
            raise ValueError(
                "discriminator ended in a sigmoid when it was looked at and does not now; return "
                "the logits, without the sigmoid, from every path of its forward"
            )
        return as_logits(logits, len(images))

    def _autocast(self):
        p = self.problem
        if p.precision == "fp32":
            return nullcontext()
        dtype = AUTOCAST[p.precision]
        return torch.autocast(p.device.type, dtype=dtype, cache_enabled=self.cached)


@contextmanager
def _forward(module: nn.Module, forward):
    """A module's forward replaced on the instance; what stood there comes back at the end."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextmanager
def _counted_dropouts(draws: Draws, network: nn.Module):
    """Gives the network's nn.Dropout modules counter-based masks.

    In a Sequential a LinearLeakyReLU and the Dropout after it are one operation. Yields a function
    (use, at) to be called before each pass of the network.
    """
    layers = [m for m in network.modules() if type(m) is nn.Dropout]
    index_of = {layer: index for index, layer in enumerate(layers)}
    now = {"use": 0, "at": Counter(1, 0)}
    drawn = [0] * len(layers)

    def begin(use: int, at: Counter) -> None:
        now.update(use=use, at=at)
        drawn[:] = [0] * len(layers)

    def at(index: int) -> tuple[int, Counter, float, int]:
        return Stream.DROPOUT + 8 * index + now["use"], now["at"], layers[index].p, drawn[index]

    def drop(index: int):
        layer = layers[index]

        def forward(x: Tensor) -> Tensor:
            if not layer.training or layer.p == 0:
                return x
            out = draws.drop(x, *at(index))
            # A layer that a pass calls twice goes on in its stream, or both calls would drop the
            # same elements.
            drawn[index] += x.numel()
            return x.copy_(out) if layer.inplace else out

        return forward

    def run(sequence: list):
        def forward(x: Tensor) -> Tensor:
            for module, layer in sequence:
                if layer is None or not layer.training or layer.p == 0:
                    x = module(x)
                else:
                    index = index_of[layer]
                    x = draws.drop_after(module, x, *at(index))
                    drawn[index] += x.numel()
            return x

        return forward

    together = [(parent, runs(parent)) for parent in sequences(network)]
    with ExitStack() as stack:
        for i, layer in enumerate(layers):
            stack.enter_context(_forward(layer, drop(i)))
        for parent, sequence in together:
            if any(layer is not None for _, layer in sequence):
                stack.enter_context(_forward(parent, run(sequence)))
        yield begin


@contextmanager
def _frozen(trained: list[nn.Parameter]):
    """No gradients for these parameters meanwhile."""
    try:
        for w in trained:
            w.requires_grad_(False)
        yield
    finally:
        for w in trained:
            w.requires_grad_(True)
