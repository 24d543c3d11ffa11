"""Terms of G's loss that have a fused form: the given ones of moments and of what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgan import terms
from fastgan.engines.fused.heads import EACH, Ends, Head
from fastgan.engines.fused.trace import NoPlan

if TYPE_CHECKING:
    from fastgan.engines.fused.chain import Chain
    from fastgan.problem import Problem

KINDS = ("moments", "conditional")
"""What terms are, by their numbers in csrc/step/enums.h."""


def named(term: terms.Term) -> str | None:
    """What a term is, if it has a fused form."""
    if term.of is terms.moments:
        return "moments"
    return "conditional" if type(term.of) is terms.Conditional else None


def check(problem: Problem) -> None:
    """Refuse terms that have no fused form; NoPlan says which and why."""
    p, seen = problem, set()
    for term in p.terms:
        what = f"the term {term.name!r} of G's loss"
        kind = named(term)
        if kind is None:
            raise NoPlan(f"{what} has no fused form")
        if not isinstance(term.weight, float):
            raise NoPlan(f"{what}: a weight that is no fixed number has no fused form")
        if not abs(term.weight) < 3e38:
            raise NoPlan(f"{what}: its weight is {term.weight}, which float32 does not hold")
        if p.device.type != "cpu":
            raise NoPlan(f"{what} has a fused form on the CPU only")
        if kind in seen:
            raise NoPlan(f"{what}: two terms of one kind have no fused form")
        seen.add(kind)


def join(problem: Problem, g: Chain) -> None:
    """Note in G's chain what its terms need: heads, of which some are asked for."""
    if not problem.terms:
        return
    last = g.layers[-1]
    for term in problem.terms:
        what = f"the term {term.name!r} of G's loss"
        if last.ends is None:
            if last.norm is not None or last.dropout is not None or last.activation not in EACH:
                raise NoPlan(
                    f"{last.name}: {what} has a fused form where G ends in a Linear and at most a "
                    "Tanh, Sigmoid, ReLU or LeakyReLU, or in heads"
                )
            width = last.linear.out_features
            last.ends = Ends([Head("columns", width, last.activation, last.slope)])
            last.activation, last.slope = "none", 0.0
        if named(term) == "conditional":
            _ask(term, what, g, last.ends)


def _ask(term: terms.Term, what: str, g: Chain, ends: Ends) -> None:
    if ends.module is None:
        raise NoPlan(f"{what} has a fused form where G ends in fastgan.nn.Heads")
    labels = [part.classes for part in g.inputs.parts if part.kind != "numbers"]
    try:
        found = term.of.of(ends.module)
    except ValueError as error:
        raise NoPlan(f"{what}: {error}") from error
    if not labels:
        raise NoPlan(f"{what} has a fused form where G is given a label")
    if min(labels) > (classes := sum(width for *_, width in found)):
        raise NoPlan(f"{what}: its heads have {classes} classes, and G takes {min(labels)} labels")
    starts = {at for _, at, _ in found}
    at = 0
    for i, head in enumerate(ends.heads):
        if at in starts:
            ends.heads[i] = head._replace(asked=True)
        at += head.width
