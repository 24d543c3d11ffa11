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


def test_what_is_drawn_outside_moves_none_of_the_runs_draws():
    def draws(outside):
        torch.manual_seed(4)
        own, drawn, foreign = torch_rng.OwnStates(9, CPU), [], []
        with own.in_use():
            for _ in range(3):
                drawn.append(torch.randn(2))
                before = own.state_dict()["cpu"]
                if outside:
                    with own.outside():
                        foreign.append(torch.randn(5))
                        assert torch.equal(own.state_dict()["cpu"], before)
                        with own.outside():
                            foreign.append(torch.randn(1))
                assert torch.equal(own.state_dict()["cpu"], before)
        return torch.cat(drawn), foreign, torch.randn(2)

    torch.manual_seed(4)
    expected = [torch.randn(5 if i % 2 == 0 else 1) for i in range(6)]
    after = torch.randn(2)
    own, foreign, last = draws(outside=True)
    assert torch.equal(own, draws(outside=False)[0])
    for drawn, right in zip(foreign, expected, strict=True):
        assert torch.equal(drawn, right), "the program's numbers go on"
    assert torch.equal(last, after)


def test_an_exception_outside_and_a_run_within_a_run_keep_both_apart():
    torch.manual_seed(4)
    expected = torch.randn(2)
    torch.manual_seed(4)
    own = torch_rng.OwnStates(9, CPU)
    with own.outside():
        pass
    with own.in_use():
        first = torch.randn(2)
        with pytest.raises(KeyError), own.outside():
            raise KeyError
        with own.outside(), own.in_use():
            second = torch.randn(2)
        with own.in_use():
            third = torch.randn(2)
    assert torch.equal(torch.randn(2), expected)
    whole = torch_rng.OwnStates(9, CPU)
    with whole.in_use():
        for drawn in (first, second, third):
            assert torch.equal(drawn, torch.randn(2))


def test_a_state_that_is_none_is_refused():
    own = torch_rng.OwnStates(9, CPU)
    with pytest.raises(RuntimeError):
        own.load_state_dict({"cpu": torch.zeros(7, dtype=torch.uint8)})
    with own.in_use():
        torch.randn(1)
