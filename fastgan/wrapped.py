"""Networks inside wrappers, and modes: what surrounds a user's modules without being theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fastgan import sharded

_COMPILED = "_orig_mod"
"""What torch.compile calls the module inside; a path may have it anywhere."""


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, without DataParallel and its like or torch.compile around it."""
    while True:
        if _COMPILED in network._modules:
            network = network._modules[_COMPILED]
        elif isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        else:
            return network


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def state_dict(network: nn.Module) -> dict[str, Any]:
    """The state dict that the bare network would have.

    Of a divided one, which all ranks must ask for together, the first rank has it.
    """
    inner = unwrapped(network)
    own = sharded.state_dict(inner) if sharded.is_divided(inner) else inner.state_dict()
    return {_bare(name): value for name, value in own.items()}


class Modes:
    """The training modes of a run's networks.

    They are the user's: a layer that was put into eval mode stays there. Only a network that is in
    eval mode as a whole, as it is after it was sampled from, goes back to the modes that it was
    last trained in.
    """

    def __init__(self, *networks: nn.Module):
        """Note the modes; a network that is in eval mode as a whole is put into train mode."""
        self.networks = networks
        for network in networks:
            if not network.training:
                network.train()
        self._note()

    def _note(self) -> None:
        self._modes = [{m: m.training for m in network.modules()} for network in self.networks]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What a callback leaves in eval mode is put back after it."""
        self._note()
        try:
            yield
        finally:
            self._put_back()

    def restore(self) -> None:
        """Before steps are done: put back what a look at the network has left in eval mode."""
        self._put_back()
        self._note()

    def _put_back(self) -> None:
        for network, modes in zip(self.networks, self._modes, strict=True):
            if not network.training:
                network.train()
                for m in network.modules():
                    m.training = modes.get(m, True)
