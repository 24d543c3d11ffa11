"""Whether compiled code does what autograd does."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from fastgan.engines.base import CannotRun

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""How far a gradient of the compiled function may be from eager's, as a part of its length.

Sums are taken in another order, bfloat16 is rounded at other places. A wrong gradient is off by far
more: a halved one by 0.5.
"""
WORSE = 4.0
"""Where gradients are ill-conditioned, as those of a G before D has learned, how many times as far
they may be as eager's are from themselves when torch's own operators make them."""
WORST = 1e-2
"""And how far at most."""
SMALL = 0.1
"""Tensors shorter than this part of all together are compared with that part of all: the gradient
of a bias before BatchNorm is rounding and nothing else."""


def compare(
    what: object,
    precision: str,
    weights: int,
    outputs: tuple[list[Tensor], list[Tensor]],
    states: tuple[list[Tensor], list[Tensor]],
    otherwise: Callable[[], list[Tensor]] | None = None,
) -> float:
    """CannotRun unless compiled code has done what autograd does; how far its gradients are.

    Args:
        what: the work, for messages.
        precision: the run's.
        weights: how many of the outputs are gradients; they come first.
        outputs: what autograd has made, and what the code has.
        states: what layers keep, likewise.
        otherwise: what autograd makes by sums in another order; asked where gradients are further
            apart than is usual.
    """
    usual, (expected, found) = TOLERANCE[precision], outputs
    slopes, rest = slice(weights), slice(weights, None)
    far = {
        "gradients": distance(expected[slopes], found[slopes], SMALL),
        "losses": distance(expected[rest], found[rest], 1.0),
        "statistics of layers": distance(*states, SMALL),
    }
    allowed = dict.fromkeys(far, usual)
    if far["gradients"] > usual and otherwise is not None:
        rounding = distance(expected[slopes], otherwise()[slopes], SMALL)
        allowed["gradients"] = max(usual, min(WORSE * rounding, WORST))
    for part, most in allowed.items():
        if far[part] > most:
            raise CannotRun(
                f"{what}: the {part} of the compiled function are off by {far[part]:.2g} of their "
                f"size where {most:g} is allowed for rounding; this is an error of torch's compiler"
            )
    return far["gradients"]


def distance(expected: list[Tensor], found: list[Tensor], small: float) -> float:
    """The largest distance of a tensor from what it should be, over its length.

    Args:
        expected: what they should be.
        found: what they are.
        small: tensors shorter than this part of all together count as that long.
    """
    wide = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True)]
    if any(a.isfinite().ne(b.isfinite()).any() for a, b in wide):
        return math.inf
    wide = [(a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)) for a, b in wide]
    length = math.sqrt(sum(float(a.square().sum()) for a, _ in wide))
    if not length:
        return math.inf if any(b.any() for _, b in wide) else 0.0
    return max(float((a - b).norm()) / max(float(a.norm()), small * length) for a, b in wide)
