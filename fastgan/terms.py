"""Weighted terms of G's loss beside the adversarial one.

A term is a function of a step (`fastgan.engines.context.StepContext`) that returns a scalar::

    Trainer(G, D, data, terms={"l1": (100, terms.l1)})

Those that are classes here take what they need when they are made.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.plain import real

if TYPE_CHECKING:
    from fastgan.engines.context import StepContext
    from fastgan.heads import Heads

__all__ = [
    "ADAPTIVE", "Conditional", "Cycle", "FeatureMatching", "Perceptual", "Term", "cross_entropy",
    "kl", "l1", "l2", "moments", "terms",
]  # fmt: skip

ADAPTIVE = "adaptive"
"""The weight that keeps a term's slope at G's last layer as long as the adversarial loss's."""


@dataclass(frozen=True)
class Term:
    """One term of G's loss.

    Attributes:
        name: under which log lines have it, without its weight.
        of: (step) -> scalar.
        weight: a number; a function of the step's number, counted from 0; or "adaptive": the ratio
            of the lengths of two gradients, the adversarial loss's over the term's, with respect to
            G's last parameter (P. Esser, R. Rombach and B. Ommer, "Taming Transformers for
            High-Resolution Image Synthesis", CVPR 2021).
        factor: on an adaptive weight. Default 1.
    """

    name: str
    of: Callable[[StepContext], Tensor]
    weight: float | str | Callable[[int], float] = 1.0
    factor: float = 1.0


def terms(given: Any = None) -> tuple[Term, ...]:
    """The terms that were asked for.

    Args:
        given: None, or a dict of name: function, name: (weight, function), or name: Term. A weight
            is a number, a function of the step, "adaptive" or "adaptive:factor".

    Raises:
        ValueError: one is something else.
    """
    if given is None or (isinstance(given, (list, tuple)) and not given):
        return ()
    if isinstance(given, tuple) and all(isinstance(one, Term) for one in given):
        return given
    if not isinstance(given, Mapping):
        raise ValueError("expected a dict of name: (weight, function of the step)")
    return tuple(_read(str(name), one) for name, one in given.items())


def _read(name: str, given: Any) -> Term:
    if isinstance(given, Term):
        return given
    weight, of = given if isinstance(given, (tuple, list)) and len(given) == 2 else (1.0, given)
    if not callable(of) or isinstance(of, type):
        raise ValueError(
            f"{name!r} is {of!r}; expected a function of the step, or (weight, function)"
        )
    try:
        inspect.signature(of).bind(None)
    except TypeError:
        raise ValueError(f"{name!r} takes {inspect.signature(of)}; expected (step)") from None
    except ValueError:  # of C: it will say so itself
        pass
    factor = 1.0
    if isinstance(weight, str):
        word, _, number = weight.partition(":")
        try:
            factor = float(number or 1.0)
        except ValueError:
            factor = math.nan
        weight = ADAPTIVE if word == ADAPTIVE and math.isfinite(factor) else None
    elif not callable(weight):
        weight = real(weight)
    if weight is None or (isinstance(weight, float) and not math.isfinite(weight)):
        raise ValueError(
            f"the weight of {name!r} is {given[0]!r}; expected a finite number, a function of the "
            "step's number, 'adaptive' or 'adaptive:factor'"
        )
    return Term(name, of, weight, factor)


def adapted(loss: Tensor, term: Tensor) -> Tensor:
    """An adaptive weight from the gradients of the loss and of the term, at most 10,000."""
    return (loss.norm() / (term.norm() + 1e-4)).clamp(0, 1e4).detach()


# --- terms --------------------------------------------------------------------------------------


def l1(step: StepContext) -> Tensor:
    """Mean distance of G's samples from the real ones that belong to them.

    P. Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017.
    """
    return F.l1_loss(step.fake, step.real)


def l2(step: StepContext) -> Tensor:
    """Mean squared distance of G's samples from the real ones that belong to them."""
    return F.mse_loss(step.fake, step.real)


def cross_entropy(step: StepContext) -> Tensor:
    """Of the classes that D finds in G's samples, where D returns (score, logits [b, classes]).

    A. Odena, C. Olah and J. Shlens, "Conditional Image Synthesis with Auxiliary Classifier GANs",
    ICML 2017.
    """
    out = step.D(step.fake)
    return F.cross_entropy(out[1], step.fake_cond)


def kl(step: StepContext) -> Tensor:
    """Of the normals that G returns beside its samples, from standard normals.

    G returns (samples, mean [b, n], logarithm of the variance [b, n]); the sum over n, the mean
    over b. A. B. L. Larsen et al., "Autoencoding beyond pixels using a learned similarity metric",
    ICML 2016.
    """
    _, mean, log_variance = step.fake
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()


def moments(step: StepContext) -> Tensor:
    """How far G's samples are from real ones in the means and deviations of their numbers.

    The length of the difference of the means over the batch, and that of the (biased) standard
    deviations: what the information loss of tables asks for, of the columns themselves. N. Park et
    al., "Data Synthesis based on Generative Adversarial Networks", VLDB 2018; Z. Zhao et al.,
    "CTAB-GAN: Effective Table Data Synthesizing", ACML 2021.
    """
    fake, real = (step.all_rows(x).flatten(1) for x in (step.fake, step.real))
    real = real.to(fake.dtype)
    means = fake.mean(0) - real.mean(0)
    deviations = fake.std(0, correction=0) - real.std(0, correction=0)
    return means.norm() + deviations.norm()


class Conditional:
    """Cross-entropy of the class that was asked for with the logits of the head that has it.

    For a generator that is given a label and whose samples go through one `fastgan.nn.Heads`.
    Labels count on through the heads that are named: with heads of 4 and 3 classes label 5 is the
    second class of the second one. L. Xu et al., "Modeling Tabular Data using Conditional GAN",
    NeurIPS 2019.
    """

    def __init__(self, *heads: int):
        """Name heads.

        Args:
            heads: their numbers in the Heads, "softmax" or "gumbel" each, in order. Default: all
                of these kinds.

        Raises:
            ValueError: they are no increasing whole numbers.
        """
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in heads) or any(
            a >= b for a, b in pairwise(heads)
        ):
            raise ValueError(
                f"Conditional takes the numbers of heads in order, such as (0, 2); it is given "
                f"{heads!r}"
            )
        self.heads = heads

    def of(self, heads: Heads) -> list[tuple[int, int, int]]:
        """The number, the first column and the width of each head that labels name.

        Raises:
            ValueError: it has no such head.
        """
        starts = accumulate((head.width for head in heads.heads), initial=0)
        shares = {
            i: (i, at, head.width)
            for i, (head, at) in enumerate(zip(heads.heads, starts, strict=False))
            if head.kind in ("softmax", "gumbel")
        }
        chosen = self.heads or tuple(shares)
        missing = [i for i in chosen if i not in shares]
        if missing or not chosen:
            raise ValueError(
                f"Conditional: G's Heads has no head {missing[0] if missing else 'with classes'} "
                f"of kind 'softmax' or 'gumbel'; it has {list(shares)[:20]}"
            )
        return [shares[i] for i in chosen]

    def __call__(self, step: StepContext) -> Tensor:
        """The term."""
        label = step.fake_cond
        if not isinstance(label, Tensor) or label.is_floating_point():
            raise ValueError(
                "Conditional: fake samples are made for no label; give G data with one whole "
                "number a sample"
            )
        heads, logits = step.heads
        label, found = label.reshape(len(logits)).long(), 0.0
        named = self.of(heads)
        for k, (_, at, width) in enumerate(named):
            own = logits.narrow(1, at, width)
            own = own if own.dtype == torch.float64 else own.float()
            # A label beyond the last class is an error there.
            last = k + 1 == len(named)
            inside = label >= 0 if last else (label >= 0) & (label < width)
            place = label.clamp(min=0) if last else label.clamp(0, width - 1)
            each = F.cross_entropy(own, place, reduction="none")
            found = found + torch.where(inside, each, 0.0).sum()
            label = label - width
        return found / len(logits)

    def state_dict(self) -> dict:
        """Nothing that a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing back."""


class FeatureMatching:
    """Mean distance of what D's layers make of fake and of real samples.

    T. Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016; over several layers:
    T.-C. Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional
    GANs", CVPR 2018.
    """

    def __init__(self, *layers: str, means: bool = False):
        """Look at layers of D.

        Args:
            layers: their names, as `named_modules` has them.
            means: compare the means over the batch, for samples that do not belong together.
        """
        if not layers:
            raise ValueError("FeatureMatching: name at least one layer of D")
        self.layers, self.means = layers, means

    def __call__(self, step: StepContext) -> Tensor:
        """The term."""
        with torch.no_grad():
            real = self._features(step, step.real, step.cond)
        fake = self._features(step, step.fake, step.fake_cond)
        if self.means:
            real, fake = ([step.all_rows(one).mean(0) for one in some] for some in (real, fake))
        losses = [F.l1_loss(a, b) for a, b in zip(fake, real, strict=True)]
        return torch.stack(losses).mean()

    def _features(self, step: StepContext, samples: Tensor, condition: Any) -> list[Tensor]:
        found: dict[str, Tensor] = {}
        named = dict(step.discriminator.named_modules())
        if missing := [name for name in self.layers if name not in named]:
            raise ValueError(
                f"FeatureMatching: D has no layer {missing[0]!r}; it has "
                f"{', '.join(name for name in named if name)[:200]}"
            )
        handles = [
            named[name].register_forward_hook(
                lambda _, __, out, name=name: found.__setitem__(name, out)
            )
            for name in self.layers
        ]
        try:
            step.D(*step.given_d(samples, condition))
        finally:
            for handle in handles:
                handle.remove()
        return [found[name].float() for name in self.layers]


class Perceptual:
    """Mean distance of what a network that is not trained makes of fake and of real samples.

    J. Johnson, A. Alahi and L. Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and
    Super-Resolution", ECCV 2016.
    """

    def __init__(self, network: nn.Module, prepare: Callable[[Tensor], Tensor] | None = None):
        """Freeze the network and put it into eval mode.

        Args:
            network: samples to features: a tensor or several.
            prepare: what samples in [-1, 1] go through before. Default: nothing.
        """
        self.network = network.eval().requires_grad_(False)
        self.prepare = prepare or (lambda x: x)

    def __call__(self, step: StepContext) -> Tensor:
        """The term."""
        self.network.to(step.real.device)
        with torch.no_grad():
            real = self._features(step.real)
        fake = self._features(step.fake)
        losses = [F.mse_loss(a, b) for a, b in zip(fake, real, strict=True)]
        return torch.stack(losses).mean()

    def state_dict(self) -> dict:
        """Nothing that a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing back."""

    def _features(self, samples: Tensor) -> list[Tensor]:
        found = self.network(self.prepare(samples))
        return (
            list(found.values() if isinstance(found, dict) else found)
            if isinstance(found, (dict, tuple, list))
            else [found]
        )


class Cycle:
    """Mean distance of the condition from what a second network makes of G's sample.

    J.-Y. Zhu et al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
    Networks", ICCV 2017. The way back is trained where it is part of the generator.
    """

    def __init__(self, back: str):
        """Go back by a part of G.

        Args:
            back: its name, as `named_modules` of the generator has it; samples to conditions.
        """
        self.back = back

    def __call__(self, step: StepContext) -> Tensor:
        """The term."""
        return F.l1_loss(step.G.get_submodule(self.back)(step.fake), step.fake_cond)
