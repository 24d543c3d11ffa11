"""Weighted terms of G's loss."""

import pytest
import torch
from methods import labelled, plain_d, plain_g
from pairs import same, weights
from small_runs import SHAPE
from torch import nn

from fastgan import terms
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine
from fastgan.problem import make_problem


def test_terms_have_weights_that_are_fixed_scheduled_or_adaptive():
    def drift(step):
        return step.fake.square().mean()

    torch.manual_seed(3)
    found = {}
    for weight in (0.0, 2.0, lambda t: 2.0 if t < 2 else 0.0, "adaptive", "adaptive:0"):
        torch.manual_seed(3)
        p = make_problem(
            plain_g(), plain_d(), labelled(), batch_size=8, latent_dim=5, device="cpu",
            terms={"drift": (weight, drift)},
        )  # fmt: skip
        engine = EagerEngine(p)
        rows = engine.run(2)
        assert set(engine.logged) == {"drift"} and "drift" in FusedEngine.unsupported(p)
        found[weight if isinstance(weight, (float, str)) else "scheduled"] = (
            weights(p.generator), rows
        )  # fmt: skip
    assert same(found[0.0][0], found["adaptive:0"][0])
    assert same(found[2.0][0], found["scheduled"][0])
    assert not same(found[2.0][0], found[0.0][0])
    assert not same(found["adaptive"][0], found[0.0][0])
    # What is reported is the plain loss.
    torch.testing.assert_close(found[2.0][1][0], found[0.0][1][0])


def test_an_adaptive_weight_makes_both_slopes_as_long():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.5])
    torch.testing.assert_close(terms.adapted(a, b), torch.tensor(10.0), rtol=1e-3, atol=0)
    assert terms.adapted(a, 0 * b) == 1e4


def test_an_adaptive_weight_without_a_slope_is_told():
    g = plain_g()
    g.unused = nn.Linear(3, 3)
    g.forward = lambda z: g[2](g[1](g[0](z)))
    p = make_problem(
        g, plain_d(), labelled(), terms={"l2": ("adaptive", terms.l2)}, batch_size=8, latent_dim=5,
        device="cpu",
    )  # fmt: skip
    with pytest.raises(ValueError, match="the adversarial loss does not depend"):
        EagerEngine(p).run(1)


def test_given_terms():
    class Middle(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU())
            self.end = nn.Linear(8, 1)

        def forward(self, x):
            return self.end(self.body(x))

    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.back = nn.Linear(5, 36), nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

        def forward(self, z, y):
            out = self.fc(z)
            return torch.tanh(out).view(-1, *SHAPE)

    frozen = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    torch.manual_seed(3)
    chosen = {
        "features": (1.0, terms.FeatureMatching("body.1", "body")),
        "means": (1.0, terms.FeatureMatching("body", means=True)),
        "perceptual": (1.0, terms.Perceptual(frozen, lambda x: (x + 1) / 2)),
        "l2": terms.l2,
    }
    p = make_problem(
        Coder(), Middle(), labelled(), batch_size=8, latent_dim=5, device="cpu", terms=chosen
    )
    engine = EagerEngine(p)
    engine.run(2)
    assert engine.logged.keys() == chosen.keys()
    assert all(v > 0 for v in engine.logged.values())
    assert all(w.grad is None for w in frozen.parameters())
    chosen = {"features": terms.FeatureMatching("middle")}
    p = make_problem(
        Coder(), Middle(), labelled(), batch_size=8, latent_dim=5, device="cpu", terms=chosen
    )
    with pytest.raises(ValueError, match="D has no layer 'middle'; it has body, body.0"):
        EagerEngine(p).run(1)


def test_kl_and_cycle_by_hand():
    class Step:
        fake = (None, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))

    torch.testing.assert_close(terms.kl(Step), torch.tensor(0.5 + 0.5 * (torch.e - 2)))

    class Around:
        fake, fake_cond, G = torch.ones(2, 3), torch.zeros(2, 3), nn.Identity()

    Around.G.way = nn.Identity()
    assert terms.Cycle("way")(Around) == 1.0
