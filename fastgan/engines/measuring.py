"""What a measured step adds up beside its work; no number of the step depends on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgan import sharded, torch_private
from fastgan.statistics import SCORE_SUMS, SUMS

if TYPE_CHECKING:
    from fastgan.engines.updates import Update
    from fastgan.problem import Problem

_OF_NETWORK = (len(SUMS) - SCORE_SUMS) // 2


class Measuring:
    """The sums of a step, in PyTorch operations that wait for no device.

    Attributes:
        on: whether the step at hand is measured.
    """

    def __init__(self, problem: Problem, updates: tuple[Update, Update]):
        """Of a problem, whose D and G are moved by these."""
        self.on = False
        self._updates = updates
        loss = problem.loss
        self._middle = math.nan if loss is None else loss.threshold
        self._device = problem.device
        self._scores: Tensor | None = None
        self._scoring = False
        self._networks: list[Tensor | None] = [None, None]

    def begin(self) -> None:
        """A step begins."""
        self._scores, self._networks = None, [None, None]

    def score(self, weight: float, scores: Sequence[Tensor | None]) -> None:
        """D's scores of the real and of the fake samples in a part of a batch, by its weight."""
        if not self._scoring:
            return
        with torch.no_grad():
            on_real, on_fake = scores
            found = torch.cat([self._of_batch(on_real, 1), self._of_batch(on_fake, -1)]) * weight
            self._scores = found if self._scores is None else self._scores + found

    @contextmanager
    def of(self, *players: int, last: bool = True) -> Iterator[None]:
        """The update of D (0), G (1) or both that is done meanwhile, if it is the step's last."""
        if not (self.on and last):
            yield
            return
        gauges = [(player, Gauge()) for player in players]
        try:
            for player, gauge in gauges:
                self._updates[player].gauge = gauge
            self._scoring = players == (0,)
            yield
        finally:
            self._scoring = False
            for player in players:
                self._updates[player].gauge = None
        for player, gauge in gauges:
            self._networks[player] = gauge.sums()

    def sums(self) -> Tensor:
        """Of a step that was measured: [len(SUMS)], of this rank's rows; NaN what it has not."""
        scores = self._scores
        parts = [self._nan(SCORE_SUMS) if scores is None else scores]
        for found in self._networks:
            parts.append(self._untrained() if found is None else found.to(parts[0].dtype))
        return torch.cat([part.to(self._device) for part in parts])

    def _of_batch(self, scores: Tensor | None, sign: int) -> Tensor:
        if scores is None:
            return self._nan(SCORE_SUMS // 2)
        wide = scores.reshape(-1).to(wide_on(self._device))
        right = torch.full_like(wide, math.nan)
        if not math.isnan(self._middle):
            right = (sign * (wide - self._middle) > 0).to(wide.dtype)
        return torch.stack([right, wide, wide.square()]).mean(1)

    def _nan(self, n: int) -> Tensor:
        return torch.full((n,), math.nan, dtype=wide_on(self._device), device=self._device)

    def _untrained(self) -> Tensor:
        found = self._nan(_OF_NETWORK)
        found[-1:].zero_()
        return found


class Gauge:
    """Of one network, what its update is made of and what it does."""

    def __init__(self):
        """Nothing is known before `look`."""
        self._weights: list[Tensor] = []

    @torch.no_grad()
    def look(self, weights: Iterable[Tensor], scale: Tensor | None, *, reads: bool) -> None:
        """Before weights are moved, and their gradients are clipped.

        Args:
            weights: of the optimiser.
            scale: by which the loss was multiplied.
            reads: the host may read numbers of the CPU.
        """
        moved = list({id(w): w for w in weights if w.grad is not None}.values())
        if not moved:
            return
        grads = [w.grad.coalesce().values() if w.grad.is_sparse else w.grad for w in moved]
        self._weights = [w.detach() for w in moved]
        self._before = [w.clone() for w in self._weights]
        self._reads = reads and all(w.device.type == "cpu" for w in self._weights)
        norm = _norm(grads)
        self._bad = self._count(grads, norm)
        self._gradient = _wide(norm) if scale is None else _wide(norm) / _wide(scale)

    @torch.no_grad()
    def sums(self) -> Tensor | None:
        """After that: [4] as in `statistics.SUMS`; None where nothing had a gradient."""
        if not self._weights:
            return None
        weight = _norm(self._before)
        torch_private.subtract_from_all(self._before, self._weights)
        update = _norm(self._before)
        bad = self._bad + self._count(self._weights, weight + update)
        squares = torch.stack([self._gradient, _wide(update), _wide(weight)]).square()
        return torch.cat([squares, bad.to(squares.dtype).view(1)])

    def _count(self, tensors: list[Tensor], norm: Tensor) -> Tensor:
        """How many numbers are not finite: none, if their norm is."""
        nothing = torch.zeros((), dtype=torch.int64, device=norm.device)
        if self._reads and math.isfinite(norm):
            return nothing
        bad = [sharded.whole((~t.isfinite()).sum()).to(norm.device) for t in tensors]
        return torch.stack(bad).sum() if bad else nothing


def wide_on(device: torch.device) -> torch.dtype:
    """float64, where a device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _norm(tensors: list[Tensor]) -> Tensor:
    """Of all together; of divided ones with what the other ranks have of them."""
    divided = [t for t in tensors if sharded.is_part(t)]
    if not divided:
        return nn.utils.get_total_norm(tensors)
    own = [t for t in tensors if not sharded.is_part(t)]
    norms = [sharded.whole(nn.utils.get_total_norm(some)) for some in (divided, own) if some]
    return torch.stack(norms).norm()


def _wide(x: Tensor) -> Tensor:
    return x.to(wide_on(x.device))
