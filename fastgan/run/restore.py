"""A checkpoint is loaded into what it fits, in names, shapes and types; all is checked first."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import sharded, torch_private
from fastgan.run import schema
from fastgan.run.checkpoint import CheckpointError, first_line
from fastgan.run.schema import Wrong, number

_EXTRA = "_extra_state"

# What an optimiser keeps of each parameter, always and sometimes: "step" is a number, all else has
# the parameter's shape. Of other classes we ask only that the shapes can belong to the parameter.
_KEPT = (
    (torch.optim.Adam, ("step", "exp_avg", "exp_avg_sq"), ("max_exp_avg_sq",)),
    (torch.optim.SGD, (), ("momentum_buffer",)),
    (torch.optim.RMSprop, ("step", "square_avg"), ("momentum_buffer", "grad_avg")),
)
_BOUNDS = {
    "lr": number(0),
    "eps": number(0),
    "weight_decay": number(0),
    "betas": number(0, below=1),
}


def restore(
    file: Path,
    state: Mapping[str, Any],
    *,
    networks: Mapping[str, nn.Module | None],
    optimizers: Mapping[str, torch.optim.Optimizer],
    scalers: Sequence[torch.amp.GradScaler] = (),
) -> None:
    """Load a checkpoint into what it was saved from. Everything is checked before anything is done.

    Args:
        file: for the messages.
        state: what `checkpoint.load` returned.
        networks: "generator", "discriminator" and "ema", the last None if no average is kept.
        optimizers: "optimizer_g" and "optimizer_d".
        scalers: with precision "fp16", the discriminator's and the generator's.

    Raises:
        CheckpointError: the first difference in names, shapes or types.
    """
    fitted = {}
    for name, network in networks.items():
        if (network is None) != (state[name] is None):
            kept = "holds none" if state[name] is None else "holds one"
            raise CheckpointError(f"{file}: field {name!r} {kept}, unlike this run")
        if network is not None:
            fitted[name] = require_fit(file, name, network, state[name])
    for name, optimizer in optimizers.items():
        check_optimizer_state(file, name, state[name], optimizer)
    saved = state["scalers"]
    if len(saved) != len(scalers):
        raise CheckpointError(
            f"{file}: field 'scalers' holds {len(saved)}, but this run has {len(scalers)}"
        )
    for i, scaler in enumerate(scalers):
        if missing := sorted(scaler.state_dict().keys() - saved[i].keys()):
            raise CheckpointError(f"{file}: field 'scalers[{i}].{missing[0]}' is missing")
    for name, values in fitted.items():
        with reading(file, name):
            sharded.load_state_dict(networks[name], values)
    for name, optimizer in optimizers.items():
        with reading(file, name):
            sharded.load_optimizer_state(optimizer, state[name])
    for i, scaler in enumerate(scalers):
        with reading(file, f"scalers[{i}]"):
            scaler.load_state_dict(saved[i])


def require(file: Path, name: str, given: Any, saved: Any) -> Any:
    """What was given, else what the checkpoint holds; CheckpointError if it is neither."""
    if given is None and saved is None:
        raise CheckpointError(
            f"{file} was trained with a {name} of your own, which a checkpoint cannot hold; "
            f"pass {name}= to resume it"
        )
    return saved if given is None else given


def require_fit(
    file: Path, name: str, network: nn.Module, saved: Mapping[str, Any]
) -> dict[str, Any]:
    """The saved state dict under the network's own names, for ``load_state_dict``.

    What torch.compile and DataParallel put before names ("_orig_mod.", "module.") may be on either
    side or on none.

    Raises:
        CheckpointError: names, shapes or dtypes differ; the first few of each are given.
    """
    own = network.state_dict()
    saved = _named_as(own, saved)
    if (differs := mismatch(own, saved)) and not _reads(network, saved):
        raise CheckpointError(f"{name} does not fit {file}: {differs}")
    return saved


def _reads(network: nn.Module, saved: Mapping[str, Any]) -> bool:
    """Whether a network takes what does not look like its own, by code of its modules."""
    if not any(map(torch_private.reads_its_state, network.modules())):
        return False
    try:
        tried = copy.deepcopy(network)
        tried.load_state_dict(saved)
        return mismatch(tried.state_dict(), saved) is None
    except Exception:  # neither torch nor the user's code takes it
        return False


def mismatch(own: Mapping[str, Any], saved: Mapping[str, Any]) -> str | None:
    """How two state dicts differ in names, shapes or dtypes, the first few of each; else None."""
    parts = []
    for label, names in (
        ("missing in the checkpoint", [name for name in own if name not in saved]),
        ("only in the checkpoint", [name for name in saved if name not in own]),
    ):
        if names:
            parts.append(f"{label}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")
    for name, value in own.items():
        if len(parts) == 4:
            break
        # A module's extra state is its own to read.
        if not isinstance(value, Tensor) or name.endswith(_EXTRA) or name not in saved:
            continue
        other = saved[name]
        if not isinstance(other, Tensor):
            parts.append(f"{name} is a tensor, saved {schema.shown(other)}")
        elif value.shape != other.shape:
            parts.append(f"{name} is {list(value.shape)}, saved {list(other.shape)}")
        elif value.dtype != other.dtype:
            parts.append(f"{name} is {_word(value.dtype)}, saved {_word(other.dtype)}")
        elif value.layout != other.layout:
            parts.append(f"{name} is {_word(value.layout)}, saved {_word(other.layout)}")
    return "; ".join(parts) or None


def check_optimizer_state(
    file: Path, name: str, saved: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> None:
    """Raise CheckpointError unless a saved state can be loaded into an optimiser as it is.

    torch checks the number of groups and parameters only, so that a wrong shape or a missing number
    would come to light in the first step or never.

    Args:
        file: for the message.
        name: the field, such as "optimizer_g".
        saved: what ``optimizer.state_dict()`` once returned.
        optimizer: with the parameters of now.
    """
    try:
        _check_groups(name, saved["param_groups"], optimizer)
        numbered = dict(
            zip(
                (i for group in saved["param_groups"] for i in group["params"]),
                (p for group in optimizer.param_groups for p in group["params"]),
                strict=True,
            )
        )
        for i, kept in saved["state"].items():
            where = f"{name}.state[{i}]"
            if i not in numbered:
                raise Wrong(where, kept, f"one of the parameters 0 to {len(numbered) - 1} only")
            _check_kept(where, kept, numbered[i], optimizer)
    except Wrong as wrong:
        raise CheckpointError(f"{name} does not fit {file}: {wrong}") from None


@contextmanager
def reading(file: Path, field: str):
    """Whatever a field's own reader raises meanwhile becomes a CheckpointError of one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # readers of users' classes may raise anything
        raise CheckpointError(
            f"{file}: field {field!r} cannot be read: {first_line(error)} ({type(error).__name__})"
        ) from error


def _named_as(own: Iterable[str], saved: Mapping[str, Any]) -> dict[str, Any]:
    names = dict(zip(_bare(own), own, strict=True))
    return {
        names.get(bare, name): saved[name] for bare, name in zip(_bare(saved), saved, strict=True)
    }


def _bare(names: Iterable[str]) -> list[str]:
    names = [name.replace("_orig_mod.", "") for name in names]
    if names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


def _check_groups(name: str, saved: Sequence, optimizer: torch.optim.Optimizer) -> None:
    groups = optimizer.param_groups
    if len(saved) != len(groups):
        raise Wrong(f"{name}.param_groups", saved, f"{len(groups)} groups")
    seen: set[int] = set()
    for g, (theirs, ours) in enumerate(zip(saved, groups, strict=True)):
        where = f"{name}.param_groups[{g}]"
        params, count = theirs["params"], len(ours["params"])
        if len(params) != count or len(seen | set(params)) != len(seen) + count:
            raise Wrong(f"{where}.params", params, f"{count} different numbers of parameters")
        seen |= set(params)
        for key, value in ours.items():
            if key == "params":
                continue
            # Flags come and go with versions of torch, which knows what they are without.
            if key not in theirs and (value is None or isinstance(value, bool)):
                continue
            _check_setting(f"{where}.{key}", key, theirs.get(key, schema.MISSING), value)


def _check_setting(where: str, key: str, theirs: Any, ours: Any) -> None:
    if isinstance(ours, (list, tuple)):
        schema.sequence(schema.plain, (len(ours),))(theirs, where)
        for i, (their, our) in enumerate(zip(theirs, ours, strict=True)):
            _check_setting(f"{where}[{i}]", key, their, our)
        return
    if isinstance(theirs, Tensor) and theirs.numel() == 1 and theirs.dtype.is_floating_point:
        # Capturable optimisers keep their learning rate as a tensor.
        theirs = theirs.item()
    if isinstance(ours, bool) or (ours is None and isinstance(theirs, bool)):
        schema.optional(schema.flag)(theirs, where)
    elif ours is None:
        schema.optional(number())(theirs, where)
    elif isinstance(ours, (int, float, Tensor)):
        _BOUNDS.get(key, number())(theirs, where)
    elif isinstance(ours, str):
        schema.text(theirs, where)
    else:
        schema.plain(theirs, where)


def _check_kept(where: str, kept: Mapping, parameter: Tensor, optimizer: Any) -> None:
    known = next((known for known in _KEPT if isinstance(optimizer, known[0])), None)
    if known is None:
        for key, value in kept.items():
            if isinstance(value, Tensor) and value.numel() > 1:
                possible = value.dim() == parameter.dim() and all(
                    a in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True)
                )
                shape = value.shape if possible else parameter.shape
                _check_tensor(f"{where}.{key}", value, shape, {parameter.dtype, torch.float32})
        return
    _, always, sometimes = known
    for key in always if kept else ():
        if key not in kept:
            raise Wrong(f"{where}.{key}", schema.MISSING, "a tensor")
    for key, value in kept.items():
        if key not in always and key not in sometimes:
            raise Wrong(f"{where}.{key}", value, "no field of this name")
        if value is None and key in sometimes:
            continue
        if key == "step":
            # In torch's default type, whatever the parameter's.
            _check_tensor(f"{where}.{key}", value, (), {torch.float32, torch.float64})
            number(0)(value.item(), f"{where}.{key}")
        else:
            _check_tensor(
                f"{where}.{key}", value, parameter.shape, {parameter.dtype, torch.float32}
            )


def _check_tensor(where: str, value: Any, shape: tuple[int, ...], dtypes: set) -> None:
    good = isinstance(value, Tensor) and value.shape == shape and value.dtype in dtypes
    if not good or value.layout != torch.strided:
        words = " or ".join(sorted(map(_word, dtypes)))
        raise Wrong(where, value, f"a {words} tensor {list(shape)}")


def _word(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
