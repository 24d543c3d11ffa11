"""Networks whose weights are divided over the ranks by torch's `fully_shard` (FSDP2).

Such a network sums its own gradients in its backward pass, so that a run does not; its passes, its
state and its samples are made by all ranks together. What lies on disk is whole: a run goes on on
any number of ranks, and with networks that are not divided.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fastgan.config import Config
    from fastgan.distributed import World
    from fastgan.problem import Problem

_HOW = "divide all of it by torch.distributed.fsdp.fully_shard(network, mesh=...) over all ranks"


def is_part(tensor: Any) -> bool:
    """Whether a tensor is this rank's part of one."""
    room = sys.modules.get("torch.distributed.tensor")
    return room is not None and isinstance(tensor, room.DTensor)


def whole(tensor: Any) -> Any:
    """All of a tensor, of which this rank may have a part; all ranks ask for it together."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def is_divided(network: nn.Module | None) -> bool:
    """Whether weights of a network are divided over the ranks."""
    if network is None:
        return False
    if any(map(is_part, network.parameters())):
        return True
    # Of one whose weights are gathered; without the module, nobody has divided anything.
    return "torch.distributed.fsdp" in sys.modules and any(True for _ in _units(network))


def _units(network: nn.Module) -> Iterator[Any]:
    """The modules that gather and free weights."""
    from torch.distributed.fsdp import FSDPModule

    return (m for m in network.modules() if isinstance(m, FSDPModule))


def unsuited(
    networks: Mapping[str, nn.Module],
    config: Config,
    samples: int,
    world: World,
    device: torch.device,
) -> str | None:
    """Why a run with divided networks cannot be; None if it can, or if none is divided.

    Args:
        networks: by "generator" and "discriminator".
        config: the settings.
        samples: that the data have.
        world: the ranks.
        device: of the run.
    """
    for name, network in networks.items():
        if any(type(m).__name__ == "FullyShardedDataParallel" for m in network.modules()):
            return f"{name} is wrapped by FullyShardedDataParallel, which is not supported; {_HOW}"
    divided = {name: network for name, network in networks.items() if is_divided(network)}
    if not divided:
        return None
    for name, network in divided.items():
        if not any(True for _ in _units(network)):
            return f"{name} has weights that are DTensors without fully_shard; {_HOW}"
        put_away(network)
        for path, w in network.named_parameters():
            if not is_part(w):
                return f"{name}.{path} is not divided, unlike other weights of it; {_HOW}"
            mesh = w.device_mesh
            if mesh.ndim != 1 or mesh.size() != world.size:
                return (
                    f"{name}.{path} is divided over a mesh of {tuple(mesh.shape)}, and the run "
                    f"has {world.size} ranks; {_HOW}"
                )
            if w.device.type != device.type:
                return (
                    f"{name}.{path} is divided over {w.device.type} devices, and the run is on "
                    f"{device}; give the run the same device"
                )
    from fastgan.terms import ADAPTIVE

    of_g = "generator" in divided
    average = "ema" if config.ema_half_life is None else "ema_half_life"
    for setting, given, why in (
        (average, of_g and config.averages, "it would need a whole copy of G on each rank"),
        ("precision", config.precision == "fp16", "scaled gradients are looked at before they are "
         "summed; use 'bf16'"),
        ("channels_last", config.channels_last, "the format of a part is fully_shard's to choose"),
        ("terms", of_g and any(t.weight == ADAPTIVE for t in config.terms),
         "an adaptive weight needs a gradient at G's last weight, which no rank has whole"),
    ):  # fmt: skip
        if given:
            return (
                f"{setting}={config.to_dict()[setting]!r} is not for a divided "
                f"{' and '.join(divided)}: {why}; leave it out, or pass networks that are not "
                "divided"
            )
    last = 0 if config.drop_last else samples % config.batch_size
    least = min(n for n in (config.batch_size, last) if n)
    if least < world.size:
        return (
            f"a batch has {least} samples, and each of {world.size} ranks must have one where "
            "networks are divided; use drop_last=True, or another batch_size"
        )
    return None


def prepare(problem: Problem) -> None:
    """Let divided networks do their part: gradients are summed, not averaged.

    A rank's loss is weighted by its share of the batch already. Where D's slopes may be penalised,
    its weights stay whole from its passes to the end of the update: a second backward pass goes
    through the same tensors.
    """
    from fastgan.method import LossMethod

    for network in (problem.generator, problem.discriminator):
        if not is_divided(network):
            continue
        for unit in _units(network):
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        penalised = bool(problem.penalties) or not isinstance(problem.method, LossMethod)
        if network is problem.discriminator and penalised:
            for unit in _units(network):
                unit.set_reshard_after_forward(False, recurse=False)
                unit.set_reshard_after_backward(False, recurse=False)


def put_away(*networks: nn.Module) -> None:
    """Free what was gathered: each rank has its part of the weights, and no more."""
    for network in networks:
        if is_divided(network):
            for unit in _units(network):
                unit.reshard()


@contextmanager
def divided(*networks: nn.Module) -> Iterator[None]:
    """Networks are divided when this begins, and again when it ends."""
    put_away(*networks)
    try:
        yield
    finally:
        put_away(*networks)


# --- from parts to what lies on disk, and back ---------------------------------------------------


def state_dict(network: nn.Module) -> dict[str, Any]:
    """The whole state dict of a divided network, on the CPU of the first rank; {} on others.

    All ranks call this.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    put_away(network)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(network, options=options)


def load_state_dict(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a whole state dict into a network; into a divided one, of which all ranks have it."""
    if not is_divided(network):
        network.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    put_away(network)
    set_model_state_dict(network, dict(state), options=StateDictOptions(full_state_dict=True))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state dict, whole on all ranks, which call this together."""
    state = optimizer.state_dict()
    kept = {
        i: {key: whole(v).cpu() if is_part(v) else v for key, v in of_one.items()}
        for i, of_one in state["state"].items()
    }
    return {**state, "state": kept}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a whole state dict into an optimiser, of whose weights some may be divided."""
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    if not any(map(is_part, weights)):
        optimizer.load_state_dict(state)
        return
    from torch.distributed.tensor import distribute_tensor

    # In the order of the groups, as torch itself numbers them.
    numbers = [i for group in state["param_groups"] for i in group["params"]]
    of = dict(zip(numbers, weights, strict=True))

    def part(i: int, value: Any) -> Any:
        w = of[i]
        if not (is_part(w) and isinstance(value, Tensor) and value.shape == w.shape and w.dim()):
            return value
        return distribute_tensor(value.to(w.device), w.device_mesh, w.placements)

    kept = {
        i: {key: part(i, v) for key, v in of_one.items()} for i, of_one in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": kept})


def own(weights: Iterable[Tensor]) -> list[Tensor]:
    """Those whose gradients are not summed by the backward pass itself."""
    return [w for w in weights if not is_part(w)]
