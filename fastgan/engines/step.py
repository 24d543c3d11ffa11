"""The alternating step in PyTorch operations, which the engines `eager` and `graph` share.

They differ in where batches and random numbers come from (`Draws`) and in how an optimiser moves
its weights (`Update`): `eager` works with numbers of the host, `graph` with numbers on the device
that a replayed recording finds changed. The rest of a step is written here, once, and does no more
than the step's work: losses from scores, no gradient from D's update into G, none from G's update
into D's weights, and no waiting for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan import sharded
from fastgan.data.batch import Batch
from fastgan.engines import reentrant, sync_norm
from fastgan.engines.average import Average
from fastgan.engines.base import CannotRun
from fastgan.engines.context import PLAYERS, StepContext
from fastgan.engines.convolutions import Convolutions
from fastgan.engines.draws import AUGMENT_STREAM, Counter, Draws
from fastgan.engines.dropout import Masks, forward_replaced
from fastgan.engines.measuring import Measuring
from fastgan.engines.narrow import Narrowed, products_in
from fastgan.engines.packs import as_logits
from fastgan.engines.parts import Means, Part, mean
from fastgan.engines.probe import has_hooks
from fastgan.engines.scores import (
    FinalSigmoid,
    dtype_of,
    final_sigmoid,
    require_scalar,
    trained,
)
from fastgan.engines.shapes import StepShape
from fastgan.engines.snapshot import Snapshot
from fastgan.engines.updates import Update, gradients_forgotten, together, without_gradients
from fastgan.method import LossMethod, name_of
from fastgan.penalties import takes_slopes
from fastgan.terms import ADAPTIVE, Term, adapted

if TYPE_CHECKING:
    from fastgan.problem import Problem

NAN = float("nan")


class Step:
    """One step of a problem, for whatever draws and updates it is given.

    Plain `nn.Dropout` modules draw counter-based masks (see `Masks`); other random layers use
    torch's generator. A sigmoid at D's end is left out when the loss works on logits.

    Attributes:
        whole: whether no step is half done.
        logged: what the method said of the last step, by name: scalars on the device.
        dtypes: of D's and G's weights.
        new: the share of G's weights in their average after a step, as a number or on the device.
        measures: what is added up in a step, if it is to be measured.
        masks: of D and of G: what their dropouts and heads draw.
    """

    traces = False  # True: what is done is recorded, to be compiled

    def __init__(
        self,
        problem: Problem,
        draws: Draws,
        update_d: Update,
        update_g: Update,
        narrow: Narrowed | None = None,
    ):
        """Look at how D ends. Without `narrow` autocast keeps the weights that it casts."""
        self.problem = problem
        self.draws = draws
        self.updates = update_d, update_g
        self.narrow = narrow
        self.whole = True
        self.logged: dict[str, Tensor] = {}
        self._adversarial = True
        self._shared: StepContext | None = None  # D's last update, whose samples G's takes
        self._plays_game = isinstance(problem.method, LossMethod)
        self._cast = problem.precision != "fp32"
        self.masks: list[Masks | None] = [None, None]
        self.measures = Measuring(problem, self.updates)
        self._rows = sync_norm.Rows(problem.world)
        self._convolutions = Convolutions(problem)
        self._look_at_end()

    def describe(self) -> list[str]:
        """What there is to say of the way, in a few words each."""
        parts = [self.problem.precision]
        if self.sigmoid:
            what = "Sigmoid" if isinstance(self.sigmoid, nn.Module) else "sigmoid call"
            parts.append(f"D's final {what} absorbed into the loss")
        return parts + self._convolutions.describe()

    @contextmanager
    def ready(self):
        """For steps: `in_place` meanwhile, and without gradients afterwards."""
        with self.in_place(), gradients_forgotten(self.problem):
            yield

    @contextmanager
    def in_place(self):
        """The networks are as the step wants them meanwhile."""
        p = self.problem
        if self._seen is not None and self._seen.difference():
            self._look_at_end()
        self._convolutions.look()
        trained(p)
        self.answers = {}  # of `StepContext.once`
        # Walking the module trees takes as long as a small layer: once a run, not once a use.
        self.dtypes = dtype_of(p.discriminator), dtype_of(p.generator)
        self._average = None if p.ema is None else Average(p.generator, p.ema)
        self.new = 1.0 - p.ema_decay
        # What D shares with G is trained by G's optimiser, too, as in a plain loop.
        shared = {w for group in p.optimizer_g.param_groups for w in group["params"]}
        self._frozen = [
            w for w in p.discriminator.parameters() if w.requires_grad and w not in shared
        ]
        with ExitStack() as stack:
            for i, network in enumerate((p.discriminator, p.generator)):
                if self.masks[i] is None or not self.masks[i].fits(network):
                    self.masks[i] = Masks(self.draws, network)
                stack.enter_context(self.masks[i].in_place())
                for layer in sync_norm.layers(network) if p.world.size > 1 else ():
                    forward = sync_norm.forward_of(layer, self._rows)
                    stack.enter_context(forward_replaced(layer, forward))
            if isinstance(self.sigmoid, nn.Module):
                stack.enter_context(forward_replaced(self.sigmoid, _unchanged))
            self._hooked = has_hooks(p.discriminator)
            yield

    def __call__(self, shape: StepShape) -> tuple[Tensor, ...]:
        """Do it, inside `ready`.

        Returns:
            the step's statistics, scalars on the device, in the order of `STATISTICS`: D's loss of
            the last of its updates and without penalties, G's likewise, and the means of the scores
            that the former is made of.
        """
        p = self.problem
        self.logged, self._shared = {}, None
        self.measures.begin()
        d_loss = g_loss = None
        trains_d, trains_g = self._trains()
        for k, (size, due) in enumerate(shape):
            counter = Counter(len(shape), k)
            batch = self.draws.batch(counter, size)
            batch = batch._replace(images=batch.images.to(self.dtypes[0]))
            self.whole = False
            last = k + 1 == len(shape)
            if trains_d:
                with self.measures.of(0, last=last):
                    shares = p.config.shared_fakes and last and trains_g
                    d_loss, *scores = self._update("d", counter, size, batch, due, shares=shares)
                    self._after_d(size, *scores[2:])
        for k in range(p.g_steps if trains_g else 0):
            with self.measures.of(1, last=k + 1 == p.g_steps):
                shares = p.config.shared_fakes and k == 0 and trains_d
                (g_loss,) = self._update("g", Counter(p.g_steps, k), size, batch, shares=shares)
                self._shared = None
        if hasattr(p.method, "joint_loss"):
            with self.measures.of(0, 1):
                self._update("joint", Counter(1, 0), size, batch)
        if self._average is not None:
            self._average.update(self.new)
        self.whole = True
        if d_loss is None:
            scores = [torch.full_like(g_loss, NAN)] * 2
        # The loss of a network that is not trained yet is 0.
        d_loss, g_loss = (
            torch.zeros_like(other) if loss is None else loss
            for loss, other in ((d_loss, g_loss), (g_loss, d_loss))
        )
        return d_loss, g_loss, *scores[:2]

    def _trains(self) -> tuple[bool, bool]:
        """Whether the step trains D and G."""
        config = self.problem.config
        if config.d_start or config.g_start:
            step = self.draws.host_step
            self._adversarial = step >= config.d_start
            return self._adversarial, step >= config.g_start
        return True, True

    def _update(
        self, player: str, counter: Counter, size: int, batch: Batch, due: tuple[bool, ...] = (),
        *, shares: bool = False,
    ) -> list[Tensor]:  # fmt: skip
        """One update of D, of G or of both; the statistics that it has.

        `shares`: an update of D and the one of G after it have the same samples of G's.
        """
        p, means = self.problem, Means()
        own = self.updates if player == "joint" else [self.updates[PLAYERS.index(player)]]
        with self._alone(player):
            for part in self._parts(size):
                rows = batch if part.whole else self.draws.of_part(batch, size)
                context = self._context(player, counter, size, rows, due, shares=shares)
                loss, found = self._evaluated(context)
                with self.in_backward():
                    if part.first:
                        for update in own:
                            update.clear()
                    narrow = context.narrow and len(own) == 1  # of one optimiser's weights
                    own[0].add(loss, part.share, narrow=narrow)
                without = (w for update in own for w in update.weights() if w.grad is None)
                for w in self._convolutions.zeros(loss, without):
                    w.grad = torch.zeros_like(w)
                means.add(part.weight, found, context.logged)
                if player == "d":
                    self.measures.score(part.weight, context.scores)
            with self.in_backward():
                if player == "joint":
                    together(own, size)
                else:
                    own[0].use(size)
        if p.divided:  # what was gathered is of before the move
            sharded.put_away(p.discriminator, p.generator)
        self.logged |= means.logged
        return means.found

    def _parts(self, size: int) -> Iterator[Part]:
        """What passes through the networks one after the other; draws are for the part at hand."""
        p = self.problem
        parts = [p.world] if p.config.accumulate == 1 else p.world.parts(size, p.config.accumulate)
        for i, part in enumerate(parts):
            self.draws.part = part
            share = 1.0 if part.size == 1 else part.share(size)
            if len(parts) == 1:
                yield Part(True, True, share, 1.0)
            else:
                yield Part(False, i == 0, share, share / p.world.share(size))

    @contextmanager
    def _alone(self, player: str):
        """D's weights have no gradients in G's update, but for those that G's optimiser trains."""
        with without_gradients(self._frozen if player == "g" else []):
            yield

    def _evaluated(self, context: StepContext) -> tuple[Tensor, list[Tensor]]:
        """What an update minimises, and the statistics that it has."""
        if context.player == "g":
            loss = total = self._loss(context, "g_loss") if self._adversarial else None
            for term in self.problem.terms:
                value = self._term(context, term, loss)
                total = value if total is None else total + value
            return total, [(total if loss is None else loss).detach()]
        loss = self._loss(context, f"{context.player}_loss")
        if context.player == "joint":
            context.log("joint_loss", loss)
            return loss, []
        d_loss = loss.detach() if context.reported is None else context.reported
        found = [d_loss, *(mean(s, d_loss) for s in context.scores)]
        augmentation = self.problem.augmentation
        if augmentation is not None and augmentation.adapts:
            found.append(augmentation.sign(context.scores[0], name_of(self.problem.method)))
        return loss, found

    def _after_d(self, size: int, sign: Tensor | None = None) -> None:
        """What follows an update of D; `sign`: the mean one of its scores of this rank's rows."""
        p = self.problem
        if (largest := p.config.weight_clip) is not None:
            with torch.no_grad():
                for w in p.discriminator.parameters():
                    w.clamp_(-largest, largest)
        if sign is not None:
            sign = p.world.sum_(sign * p.world.share(size)) if p.world.size > 1 else sign
            p.augmentation.look(sign)
            self.logged["augment_p"] = p.augmentation.state[0]

    def _context(
        self, player: str, counter: Counter, size: int, batch: Batch, due: tuple[bool, ...] = (),
        *, shares: bool = False,
    ) -> StepContext:  # fmt: skip
        p, shared = self.problem, self._shared if shares and player == "g" else None
        if self.narrow is not None:
            # The pass that is shared holds what G's weights were cast to.
            self.narrow.begin(None if shared is None else p.generator)
        slopes = takes_slopes(p.penalties, due)
        self._penalised = player != "g" and (slopes or not self._plays_game)
        context = StepContext(
            self, player, counter, size, batch, due, shared, shares and player == "d"
        )
        if shares and player == "d":
            self._shared = context
        return context

    @contextmanager
    def not_penalised(self) -> Iterator[None]:
        """The passes of meanwhile have no second derivative."""
        before, self._penalised = self._penalised, False
        try:
            yield
        finally:
            self._penalised = before

    def _loss(self, context: StepContext, name: str) -> Tensor:
        method = self.problem.method
        loss = getattr(method, name)(context)
        if not self._plays_game:
            loss = require_scalar(loss, name_of(method), name)
        if self._cast:
            # Inside an autocast of the program's the cache would live on, with weights of before.
            torch.clear_autocast_cache()
        return loss

    def _term(self, context: StepContext, term: Term, g_loss: Tensor | None) -> Tensor:
        """A term of G's loss with its weight; it is logged without."""
        value = require_scalar(term.of(context), f"terms[{term.name!r}]", "it")
        context.log(term.name, value)
        if term.weight != ADAPTIVE:
            weight = term.weight(context.number) if callable(term.weight) else term.weight
            return weight * value
        if g_loss is None:  # nothing to keep its slope as long as
            return term.factor * value
        last = [w for w in self.problem.generator.parameters() if w.requires_grad][-1:]
        what = f"terms[{term.name!r}], whose weight is adaptive"
        with self.in_backward(), reentrant.told(what, "give a number as the weight"):
            slopes = [
                torch.autograd.grad(loss, last, retain_graph=True, allow_unused=True)[0]
                for loss in (g_loss, value)
            ]
        if any(slope is None for slope in slopes):
            what = "the adversarial loss" if slopes[0] is None else "the term"
            raise ValueError(
                f"terms[{term.name!r}]: an adaptive weight compares gradients at G's last "
                f"parameter, on which {what} does not depend; give a number as the weight"
            )
        # Every rank weighs by the slopes of the whole batch.
        world, size = self.problem.world, self._rows.size
        slopes = [slope * world.share(size) if world.size > 1 else slope for slope in slopes]
        world.total_(slopes, size)
        return adapted(*slopes) * term.factor * value

    # --- what a context asks for ------------------------------------------------------------------

    def all_rows(self, x: Tensor, size: int) -> Tensor:
        """What all ranks have of a tensor [b, ...]."""
        if self.problem.world.size == 1:
            return x
        if self.traces:
            raise CannotRun("what all ranks have is summed within an update")
        self._rows.size = size
        return sync_norm.whole(x, self.draws.part, self._rows)

    def call(
        self, which: int, number: int, counter: Counter, size: int, function: Any, args: tuple,
        kwargs: dict,
    ) -> Any:  # fmt: skip
        """A pass of D (0) or G (1), with its masks and in the run's precision."""
        grad = torch.is_grad_enabled()
        self.masks[which].begin(number, counter, size, grad=grad)
        self._rows.size = size
        if which == 0 and self.problem.augmentation is not None and self._is_whole(function):
            args = self._augmented(AUGMENT_STREAM + number, counter, size, args)
        with products_in(self.problem, self.narrow):
            return self._convolutions.call(function, args, kwargs, penalised=self._penalised)

    def _augmented(self, stream: int, counter: Counter, size: int, args: tuple) -> tuple:
        p = self.problem
        normals = partial(self.draws.normal, stream, counter)
        return p.augmentation.of_arguments(args, tuple(p.data.shape), size, normals)

    def _is_whole(self, function: Any) -> bool:
        """Whether a call is of D, of one of its methods, or of one of several discriminators."""
        d = self.problem.discriminator
        owner = getattr(function, "__self__", function)
        return owner is d or (isinstance(d, nn.ModuleDict) and any(owner is m for m in d.values()))

    def score(self, context: StepContext, samples: Tensor, condition: Any) -> Tensor:
        """What the loss is computed from: D's scores, [b], without a sigmoid that it absorbs."""
        d = self.problem.discriminator
        args = context.given_d(samples.to(self.dtypes[0]), condition)
        if not self._plays_game or (self.sigmoid != "function" and not self._hooked):
            return as_logits(context.call(0, d, *args), len(samples))
        with FinalSigmoid() as trace:
            score = context.call(0, d, *args)
        logits = trace.input_of(score)
        if logits is not None and score.requires_grad and not logits.requires_grad:
            raise ValueError(
                "the discriminator's final sigmoid is called within a reentrant activation "
                "checkpoint, which hides its input; return the logits, use_reentrant=False, or an "
                "nn.Sigmoid instead of a function"
            )
        if self.sigmoid != "function":
            return as_logits(self._of_hooks(score, logits), len(samples))
        if logits is None:
            raise ValueError(
                "discriminator ended in a sigmoid when it was looked at and does not now; return "
                "the logits, without the sigmoid, from every path of its forward"
            )
        return as_logits(logits, len(samples))

    def scale_of_d(self) -> Tensor | None:
        """The factor by which D's loss is scaled for float16."""
        p = self.problem
        if p.scalers is None:
            return None
        return p.scalers[0].scale(torch.ones((), dtype=torch.float32, device=p.device))

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
        if self._plays_game and p.loss.scores == "logits":
            self.sigmoid, volatile = final_sigmoid(p)
            self._seen = Snapshot({"discriminator": p.discriminator}, tensors=False, but=volatile)

    @contextmanager
    def in_backward(self):
        """What recomputes a pass meanwhile draws from torch's generator."""
        for masks in self.masks:
            masks.in_backward = True
        try:
            yield
        finally:
            for masks in self.masks:
                masks.in_backward = False


def _unchanged(x: Tensor) -> Tensor:
    return x
