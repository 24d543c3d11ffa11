"""The kinds of settings whose values may be objects that only the user's program has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fastgan import augment, games, latents, losses, optim, schedules
from fastgan import method as methods
from fastgan import terms as term_room
from fastgan.config.kinds import Kind, Refused
from fastgan.words import nearest

OWN = "own"
"""The key of what stands in a file for such an object."""


def own(value: Any) -> dict[str, str]:
    """What stands in a file for an object of the user's program."""
    name = getattr(value, "name", None) or getattr(value, "__name__", type(value).__name__)
    return {OWN: str(name)}


def loss() -> Kind:
    """A loss by its word, or a Loss."""

    def read(value: Any) -> Any:
        try:
            losses.loss(value)
        except ValueError as error:
            raise Refused(str(error).removeprefix(f"loss is {value!r}; ")) from None
        # One of ours is kept as its word, so that it compares equal to what a file gives back.
        if isinstance(value, losses.Loss) and losses.LOSSES.get(value.name) == value:
            return value.name
        return str(value) if isinstance(value, str) else value

    def plain(value: Any) -> Any:
        return value if isinstance(value, str) else own(value)

    return Kind(
        f"one of {', '.join(losses.LOSSES)}, or a losses.Loss",
        read,
        plain=plain,
        annotation="str | Loss",
        metavar="NAME",
        owns=True,
    )


def penalties() -> Kind:
    """Penalties by their words, or as Penalty objects."""

    def read(value: Any) -> tuple[losses.Penalty, ...]:
        try:
            return losses.penalties(value)
        except ValueError as error:
            raise Refused(str(error).removeprefix("penalties: ")) from None

    def plain(value: Any) -> list:
        return [_plain_penalty(penalty) for penalty in value]

    return Kind(
        f"one of {', '.join(losses.PENALTIES)} as name[:weight[:every]] (approximate-r1 also "
        "with :sigma), a losses.Penalty, or a list of these",
        read,
        lambda words: words.replace(",", " ").split() if words.lower() != "none" else None,
        plain,
        "str | Penalty | Sequence[str | Penalty]",
        "NAME[:WEIGHT[:EVERY]]",
        several=True,
        owns=True,
    )


def _plain_penalty(penalty: losses.Penalty) -> Any:
    known = losses.PENALTIES.get(penalty.name)
    free = {"weight": penalty.weight, "every": penalty.every}
    if known is not None and known.sigma and penalty.sigma:
        free["sigma"] = penalty.sigma
    if known is None or replace(known, **free) != penalty:
        return own(penalty)
    words = f"{penalty.name}:{penalty.weight!r}:{penalty.every}"
    return words if penalty.sigma == known.sigma else f"{words}:{penalty.sigma!r}"


def latent() -> Kind:
    """A length, a shape, named parts, or None."""

    def read(value: Any) -> Any:
        try:
            found = latents.latent(value)
        except ValueError as error:
            raise Refused(str(error)) from None
        if found.parts or found.shape is None:
            return found if found.parts else None
        return found.shape[0] if len(found.shape) == 1 else found.shape

    def parse(words: str) -> Any:
        if words.lower() == "none":
            return None
        if "=" in words:
            return dict(part.split("=", 1) for part in words.replace(",", " ").split())
        sides = [int(n) for n in words.lower().replace("x", " ").replace(",", " ").split()]
        return sides[0] if len(sides) == 1 else sides

    return Kind(
        "a length of at least 1, a shape such as (100, 1, 1), named parts such as noise=62 "
        "digit=onehot:10 code=uniform:2, or None",
        read,
        parse,
        lambda value: latents.latent(value).plain(),
        "int | tuple[int, ...] | Mapping | None",
        "N",
        several=True,
    )


def method() -> Kind:
    """A game by its word, or an object with the two losses."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            if value not in games.METHODS:
                raise Refused(f"expected {kind.expected}{nearest(value, games.METHODS)}")
            return value
        try:
            return methods.check(value)
        except ValueError as error:
            raise Refused(f"it is none: {error}") from None

    kind = Kind(
        f"{', '.join(games.METHODS)}, or an object with d_loss(step) and g_loss(step)",
        read,
        plain=lambda value: value if isinstance(value, str) else own(value),
        annotation="str | Method",
        metavar="NAME",
        owns=True,
    )
    return kind


def terms() -> Kind:
    """Weighted terms by name."""

    def read(value: Any) -> Any:
        try:
            return term_room.terms(value)
        except ValueError as error:
            raise Refused(str(error)) from None

    return Kind(
        "a dict of name: (weight, function of the step)",
        read,
        plain=lambda value: [own(term) for term in value],
        annotation="Mapping[str, tuple[float | str | Callable, Callable]]",
        metavar="",
        owns=True,
    )


def optimizer() -> Kind:
    """An optimiser's word, class, factory or object; or two: the generator's, the other's."""
    expected = (
        f"expected one of {', '.join(optim.OPTIMIZERS)}, a class of torch.optim, a function of "
        "parameters that makes one, a made one for each network, or two of these (generator's, "
        "discriminator's)"
    )

    def read_one(value: Any) -> Any:
        if isinstance(value, str):
            if value not in optim.OPTIMIZERS:
                near = nearest(value, optim.OPTIMIZERS)
                raise Refused(f"{expected}{near}")
            return str(value)
        if isinstance(value, torch.optim.Optimizer) or callable(value):
            return value
        raise TypeError

    def read(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            if len(value) != 2:
                raise ValueError
            return tuple(map(read_one, value))
        if isinstance(value, torch.optim.Optimizer):
            raise Refused(
                "one optimiser serves one network: give two, (generator's, discriminator's)"
            )
        return read_one(value)

    def plain_one(value: Any) -> Any:
        return value if isinstance(value, str) else own(value)

    def plain(value: Any) -> Any:
        return list(map(plain_one, value)) if isinstance(value, tuple) else plain_one(value)

    return Kind(
        expected.removeprefix("expected "),
        read,
        lambda words: words.replace(",", " ").split() if " " in words or "," in words else words,
        plain,
        "str | type[Optimizer] | Callable | tuple",
        "NAME",
        several=True,
        owns=True,
    )


def schedule() -> Kind:
    """A schedule of learning rates by its words, a function of the step, or two of these."""

    def read(value: Any) -> Any:
        try:
            return schedules.read(value)
        except ValueError as error:
            raise Refused(str(error)) from None

    return Kind(
        schedules.EXPECTED,
        read,
        schedules.of_text,
        lambda value: schedules.plain(value, own),
        "str | Callable[[int], float] | tuple",
        "NAME",
        several=True,
        owns=True,
    )


def augmentation() -> Kind:
    """What D's inputs go through, by its words."""

    def read(value: Any) -> Any:
        try:
            return augment.read(value)
        except ValueError as error:
            raise Refused(str(error)) from None

    return Kind(augment.EXPECTED, read, plain=str, metavar="NAME")


def device() -> Kind:
    """A device of torch, as its text."""

    def read(value: Any) -> str:
        return str(torch.device(value))

    return Kind(
        "a device such as cpu, cuda or cuda:1",
        read,
        annotation="torch.device | str",
        metavar="DEVICE",
        names=("cpu", "cuda"),
        hints={"gpu": "cuda"},
    )


def owned(value: Any) -> str | None:
    """The name of the user's own object that a plain value stands for, if it does."""
    if isinstance(value, Mapping):
        return str(value.get(OWN)) if set(value) == {OWN} else None
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(owned, value)), None)
    return None


def needs(values: Mapping[str, Any]) -> list[str]:
    """The settings, of plain ones, that stand for objects of the user's program."""
    return [name for name, value in values.items() if owned(value)]
