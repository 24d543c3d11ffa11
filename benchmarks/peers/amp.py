"""PyTorch in bfloat16: autocast, eager and compiled; and on the cpu bf16 products of float32."""

from __future__ import annotations

import functools

import torch

from peers.compile import Compiled
from peers.eager import Eager


def _bf16(peer):
    return functools.partial(torch.autocast, peer.device, torch.bfloat16)


class AmpEager(Eager):
    """Clean eager under autocast: weights, moments and losses in float32, layers in bf16."""

    autocast = property(_bf16)


class AmpCompiled(Compiled):
    """The whole-step graph under autocast."""

    autocast = property(_bf16)


class Medium(Eager):
    """Clean eager; oneDNN is allowed to round the operands of float32 products to bf16."""

    def setup(self, plan, threads):
        super().setup(plan, threads)
        torch.set_float32_matmul_precision("medium")
