"""The alternating step in PyTorch operations, which the engines `eager` and `graph` share.

They differ in where batches and random numbers come from (`Draws`) and in how an optimiser moves
its weights (`Update`): `eager` works with numbers of the host, `graph` with numbers on the device
that a replayed recording finds changed. The rest of a step is written here, once, and does no more
than the step's work: losses from logits, no gradient from D's update into G, none from G's update
into D's weights, and no waiting for the device.
"""

from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan.engines.base import (
    PENALTY_STREAM,
    FinalSigmoid,
    Problem,
    as_logits,
    dtype_of,
    final_sigmoid,
)
from fastgan.nn import LinearLeakyReLU, runs, sequences
from fastgan.random import Stream

D_ON_REAL, D_ON_FAKE, D_FOR_G, G_FOR_D, G_FOR_G, D_BETWEEN = range(6)
"""The passes of a step, by the number that tells their dropout masks apart."""

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class When(NamedTuple):
    """The number that an update's draws go by, as a function of the step t.

    It is t * multiplier + offset.
    """

    multiplier: int
    offset: int


class DUpdate(NamedTuple):
    """What the host must know of an update of D before it is done."""

    size: int
    """Images in its batch."""
    penalised: bool


Kind = tuple[DUpdate, ...]
"""A step's updates of D; steps of one kind do the same operations on the same shapes."""


def kind_of(problem: Problem, step: int) -> Kind:
    """The kind of a step."""
    p = problem
    per_epoch = p.data.batches_per_epoch(p.batch_size)
    last = len(p.data) - (per_epoch - 1) * p.batch_size
    return tuple(
        DUpdate(
            last if (u + 1) % per_epoch == 0 else p.batch_size,
            p.penalty is not None and p.penalty.due(u),
        )
        for u in range(step * p.d_steps, (step + 1) * p.d_steps)
    )


class Draws(ABC):
    """Where a step's batches and random numbers come from."""

    @abstractmethod
    def batch(self, when: When, size: int) -> Tensor:
        """The images of an update of D, [size, C, H, W] in [-1, 1]."""

    @abstractmethod
    def normal(self, stream: int, when: When, shape: tuple[int, ...]) -> Tensor:
        """As random.normal."""

    @abstractmethod
    def drop(self, x: Tensor, stream: int, when: When, p: float, start: int) -> Tensor:
        """Dropout by elements start, start + 1, ... of random.keep_mask, out of place."""

    def drop_after(
        self, layer: LinearLeakyReLU, x: Tensor, stream: int, when: When, p: float, start: int
    ) -> Tensor:
        """The same of what a layer makes of x."""
        return self.drop(layer(x), stream, when, p, start)


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
    A sigmoid at D's end is left out when the game works on logits.
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
        self.sigmoid = final_sigmoid(problem) if problem.game.takes_sigmoid else None

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

    def __call__(self, kind: Kind) -> tuple[Tensor, Tensor]:
        """Do it, inside `ready`.

        Returns:
            D's loss, of the last of its updates and without penalty, and G's: scalars on the
            device.
        """
        for k, (size, penalised) in enumerate(kind):
            d_loss = self._update_d(When(len(kind), k), size, penalised)
        return d_loss, self._update_g(When(1, 0), kind[-1].size)

    def _update_d(self, when: When, size: int, penalised: bool) -> Tensor:
        p = self.problem
        real = self.draws.batch(when, size).to(self._dtypes[1])
        if at_real := penalised and not p.penalty.between:
            real = real.detach().requires_grad_()
        with torch.no_grad(), self._autocast():
            fake = self._generate(Stream.LATENT_D, when, size, G_FOR_D)
        with self._autocast():
            on_real = self._judge(real, when, D_ON_REAL)
            on_fake = self._judge(fake, when, D_ON_FAKE)
        loss = p.game.d_loss(on_real, on_fake)
        total = loss
        if at_real:
            total = loss + self._penalty(on_real, real)
        elif penalised:
            eps = torch.special.ndtr(self.draws.normal(PENALTY_STREAM, when, (size,)))
            eps = eps.to(real.dtype).view(size, *[1] * (real.dim() - 1))
            points = torch.lerp(fake.to(real.dtype), real, eps).requires_grad_()
            with self._autocast():
                logits = self._judge(points, when, D_BETWEEN)
            total = loss + self._penalty(logits, points)
        self.updates[0](total)
        return loss.detach()

    def _penalty(self, logits: Tensor, images: Tensor) -> Tensor:
        p = self.problem
        scale = None
        if p.scalers is not None:
            scale = p.scalers[0].scale(torch.ones((), device=p.device))
        return p.penalty.value(logits, images, scale)

    def _update_g(self, when: When, size: int) -> Tensor:
        p = self.problem
        with _frozen(self._trained):
            with self._autocast():
                fake = self._generate(Stream.LATENT_G, when, size, G_FOR_G)
                scores = self._judge(fake, when, D_FOR_G)
            loss = p.game.g_loss(scores)
            self.updates[1](loss)
        if p.ema is not None:
            self._average()
        return loss.detach()

    @torch.no_grad()
    def _average(self) -> None:
        torch._foreach_lerp_(*self._weights, 1.0 - self.problem.ema_decay)
        if self._buffers[0]:
            torch._foreach_copy_(*self._buffers)

    def _generate(self, stream: Stream, when: When, size: int, use: int) -> Tensor:
        p = self.problem
        latents = self.draws.normal(stream, when, (size, *p.latent_shape))
        self._dropouts[1](use, when)
        return p.generator(latents.to(self._dtypes[0]))

    def _judge(self, images: Tensor, when: When, use: int) -> Tensor:
        d = self.problem.discriminator
        self._dropouts[0](use, when)
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
    (use, when) to be called before each pass of the network.
    """
    layers = [m for m in network.modules() if type(m) is nn.Dropout]
    index_of = {layer: index for index, layer in enumerate(layers)}
    now = {"use": 0, "when": When(1, 0)}
    drawn = [0] * len(layers)

    def begin(use: int, when: When) -> None:
        now.update(use=use, when=when)
        drawn[:] = [0] * len(layers)

    def at(index: int) -> tuple[int, When, float, int]:
        return Stream.DROPOUT + 8 * index + now["use"], now["when"], layers[index].p, drawn[index]

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
