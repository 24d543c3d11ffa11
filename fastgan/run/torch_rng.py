"""Torch's own generators, which only the randomness inside a user's modules comes from.

A state is a dict with the CPU generator's state under "cpu" and, when the device is a CUDA one, its
generator's under "cuda".
"""

from contextlib import contextmanager

import torch
from torch import Tensor


def initial(seed: int, device: torch.device) -> dict[str, Tensor]:
    """The states that a seed starts from."""
    states = {"cpu": torch.Generator().manual_seed(seed).get_state()}
    if device.type == "cuda":
        states["cuda"] = torch.Generator(device).manual_seed(seed).get_state()
    return states


def read(device: torch.device) -> dict[str, Tensor]:
    """The states as they are."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def write(states: dict[str, Tensor], device: torch.device) -> None:
    """Set the states; a CUDA state is left out where the device is none."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def seeded(seed: int, device: torch.device):
    """Torch's generators start from a seed meanwhile, and are put back after."""
    outside = read(device)
    write(initial(seed, device), device)
    try:
        yield
    finally:
        write(outside, device)


class OwnStates:
    """A run's own states of torch's generators, apart from the program's."""

    def __init__(self, seed: int, device: torch.device):
        """Start from a seed."""
        self.device = device
        self._states = initial(seed, device)
        self._in_use = False

    @contextmanager
    def in_use(self):
        """Torch's generators hold the run's states meanwhile, and then again the program's."""
        outside = read(self.device)
        write(self._states, self.device)
        self._in_use = True
        try:
            yield
        finally:
            self._states = self.state_dict()
            self._in_use = False
            write(outside, self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """The run's states as they are, for a checkpoint.

        A run that came from CUDA to the CPU keeps that device's state, for when it returns.
        """
        return {**self._states, **read(self.device)} if self._in_use else self._states

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Take the states of a checkpoint; what it lacks stays as it is."""
        self._states.update(states)
