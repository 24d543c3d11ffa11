"""What the graph engine cannot record, and what it says of it."""

import copy
import logging
from contextlib import contextmanager

import pytest
import torch
from pairs import discriminator, generator, images, problem
from recordings import TIGHT, Again, Reads, assert_same, everything, twins
from torch import nn

from fastgan import engines
from fastgan.engines import graph
from fastgan.engines.base import CannotRun
from fastgan.engines.eager import EagerEngine
from fastgan.engines.graph import GraphEngine


def test_the_operation_that_cannot_be_captured_is_named():
    p = problem(d=discriminator(middle=(nn.Tanh(), Reads())))
    before = everything(p)
    with pytest.raises(
        CannotRun,
        match=r"discriminator\.body\.4 cannot be captured, at .*aten::_local_scalar_dense",
    ):
        GraphEngine(p, Again())
    assert all(
        torch.equal(before[key], value) for key, value in everything(p).items() if key in before
    )
    assert not p.discriminator.body[4]._forward_hooks


def test_in_a_backward_pass_the_operation_is_named_too():
    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return grad * grad.sum().item()

    class Bad(nn.Module):
        def forward(self, x):
            return Slope.apply(x)

    with pytest.raises(CannotRun, match="outside of both networks' passes cannot .*_local_scalar"):
        GraphEngine(problem(d=discriminator(middle=(Bad(),))), Again())


@contextmanager
def cuda_in_name(monkeypatch):
    """The graph engine believes that it can run here."""
    monkeypatch.setattr(GraphEngine, "unsupported", classmethod(lambda *_: None))
    monkeypatch.setattr(graph, "CudaRecorder", lambda *_: Again())
    yield


def test_auto_falls_back_loudly_and_a_forced_engine_raises(monkeypatch, caplog):
    with cuda_in_name(monkeypatch):
        bad = discriminator(middle=(Reads(), nn.GELU()))
        with caplog.at_level(logging.WARNING, "fastgan"):
            engine, said = engines.choose(problem(d=bad))
        assert isinstance(engine, EagerEngine)
        assert (
            "not graph: discriminator.body.3 cannot be captured, at or after aten::_local" in said
        )
        assert "engine graph was tried and cannot run this" in caplog.text
        with pytest.raises(
            ValueError, match=r"engine='graph' cannot run this .*local_scalar_dense"
        ):
            engines.choose(problem(d=bad), "graph")
        engine, said = engines.choose(problem(d=discriminator(middle=(nn.Mish(),))))
        assert isinstance(engine, GraphEngine) and "graphs of 1 and 8 steps, fp32" in said


class Replaces(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        return x


def test_a_buffer_that_is_replaced_is_named_and_put_back():
    p = problem(nn.Sequential(generator(), Replaces()))
    seen = p.generator[1].seen
    with pytest.raises(CannotRun, match="generator.1: seen is another tensor by a pass"):
        GraphEngine(p, Again())
    assert p.generator[1].seen is seen and seen == 0


def test_steps_that_cannot_be_recorded_run_unrecorded_and_are_told_once(caplog):
    p, q = twins(lambda: problem(d=discriminator(middle=(Reads(most=7),))))
    engine = GraphEngine(q, Again())
    with caplog.at_level(logging.WARNING, "fastgan"):
        found = engine.run(30)
    torch.testing.assert_close(found, EagerEngine(p).run(30), **TIGHT)
    assert caplog.text.count("some steps go operation by operation") == 1


def test_a_users_error_stays_a_users_error():
    p = problem()
    engine = GraphEngine(p, Again())
    p.generator.forward = lambda z: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.run(1)
    assert engine.step == 0


def test_after_a_step_that_stopped_half_way_the_engine_goes_on_from_what_the_user_sees():
    p = problem(source=images(24))
    engine = GraphEngine(p, Again())
    engine.run(2)
    passes = iter(range(4))
    forward = p.generator.forward
    # The third update of D is done, and G fails.
    p.generator.forward = lambda z: forward(z) if next(passes) < 1 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.run(1)
    del p.generator.forward
    q = problem(source=p.data)
    for name in ("generator", "discriminator", "optimizer_g", "optimizer_d"):
        getattr(q, name).load_state_dict(copy.deepcopy(getattr(p, name).state_dict()))
    eager = EagerEngine(q)
    eager.step = engine.step
    torch.testing.assert_close(engine.run(3), eager.run(3), **TIGHT)
    assert_same(p, q, **TIGHT)
