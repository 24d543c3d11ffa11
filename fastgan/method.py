"""What two networks minimise, as functions of one update.

A method is any object with ``d_loss(step)`` and ``g_loss(step)``, and, where one loss trains both
networks at once, ``joint_loss(step)``; `step` is a `fastgan.engines.context.StepContext`, which has
what a loss may ask for, made when it is first asked for::

    class ConditionalLeastSquares:
        def d_loss(self, step):
            real, fake = step.D(step.real, step.cond), step.D(step.fake, step.fake_cond)
            return (real - 1).square().mean() + fake.square().mean()

        def g_loss(self, step):
            return (step.D(step.fake, step.fake_cond) - 1).square().mean()

    Trainer(G, D, data, method=ConditionalLeastSquares())

What a method keeps between steps (an attribute that changes, or what its `state_dict` returns) is
part of a checkpoint. The games of `fastgan.losses` are such methods too: `LossMethod`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fastgan.engines.scores import cut, require_scalar
from fastgan.losses import Loss, Penalty
from fastgan.packs import rows_of

if TYPE_CHECKING:
    from fastgan.engines.context import StepContext

__all__ = ["LossMethod", "Method", "check", "name_of"]


class Method(Protocol):
    """What an engine asks of a method. It need not be a subclass of anything."""

    def d_loss(self, step: StepContext) -> Tensor:
        """What D minimises in one of its updates: one number, as a tensor."""

    def g_loss(self, step: StepContext) -> Tensor:
        """What G minimises in its update."""


@dataclass(frozen=True)
class LossMethod:
    """A loss of D's scores, with penalties on D's slope: what `loss=` and `penalties=` say.

    D returns one score a sample, or one of each pack of n samples that follow each other (b / n
    scores, as behind a `fastgan.nn.Pack`), over which the means are then. Networks that take a
    condition are given it.
    """

    loss: Loss
    penalties: tuple[Penalty, ...] = ()

    def d_loss(self, step: StepContext) -> Tensor:
        """The loss and the penalties that are due; what is reported is without them."""
        penalties = [p for p, due in zip(self.penalties, step.due, strict=True) if due]
        places = {penalty.at for penalty in penalties if not penalty.sigma}
        real, fake = step.real, step.fake
        if "real" in places:
            real = real.detach().requires_grad_()
        if "fake" in places:
            fake = fake.detach().requires_grad_()
        on_real = step.score(real, step.cond)
        on_fake = step.score(fake, step.fake_cond)
        if not (on_real.requires_grad or on_fake.requires_grad):
            raise cut("discriminator's scores have no gradient", "discriminator")
        points = {"real": (on_real, real), "fake": (on_fake, fake)}
        loss = require_scalar(self.loss.d_loss(on_real, on_fake), name_of(self), "d_loss")
        step.report(loss, on_real, on_fake)
        for place in sorted({penalty.at for penalty in penalties} - points.keys()):
            at = step.points(place, real, fake, rows_of(on_real, len(real)))
            points[place] = step.score(at, step.cond), at
        for penalty in penalties:
            loss = loss + step.penalty_of(penalty, *points[penalty.at])
        return loss

    def g_loss(self, step: StepContext) -> Tensor:
        """The loss; one that compares with real samples has D score the last batch as well."""
        scores = [step.score(step.fake, step.fake_cond)]
        if self.loss.needs_real:
            with torch.no_grad():
                scores.append(step.score(step.real, step.cond))
        if not step.fake.requires_grad:
            raise cut("generator's samples have no gradient", "generator")
        if not scores[0].requires_grad:
            what = "discriminator's scores have no gradient with respect to its input"
            raise cut(what, "generator")
        return require_scalar(self.loss.g_loss(*scores), name_of(self), "g_loss")


def name_of(method: Any) -> str:
    """What messages call a method."""
    if isinstance(method, LossMethod):
        return f"loss {method.loss.name!r}"
    return f"method {getattr(method, 'name', None) or type(method).__name__!r}"


def check(method: Any) -> Any:
    """The method, if it is one.

    Raises:
        ValueError: it is a class, or lacks one of the two losses, or one takes something else than
            the step.
    """
    if isinstance(method, type):
        raise ValueError(
            f"method is the class {method.__name__}; make an instance: method={method.__name__}()"
        )
    for name in ("d_loss", "g_loss", "joint_loss"):
        function = getattr(method, name, None)
        if function is None and name == "joint_loss":
            continue
        if not callable(function):
            raise ValueError(
                f"method is {method!r}, which has no {name}(step); expected an object with "
                "d_loss(step) and g_loss(step)"
            )
        try:
            inspect.signature(function).bind(None)
        except TypeError:
            raise ValueError(
                f"{name_of(method)}: {name} takes {inspect.signature(function)}; expected (step)"
            ) from None
        except ValueError:  # of C: it will say so itself
            pass
    return method
