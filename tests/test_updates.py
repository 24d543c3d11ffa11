"""Whose weights an update moves, and what one that fails leaves behind: nothing to be added to."""

from contextlib import nullcontext

import pytest
import torch
from compilers import counted, traced_only
from pairs import images, problem, same, weights
from recordings import Again
from small_runs import own

from fastgan.engines.compile import CompileEngine
from fastgan.engines.eager import EagerEngine
from fastgan.engines.graph import GraphEngine


class Stumbles(torch.optim.SGD):
    """Raises where others would move their weights, once a test has told it to."""

    stumbles = False

    def step(self, closure=None):
        if self.stumbles:
            raise ZeroDivisionError("a step of the user's own")
        return super().step(closure)


def without_gradients(p):
    return all(w.grad is None for m in (p.generator, p.discriminator) for w in m.parameters())


@pytest.mark.parametrize("shared_fakes", [False, True])
@pytest.mark.parametrize("kind", [EagerEngine, CompileEngine])
def test_an_optimiser_that_fails_leaves_no_gradients(kind, shared_fakes, monkeypatch):
    counted(monkeypatch, traced_only)
    p = problem(optimizer=(lambda w: Stumbles(w, lr=0.1), "sgd"), shared_fakes=shared_fakes)
    engine = kind(p)
    engine.run(2)
    before = weights(p.generator), weights(p.discriminator)
    p.optimizer_g.stumbles = True
    with pytest.raises(ZeroDivisionError):
        engine.run(1)
    assert engine.step == 2 and engine.unreported is None
    assert same(weights(p.generator), before[0]), "G's update is half done"
    assert not same(weights(p.discriminator), before[1])
    assert without_gradients(p)
    # A loop of the user's own has its own gradients and no others.
    loss = p.discriminator(p.generator(torch.ones(4, 5))).sum()
    expected = torch.autograd.grad(loss, list(p.generator.parameters()), retain_graph=True)
    loss.backward()
    assert same([w.grad for w in p.generator.parameters()], expected)
    p.optimizer_g.stumbles = False
    assert engine.run(2).isfinite().all() and without_gradients(p)


@pytest.mark.parametrize("kind", [EagerEngine, lambda p: GraphEngine(p, Again())])
def test_a_pass_that_fails_leaves_no_gradients(kind):
    p = problem(source=images(24))
    engine = kind(p)
    engine.run(2)
    passes, forward = iter(range(4)), p.generator.forward
    p.generator.forward = lambda z: forward(z) if next(passes) < 1 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.run(1)
    assert without_gradients(p)


class Hinge:
    """A game of a user's own, whose loss fails in the third step."""

    def d_loss(self, step):
        return torch.relu(1 - step.D(step.real)).mean() + torch.relu(1 + step.D(step.fake)).mean()

    def g_loss(self, step):
        if step.number == 2:
            raise ZeroDivisionError("a loss of the user's own")
        return -step.D(step.fake).mean()


def test_a_loss_that_fails_leaves_no_gradients_in_a_run():
    t = own(method=Hinge())
    with pytest.raises(ZeroDivisionError):
        t.fit(steps=5)
    assert t.step == 2 and without_gradients(t)


@pytest.mark.filterwarnings("ignore")
def test_a_scaler_goes_on_after_an_update_that_broke_off():
    p = problem(optimizer=(lambda w: Stumbles(w, lr=0.1), "sgd"), precision="fp16", grad_clip=1.0)
    engine = EagerEngine(p)
    engine.run(1)
    p.optimizer_g.stumbles = True
    with pytest.raises(ZeroDivisionError):
        engine.run(1)
    assert without_gradients(p)
    p.optimizer_g.stumbles = False
    assert len(engine.run(1)) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_gradients_of_before_a_run_are_gone_after_it(fails):
    p = problem(lr_schedule=lambda step: float("nan") if fails and step == 2 else 1.0)
    for w in (*p.generator.parameters(), *p.discriminator.parameters()):
        w.grad = torch.ones_like(w)
    with pytest.raises(ValueError, match="lr_schedule") if fails else nullcontext():
        EagerEngine(p).run(5)
    assert without_gradients(p)


class Joint:
    """A joint loss whose penalty is taken by gradients of gradients."""

    def d_loss(self, step):
        return step.D(step.fake).mean() - step.D(step.real).mean()

    def g_loss(self, step):
        return 0 * step.D(step.fake).mean()

    def joint_loss(self, step):
        return step.D(step.fake).mean() + step.penalty("r1")


def test_a_joint_loss_with_a_penalty_moves_both_networks(monkeypatch):
    counted(monkeypatch, traced_only)
    p, q = (problem(method=Joint(), optimizer="sgd", lr=0.1) for _ in range(2))
    before = weights(p.generator)
    EagerEngine(p).run(2), CompileEngine(q).run(2)
    assert not any(map(torch.equal, weights(p.generator), before))
    torch.testing.assert_close(weights(p.generator), weights(q.generator))
    torch.testing.assert_close(weights(p.discriminator), weights(q.discriminator))
