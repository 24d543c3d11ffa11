"""The fused engine: whole steps of two multilayer perceptrons in C++, with no autograd in between.

What is here serves the CPU, and the plan and the tables of a run serve both devices; the rest of
the road on a GPU is in cuda.py.

The networks' own tensors are worked on where they are. Nothing is packed before a run or copied
back after it, so what a user reads between two runs is what the last step left.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import nan
from typing import TYPE_CHECKING

import torch
from torch import Tensor, get_num_threads
from torch.autograd.graph import increment_version

from fastgan import random
from fastgan.engines import turns
from fastgan.engines.base import Engine
from fastgan.engines.draws import batch_of
from fastgan.engines.fused import plan
from fastgan.engines.fused.activations import functions
from fastgan.engines.fused.chain import Chain
from fastgan.engines.fused.conditions import Conditions
from fastgan.engines.fused.encode import PlanEncoder, samples_per_epoch
from fastgan.engines.fused.ranks import RanksStep
from fastgan.engines.fused.support import chains, rate
from fastgan.engines.snapshot import Snapshot
from fastgan.engines.updates import learning_rate_factors
from fastgan.statistics import SUMS, measures_of, table

if TYPE_CHECKING:
    from fastgan.problem import Problem

KEPT_ORDER = 1 << 22
"""Entries of permutations that one call of the operator may take: what bounds a call, besides n."""


class FusedEngine(Engine):
    """Runs a pair of MLPs on the CPU, any number of steps per call.

    What fits is described in `fastgan.engines.fused.plan`. Adam and AdamW, the losses of
    `LOSS_NUMBERS`, penalties of `PENALTY_FORMS` (fp32, no BatchNorm in D), bounds of gradients and
    of D's weights, an average of the generator, learning-rate schedules and any batch size are part
    of the step. The number of threads is torch.get_num_threads(); it does not change a bit of the
    results.
    """

    name = "fused"
    beside = True
    measures = True
    """Whether it measures a step that it is asked to."""

    def __new__(cls, problem: Problem):
        """The engine of the problem's device."""
        if cls is FusedEngine and problem.device.type == "cuda":
            from fastgan.engines.fused.cuda import FusedCudaEngine

            cls = FusedCudaEngine
        return super().__new__(cls)

    def __init__(self, problem: Problem):
        """Read the networks and lay out the working memory; CannotRun if they have no plan."""
        super().__init__(problem)
        self._orders: dict[int, Tensor] = {}
        self._sums: Tensor | None = None
        self._memory: Tensor | None = None
        self._memory_key: tuple | None = None
        self._rates: tuple[tuple[float, float], Tensor | None] = ((nan, nan), None)
        self._conditions: Conditions | None = None
        self._prepare()

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """The reason why the problem has no fused form, or None."""
        try:
            chains(problem)
        except plan.NoPlan as reason:
            return str(reason)
        return None

    def describe(self) -> str:
        """Shapes, precision, instruction set, threads and working memory in one line."""
        threads = get_num_threads()
        precision = self.problem.precision
        isa = torch.ops.fastgan.fused_products(precision)
        size = self.problem.world.size
        ranks = f"gradients summed over {size} ranks, " if size > 1 else ""
        return (
            f"whole steps in C++, {ranks}{self._shapes()}, {precision}, {isa}, "
            f"{threads} thread{'s' * (threads > 1)}, {self.memory_bytes() / 2**20:.1f} MB of "
            "working memory"
        )

    def _shapes(self) -> str:
        def widths(chain: Chain) -> str:
            outs = [layer.linear.out_features for layer in chain.layers]
            joins = len(chain.joins)
            with_joins = f" with {joins} join{'s' * (joins > 1)}" if joins else ""
            return "-".join(map(str, [chain.width, *outs])) + with_joins

        return f"G {widths(self._g)}, D {widths(self._d)}"

    def memory_bytes(self) -> int:
        """Bytes the engine holds besides the networks, their optimisers and the samples."""
        return torch.ops.fastgan.fused_memory(*self._plan[:2], get_num_threads())

    def run(self, n: int) -> Tensor:
        """Do n steps; see `Engine.run`."""
        if n < 0:
            raise ValueError(f"n is {n}; expected a number of steps, 0 or more")
        p = self.problem
        statistics = table(n, p.device)
        done, self.unreported = 0, statistics[:0]
        self.measured = self._sums = None
        measuring = self.measuring and self.measures and n > 0
        try:
            self._wake()
            self._refresh()
            self._forget_gradients()
            while done < n:
                if p.world.size > 1:
                    wanted = (measuring or p.terms) and done + 1 == n
                    self._sums = self._no_sums() if wanted else None
                    self._step_of_ranks(statistics[done])
                    done += 1
                    continue
                if p.data.resident:
                    images = p.data.samples
                    order, count = self._order(n - done)
                else:
                    images, order, count = self._fed(), None, 1
                    self._refresh()  # a user's code has run meanwhile
                wanted = (measuring or p.terms) and done + count == n
                self._sums = self._no_sums() if wanted else None
                self._run(images, order, count, statistics[done : done + count])
                done += count
        except BaseException:
            # What may fail, a user's schedule and data among it, comes before the steps, but for a
            # step of several ranks.
            whole = self._ranks is None or self._ranks.whole
            self.unreported = statistics[:done] if whole else None
            raise
        if self._sums is not None:
            values = self._sums[len(SUMS) :].float()
            self.logged = {t.name: x for t, x in zip(p.terms, values, strict=True)}
            self.measured = measures_of(self._sums[: len(SUMS)]) if measuring else None
        return statistics

    def profile(self, n: int) -> list[tuple[str, float, float, float]]:
        """Do n steps and time them.

        Returns:
            for each phase of a step (name, floating-point operations of its products, seconds at
            work, seconds waiting for the other threads), the last two of the first thread and
            averaged over the steps.
        """
        p = self.problem
        self._check_profile(n)
        names = self._phases()
        times = torch.zeros(len(names), 2, dtype=torch.float64, device="cpu")
        done, self._sums = 0, None
        while done < n:
            order, count = self._order(n - done)
            self._run(p.data.samples, order, count, table(count), times)
            done += count
        times /= n
        return [(name, work, *row) for (name, work), row in zip(names, times.tolist(), strict=True)]

    def _check_profile(self, n: int) -> None:
        """Refuse what cannot be timed, and read anew what has changed."""
        if n < 1:
            raise ValueError(f"n is {n}; expected at least 1 step")
        if (size := self.problem.world.size) > 1:
            raise ValueError(f"profile() times the step of one process, and there are {size}")
        if not self.problem.data.resident:
            raise ValueError("profile() takes samples in memory; these are read as needed")
        self._refresh()

    def close(self) -> None:
        """Give the working memory back."""
        self._memory = self._memory_key = None
        self._orders.clear()

    # --- the plan --------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Read anew what has changed since the plan was made."""
        if self._taken is None or self._taken.difference() is not None:
            self._prepare()

    def _prepare(self) -> None:
        """Read the networks and the settings, and look at all that they were read from."""
        p = self.problem
        self._taken: Snapshot | None = None  # if it fails, the next run reads everything anew
        self._g, self._d = chains(p)
        self._plan = PlanEncoder().encode(p, self._g, self._d)
        self._ranks, fed = None, self._conditions
        self._conditions = None
        if self._g.inputs.parts or self._d.inputs.parts:
            self._conditions = Conditions(p, fed)
        if p.world.size > 1:
            self._ranks = RanksStep(p, self._plan, self._g, self._d)
        self._lay_out()
        self._taken = Snapshot(
            {"generator": p.generator, "discriminator": p.discriminator, "ema": p.ema},
            {"optimizer_g": p.optimizer_g, "optimizer_d": p.optimizer_d},
            states=True,
            also=functions,
        )

    def _lay_out(self) -> None:
        """Make of the plan what the steps are run with; on the CPU it is that already."""

    def _memory_for(self, threads: int) -> Tensor:
        if self._memory_key is None or (
            self._memory_key[0] is not self._plan or self._memory_key[1] != threads
        ):
            self._memory = _zeros(self.memory_bytes())
            self._memory_key = self._plan, threads
        return self._memory

    # --- a run -----------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Let the threads of a run that comes at once wake up while Python prepares it."""
        torch.ops.fastgan.fused_wake(get_num_threads())

    def _run(
        self,
        images: Tensor,
        order: Tensor | None,
        n: int,
        statistics: Tensor,
        profile: Tensor | None = None,
    ) -> None:
        rates = self._learning_rates(n)
        threads = get_num_threads()
        memory = self._memory_for(threads)
        given = self._given(n)
        # What autograd has saved of these before is out of date now, and must say so. Before the
        # steps, which leave little of anything else in the caches.
        increment_version(self._plan.written)
        with turns.aside():
            torch.ops.fastgan.fused_run(
                *self._plan[:3],
                memory,
                images,
                order,
                rates,
                statistics,
                profile,
                self.step,
                threads,
                *given,
                self._sums,
            )
        self.step += n

    def _given(self, n: int) -> tuple[Tensor | None, Tensor | None]:
        """Conditions for the next n steps, as the operators take them."""
        if self._conditions is None:
            return None, None
        return self._conditions.of_steps(self.step, n)

    def _forget_gradients(self) -> None:
        """What a program's own backward pass has left would be added to in its next one."""
        for optimizer in (self.problem.optimizer_g, self.problem.optimizer_d):
            for group in optimizer.param_groups:
                for w in group["params"]:
                    w.grad = None

    def _step_of_ranks(self, row: Tensor) -> None:
        p = self.problem
        rates = self._learning_rates(1).view(2)
        if p.data.resident:
            images, order = [p.data.samples] * p.d_steps, self._order(1)[0]
        else:
            images, order = self._batches(), None
            self._refresh()
        memory = self._memory_for(get_num_threads())
        given = self._given(1)
        increment_version(self._plan.written)
        with turns.aside():
            self._ranks(self.step, memory, images, order, rates, row, self._sums, given)
        self.step += 1

    def _learning_rates(self, n: int) -> Tensor:
        """Of the next n steps; asked for before anything that _refresh() may replace is used."""
        p = self.problem
        rates = rate(p.optimizer_d, "optimizer_d"), rate(p.optimizer_g, "optimizer_g")
        if rates != self._rates[0]:  # making a tensor takes as long as half a small step
            self._rates = rates, torch.tensor(rates, dtype=torch.float64, device="cpu")
        base = self._rates[1]
        if p.lr_schedule is None:
            return base
        factors = [learning_rate_factors(p, t)[::-1] for t in range(self.step, self.step + n)]
        self._refresh()  # a user's code has run meanwhile
        return torch.tensor(factors, dtype=torch.float64, device="cpu") * base

    def _order(self, n: int) -> tuple[Tensor, int]:
        """The permutations for the next steps, at most n, and for how many steps they last."""
        p = self.problem
        per_epoch, used = p.batches_per_epoch, samples_per_epoch(p)
        first = self.step * p.d_steps // per_epoch
        epochs = max(1, KEPT_ORDER // used)
        if self._conditions is not None:
            n = min(n, max(1, KEPT_ORDER // self._conditions.entries))
        # A step is always whole: its updates may reach over the end of the last epoch taken.
        steps = min(n, max(1, ((first + epochs) * per_epoch) // p.d_steps - self.step))
        last = ((self.step + steps) * p.d_steps - 1) // per_epoch
        self._orders = {e: order for e, order in self._orders.items() if first <= e <= last}
        for e in range(first, last + 1):
            if e not in self._orders:
                order = random.permutation(p.seed, e, len(p.data), device=p.device)
                self._orders[e] = order[:used]
        if first == last:
            return self._orders[first], steps
        return torch.cat([self._orders[e] for e in range(first, last + 1)]), steps

    def _fed(self) -> Tensor:
        """The batches of one step."""
        batches = self._batches()
        return batches[0] if len(batches) == 1 else torch.cat(batches)

    def _batches(self) -> list[Tensor]:
        """This rank's rows of the batches of one step, read through the data's own loader."""
        p = self.problem
        batches, conditions = [], []
        for update in range(self.step * p.d_steps, (self.step + 1) * p.d_steps):
            rows = p.world.rows if p.world.size > 1 else None
            batch = batch_of(p, update, rows)
            batches.append(batch.images.float().contiguous())
            conditions.append(batch.condition)
        if self._conditions is not None:
            self._conditions.feed(self.step, conditions)
        return batches

    def _phases(self) -> list[tuple[str, float]]:
        lines = torch.ops.fastgan.fused_phases(*self._plan[:2])
        pairs = (line.split(" ", 1) for line in lines.splitlines())
        return [(name, float(work)) for work, name in pairs]

    def _no_sums(self) -> Tensor:
        """What a step is measured by, and the values of its terms behind."""
        count = len(SUMS) + len(self.problem.terms)
        return torch.zeros(count, dtype=torch.float64, device="cpu")


def _zeros(size: int) -> Tensor:
    """uint8 [size], zeros; on huge pages, where there are any, as a step walks over all of it."""
    flags = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    if not flags:
        return torch.zeros(size, dtype=torch.uint8, device="cpu")
    area = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them: slower by a few per cent
            area.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(area, dtype=torch.uint8)
