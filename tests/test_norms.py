"""A BatchNorm and its rectifier as one operation, in networks that do not notice."""

import copy

import pytest
import torch
from operator_cases import needs_library
from test_convolutions import after, always, made
from torch import nn
from torch.nn import functional as F

from fastgan import engines, ops
from fastgan.engines import norms

pytestmark = needs_library
assert always  # a fixture


class Body(nn.Module):
    """Convolutions, of which the second is normalised and rectified."""

    def __init__(self, inplace=True):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2, inplace),
            nn.Conv2d(8, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16),
            nn.LeakyReLU(0.2, inplace), nn.Flatten(), nn.Linear(256, 1),
        )  # fmt: skip

    def forward(self, x):
        return self.main(x)


class Skips(Body):
    """What the norm returns goes by two ways."""

    def forward(self, x):
        h = self.main[:4](x)
        return self.main[5:](self.main[4](h.clone()) + h)


class Before(Body):
    """Something is done between the two."""

    def forward(self, x):
        return self.main[4:](self.main[:4](x) * 2)


class Later(Body):
    """It is whole when it is looked at."""

    parted = False

    def forward(self, x):
        return self.main[5:](self.main[:4](x)) if self.parted else self.main(x)


class Folded(Body):
    """No rectifier that an operator knows."""

    def __init__(self):
        super().__init__()
        self.main[4] = nn.LeakyReLU(-0.1)


class Called(Body):
    """The rectifier is a function."""

    by = staticmethod(lambda h: F.leaky_relu(h, 0.2))

    def forward(self, x):
        return self.main[5:](self.by(self.main[:4](x)))


class Method(Called):
    """It is one of the tensor's, in place."""

    by = staticmethod(lambda h: h.relu_())


class Twice(Called):
    """There are two."""

    by = staticmethod(lambda h: torch.relu(h) - F.leaky_relu(-h, 0.1))


class Shared(Body):
    """One rectifier in two places."""

    def __init__(self):
        super().__init__()
        self.main[4] = self.main[1]


class Twin(nn.Module):
    """The norm is called twice."""

    def __init__(self):
        super().__init__()
        self.body = Body()

    def forward(self, x):
        return self.body(x) + self.body(x.flip(3))


@pytest.fixture
def every(monkeypatch, always):
    """However small the images."""
    monkeypatch.setattr(norms, "_WORTH", 0)


R1, GP = {"penalties": "r1"}, {"penalties": "wgan-gp", "loss": "wasserstein"}


@pytest.mark.parametrize(
    ("kind", "joined", "options"),
    [
        (Body, 2, {}), (Body, 2, R1), (Body, 2, GP), (Body, 2, {"accumulate": 2}),
        (Body, 2, {"ema": 0.9}), (lambda: Body(False), 2, R1), (Twin, 2, R1), (Skips, 1, R1),
        (Before, 1, R1), (Shared, 2, {}), (Called, 2, {}), (Called, 2, R1), (Method, 2, GP),
        (Twice, 1, {}), (Folded, 1, {}), (Body, 0, {"channels_last": False}),
    ],
)  # fmt: skip
def test_a_step_is_that_of_torch(every, kind, joined, options, monkeypatch):
    calls = []
    norm = ops.batch_norm_leaky_relu
    monkeypatch.setattr(ops, "batch_norm_leaky_relu", lambda *a: calls.append(a) or norm(*a))
    problem = made(kind, **options)
    plain, expected = after(made(kind, operators="torch", **options))
    assert not calls
    said, found = after(problem)
    assert (f"{joined} BatchNorm2d" in said) == (joined > 0)
    assert len({len(a[1]) for a in calls}) == joined
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=3e-5)
    for network in (problem.generator, problem.discriminator):
        assert not any("forward" in vars(m) for m in network.modules())


def test_layers_that_are_frozen_in_eval_are_left_alone(every):
    problems = made(Body), made(Body, operators="torch")
    found = []
    for p in problems:
        p.discriminator.main[3].eval()
        found.append(after(p)[1])
        assert p.discriminator.main[3].num_batches_tracked == 0
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=3e-5)


def test_a_pair_that_is_parted_later_is_told(every):
    problem = made(Later)
    engine, _ = engines.choose(problem, "eager")
    engine.run(1)
    problem.discriminator.parted = True
    with pytest.raises(RuntimeError, match="were called apart in this pass"):
        engine.run(1)
    assert not any("forward" in vars(m) for m in problem.discriminator.modules())


def test_another_rectifier_between_two_runs_counts(every):
    found = []
    for options in ({}, {"operators": "torch"}):
        problem = made(Body, **options)
        engine, _ = engines.choose(problem, "eager")
        engine.run(1)
        problem.discriminator.main[4] = nn.ReLU()
        engine.run(1)
        found.append([w.detach() for w in problem.discriminator.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=3e-5)


def test_another_use_of_what_a_norm_returns_is_told(every):
    problem = made(Called)
    engine, _ = engines.choose(problem, "eager")
    engine.run(1)
    for by in (lambda h: F.leaky_relu(h, 0.3), torch.tanh, lambda h: h):
        problem.discriminator.by = by
        with pytest.raises(RuntimeError, match="were called apart in this pass"):
            engine.run(1)


def test_hooks_and_replaced_layers_count(every):
    problem = made(Body, **R1)
    engine, _ = engines.choose(problem, "eager")
    engine.run(1)
    other = copy.deepcopy(problem.discriminator.main[3])
    problem.discriminator.main[3] = other
    engine.run(1)
    assert other.num_batches_tracked == 6  # copied after three passes
    seen = []
    hook = problem.discriminator.main[3].register_forward_hook(lambda m, x, y: seen.append(y))
    engine.run(1)
    assert seen and all((y < 0).any() for y in seen)
    hook.remove()


def test_norms_are_of_plain_kinds():
    class Own(nn.BatchNorm2d):
        pass

    network = nn.Sequential(
        nn.BatchNorm2d(3), Own(3), nn.BatchNorm2d(3, affine=False),
        nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3, momentum=None),
        nn.Sequential(nn.BatchNorm2d(3), nn.LeakyReLU(0.3)),
    )  # fmt: skip
    assert norms.norms_of(network) == ["0", "5.0"]
    network[0].register_forward_pre_hook(lambda m, x: None)
    assert norms.norms_of(network) == ["5.0"]


def test_small_images_are_torchs(always, monkeypatch):
    monkeypatch.setattr(ops, "batch_norm_leaky_relu", None)
    after(made(Body), 1)
