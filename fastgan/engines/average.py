"""The running average of a generator's weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgan import torch_private


class Average:
    """After each step: weights become average + share * (weight - average), buffers are copied.

    So are parameters that are no real or complex numbers, such as a table of indices.

    Tensors are found anew each time, by the places they have in their modules: a forward may put
    another tensor there.
    """

    def __init__(self, generator: nn.Module, average: nn.Module):
        """Look where the tensors are.

        Args:
            generator: whose weights are averaged.
            average: a copy of it, which is changed in place.
        """
        kept = dict(average.named_modules())
        parameters = _places(generator, kept, torch_private.parameters)
        self._weights = [place for place in parameters if _has_a_mean(place)]
        self._buffers = [place for place in parameters if not _has_a_mean(place)]
        self._buffers += _places(generator, kept, torch_private.buffers)

    @torch.no_grad()
    def update(self, share: float | Tensor) -> None:
        """Take the weights of a step in, by their share in the average: 1 - decay."""
        if self._weights:
            torch_private.mix_into_all(*_found(self._weights), share)
        if self._buffers:
            torch_private.copy_to_all(*_found(self._buffers))


_Place = tuple[dict[str, Tensor], dict[str, Tensor], str]
_Places = list[_Place]


def _has_a_mean(place: _Place) -> bool:
    _, own, name = place
    return own[name] is None or own[name].is_floating_point() or own[name].is_complex()


def _places(
    generator: nn.Module, kept: dict[str, nn.Module], table: Callable[[nn.Module], dict]
) -> _Places:
    """(table of the average, table of the generator, name) for each tensor, once if shared."""
    found, seen = [], set()
    for path, m in generator.named_modules():
        own = table(m)
        for name, tensor in own.items():
            if path in kept and (tensor is None or id(tensor) not in seen):
                seen.add(id(tensor))
                found.append((table(kept[path]), own, name))
    return found


def _found(places: _Places) -> tuple[list[Tensor], list[Tensor]]:
    averages, current = [], []
    for average, own, name in places:
        new = own[name]
        # What TorchScript puts in the place of a dict has no get().
        old = average[name] if name in average else None  # noqa: SIM401
        if new is None:
            average[name] = None
            continue
        if old is None or old.shape != new.shape or old.dtype != new.dtype:
            old = average[name] = new.detach().clone()
        averages.append(old)
        current.append(new)
    return averages, current
