"""Torch's own generators: put aside, set from a seed, kept for a run."""

import pytest
import torch

from fastgan.run import torch_rng

CPU = torch.device("cpu")


def test_seeded_puts_the_programs_states_back():
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    draws = []
    for seed in (5, 5, 6):
        with torch_rng.seeded(seed, CPU):
            draws.append(torch.randn(3))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    with pytest.raises(KeyError), torch_rng.seeded(7, CPU):
        torch.randn(2)
        raise KeyError
    assert torch.equal(torch.randn(3), expected)


def test_a_run_draws_from_its_own_states_only():
    def draws(cut):
        own, drawn = torch_rng.OwnStates(9, CPU), []
        for i in range(4):
            torch.manual_seed(i)
            before = torch.get_rng_state()
            with own.in_use():
                drawn.append(torch.randn(2))
                saved = own.state_dict()
            assert torch.equal(before, torch.get_rng_state())
            if i == cut:
                own = torch_rng.OwnStates(0, CPU)
                own.load_state_dict(saved)
        return torch.cat(drawn)

    whole = draws(cut=None)
    assert len(set(whole.tolist())) == 8
    assert torch.equal(whole, draws(cut=1)), "a state saved in use goes on from there"


def test_the_state_of_an_absent_device_waits_for_it():
    states = torch_rng.OwnStates(3, torch.device("cpu"))
    from_cuda = torch.arange(16, dtype=torch.uint8)
    states.load_state_dict({"cuda": from_cuda})
    with states.in_use():
        torch.randn(5)
        assert torch.equal(states.state_dict()["cuda"], from_cuda)
        assert torch.equal(states.state_dict()["cpu"], torch.get_rng_state())
    assert torch.equal(states.state_dict()["cuda"], from_cuda)
