"""Reading a network into a plan leaves no trace on it, and what its forward does is seen."""

import copy
import threading

import pytest
import torch
from torch import nn

from fastgan.engines.fused import plan
from fastgan.engines.fused.trace import NoPlan


def read(module):
    return plan.read(module, "generator", (12,))


def test_reading_leaves_the_module_alone():
    net = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    read(net)
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True)
    )
    assert torch.equal(random, torch.get_rng_state())
    assert all(m.training for m in net.modules())


def test_reading_leaves_other_threads_alone():
    net, other = (
        nn.Sequential(nn.Linear(12, 12), nn.LeakyReLU(0.2)),
        nn.Sequential(nn.Linear(3, 3), nn.Flatten()),
    )
    faults, stop = [], threading.Event()

    def work():
        try:
            while not stop.is_set():
                assert other(torch.zeros(2, 3)).shape == (2, 3)
                # The network that is being read, too.
                assert isinstance(net[0].weight, nn.Parameter)
                net(torch.zeros(2, 12))
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(50):
        read(net)
    stop.set()
    thread.join()
    assert faults == []


class Assigns(nn.Module):
    """A forward that does more than compute."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.fc = nn.Linear(12, 4)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        h = self.fc(x)
        if self.what == "counter":
            self.calls += 1
        elif self.what == "feature":
            self.features = h
        elif self.what == "buffer":
            self.seen = self.seen + h.mean(0)
        return h


@pytest.mark.parametrize("what", ["counter", "feature", "buffer"])
def test_a_forward_that_changes_its_module_has_no_plan_and_is_not_run_on_it(what):
    net = Assigns(what)
    before, seen = dict(vars(net)), net.seen
    with pytest.raises(NoPlan, match=r"generator(: .* by its forward|: torch.fx cannot)"):
        read(net)
    assert {k: v for k, v in vars(net).items() if v is not before.get(k)} == {}
    assert net.seen is seen and (seen == 0).all() and not hasattr(net, "features")


def test_a_forward_that_draws_has_no_plan():
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 4)

        def forward(self, x):
            return self.fc(x).relu() if torch.rand(()) < 2 else self.fc(x)

    net, state = Draws(), torch.get_rng_state()
    with pytest.raises(NoPlan, match="draws random numbers"):
        read(net)
    assert torch.equal(state, torch.get_rng_state())


def test_a_network_that_cannot_be_copied_has_no_plan():
    net = nn.Sequential(nn.Linear(12, 4))
    net.lock = threading.Lock()
    with pytest.raises(NoPlan, match="generator cannot be copied"):
        read(net)


def test_hooks_for_all_modules_have_no_plan():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(NoPlan, match="hooks for all modules"):
            read(nn.Sequential(nn.Linear(12, 4)))
    finally:
        handle.remove()
