"""Backward passes that begin another: what reentrant activation checkpointing is made of.

The inner one's gradients go into `.grad`, and torch.autograd.grad does not return them. torch's own
checkpointing refuses to be differentiated by it; others leave these gradients out and do not say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

from fastgan.engines.base import CannotRun


@contextmanager
def told(what: str, otherwise: str = "", kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Where checkpointing refuses what is done meanwhile, it is said what was, and what to do.

    Args:
        what: what takes the gradients.
        otherwise: what else can be done about it.
        kind: the error.
    """
    try:
        yield
    except RuntimeError as error:
        if not _refused(error):
            raise
        raise kind(
            f"{what}: reentrant activation checkpointing calls backward within backward, where "
            "torch cannot take the gradients of chosen tensors only, as this does; give "
            "torch.utils.checkpoint.checkpoint use_reentrant=False"
            f"{otherwise and ', or '}{otherwise}"
        ) from error


def require_none(what: str, weights: Iterable[Tensor]) -> None:
    """CannotRun if an inner backward pass has left gradients that torch.autograd.grad left out."""
    if any(w.grad is not None for w in weights):
        raise CannotRun(
            f"{what}: something (reversible layers, or the loss itself) calls backward within it, "
            "whose gradients torch.autograd.grad leaves out; use engine='eager'"
        )


def _refused(error: RuntimeError) -> bool:
    """Whether torch's checkpointing, or one that is made like it, says so."""
    text = str(error).lower()
    return "checkpoint" in text and ".grad()" in text
