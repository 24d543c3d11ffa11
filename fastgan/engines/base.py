"""The protocol between the training loop and the engines that carry out its steps.

One engine step, counted by t = 0, 1, ...: `d_steps` updates of the discriminator D, then one update
of the generator G.

- D's k-th update (u = t * d_steps + k) takes the u-th real batch and latents
  ``normal(seed, Stream.LATENT_D, u, [b, *latent_shape])``. D sees the real and the fake batch in
  two separate passes, and G gets no gradient.
- G's update takes latents ``normal(seed, Stream.LATENT_G, t, [b, *latent_shape])``, with b the size
  of the step's last real batch (an epoch's last batch may be smaller), and D gets no gradient.
- With a penalty, D's loss is that much larger before its backward pass, and reported without. The
  points between real and fake images that WGAN-GP wants are ``fake + eps * (real - fake)``, eps
  [b] the normal distribution function of ``normal(seed, PENALTY_STREAM, u, [b])``: uniform.
- After it, each averaged weight becomes decay * average + (1 - decay) * weight; buffers are copied.

Every engine does this with the same numbers; they differ in speed only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastgan import statistics

if TYPE_CHECKING:
    from fastgan.problem import Problem

PENALTY_STREAM = 6
"""The stream of a penalty's draws, beside those of `random.Stream`."""
SIGMOIDS = (torch.sigmoid, Tensor.sigmoid, torch.special.expit)
SIGMOIDS_IN_PLACE = (torch.sigmoid_, Tensor.sigmoid_)


class CannotRun(ValueError):
    """An engine tried a problem that `unsupported` had nothing against, and could not run it."""


class Engine(ABC):
    """Advances a problem by whole steps.

    Attributes:
        name: the name under which `fastgan.engines.choose` knows the engine.
        problem: the problem; its modules, optimisers and average are updated in place.
        step: steps done so far; set it to continue a run from there.
        unreported: after `run` raised, the statistics of the steps that it did all the same, which
            `step` counts; None if it left a step half done.
    """

    name: ClassVar[str]

    def __init__(self, problem: Problem):
        """Prepare to run the problem from step 0; CannotRun if trying shows that it cannot be."""
        self.problem = problem
        self.step = 0
        self.unreported: Tensor | None = statistics.table(0, problem.device)

    @classmethod
    @abstractmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """The reason, in a user's words, why this engine cannot run the problem; None if it can."""

    @abstractmethod
    def run(self, n: int) -> Tensor:
        """Do n steps.

        Returns:
            float32 [n, len(STATISTICS)] on the problem's device; see `fastgan.statistics`. Nothing
            waits for the device, but for what fp16 needs (see the engines).
        """

    @abstractmethod
    def describe(self) -> str:
        """One line that says which path is taken."""

    def memory_bytes(self) -> int | None:
        """Bytes held besides the networks, their optimisers and the images, if they are known."""
        return None

    def close(self) -> None:  # noqa: B027 - most engines hold nothing
        """Give back what the engine holds besides the problem."""


def check(problem: Problem) -> None:
    """Try both networks on two samples and raise ValueError where they cannot play the game.

    Runs without gradients, in eval mode and with torch's random state put back, so that nothing
    remains of it.
    """
    shape = tuple(problem.data.shape)
    with _untraced(problem):
        latents = torch.zeros(2, *problem.latent_shape, device=problem.device)
        try:
            fake = problem.generator(latents.to(dtype_of(problem.generator)))
        except Exception as error:
            raise ValueError(
                f"generator failed on latents of shape {list(latents.shape)}: "
                f"{_first_line(error)}. latent_dim must be what the generator takes: a length, or "
                "the shape of one latent such as (100, 1, 1)"
            ) from error
        if not isinstance(fake, Tensor) or fake.shape != (2, *shape):
            got = list(fake.shape[1:]) if isinstance(fake, Tensor) else type(fake).__name__
            raise ValueError(
                f"generator makes {got}, but the images of data {problem.data.name!r} are "
                f"{list(shape)}; it must return a tensor [batch, {', '.join(map(str, shape))}]"
            )
        images = torch.zeros(2, *shape, device=problem.device)
        try:
            score = problem.discriminator(images.to(dtype_of(problem.discriminator)))
        except Exception as error:
            raise ValueError(
                f"discriminator failed on images of shape {list(images.shape)}: "
                f"{_first_line(error)}"
            ) from error
        as_logits(score, 2)
    if problem.loss.scores != "raw" and problem.loss.scores is not None:
        return
    if final_sigmoid(problem) is not None:
        if problem.loss.scores is None:
            raise ValueError(
                f"the discriminator ends in a sigmoid, and loss {problem.loss.name!r} does not say "
                "what it works on: give the Loss scores='logits', 'raw' or 'probabilities'"
            )
        raise ValueError(
            f"loss {problem.loss.name!r} works on raw scores, but the discriminator ends in a "
            "sigmoid; remove the sigmoid, or use loss='non-saturating' or 'minimax'"
        )


def as_logits(score: object, batch: int) -> Tensor:
    """D's output as [batch], in float32 or better; ValueError if it is not one score per image."""
    if not isinstance(score, Tensor) or score.numel() != batch:
        got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ValueError(
            f"discriminator returned {got} for a batch of {batch}; expected one score per image, "
            "a tensor of shape [batch] or [batch, 1]"
        )
    score = score.reshape(batch)
    return score if score.dtype == torch.float64 else score.float()


def dtype_of(module: nn.Module) -> torch.dtype:
    """The floating-point type of a network's first parameter; float32 if it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def final_sigmoid(problem: Problem) -> nn.Sigmoid | str | None:
    """How D's output comes out of a sigmoid.

    Returns:
        the nn.Sigmoid module whose output is D's output, when D calls it for nothing else;
        "function" when the output comes from a call such as torch.sigmoid; None when it comes from
        something else.
    """
    module = problem.discriminator
    calls: list[tuple[nn.Module, Tensor]] = []
    handles = [
        m.register_forward_hook(lambda m, _, out: calls.append((m, out)))
        for m in module.modules()
        if type(m) is nn.Sigmoid
    ]
    try:
        with _untraced(problem), FinalSigmoid() as trace:
            images = torch.zeros(2, *problem.data.shape, device=problem.device)
            score = module(images.to(dtype_of(module)))
            if trace.input_of(score) is None:
                return None
            modules = [m for m, _ in calls]
            for m, out in calls:
                if out.data_ptr() == score.data_ptr() and modules.count(m) == 1:
                    return m
            return "function"
    finally:
        for handle in handles:
            handle.remove()


class FinalSigmoid(TorchFunctionMode):
    """Remembers the last sigmoid of a forward pass, so that its input can stand for its output.

    Going back from probabilities by a logarithm would lose every logit beyond about 17 in float32
    and beyond about 6 in bfloat16.
    """

    def __init__(self):
        """Start with nothing seen."""
        super().__init__()
        self.seen: tuple[Tensor, Tensor, int] | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run the call; if it is a sigmoid keep its input and output."""
        x = args[0] if args else None
        if func in SIGMOIDS_IN_PLACE:
            x = x.clone()
        out = func(*args, **(kwargs or {}))
        if isinstance(x, Tensor) and (func in SIGMOIDS or func in SIGMOIDS_IN_PLACE):
            self.seen = (x, out, out._version)
        return out

    def input_of(self, output: Tensor) -> Tensor | None:
        """The logits when `output` is what the last sigmoid returned, or a view of all of it."""
        if self.seen is None or not isinstance(output, Tensor):
            return None
        x, probability, version = self.seen
        same = output.data_ptr() == probability.data_ptr() and output.numel() == probability.numel()
        return x if same and output._version == version else None


@contextmanager
def scaled_learning_rates(problem: Problem):
    """Yields a function that sets both learning rates for a step; the base rates come back after.

    Whoever reads or changes `param_groups[i]["lr"]` between two runs thus deals in base rates.
    """
    if problem.lr_schedule is None:
        yield lambda step: None
        return
    groups = [*problem.optimizer_g.param_groups, *problem.optimizer_d.param_groups]
    base = [group["lr"] for group in groups]

    def apply(step: int) -> None:
        factor = learning_rate_factor(problem, step)
        for group, lr in zip(groups, base, strict=True):
            group["lr"] = lr * factor

    try:
        yield apply
    finally:
        for group, lr in zip(groups, base, strict=True):
            group["lr"] = lr


def learning_rate_factor(problem: Problem, step: int) -> float:
    """The schedule's factor at a step, checked: a finite number of at least 0."""
    factor = 1.0 if problem.lr_schedule is None else float(problem.lr_schedule(step))
    if not (math.isfinite(factor) and factor >= 0):
        raise ValueError(
            f"lr_schedule({step}) returned {factor}; expected a finite factor of at least 0"
        )
    return factor


@contextmanager
def _untraced(problem: Problem):
    networks = (problem.generator, problem.discriminator)
    training = [(m, m.training) for network in networks for m in network.modules()]
    cuda = [problem.device] if problem.device.type == "cuda" else []
    try:
        for network in networks:
            network.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            yield
    finally:
        for m, mode in training:
            m.training = mode


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
