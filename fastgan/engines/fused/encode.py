"""Writes the plan of a pair of networks in the order in which csrc/step/decode.h reads it."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastgan.engines.fused import rules
from fastgan.engines.fused.activations import ACTIVATIONS
from fastgan.engines.fused.chain import NORMS, Chain, Layer
from fastgan.engines.fused.heads import KINDS as HEADS
from fastgan.engines.fused.heads import Ends
from fastgan.engines.fused.inputs import KINDS, OWN
from fastgan.engines.fused.nodes import KINDS as JOIN_KINDS
from fastgan.engines.fused.support import (
    LOSS_NUMBERS,
    PENALTY_PLACES,
    averages,
    penalty_form,
)
from fastgan.engines.fused.terms import KINDS as TERMS
from fastgan.engines.fused.terms import named
from fastgan.engines.scores import batch_sizes
from fastgan.latents import Uniform

if TYPE_CHECKING:
    from fastgan.problem import Problem
    from fastgan.terms import Term


_NEVER = (1 << 63) - 1
"""More updates than there are."""


class Plan(NamedTuple):
    """What a step is told besides the tensors that it works on."""

    integers: Tensor
    """int64: shapes, options, and places in `state`."""
    reals: Tensor
    """float64: slopes, rates of decay and the like."""
    state: list[Tensor]
    """Weights, moments, counters, averages and statistics of BatchNorm, where they are."""
    written: list[Tensor]
    """Those of them that a user's own autograd may know."""


class PlanEncoder:
    """Writes a plan, number after number."""

    def __init__(self):
        """Begin with nothing."""
        self._integers: list[int] = []
        self._reals: list[float] = []
        self._state: list[Tensor] = []
        self._written: list[Tensor] = []
        self._kept: dict[Tensor, rules.Kept] = {}

    def encode(self, problem: Problem, g: Chain, d: Chain) -> Plan:
        """The plan of a problem whose networks are these chains.

        Parameters that have no optimiser state yet get it, as torch makes it at the first step.
        """
        p = problem
        self._integers += [
            g.width,
            d.width,
            batch_sizes(p)[0],
            p.d_steps,
            LOSS_NUMBERS[p.loss.name],
            p.seed - (1 << 64) if p.seed >= 1 << 63 else p.seed,
            samples_per_epoch(p),
            int(p.precision == "bf16"),
        ]
        self._reals += [1.0 - p.loss.label_smoothing, p.ema_decay]
        clips = (p.config.grad_clip_value, p.config.grad_clip)
        self._network(g, p.optimizer_g, averages(p), (*clips, None))
        self._network(d, p.optimizer_d, {}, (*clips, p.config.weight_clip))
        self._inputs(g, averages(p))
        self._inputs(d, {})
        self._heads(g)
        self._terms(p.terms)
        self._integers += [p.g_steps, int(p.config.shared_fakes), len(p.penalties)]
        for penalty in p.penalties:
            place = PENALTY_PLACES.index(penalty.at)
            self._integers += [penalty_form(penalty), place, min(penalty.every, _NEVER)]
            self._reals.append(penalty.weight)
        warmup = p.config.ema_warmup
        self._reals.append(inf if warmup is None else warmup)
        self._uniforms(p)
        return Plan(
            torch.tensor(self._integers, dtype=torch.int64, device="cpu"),
            torch.tensor(self._reals, dtype=torch.float64, device="cpu"),
            self._state,
            self._written,
        )

    def _place(self, tensor: Tensor) -> int:
        self._state.append(tensor)
        return len(self._state) - 1

    def _tensor(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return -1
        self._written.append(tensor)
        return self._place(tensor)

    def _network(
        self,
        chain: Chain,
        optimizer: torch.optim.Optimizer,
        averages: dict[Tensor, Tensor],
        clips: tuple[float | None, ...],
    ) -> None:
        group = optimizer.param_groups[0]
        rule = rules.rule_of(optimizer)
        self._reals += [*rule.numbers(group), group["weight_decay"]]
        self._reals += [inf if clip is None else clip for clip in clips]
        parameters = chain.parameters
        self._kept |= {p: rules.kept(rule, optimizer, p) for p in parameters}
        steps = [self._place(self._kept[p].step) for p in parameters]
        self._integers += [rule.number, len(steps), *steps, len(chain.layers)]
        self._joins(chain)
        for layer in chain.layers:
            self._layer(layer, averages)

    def _joins(self, chain: Chain) -> None:
        self._integers.append(len(chain.joins))
        for join in chain.joins:
            kind = JOIN_KINDS.index(join.kind)
            self._integers += [join.before, kind, len(join.nodes), *join.nodes]
        others = [(n, layer.source) for n, layer in enumerate(chain.layers) if layer.source != n]
        self._integers += [len(others), *(i for pair in others for i in pair)]

    def _layer(self, layer: Layer, averages: dict[Tensor, Tensor]) -> None:
        drop, norm = layer.dropout, layer.norm
        self._integers += [
            layer.linear.out_features,
            ACTIVATIONS.index(layer.activation),
            0 if norm is None else NORMS.index(type(norm)),
            int(drop is not None),
            0 if drop is None else round((1.0 - drop.p) * 65536),
            layer.dropout_index,
        ]
        batch_norm = layer.batch_norm
        momentum = -1.0 if batch_norm is None or norm.momentum is None else norm.momentum
        self._reals += [layer.slope, 0.0 if norm is None else norm.eps, momentum]
        for p in layer.parameters:
            self._parameter(p, averages)
        if batch_norm is None or norm.running_mean is None:
            self._integers += [-1] * 6
            return
        kept = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
        self._integers += [self._tensor(t) for t in kept]
        self._integers += [self._tensor(averages.get(t)) for t in kept]

    def _parameter(self, p: Tensor | None, averages: dict[Tensor, Tensor]) -> None:
        if p is None:
            self._integers += [-1] * 4
            return
        kept = self._kept[p]
        self._integers += [
            self._tensor(p),
            self._place(kept.first),
            self._place(kept.second),
            self._tensor(averages.get(p)),
        ]

    def _inputs(self, chain: Chain, averages: dict[Tensor, Tensor]) -> None:
        columns = chain.inputs.columns
        widths = [0 if part is OWN else part.width for part in columns]
        own = columns.index(OWN)
        widths[own] = chain.width // chain.pack - sum(widths)
        self._integers += [chain.pack, sum(widths[:own]), len(columns) - 1]
        for i, part in enumerate(columns):
            if part is OWN:
                continue
            self._integers += [KINDS.index(part.kind), sum(widths[:i]), part.width, part.classes]
            table = None if part.embedding is None else part.embedding.weight
            self._parameter(table, averages)

    def _heads(self, chain: Chain) -> None:
        ends = chain.layers[-1].ends or Ends()
        self._integers += [len(ends.heads), ends.index]
        for head in ends.heads:
            kind, activation = HEADS.index(head.kind), ACTIVATIONS.index(head.activation)
            self._integers += [kind, activation, head.width, int(head.hard), int(head.asked)]
            self._reals.append(head.by)

    def _uniforms(self, problem: Problem) -> None:
        at, found = 0, []
        for _, part in problem.latent.parts:
            if isinstance(part, Uniform):
                found.append((at, part))
            at += part.width
        self._integers.append(len(found))
        for at, part in found:
            self._integers += [at, part.width]
            self._reals += [part.low, part.high - part.low]

    def _terms(self, terms: tuple[Term, ...]) -> None:
        self._integers += [len(terms), *(TERMS.index(named(term)) for term in terms)]
        self._reals += [term.weight for term in terms]


def samples_per_epoch(problem: Problem) -> int:
    """Samples that an epoch uses: without the last ones where they are dropped."""
    p = problem
    if not p.drop_last:
        return len(p.data)
    return min(len(p.data), p.data.batches_per_epoch(p.batch_size, True) * p.batch_size)
