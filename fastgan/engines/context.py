"""What a method may ask for in one update, made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan import conditions, losses, statistics
from fastgan.data.batch import Batch
from fastgan.engines import reentrant
from fastgan.engines.base import CannotRun
from fastgan.engines.draws import (
    AROUND_STREAM,
    CONDITION_STREAM,
    METHOD_STREAM,
    PENALTY_STREAM,
    Counter,
)
from fastgan.engines.views import Network, converted, detached
from fastgan.packs import first_of_each, rows_of
from fastgan.random import Stream

if TYPE_CHECKING:
    from fastgan.data import Data
    from fastgan.engines.step import Step
    from fastgan.heads import Heads

PLAYERS = ("d", "g", "joint")
"""Whose loss an update minimises."""
_LATENTS = {"d": Stream.LATENT_D, "g": Stream.LATENT_G, "joint": Stream.LATENT_JOINT}


class StepContext:
    """One update of D, of G or of both.

    Attributes:
        player: "d", "g" or "joint": whose loss it is.
        real: float32 [b, *shape], the batch; in G's update the last one that D has seen.
        cond: what came with it: a tensor [b, ...], a tuple or dict of such, or None.
        fake: G's samples, [b, *shape]; with a gradient into G unless it is D's update.
        fake_cond: the conditions they were made for (the setting `fake_condition`).
        z: latents [b, *latent_shape], or None. parts: named parts of them.
        G, D: the networks: call them, or what they consist of, as the modules themselves.
        due: which of the run's penalties this update has.
    """

    def __init__(
        self,
        step: Step,
        player: str,
        counter: Counter,
        size: int,
        batch: Batch,
        due: tuple[bool, ...] = (),
        shared: StepContext | None = None,
        shares: bool = False,
    ):
        """For one update.

        Args:
            step: what does the work.
            player: see above.
            counter: the number of the update.
            size: rows of the whole batch, of all ranks.
            batch: this rank's rows.
            due: see above.
            shared: D's update whose samples this one of G takes.
            shares: whether an update of G will take those of this one of D.
        """
        self._shared, self._shares = shared, shares
        self._given: tuple[Tensor, Callable[[int], None]] | None = None
        self._step, self.player, self._counter, self._size = step, player, counter, size
        self.real, self.cond = batch
        self.due = due
        self._calls = [0, 0]
        self._scored: list[tuple[Tensor, Any, int]] = []
        self._draws = 0
        self._heads: list[tuple[Heads, Tensor]] = []
        self.narrow = False
        """Whether the loss holds gradients of gradients."""
        self.reported: Tensor | None = None
        self.scores: list[Tensor | None] = [None, None]
        self.logged: dict[str, Tensor] = {}

    # --- what it is made of ----------------------------------------------------------------------

    @property
    def number(self) -> int:
        """The number of the step, counted from 0."""
        return self._step.draws.host_step

    @property
    def update(self) -> int:
        """The number of this update among those of its player, counted from 0."""
        return self._counter.multiplier * self.number + self._counter.offset

    @cached_property
    def z(self) -> Tensor | None:
        """Latents, or None if the generator takes none."""
        if self._shared is not None:
            return self._shared.z
        latent = self._step.problem.latent
        if latent.shape is None:
            return None
        shape = (self._size, *latent.drawn)
        return latent.of(self._step.draws.normal(_LATENTS[self.player], self._counter, shape))

    @property
    def parts(self) -> dict[str, Tensor]:
        """The named parts of the latents."""
        return {} if self.z is None else self._step.problem.latent.split(self.z)

    @cached_property
    def fake_cond(self) -> Any:
        """The conditions of the fake samples."""
        if self._shared is not None:
            return self._shared.fake_cond
        how = self._step.problem.config.fake_condition
        if self.cond is None or not conditions.is_drawn(how, self.cond):
            return self.cond
        stream = CONDITION_STREAM + PLAYERS.index(self.player)
        return self._step.draws.conditions(stream, self._counter, self._size)

    @cached_property
    def fake(self) -> Any:
        """G's samples."""
        if self._shared is not None:
            return self._shared.made
        return detached(self.made) if self.player == "d" else self.made

    @cached_property
    def made(self) -> Any:
        """G's samples, with a gradient into it if an update of G will use them."""
        if self._given is not None:
            made, asked = self._given
            asked(self._calls[1])
            self._calls[1] += 1
            return made
        with torch.set_grad_enabled(self.player != "d" or self._shares):
            p = self._step.problem
            z = None if self.z is None else self.z.to(self._step.dtypes[1])
            condition = self.fake_cond if p.conditioned[1] else None
            # What D's penalties differentiate ends at the samples.
            with self._step.not_penalised() if self._shares else nullcontext():
                made = self.G(*conditions.arguments(p, 1, z, condition))
        self._heads = self._step.masks[1].taken()
        return converted(made, self._step.dtypes[0])

    def give(self, fake: Tensor, asked: Callable[[int], None]) -> None:
        """G's samples were made elsewhere.

        Args:
            fake: the samples.
            asked: called when somebody asks for them, with the passes of G that have been before.
        """
        self._given = fake, asked

    @property
    def heads(self) -> tuple[Heads, Tensor]:
        """The `fastgan.nn.Heads` that `fake` went through, and its logits [b, columns].

        ValueError if there is none, or more than one.
        """
        self.fake  # noqa: B018
        if self._given is not None:
            raise CannotRun("shared_fakes: D's loss asks for step.heads, which are made elsewhere")
        found = (self._shared or self)._heads
        if len(found) != 1:
            raise ValueError(
                f"G's samples went through {len(found)} modules fastgan.nn.Heads; expected "
                "one, which torch.compile has not compiled"
            )
        heads, logits = found[0]
        return heads, logits.detach() if self.player == "d" else logits

    @cached_property
    def G(self) -> Network:
        """The generator."""
        return Network(self, 1, self._step.problem.generator)

    @cached_property
    def D(self) -> Network:
        """The discriminator; ``D["name"]`` of a dict of modules."""
        return Network(self, 0, self._step.problem.discriminator)

    @property
    def discriminator(self) -> nn.Module:
        """The discriminator itself, to look at; call `D`."""
        return self._step.problem.discriminator

    @property
    def generator(self) -> nn.Module:
        """The generator itself, likewise."""
        return self._step.problem.generator

    @property
    def data(self) -> Data:
        """What the batch is drawn from."""
        return self._step.problem.data

    def once(self, question: Callable[[nn.Module, nn.Module], Any]) -> Any:
        """What a function says of the generator and the discriminator, asked once in many steps.

        Between two askings nothing but a step is done with them.
        """
        answers = self._step.answers
        if question not in answers:
            answers[question] = question(self.generator, self.discriminator)
        return answers[question]

    @property
    def plain(self) -> bool:
        """Whether a method may compute by itself, from the networks' weights, what it returns.

        Their passes are then neither traced, nor in another precision, nor of a part of a batch.
        """
        step, p = self._step, self._step.problem
        other = p.precision != "fp32" or torch.is_autocast_enabled(p.device.type)
        return not (other or step.traces) and p.world.size == 1 and p.config.accumulate == 1

    def given_d(self, samples: Tensor, condition: Any = None) -> tuple:
        """What D is called with: the samples, and the condition if there is one and D takes it."""
        return conditions.arguments(self._step.problem, 0, samples, condition)

    def normal(self, *shape: int) -> Tensor:
        """Standard normals [b, *shape], the same in every engine and after a resume."""
        return self._step.draws.normal(self._own_stream(), self._counter, (self._size, *shape))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1], [b, *shape], likewise."""
        return torch.special.ndtr(self.normal(*shape))

    def _own_stream(self) -> int:
        self._draws += 1
        return METHOD_STREAM + len(PLAYERS) * self._draws + PLAYERS.index(self.player)

    def all_rows(self, x: Tensor) -> Tensor:
        """The rows of all ranks, for what is no mean over rows: moments of the batch, say.

        Each rank computes the same from them, and a gradient reaches the rank that has the row. It
        is called by every rank, and not in a compiled update of several. Of a batch in parts
        (`accumulate`), those of the part.

        Args:
            x: this rank's, [b, ...].
        """
        return self._step.all_rows(x, self._size)

    def augment(self, samples: Tensor, *others: Tensor) -> Any:
        """Samples as the setting `augment` changes them, and images that belong to them.

        A call of `D`, or of a method of D, does that by itself; this is for what else is called
        with samples, such as D's first layer.
        """
        images = (samples, *others)
        augmentation = self._step.problem.augmentation
        if augmentation is not None:
            normals = partial(self._step.draws.normal, self._own_stream(), self._counter)
            images = augmentation.of_arguments(
                images, tuple(samples.shape[1:]), self._size, normals
            )
        return images if others else images[0]

    # --- scores and penalties --------------------------------------------------------------------

    def score(self, samples: Tensor, condition: Any = None) -> Tensor:
        """D's score of each sample, float32 [b], as the run's loss takes them.

        Of n samples together where D judges packs: [b / n]. A final Sigmoid of D is left out where
        the loss works on logits.

        Args:
            samples: [b, *shape].
            condition: what D is given beside them, if it takes it.
        """
        number = self._calls[0]
        scores = self._step.score(self, samples, condition)
        self._scored.append((scores, condition, number))
        return scores

    def penalty(self, which: str | losses.Penalty) -> Tensor:
        """A penalty on the slope of D's score, to be added to D's loss, if it is due: a scalar.

        Args:
            which: as the setting `penalties`, such as "r1", "wgan-gp:10" or "r1:10:16". One that
                is lazy asks for the number of the update.
        """
        (penalty,) = losses.penalties(which)
        if penalty.every > 1 and not penalty.due(self.update):
            return torch.zeros((), device=self.real.device)
        condition = self.fake_cond if penalty.at == "fake" else self.cond
        pack = self._pack()
        points = self.points(penalty.at, self.real, self.fake, pack)
        scores = self.score(points, condition)
        if penalty.at in ("between", "around") and rows_of(scores, len(points)) != pack:
            raise ValueError(
                f"penalty({which!r}): D has one score for {rows_of(scores, len(points))} samples "
                "together, which have one place between; have D judge step.real before the penalty"
            )
        return self.penalty_of(penalty, scores, points)

    def _pack(self) -> int:
        """How many samples one of D's scores is of, as far as the update has seen any."""
        first = self._scored[0][0] if self._scored else self.scores[0]
        if first is None or first.shape not in ((first.numel(),), (first.numel(), 1)):
            return 1
        return rows_of(first, len(self.real))

    def penalty_of(self, penalty: losses.Penalty, scores: Tensor, points: Tensor) -> Tensor:
        """The same at points, requiring gradients, that D has scored by `score`."""
        if penalty.sigma:
            return penalty.value_nearby(scores, self._nearby(penalty, scores, points))
        self.narrow = True
        with (
            self._step.in_backward(),
            reentrant.told(
                f"penalty {penalty.name!r} on the discriminator's slope",
                "take a penalty by differences, such as 'approximate-r1'",
            ),
        ):
            return penalty.value(scores, points, self._step.scale_of_d())

    def _nearby(self, penalty: losses.Penalty, scores: Tensor, points: Tensor) -> Tensor:
        """D's scores a little beside points, in a pass with the masks of that on these."""
        condition, number = next((c, n) for s, c, n in self._scored if s is scores)
        stream = Stream.NEARBY + losses.PLACES.index(penalty.at)
        shape = (self._size, *points.shape[1:])
        noise = self._step.draws.normal(stream, self._counter, shape).to(points.dtype)
        before, self._calls[0] = self._calls[0], number
        try:
            near = torch.add(points.detach(), noise, alpha=penalty.sigma)
            return self._step.score(self, near, condition)
        finally:
            self._calls[0] = before

    def points(self, at: str, real: Tensor, fake: Tensor, pack: int = 1) -> Tensor:
        """Where a penalty looks at D's slope, [b, *shape], requiring gradients.

        Args:
            at: "real" or "fake"; "between": on the lines between them; "around": real + alpha * 0.5
                * spread * noise, with alpha [b] and noise uniform in [0, 1] and the spread the
                standard deviation of all numbers in `real`.
            real: samples [b, *shape].
            fake: likewise.
            pack: samples that have one score together, and one place or alpha: that which its
                first sample would have. Default 1.
        """
        if at in ("real", "fake"):
            return (real if at == "real" else fake).detach().requires_grad_()
        real, ones = real.detach(), [1] * (real.dim() - 1)
        if at == "between":
            eps = first_of_each(self._uniform(PENALTY_STREAM).to(real.dtype), pack)
            eps = eps.view(-1, *ones)
            return torch.lerp(fake.detach().to(real.dtype), real, eps).requires_grad_()
        drawn = self._uniform(AROUND_STREAM, 1 + real[:1].numel()).to(real.dtype)
        alpha = first_of_each(drawn[:, 0], pack).view(-1, *ones)
        noise = drawn[:, 1:].reshape(real.shape) * alpha
        return (real + 0.5 * real.std(correction=0) * noise).requires_grad_()

    def _uniform(self, stream: int, *shape: int) -> Tensor:
        normals = self._step.draws.normal(stream, self._counter, (self._size, *shape))
        return torch.special.ndtr(normals)

    # --- what it is told -------------------------------------------------------------------------

    def log(self, name: str, value: Tensor | float) -> None:
        """Put a number into the log lines: that of the last step before a line.

        Args:
            name: the line's key.
            value: a number, or a tensor with one; it is kept without its gradient.
        """
        if not isinstance(value, Tensor):
            value = torch.tensor(float(value), device="cpu")
        known = (*statistics.NAMES, *statistics.MEASURE_NAMES, "step", "epoch")
        if name.removesuffix("_mean") in known:
            raise ValueError(f"log({name!r}): log lines have that already; use another name")
        if value.numel() != 1:
            raise ValueError(f"log({name!r}): a tensor {list(value.shape)}; expected one number")
        self.logged[str(name)] = value.detach().reshape(())

    def report(
        self, loss: Tensor, on_real: Tensor | None = None, on_fake: Tensor | None = None
    ) -> None:
        """Say what D's loss is without what was added to it, and D's scores, for the statistics."""
        self.reported = loss.detach()
        self.scores = [s if s is None else s.detach() for s in (on_real, on_fake)]

    # --- calls -----------------------------------------------------------------------------------

    def call(self, which: int, function: Any, *args: Any, **kwargs: Any) -> Any:
        """A pass of a network (0: D, 1: G), in the run's precision."""
        number = self._calls[which]
        self._calls[which] += 1
        return self._step.call(
            which, pass_number(self.player, which, number), self._counter, self._size,
            function, args, kwargs,
        )  # fmt: skip

    def seen(self, samples: object, score: object) -> None:
        """Note what D makes of the two batches, for the statistics."""
        if self.player != "d" or not isinstance(score, Tensor):
            return
        for i, batch in enumerate((self.real, self.__dict__.get("fake"))):
            if samples is batch and self.scores[i] is None:
                self.scores[i] = score.detach()


_NUMBERS = {("d", 0): (0, 1, 5), ("d", 1): (3,), ("g", 0): (2, 6), ("g", 1): (4,)}
"""Passes of the plain games: D on real, on fake, between; D for G, and on real for G; G."""


def pass_number(player: str, which: int, call: int) -> int:
    """The number that tells the dropout masks of a pass apart.

    Args:
        player: whose update.
        which: 0 for D, 1 for G.
        call: how many calls of that network the update has had.
    """
    known = _NUMBERS.get((player, which), ())
    if call < len(known):
        return known[call]
    return 8 + (call * len(PLAYERS) + PLAYERS.index(player)) * 2 + which
