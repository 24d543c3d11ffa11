"""What torch.fx does not see in a forward is found by running the plan beside it."""

import pytest
import torch
from pairs import SHAPE, problem
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastgan import engines, ops
from fastgan.engines.eager import EagerEngine

pytestmark = pytest.mark.skipif(
    not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return -3 * grad


class Judge(nn.Module):
    """An MLP with something between its two layers."""

    def __init__(self, between=lambda d, x: x):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(36, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self, self.act(self.first(x.flatten(1)))))


class Mixed(Judge):
    """Its first layer in bfloat16, as programs with a little autocast inside have it."""

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = self.first(x.flatten(1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.last(self.act(h)).flatten()


class PartlyFrozen(nn.Module):
    """A generator whose first layer no gradient reaches."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 36)

    def forward(self, z):
        with torch.no_grad():
            h = self.first(z)
        return torch.tanh(self.last(torch.relu(h))).view(-1, *SHAPE)


def generator():
    layers = nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 36), nn.Tanh(), nn.Unflatten(1, SHAPE)
    return nn.Sequential(*layers)


HIDDEN = {
    "a gradient of its own": lambda: (
        generator(),
        Judge(lambda d, x: Reversed.apply(x)),
    ),
    "autocast inside": lambda: (generator(), Mixed()),
    "no_grad inside": lambda: (PartlyFrozen(), Judge()),
    "asks for the mode of gradients": lambda: (
        generator(),
        Judge(lambda d, x: torch.tanh(x) if torch.is_grad_enabled() else x),
    ),
}


def both(make, **options):
    torch.manual_seed(5)
    networks = make()
    p = problem(*networks, **options)
    torch.manual_seed(5)
    return p, problem(*make(), **options)


@pytest.mark.parametrize("name", HIDDEN)
def test_what_a_trace_does_not_show_is_honoured(name):
    p, q = both(HIDDEN[name], loss="hinge")
    engine, said = engines.choose(p)
    assert engine.name == "eager" and "something else than its layers say" in said
    assert torch.equal(engine.run(4), EagerEngine(q).run(4))


@pytest.mark.parametrize("when", ["before", "between two runs"])
@pytest.mark.parametrize("kind", [nn.Linear, nn.LeakyReLU])
def test_a_forward_replaced_in_the_class_is_honoured(kind, when, monkeypatch):
    p, q = both(lambda: (generator(), Judge()))
    engine, other = engines.choose(p)[0], EagerEngine(q)
    if when == "between two runs":
        engine.run(1), other.run(1)
    plain = kind.forward
    monkeypatch.setattr(kind, "forward", lambda m, x: 0.5 * plain(m, x))
    if when == "before":
        engine = engines.choose(p)[0]
        assert engine.name == "eager"
    else:
        engine, done = engines.advance(engine, 4)
        assert engine.name == "eager" and len(done) == 0
    # The first step of one was fused, so that its weights are rounded otherwise.
    exact = {"rtol": 0, "atol": 0} if when == "before" else {}
    torch.testing.assert_close(engine.run(4), other.run(4), **exact)


def test_what_changes_no_number_keeps_its_plan():
    for between in (
        lambda d, x: checkpoint(torch.flatten, x, 1, use_reentrant=False),
        lambda d, x: x.view(-1, 4, 4).flatten(1),
    ):
        p, q = both(lambda between=between: (generator(), Judge(between)))
        engine, _ = engines.choose(p)
        assert engine.name == "fused"
        torch.testing.assert_close(engine.run(3), EagerEngine(q).run(3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["norm", "dropout"])
def test_a_layer_without_weights_in_both_networks(kind):
    def make():
        layer = nn.BatchNorm1d(16, affine=False) if kind == "norm" else nn.Dropout(0.3)
        g = nn.Sequential(nn.Linear(5, 16), layer, nn.Linear(16, 36), nn.Unflatten(1, SHAPE))
        return g, nn.Sequential(nn.Flatten(), nn.Linear(36, 16), layer, nn.Linear(16, 1))

    p, q = both(make)
    engine, said = engines.choose(p)
    assert "with the generator" in said
    assert torch.equal(engine.run(4), EagerEngine(q).run(4))
