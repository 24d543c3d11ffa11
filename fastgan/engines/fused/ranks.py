"""The fused engine in several processes: the step in parts, with a sum over the ranks between them.

Each rank computes an update's gradients of its own rows of the batch, drawn as those of the whole
one; they are summed over the ranks, in one tensor with the row of statistics behind them, and every
rank takes the same move. At a BatchNorm an update stops for the sums of all ranks' rows, once
forward and once backward, and once for those of G's output where a term is of its moments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, get_num_threads

from fastgan.engines.fused.terms import named
from fastgan.statistics import SCORE_SUMS, STATISTICS, SUMS

if TYPE_CHECKING:
    from fastgan.engines.fused.chain import Chain
    from fastgan.engines.fused.encode import Plan
    from fastgan.problem import Problem


class RanksStep:
    """One step of the networks of a plan; where a batch's rows and gradients go.

    Attributes:
        whole: whether no step is half done.
    """

    def __init__(self, problem: Problem, plan: Plan, g: Chain, d: Chain):
        """Make room for the gradients of both networks."""
        self.problem, self.whole = problem, True
        self._plan = plan
        self._gradients = [
            torch.empty(_numbers(chain) + len(STATISTICS), dtype=torch.float32, device="cpu")
            for chain in (d, g)
        ]
        self._moments = _moments(problem, g, d)

    def __call__(
        self,
        step: int,
        memory: Tensor,
        images: list[Tensor],
        order: Tensor | None,
        rates: Tensor,
        row: Tensor,
        sums: Tensor | None = None,
        conditions: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        """Do it.

        Args:
            step: its number.
            memory: what the operators work in, of this plan.
            images: of each of D's updates: all samples, or without an order this rank's rows.
            order: permutations from the epoch of the step's first update on.
            rates: float64 [2], of D and G.
            row: float32 [len(STATISTICS)], for the step's statistics.
            sums: float64 [len(SUMS) + terms], for what it is measured by and the values of terms;
                None if it is not.
            conditions: those of the samples, and which of them the fake ones have.
        """
        p = self.problem
        threads = get_num_threads()
        updates = p.d_steps + p.g_steps
        for update in range(updates):
            of_g = update >= p.d_steps
            gradients = self._gradients[of_g]
            last = sums if update >= p.d_steps - 1 else None
            # Of D's last update its scores, of G's last the values of terms.
            parts = last if not of_g or (p.terms and update + 1 == updates) else None
            phase = 0
            while phase := torch.ops.fastgan.fused_gradients(
                *self._plan[:3],
                memory,
                images[-1 if of_g else update],
                order,
                gradients,
                step,
                update,
                p.world.rank,
                p.world.size,
                threads,
                parts,
                phase,
                self._moments,
                *conditions,
            ):
                p.world.gather_(self._moments)
                self.whole = False  # running statistics move from here on
            p.world.sum_(gradients)
            if parts is not None:
                p.world.sum_(parts[len(SUMS) :] if of_g else parts[:SCORE_SUMS])
            self.whole = False
            torch.ops.fastgan.fused_move(
                *self._plan[:3], memory, gradients, rates, update, threads, last, step
            )
            of_update = gradients[-len(STATISTICS) :]
            if not of_g:
                row.copy_(of_update)
            elif update + 1 == updates:
                row += of_update
        self.whole = True


def _numbers(chain: Chain) -> int:
    return sum(p.numel() for p in chain.parameters)


def _moments(problem: Problem, g: Chain, d: Chain) -> Tensor | None:
    """Where sums over the rows wait: two of each feature, of two batches, of every rank.

    Those of a BatchNorm, and of G's output if a term is of its moments.
    """
    norms = [layer.batch_norm for chain in (g, d) for layer in chain.layers]
    widths = [norm.num_features for norm in norms if norm is not None]
    if any(named(term) == "moments" for term in problem.terms):
        widths.append(g.layers[-1].linear.out_features)
    if not widths:
        return None
    ranks = problem.world.size
    return torch.zeros(ranks, 4 * max(widths), dtype=torch.float64, device="cpu")
