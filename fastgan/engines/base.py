"""The contract between the training loop and the engines that carry out its steps.

One engine step, counted by t = 0, 1, ...: `d_steps` updates of the discriminator D, then `g_steps`
of the generator G (one, unless said otherwise), then, if the method has a joint loss, one of both.

- D's k-th update (u = t * d_steps + k) takes the u-th real batch and latents
  ``normal(seed, Stream.LATENT_D, u, [b, *latent_shape])``. D sees the real and the fake batch in
  two separate passes, and G gets no gradient.
- G's k-th update (t * g_steps + k) takes latents of ``Stream.LATENT_G`` likewise, with b the size
  of the step's last real batch (an epoch's last batch may be smaller), and D gets no gradient, but
  for weights that G's optimiser trains as well. A relativistic loss has D score that real batch
  once more.
- With `shared_fakes`, the first of G's updates in a step takes the latents, conditions, masks and
  samples of D's last one: G's pass is that one's, D's is a new one.
- With penalties, D's loss is that much larger before its backward pass, and reported without. Those
  at "real" and "fake" are taken in the pass that the loss takes. The points between real and fake
  samples are ``fake + eps * (real - fake)``, eps [b] the normal distribution function of
  ``normal(seed, PENALTY_STREAM, u, [b])``: uniform; they take a pass of their own. So does a
  penalty by differences, at its points with noise of ``Stream.NEARBY`` and with their masks.
- Where D judges n samples together, a pack is n rows of one batch that follow each other: losses,
  statistics and penalties are means over packs, a slope is of a pack's score by all of its rows,
  and eps is that of its first row. A rank's rows, and a part's, are whole packs.
- With `accumulate`, an update's batch passes through the networks in parts, each with its rows of
  what is drawn for the whole; gradients and statistics are means weighted by rows.
- With `augment`, images that D is called with, in any of these passes, are changed by normals of
  a stream of the pass's own (`AUGMENT_STREAM`), through which gradients flow.
- Before step `d_start` D is left alone, and G's loss is its terms'; before `g_start` G is.
- After it, each averaged weight becomes decay * average + (1 - decay) * weight; buffers are copied.

Every engine does this with the same numbers; they differ in speed only. What a program has switched
on around a call (autocast, no_grad) does not count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fastgan import statistics

if TYPE_CHECKING:
    from fastgan.engines.gangs import Gang
    from fastgan.problem import Problem


class CannotRun(ValueError):
    """An engine cannot run a problem, or can no longer; the message says why."""


class Engine(ABC):
    """Advances a problem by whole steps.

    Attributes:
        name: the name under which `fastgan.engines.choose` knows the engine.
        beside: whether several can step at the same time, each in a thread; see `turns`.
        company: what runs that are beside each other must have in common to step in one launch of
            a device; None where each steps by itself.
        most_at_once: how many runs like this one such a launch takes.
        problem: the problem; its modules, optimisers and average are updated in place.
        step: steps done so far; set it to continue a run from there.
        logged: numbers that a method logged in the last step, by name: scalars on the device.
        measuring: set it to have the last step of the next call of `run` measured.
        measured: the measures of the last step of the last call, [len(MEASURES)] on some device;
            None if that was not measured, as no step is by `fused` on CUDA.
        unreported: after `run` raised, the statistics of the steps that it did all the same, which
            `step` counts; None if it left a step half done.
    """

    name: ClassVar[str]
    beside: bool = False
    company: Hashable | None = None
    most_at_once: int = 1

    def __init__(self, problem: Problem):
        """Prepare to run the problem from step 0; CannotRun if trying shows that it cannot be."""
        self.problem = problem
        self.step = 0
        self.logged: Mapping[str, Tensor] = {}
        self.measuring = False
        self.measured: Tensor | None = None
        self.unreported: Tensor | None = statistics.table(0, problem.device)

    @classmethod
    @abstractmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """The reason, in a user's words, why this engine cannot run the problem; None if it can."""

    @abstractmethod
    def run(self, n: int) -> Tensor:
        """Do n steps.

        What a user has changed in the modules and optimisers since the last call is noticed here,
        which takes a call of run(1) of `fused` about a quarter of a millisecond longer than a step
        of a long call (reference pair, 2 quiet cores of Zen 4; half a millisecond beside other
        work); a call of many steps is free of it.

        Returns:
            float32 [n, len(STATISTICS)] on the problem's device: a row for each step. Nothing waits
            for the device, but for what fp16 needs (see the engines).

        Raises:
            CannotRun: the engine can no longer run what the user has made of the networks; see
                `fastgan.engines.advance`.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line that says which path is taken."""

    def memory_bytes(self) -> int | None:
        """Bytes held besides the networks, their optimisers and the samples, if they are known."""
        return None

    def gang(self, runs: int) -> Gang:
        """What launches so many runs of this one's company together."""
        raise NotImplementedError(f"engine {self.name} has no company")

    def close(self) -> None:  # noqa: B027 - most engines hold nothing
        """Give back what the engine holds besides the problem."""
