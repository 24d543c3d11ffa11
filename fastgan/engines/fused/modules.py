"""What a module must be for a plan to stand for it: beside its forward, and by its parameters."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgan import torch_private
from fastgan.engines.fused.trace import NoPlan

if TYPE_CHECKING:
    from fastgan.engines.fused.chain import Chain


def on(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor is on a device; one without an index is any of its kind."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def check(module: nn.Module, name: str) -> None:
    """Refuse one whose forward is not all that a call of it does."""
    for path, m in module.named_modules():
        where = f"{name}.{path}" if path else name
        if "forward" in m.__dict__:
            raise NoPlan(f"{where}: its forward was replaced on the instance")
        if any(torch_private.hooks_of(m)):
            raise NoPlan(f"{where}: hooks would not be called")
        if torch_private.is_compiled(m):
            raise NoPlan(f"{where}: is compiled by torch.compile")
    if torch_private.global_hooks():
        raise NoPlan("hooks for all modules or optimisers would not be called")


def check_parameters(module: nn.Module, name: str, chain: Chain, device: torch.device) -> None:
    """Refuse one whose parameters are not those of its layers, each once, trained and float32."""
    used = Counter(id(p) for p in chain.parameters)
    for path, p in module.named_parameters():
        where = f"{name}.{path}"
        if used[id(p)] > 1:
            raise NoPlan(f"{where}: a parameter that two layers share has no fused form")
        if not used[id(p)]:
            raise NoPlan(f"{where}: no layer of the traced forward uses it")
        if not p.requires_grad:
            raise NoPlan(
                f"{where}: requires_grad is False, and the fused engine trains every weight"
            )
        if p.dtype != torch.float32:
            raise NoPlan(f"{where}: is {str(p.dtype).removeprefix('torch.')}; float32 is fused")
        if not on(p, device):
            raise NoPlan(f"{where}: is on {p.device}, and the device is {device}")
        if not p.is_contiguous():
            raise NoPlan(f"{where}: is not contiguous")
        if torch_private.gradient_hooks(p):
            raise NoPlan(f"{where}: gradient hooks would not be called")
        if type(p.data) is not Tensor:
            raise NoPlan(f"{where}: is a {type(p.data).__name__}")
    if math.prod(chain.layers[-1].linear.weight.shape) == 0:
        raise NoPlan(f"{name} has a layer without features")
