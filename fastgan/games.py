"""Games that fastgan ships, by the words of the setting `method`: CTGAN's, for tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan import ctgan_gradients
from fastgan.ctgan_gradients import Known
from fastgan.data.rows import Rows
from fastgan.losses import penalties

if TYPE_CHECKING:
    from fastgan.engines.context import StepContext


class TableMethod:
    """CTGAN's losses (L. Xu et al., NeurIPS 2019), for its networks on `fastgan.data.rows.Rows`.

    D judges packs of rows by Wasserstein's loss, with a penalty of its slope between packs of real
    and of fake ones; G also pays the cross-entropy of the category that was asked for.
    """

    name = "ctgan"

    def __init__(self, weight: float = 10.0):
        """With a weight of the penalty."""
        (self._penalty,) = penalties(f"wgan-gp:{weight}")

    def unsuited(self, generator: nn.Module, discriminator: nn.Module, batch: int) -> str | None:
        """Why two networks cannot play it with batches of that size; None if they can."""
        if not hasattr(generator, "activated") or not hasattr(discriminator, "pack"):
            return "is for the networks of model 'ctgan'; leave it out"
        if batch % discriminator.pack:
            return f"needs a batch_size that is a multiple of {discriminator.pack}, rows of a pack"
        return None

    def d_loss(self, step: StepContext) -> Tensor:
        """How far D tells the packs apart, and its slope."""
        pack, written = step.discriminator.pack, _is_written(step)
        with torch.no_grad():
            fake = _made(step, _category(step)).rows if written else self._fake(step)[0]
        # One place on the line between two packs, and one slope over all that a pack has.
        packs = len(fake) // pack
        places = step.uniform(1)[::pack]
        if written:
            masks = tuple(step.D.masks(packs) for _ in range(3))
            found = ctgan_gradients.of_d(
                step.discriminator, step.real, fake, step.cond, masks, places,
                self._penalty.weight,
            )  # fmt: skip
            step.report(found.loss, found.on_real, found.on_fake)
            loss = found.loss + found.penalty
            return Known.apply(loss, found.gradients, *step.discriminator.parameters())
        # Not as one batch, whose rows would be others for every number of ranks.
        on_real, on_fake = (step.D(rows, step.cond) for rows in (step.real, fake))
        loss = on_fake.mean() - on_real.mean()
        step.report(loss, on_real, on_fake)
        between = torch.lerp(fake.view(packs, -1), step.real.reshape(packs, -1), places)
        between.requires_grad_()
        scores = step.D(between.view(len(fake), -1), step.cond)
        return loss + step.penalty_of(self._penalty, scores, between)

    def g_loss(self, step: StepContext) -> Tensor:
        """What D makes of the packs, and the cross-entropy of the categories asked for."""
        if _is_written(step):
            return self._written_g_loss(step)
        fake, logits = self._fake(step)
        loss = -step.D(fake, step.cond).mean()
        if step.cond is None:
            return loss
        asked = surprise(step.G.blocks, logits, step.cond).mean()
        step.log("condition_loss", asked)
        return loss + asked

    def _written_g_loss(self, step: StepContext) -> Tensor:
        d, g, category = step.discriminator, step.generator, _category(step)
        made = _made(step, category)
        masks = step.D.masks(len(made.rows) // d.pack)
        loss, at_rows = ctgan_gradients.against(d, made.rows, step.cond, masks)
        gradients, asked = ctgan_gradients.of_g(g, made, category, at_rows, step.data.groups)
        if asked is not None:
            step.log("condition_loss", asked)
            loss = loss + asked
        return Known.apply(loss, gradients, *g.parameters())

    def _fake(self, step: StepContext) -> tuple[Tensor, Tensor]:
        """G's rows, and the logits that they were made of."""
        logits = step.G.logits(step.z, step.cond)
        return step.G.activated(logits, _noise(step)), logits


def _noise(step: StepContext) -> Tensor | None:
    """What G's choices are drawn by."""
    return step.uniform(step.generator.choices) if step.generator.choices else None


def _is_written(step: StepContext) -> bool:
    """Whether the gradients that are written out are those of this step."""
    plain = step.plain and isinstance(step.data, Rows)
    return plain and step.once(ctgan_gradients.are_plain)


def _category(step: StepContext) -> Tensor | None:
    return None if step.cond is None else step.cond.argmax(1)


def _made(step: StepContext, category: Tensor | None) -> ctgan_gradients.Made:
    g = step.generator
    normals = step.normal(g.choices) if g.choices else None
    return ctgan_gradients.made(g, step.z, category, normals)


def surprise(blocks: list[tuple[str, int, int]], logits: Tensor, condition: Tensor) -> Tensor:
    """The cross-entropy of a condition over the last classes of a row, [batch].

    Args:
        blocks: (kind, width, how many) of the heads that stand together, as the generator has them.
        logits: of rows.
        condition: one-hot over the last classes of a row.
    """
    total = logits.new_zeros(len(logits))
    end = at = logits.shape[1]
    for kind, size, many in reversed(blocks):
        first = max(at - size * many, end - condition.shape[1])
        if kind == "softmax" and first < at:
            part = logits[:, first:at].unflatten(1, (-1, size)).log_softmax(2)
            wanted = condition[:, first - end + condition.shape[1] :][:, : at - first]
            total = total - (part * wanted.unflatten(1, (-1, size))).sum((1, 2))
        at -= size * many
    return total


METHODS: dict[str, type] = {"ctgan": TableMethod}
"""By the setting's words."""


def method(given: Any) -> Any:
    """The method that a setting means: that of a word, or an object of the user's program."""
    return METHODS[given]() if isinstance(given, str) else given
