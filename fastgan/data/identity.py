"""Whether two data sets are the same: what a checkpoint keeps of its data, and the comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import stream
from .batch import map_condition, tensors_of
from .items import checksum, spread

if TYPE_CHECKING:
    from .data import Data

_SAMPLED = 16
# Reading more than this for a checksum takes longer than a user would wait for nothing
_WHOLE_BYTES = 256 << 20


def of(data: Data) -> dict[str, Any]:
    """What Data.identity returns."""
    found = {
        "name": data.name,
        "kind": data.kind,
        "count": len(data),
        "shape": list(data.shape),
        "dtype": str(data.dtype).removeprefix("torch."),
        "condition": form_of(data.blank(1).condition),
        "checksum": None,
        "condition_checksum": None,
        "whole": None,
    }
    if data.held_out is not None:
        found["held_out"] = dict(data.held_out)
    if data.dataset is not None and data.dataset.random:
        return found
    chosen = spread(len(data), _SAMPLED)
    if data.samples is None:
        samples, condition = next(stream.read(data.dataset, [(chosen, None)], 0, pin=False))
    else:
        places = torch.tensor(chosen, device=data.samples.device)
        samples, condition = map_condition(
            lambda part: part.index_select(0, places), (data.samples, data.condition)
        )
        if data.nbytes <= _WHOLE_BYTES:
            found["whole"] = _sums(data.samples, data.condition)
    found["checksum"], found["condition_checksum"] = _sums(samples, condition)
    return found


def form_of(condition: Any) -> str | None:
    """The form of a condition [N, ...] as text, such as "int64[]" of labels; None of none."""
    if condition is None:
        return None
    return str(map_condition(_form_of, condition)).replace("'", "")


def _form_of(part: Tensor) -> str:
    return f"{str(part.dtype).removeprefix('torch.')}{list(part.shape[1:])}"


def _sums(samples: Tensor, condition: Any) -> list[str | None]:
    of_condition = None
    if condition is not None:
        of_condition = f"{checksum(list(tensors_of(condition))):08x}"
    return [f"{checksum([samples]):08x}", of_condition]


def difference(saved: Any, now: dict[str, Any]) -> str | None:
    """What Data.differs returns; both are what `of` returns, and saved may be anything."""
    try:
        why = _difference(saved, now)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        why = f"what was saved of them is damaged ({repr(saved)[:80]})"
    if why is None:
        return None
    return (
        f"the data are not those of the saved run: {why}; open the data that it was trained on, or "
        "say that the change is meant with resume(..., data_changed=True) or --data-changed"
    )


def _difference(saved: dict[str, Any], now: dict[str, Any]) -> str | None:
    def shown(one: dict[str, Any]) -> str:
        return f"{one['count']} samples of shape {tuple(one['shape'])}"

    if saved["count"] != now["count"] or list(saved["shape"]) != now["shape"]:
        return (
            f"these are {shown(now)} ({now['name']}), saved were {shown(saved)} ({saved['name']})"
        )
    if saved["condition"] != now["condition"]:
        return (
            f"a condition (label) is {now['condition'] or 'missing'}, saved was "
            f"{saved['condition'] or 'none'}"
        )
    if saved["checksum"] is None or now["checksum"] is None:
        return None
    if saved["dtype"] != now["dtype"]:
        return f"they are {now['dtype']}, saved were {saved['dtype']}"
    what = ("samples", "conditions (labels)")
    pairs = [
        (saved["checksum"], now["checksum"], what[0]),
        (saved["condition_checksum"], now["condition_checksum"], what[1]),
    ]
    if saved["whole"] is not None and now["whole"] is not None:
        pairs += zip(saved["whole"], now["whole"], what, strict=True)
    for before, after, which in pairs:
        if before != after:
            return (
                f"their number and shape are the same, but the {which} differ (checksum {after}, "
                f"saved {before})"
            )
    return None
