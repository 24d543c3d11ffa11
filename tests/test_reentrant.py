"""Networks whose backward passes begin another: who can train them, and what others say."""

import logging

import pytest
import torch
from compilers import counted, functional
from pairs import discriminator, generator, problem, same, weights
from recordings import everything
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastgan import engines, terms
from fastgan.engines import reentrant
from fastgan.engines.base import CannotRun
from fastgan.engines.compile import CompileEngine
from fastgan.engines.eager import EagerEngine
from fastgan.penalties import PENALTIES

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs")  # of passes without grad
REFUSED = "reentrant activation checkpointing calls backward within backward.*use_reentrant=False"


class Redone(nn.Module):
    """A layer that is done again in the backward pass."""

    def __init__(self, reentrant=True):
        super().__init__()
        self.layer, self.reentrant = nn.Linear(16, 16), reentrant

    def forward(self, x):
        return checkpoint(self.layer, x, use_reentrant=self.reentrant)


class _Inside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer, ctx.x = layer, x.detach()
        with torch.no_grad():
            return layer(x)

    @staticmethod
    def backward(ctx, slope):
        x = ctx.x.requires_grad_()
        with torch.enable_grad():
            ctx.layer(x).backward(slope)
        return x.grad, None


class Reversible(nn.Module):
    """The same by a backward pass of its own, which nothing warns of."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return _Inside.apply(x, self.layer)


def with_d(layer=None, **options):
    return problem(d=discriminator(middle=(layer or Redone(),)), **options)


@pytest.fixture
def tried(monkeypatch):
    """`auto` tries the engine compile."""
    counted(monkeypatch, functional)
    monkeypatch.setattr("fastgan.engines.kept.why_not", lambda problem: None)


@pytest.mark.parametrize("whose", ["D", "G"])
def test_compile_says_which_update_and_what_to_do_and_leaves_no_trace(whose, tried, caplog):
    p = with_d() if whose == "D" else problem(generator(Redone()))
    parameters = [*p.generator.parameters(), *p.discriminator.parameters()]
    for w in parameters:
        w.grad = torch.ones_like(w)
    gradients = [w.grad for w in parameters]
    before, random = everything(p), torch.get_rng_state()
    told = f"{whose}'s update of 8 samples: {REFUSED}, or use engine='eager'"
    with pytest.raises(ValueError, match=told):
        engines.choose(p, "compile")
    assert all(torch.equal(value, before[key]) for key, value in everything(p).items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(w.grad is g and (g == 1).all() for w, g in zip(parameters, gradients, strict=True))
    with caplog.at_level(logging.WARNING, "fastgan"):
        engine, said = engines.choose(p)
    assert isinstance(engine, EagerEngine) and "not compile: " in said
    assert caplog.text.count("reentrant activation checkpointing") == 1
    assert engine.run(3).isfinite().all()


def test_the_other_form_is_compiled_and_gradients_of_before_stay(tried):
    p = with_d(Redone(reentrant=False))
    w = p.generator.body[1].weight
    gradient = w.grad = torch.ones_like(w)
    assert isinstance(engines.choose(p)[0], CompileEngine)
    assert w.grad is gradient and (gradient == 1).all()


@pytest.mark.parametrize("engine", ["eager", "compile", "auto"])
@pytest.mark.parametrize("penalty", ["r1", "wgan-gp"])
def test_a_penalty_on_a_slope_says_what_to_do(penalty, engine, tried):
    p = with_d(penalties=penalty)
    before, random = everything(p), torch.get_rng_state()
    told = f"penalty '{penalty}' on the discriminator's slope: {REFUSED}, or take .*approximate-r1"
    with pytest.raises(ValueError, match=told):
        engines.choose(p, engine)[0].run(1)
    assert all(torch.equal(value, before[key]) for key, value in everything(p).items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(w.grad is None for m in (p.generator, p.discriminator) for w in m.parameters())


def test_an_adaptive_weight_says_what_to_do():
    p = with_d(terms={"l2": ("adaptive", terms.l2)})
    with pytest.raises(ValueError, match=rf"terms\['l2'\], whose .*: {REFUSED}, or give a number"):
        EagerEngine(p).run(1)


class Two:
    """Two discriminators, one of them with a penalty."""

    def d_loss(self, step):
        points = step.points("real", step.real, step.fake)
        slope = step.penalty_of(PENALTIES["r1"], step.D["one"](points).flatten(), points)
        return slope + sum((step.D[k](step.fake) - step.D[k](step.real)).mean() for k in step.D)

    def g_loss(self, step):
        return -sum(step.D[k](step.fake).mean() for k in step.D)


def test_a_penalty_beside_a_network_that_is_done_again_says_what_to_do():
    d = {"one": discriminator(), "other": discriminator(middle=(Redone(),))}
    p = problem(d=nn.ModuleDict(d), method=Two())
    with pytest.raises(ValueError, match=f"holds a penalty on D's slope: {REFUSED}$"):
        EagerEngine(p).run(1)
    d["other"].body[3].reentrant = False
    assert EagerEngine(p).run(1).isfinite().all()


def test_a_change_in_a_run_is_told_once(tried, caplog):
    layer = Redone(reentrant=False)
    engine, _ = engines.choose(with_d(layer))
    engine.run(2)
    layer.reentrant = True
    with pytest.raises(ValueError, match=f"cannot go on at step 2: .*{REFUSED}.*; undo the change"):
        engines.advance(engine, 1, "compile")
    with caplog.at_level(logging.WARNING, "fastgan"):
        engine, done = engines.advance(engine, 1)
    assert isinstance(engine, EagerEngine) and engine.step == 2 and len(done) == 0
    told = [r.message for r in caplog.records if r.name == "fastgan"]
    assert len(told) == 1 and told[0].startswith("engine compile cannot go on at step 2")


def test_gradients_that_an_inner_pass_keeps_to_itself_are_not_left_out(tried):
    with pytest.raises(CannotRun, match="D's update of 8 samples: .*calls backward within it"):
        CompileEngine(with_d(Reversible()))
    p, q = with_d(Reversible()), with_d(nn.Linear(16, 16))
    q.discriminator.load_state_dict(
        dict(zip(q.discriminator.state_dict(), p.discriminator.state_dict().values(), strict=True))
    )
    q.generator.load_state_dict(p.generator.state_dict())
    engine, said = engines.choose(p)
    assert isinstance(engine, EagerEngine) and "not compile: D's update" in said
    torch.testing.assert_close(engine.run(3), EagerEngine(q).run(3))
    torch.testing.assert_close(weights(p.discriminator), weights(q.discriminator))
    assert not same(weights(p.discriminator), weights(with_d(Reversible()).discriminator))


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="^something else$"), reentrant.told("an update"):
        raise RuntimeError("something else")
