"""The plain engine: any two modules, step by step in PyTorch.

It is the definition that the faster engines are held against, so it does the work of a step and no
more: losses from logits, no gradient from D's update into G, none from G's update into D's weights,
and no waiting for the device.
"""

from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from fastgan import random
from fastgan.engines.base import (
    Engine,
    FinalSigmoid,
    Problem,
    as_logits,
    dtype_of,
    final_sigmoid,
    scaled_learning_rates,
)
from fastgan.random import Stream

D_ON_REAL, D_ON_FAKE, D_FOR_G, G_FOR_D, G_FOR_G = range(5)
"""The five passes of a step, by the number that tells their dropout masks apart."""


class EagerEngine(Engine):
    """Runs any pair of modules with autograd, on any device.

    Plain `nn.Dropout` modules draw counter-based masks while the engine runs; other random layers
    use torch's generator. A sigmoid at D's end is left out when the game works on logits.
    """

    name = "eager"

    def __init__(self, problem: Problem):
        """Look at how D ends and collect the dropout layers."""
        super().__init__(problem)
        self._sigmoid = final_sigmoid(problem) if problem.game.takes_sigmoid else None

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """None: whatever PyTorch can differentiate, this engine runs."""
        return None

    def describe(self) -> str:
        """One line that says which path is taken."""
        parts = [f"PyTorch operations one by one, {self.problem.precision}"]
        if isinstance(self._sigmoid, nn.Module):
            parts.append("D's final Sigmoid absorbed into the loss")
        elif self._sigmoid:
            parts.append("D's final sigmoid call absorbed into the loss")
        return ", ".join(parts)

    def run(self, n: int) -> Tensor:
        """Do n steps; see `Engine.run`."""
        p = self.problem
        # Walking the module trees takes as long as a small layer: once a run, not once a use.
        self._dtypes = dtype_of(p.generator), dtype_of(p.discriminator)
        self._trained = [w for w in p.discriminator.parameters() if w.requires_grad]
        if p.ema is not None:
            self._weights = [list(m.parameters()) for m in (p.ema, p.generator)]
            self._buffers = [list(m.buffers()) for m in (p.ema, p.generator)]
        losses = []
        with ExitStack() as stack:
            set_lr = stack.enter_context(scaled_learning_rates(p))
            self._dropouts = [
                stack.enter_context(_counted_dropouts(p.seed, network))
                for network in (p.discriminator, p.generator)
            ]
            if isinstance(self._sigmoid, nn.Module):
                stack.enter_context(_forward(self._sigmoid, lambda x: x))
            for _ in range(n):
                set_lr(self.step)
                for k in range(p.d_steps):
                    d_loss, batch = self._update_d(self.step * p.d_steps + k)
                losses += [d_loss, self._update_g(self.step, batch)]
                self.step += 1
        p.optimizer_d.zero_grad(set_to_none=True)
        p.optimizer_g.zero_grad(set_to_none=True)
        if not losses:
            return torch.empty(0, 2, device=p.device)
        return torch.stack(losses).float().view(n, 2)

    def _update_d(self, update: int) -> tuple[Tensor, int]:
        p = self.problem
        real = p.data.batch(p.seed, update, p.batch_size)
        with torch.no_grad(), self._autocast():
            fake = self._generate(Stream.LATENT_D, update, len(real), G_FOR_D)
        with self._autocast():
            on_real = self._judge(real, update, D_ON_REAL)
            on_fake = self._judge(fake, update, D_ON_FAKE)
        loss = p.game.d_loss(on_real, on_fake)
        p.optimizer_d.zero_grad(set_to_none=True)
        loss.backward()
        p.optimizer_d.step()
        return loss.detach(), len(real)

    def _update_g(self, step: int, batch: int) -> Tensor:
        p = self.problem
        with _frozen(self._trained):
            with self._autocast():
                fake = self._generate(Stream.LATENT_G, step, batch, G_FOR_G)
                scores = self._judge(fake, step, D_FOR_G)
            loss = p.game.g_loss(scores)
            p.optimizer_g.zero_grad(set_to_none=True)
            loss.backward()
        p.optimizer_g.step()
        if p.ema is not None:
            self._average()
        return loss.detach()

    @torch.no_grad()
    def _average(self) -> None:
        torch._foreach_lerp_(*self._weights, 1.0 - self.problem.ema_decay)
        for kept, current in zip(*self._buffers, strict=True):
            kept.copy_(current)

    def _generate(self, stream: Stream, step: int, batch: int, use: int) -> Tensor:
        p = self.problem
        shape = (batch, *p.latent_shape)
        latents = random.normal(p.seed, stream, step, shape, device=p.device)
        self._dropouts[1](use, step)
        return p.generator(latents.to(self._dtypes[0]))

    def _judge(self, images: Tensor, step: int, use: int) -> Tensor:
        d = self.problem.discriminator
        self._dropouts[0](use, step)
        images = images.to(self._dtypes[1])
        if self._sigmoid != "function":
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
        return torch.autocast(p.device.type, dtype=torch.bfloat16)


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
def _counted_dropouts(seed: int, network: nn.Module):
    """Gives the network's nn.Dropout modules counter-based masks.

    Yields a function (use, step) to be called before each pass of the network.
    """
    layers = [m for m in network.modules() if type(m) is nn.Dropout]
    now = {"use": 0, "step": 0}
    drawn = [0] * len(layers)

    def begin(use: int, step: int) -> None:
        now.update(use=use, step=step)
        drawn[:] = [0] * len(layers)

    def drop(index: int):
        layer = layers[index]

        def forward(x: Tensor) -> Tensor:
            if not layer.training or layer.p == 0:
                return x
            # A layer that a pass calls twice goes on in its stream, or both calls would drop the
            # same elements.
            first, drawn[index] = drawn[index], drawn[index] + x.numel()
            stream = Stream.DROPOUT + 8 * index + now["use"]
            shape = (drawn[index],) if first else x.shape
            keep = random.keep_mask(seed, stream, now["step"], shape, layer.p, device=x.device)
            keep = keep.flatten()[first:].view(x.shape).to(x.dtype)
            scale = random.keep_scale(layer.p)
            return x.mul_(keep).mul_(scale) if layer.inplace else x * keep * scale

        return forward

    with ExitStack() as stack:
        for i, layer in enumerate(layers):
            stack.enter_context(_forward(layer, drop(i)))
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
