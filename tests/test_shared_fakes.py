"""G's update on the samples that D's has judged: what is spared, what is kept, what is refused."""

import pytest
import torch
from compilers import counted, functional, traced_only
from methods import case
from pairs import discriminator, generator, problem, weights
from recordings import TIGHT, assert_same, smooth, twins, with_norms
from test_step import two_halves
from torch import nn

from fastgan import terms
from fastgan.config import Config, ConfigError
from fastgan.engines.base import CannotRun
from fastgan.engines.compile import CompileEngine
from fastgan.engines.eager import EagerEngine


def passes(network):
    """Of a network, the batches that it has been given."""
    found = []
    network.register_forward_hook(lambda m, args, out: found.append(args[0]))
    return found


@pytest.mark.parametrize(("d_steps", "g_steps"), [(1, 1), (3, 1), (2, 2)])
def test_a_pass_of_g_is_spared(d_steps, g_steps):
    of_g, of_d = [], []
    for shared in (False, True):
        p = problem(d_steps=d_steps, g_steps=g_steps, shared_fakes=shared)
        of_g.append(passes(p.generator)), of_d.append(passes(p.discriminator))
        EagerEngine(p).run(1)
    assert [len(found) for found in of_g] == [d_steps + g_steps, d_steps + g_steps - 1]
    assert [len(found) for found in of_d] == [2 * d_steps + g_steps] * 2
    # The last of D's updates and the first of G's are of the same samples.
    own, same = ((of_d[i][2 * d_steps - 1], of_d[i][2 * d_steps]) for i in (0, 1))
    assert torch.equal(*same) and not torch.equal(*own)


def test_nothing_of_a_step_is_left_behind():
    p = problem(shared_fakes=True)
    engine = EagerEngine(p)
    engine.run(2)
    assert engine._once._shared is None
    assert all(w.grad is None for m in (p.generator, p.discriminator) for w in m.parameters())


def test_a_network_that_waits_shares_nothing():
    shared = iter([False, True])
    p, q = twins(lambda: with_norms(g_start=2, shared_fakes=next(shared)))
    a, b = EagerEngine(p), EagerEngine(q)
    torch.testing.assert_close(a.run(2), b.run(2), rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(a.run(1), b.run(1))


@pytest.mark.parametrize("name", ["conditional", "auxiliary", "information", "slope"])
def test_methods_share_conditions_too(name, monkeypatch):
    counted(monkeypatch, traced_only)
    p, q = (case(name, shared_fakes=True) for _ in range(2))
    eager, engine = EagerEngine(p), CompileEngine(q)
    torch.testing.assert_close(engine.run(6), eager.run(6), **TIGHT, equal_nan=True)
    assert_same(p, q, **TIGHT)


def test_terms_see_the_samples_that_d_has_seen():
    seen = []

    def term(step):
        seen.append((step.fake, step.z))
        return step.fake.square().mean()

    p = problem(shared_fakes=True, terms={"mine": (1.0, term)})
    of_d = passes(p.discriminator)
    EagerEngine(p).run(1)
    ((fake, z),) = seen
    assert torch.equal(fake, of_d[1]) and fake.requires_grad and z.shape == (8, 5)


def test_ranks_share_their_rows():
    whole, halves = two_halves(shared_fakes=True)
    for a, b, c in zip(whole, *halves, strict=True):
        torch.testing.assert_close(a, b + c)


def test_what_d_changes_cannot_be_shared():
    layer = nn.Linear(16, 16)
    g, d = generator(layer), discriminator(middle=(layer,))
    problem(g, d)
    with pytest.raises(ConfigError, match=r"body.2.weight: it is discriminator.body.3.weight"):
        problem(g, d, shared_fakes=True)
    with pytest.raises(
        ConfigError, match="method 'ctgan' makes the samples of each update by itself"
    ):
        Config(method="ctgan", shared_fakes=True)
    with pytest.raises(ConfigError, match=r"accumulate is 2.*give one of them"):
        Config(accumulate=2, shared_fakes=True)


def test_a_buffer_that_d_changes_is_not_compiled(monkeypatch):
    counted(monkeypatch, functional)
    norm = nn.BatchNorm1d(16, affine=False)
    p, q = (
        problem(generator(norm), discriminator(middle=(norm,)), shared_fakes=s)
        for s in (False, True)
    )
    CompileEngine(p)
    with pytest.raises(CannotRun, match="works with what D's update moves"):
        CompileEngine(q)
    assert EagerEngine(q).run(2).isfinite().all()


class Noise(nn.Module):
    """Draws from torch's own generator."""

    def forward(self, x):
        return x + torch.randn_like(x)


class Ordered:
    """A game whose D's loss makes the passes of its words, one after the other."""

    def __init__(self, *words):
        self.words = words

    def d_loss(self, step):
        of = {
            "real": lambda: -step.D(step.real),
            "fake": lambda: step.D(step.fake),
            "G": lambda: step.D(step.G(-step.z).detach()),
        }
        return torch.cat([of[word]() for word in self.words]).mean()

    def g_loss(self, step):
        return -step.D(step.fake).mean()


@pytest.mark.parametrize(
    ("words", "noisy", "fits"),
    [
        (("real", "fake"), False, True),
        (("fake", "real"), True, True),
        (("fake", "G", "real"), False, True),
        (("real", "fake"), True, False),
        (("G", "fake"), False, False),
        (("G", "real"), False, False),
    ],
)
def test_a_compiled_step_makes_the_samples_first(words, noisy, fits, monkeypatch):
    counted(monkeypatch, traced_only)

    def make(shared=True):
        noise = (Noise(),) if noisy else ()
        g = generator(nn.Dropout(0.2), nn.BatchNorm1d(16), *noise)
        d = discriminator(middle=noise)
        return problem(g, d, method=Ordered(*words), shared_fakes=shared)

    if not fits:
        with pytest.raises(CannotRun, match="makes these samples before all else"):
            CompileEngine(make())
        CompileEngine(make(shared=False))
        return
    p, q = twins(make)
    engine = CompileEngine(q)
    found = []
    for one in (EagerEngine(p), engine):
        torch.manual_seed(9)
        found.append(one.run(4))
    torch.testing.assert_close(*found, **TIGHT)
    assert_same(p, q, **TIGHT)


def test_a_frozen_layer_may_be_in_both(monkeypatch):
    counted(monkeypatch, traced_only)

    def make():
        layer = nn.Linear(16, 16).requires_grad_(False)
        return problem(generator(layer), discriminator(middle=(layer,)), shared_fakes=True)

    p, q = twins(make)
    torch.testing.assert_close(CompileEngine(q).run(3), EagerEngine(p).run(3), **TIGHT)


def test_samples_that_are_a_weight(monkeypatch):
    """What torch's compiler calls by Python cannot be compared; a library can, and is right."""
    counted(monkeypatch, functional)

    class Weight(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(1, 1, 6, 6))

        def forward(self, z):
            return self.w.expand(len(z), 1, 6, 6)

    p = problem(Weight(), shared_fakes=True)
    with pytest.raises(CannotRun):
        CompileEngine(p)
    assert EagerEngine(p).run(2).isfinite().all()


class Writes:
    """A game whose D's loss changes the samples."""

    def d_loss(self, step):
        return (step.D(step.fake.mul_(0.5)) - step.D(step.real)).mean()

    def g_loss(self, step):
        return -step.D(step.fake).mean()


def test_samples_that_d_writes_into_are_an_error():
    EagerEngine(problem(method=Writes())).run(1)
    p = problem(method=Writes(), shared_fakes=True)
    with pytest.raises(CannotRun, match="D's loss writes into the samples"):
        CompileEngine(p)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        EagerEngine(p).run(1)


def test_samples_of_several_tensors_are_shared_by_eager_alone():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = generator()

        def forward(self, z):
            x = self.body(z)
            return x, 2 * x

    class Second:
        def d_loss(self, step):
            a, b = step.fake
            assert not a.requires_grad and not b.requires_grad
            return (step.D(b) - step.D(step.real)).mean()

        def g_loss(self, step):
            return -step.D(step.fake[1]).mean()

    p = problem(Two(), method=Second(), shared_fakes=True)
    before = weights(p.generator)
    EagerEngine(p).run(1)
    assert not any(map(torch.equal, before, weights(p.generator)))
    with pytest.raises(CannotRun, match="more than one tensor"):
        CompileEngine(p)


def test_terms_are_compiled_with_samples_that_are_shared(monkeypatch):
    counted(monkeypatch, functional)
    options = {"shared_fakes": True, "terms": {"m": (0.5, terms.moments)}, "g_steps": 2}
    p, q = twins(lambda: smooth(**options))
    torch.testing.assert_close(CompileEngine(q).run(3), EagerEngine(p).run(3), **TIGHT)
    assert_same(p, q, **TIGHT)
