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
        self._program: dict[str, Tensor] | None = None
        """The program's states while the run's are in use."""

    @contextmanager
    def in_use(self):
        """Torch's generators hold the run's states meanwhile, and then again the program's."""
        if self._program is not None:
            yield
            return
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def outside(self):
        """Within `in_use`: the program's states are in force meanwhile, and then again the run's.

        What a user's function draws there (a callback, a picture) goes on with the program's
        numbers, and moves none of the run's. Outside of `in_use` this changes nothing.
        """
        if self._program is None:
            yield
            return
        self._leave()
        try:
            yield
        finally:
            self._enter()

    def state_dict(self) -> dict[str, Tensor]:
        """The run's states as they are, for a checkpoint.

        A run that came from CUDA to the CPU keeps that device's state, for when it returns.
        """
        in_use = self._program is not None
        return {**self._states, **read(self.device)} if in_use else self._states

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Take the states of a checkpoint; what it lacks stays as it is.

        Raises:
            RuntimeError: a state is none of this device's generators.
        """
        for name, state in states.items():
            if name == "cpu" or name == self.device.type:
                torch.Generator(self.device if name != "cpu" else "cpu").set_state(state)
        self._states.update(states)

    def _enter(self) -> None:
        self._program = read(self.device)
        write(self._states, self.device)

    def _leave(self) -> None:
        program, self._states = self._program, self.state_dict()
        self._program = None
        write(program, self.device)
