"""Samples of earlier steps, for a discriminator that is not to forget them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastgan.plain import whole

if TYPE_CHECKING:
    from fastgan.engines.context import StepContext

__all__ = ["History"]


class History:
    """Some of G's earlier samples, which a method holds and its `d_loss` asks.

    A. Shrivastava et al., "Learning from Simulated and Unsupervised Images through Adversarial
    Training", CVPR 2017; with the rule and the 50 samples of J.-Y. Zhu et al., "Unpaired
    Image-to-Image Translation using Cycle-Consistent Adversarial Networks", ICCV 2017::

        class Game:
            def __init__(self):
                self.history = fastgan.History(50)

            def d_loss(self, step):
                fake = self.history(step, step.fake)

    What it holds is part of a checkpoint, and its choices are functions of seed and step. With
    several ranks each has its own, and a resume starts all with the first one's.
    """

    def __init__(self, size: int = 50):
        """Empty.

        Args:
            size: how many samples it holds. Default 50.
        """
        size_ = whole(size)
        if size_ is None or size_ < 1:
            raise ValueError(f"History: size is {size!r}; expected an integer of at least 1")
        self.size = size_
        self._kept: list[Tensor] = []

    def __len__(self) -> int:
        """How many samples it holds now."""
        return len(self._kept)

    def __call__(self, step: StepContext, samples: Tensor) -> Tensor:
        """Samples to show D in place of these, [b, *shape], without a gradient.

        While there is room each is kept, and shown itself. Then each is shown itself with
        probability 1/2, or else takes the place of one that is held, which is shown.

        Args:
            step: what the method was given.
            samples: G's, [b, *shape].
        """
        self._kept = [one.to(samples.device) for one in self._kept]  # a checkpoint's are elsewhere
        chances = step.uniform(2).tolist()
        shown = samples.detach().clone()
        for i, (chance, place) in enumerate(chances):
            new = samples[i].detach()
            if len(self._kept) < self.size:
                self._kept.append(new.clone())
            elif chance < 0.5:
                at = min(int(place * self.size), self.size - 1)
                shown[i] = self._kept[at]
                self._kept[at] = new.clone()
        return shown

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"samples": torch.stack(self._kept) if self._kept else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back.

        Raises:
            ValueError: it holds more samples than there is room for.
        """
        kept = [] if state["samples"] is None else [*state["samples"].unbind()]
        if len(kept) > self.size:
            raise ValueError(f"History({self.size}) has no room for {len(kept)} samples")
        self._kept = kept
