"""Compiled updates inside recorded steps, which is what the engine `compile` does on CUDA.

As in test_graph.py, a recording is the same work done again where there is no GPU.
"""

import logging

import pairs
import pytest
import torch
from compilers import counted, functional, traced_only, uses
from graph_changes import CHANGES
from methods import case
from pairs import discriminator, images, problem
from recordings import (
    PROBLEMS,
    TIGHT,
    Again,
    assert_replayed_is_eagers,
    assert_same,
    convolutions,
    everything,
    smooth,
    twins,
    with_norms,
)
from torch import nn

from fastgan import engines
from fastgan.engines import graph
from fastgan.engines.base import CannotRun
from fastgan.engines.compile import CompileEngine
from fastgan.engines.compiled_graph import CompiledGraphEngine
from fastgan.engines.eager import EagerEngine
from fastgan.engines.graph import GraphEngine

NETWORKS = (
    "hinge", "norms and dropouts", "two updates of D, all at once", "layers with their dropout",
    "dropout called twice", "spectral norm", "streamed", "r1, lazy", "convolutions with r1",
    "r1 and r2", "wgan-gp", "bf16", "adamw",
    "shared fakes", "shared fakes, two scores", "shared fakes, wgan-gp",
    "shared fakes, convolutions with r1", "shared fakes, bf16",
)  # fmt: skip


@pytest.fixture
def compiler(monkeypatch):
    return counted(monkeypatch, traced_only)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_replayed_compiled_step_is_eagers(name, monkeypatch):
    calls = counted(monkeypatch, functional)
    p, q = twins(PROBLEMS[name])
    recorder = Again()
    engine = CompiledGraphEngine(q, recorder)
    made = len(calls)
    assert_replayed_is_eagers(p, q, engine, recorder)
    # Nothing is compiled in the loop, nor in a recording.
    assert len(calls) == made == uses(engine._body.step.functions)
    said = engine.describe()
    assert "replayed as CUDA" in said and "by TorchInductor" in said


@pytest.mark.parametrize("name", ["conditional", "auxiliary", "slope", "noisy"])
def test_methods_are_compiled_and_replayed(name, compiler):
    p, q = case(name), case(name)
    eager, engine = EagerEngine(p), CompiledGraphEngine(q, Again())
    torch.testing.assert_close(engine.run(9), eager.run(9), **TIGHT, equal_nan=True)
    assert_same(p, q, **TIGHT)
    logged = ({k: float(v) for k, v in e.logged.items()} for e in (eager, engine))
    assert next(logged) == pytest.approx(next(logged))


def test_making_the_engine_leaves_no_trace(compiler):
    p = with_norms(ema=0.9, penalties="wgan-gp")
    EagerEngine(p).run(3)
    before, state = everything(p), torch.get_rng_state()
    engine = CompiledGraphEngine(p, Again())
    after = everything(p)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(state, torch.get_rng_state())
    engine.close()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_between_runs_count(change, compiler):
    p, q = twins(lambda: with_norms(source=images(24)))
    eager, engine = EagerEngine(p), CompiledGraphEngine(q, Again())
    eager.run(4), engine.run(4)
    change(p), change(q)
    torch.testing.assert_close(engine.run(9), eager.run(9), **TIGHT)
    assert_same(p, q, **TIGHT)


@pytest.fixture
def recorded(monkeypatch, compiler):
    """The machine has what stands for a GPU; returns its recorders."""
    recorders = []

    def recorder(device, generators):
        recorders.append(Again())
        return recorders[-1]

    monkeypatch.setattr(
        GraphEngine, "unsupported", classmethod(lambda _, p: graph._unsupported_parts(p))
    )
    monkeypatch.setattr(graph, "CudaRecorder", recorder)
    return recorders


def test_the_engine_compile_is_recorded_where_that_can_be(recorded):
    p, q = twins(lambda: smooth(penalties="r1"))
    engine, said = engines.choose(q, "compile")
    assert isinstance(engine, CompiledGraphEngine) and engine.name == "compile"
    assert said.startswith("engine compile: whole steps replayed as CUDA graphs")
    torch.testing.assert_close(engine.run(9), EagerEngine(p).run(9), **TIGHT)
    assert recorded[0].replayed > 0
    # The optimiser's own step cannot be replayed: the functions are called one by one.
    q = problem(optimizer=("adam", lambda weights: torch.optim.Adagrad(weights, lr=1e-3)))
    engine, _ = engines.choose(q, "compile")
    assert type(engine) is CompileEngine and "Adagrad" in engine._not_recorded
    assert torch.isfinite(engine.run(3)).all() and len(recorded) == 1
    engine, _ = engines.choose(case("information"), "compile")
    assert type(engine) is CompileEngine and "in some updates only" in engine._not_recorded


def test_what_fails_when_recorded_is_compiled_all_the_same_and_told(recorded, monkeypatch, caplog):
    def refuse(self, work):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Again, "capture", refuse)
    monkeypatch.setattr(Again, "provoke", lambda self, work: None)
    p, q = twins(smooth)
    with caplog.at_level(logging.WARNING, "fastgan"):
        engine, _ = engines.choose(q, "compile")
    assert type(engine) is CompileEngine
    assert "engine compile: steps are not recorded: recording failed" in caplog.text
    torch.testing.assert_close(engine.run(3), EagerEngine(p).run(3), **TIGHT)


def test_what_cannot_be_compiled_is_told_once(recorded, caplog):
    class Reads(nn.Module):
        def forward(self, x):
            return x * (x.abs().max().item() / x.abs().max())

    p = problem(d=discriminator(middle=(nn.Tanh(), Reads())))
    with pytest.raises(ValueError, match=r"discriminator\.body\.4 cannot be traced"):
        engines.choose(p, "compile")


def test_a_network_compiled_between_two_runs_is_refused(compiler):
    p = problem()
    engine = CompiledGraphEngine(p, Again())
    engine.run(2)
    p.discriminator.body[1].compile()
    with pytest.raises(CannotRun, match="compiled already"):
        engine.run(1)


def test_images_are_compiled_as_they_lie(compiler):
    """Else every batch of a pair in the channels-last format would be copied."""
    engine = CompiledGraphEngine(convolutions(), Again())
    last = [f.strides[0] for f in engine._body.step.functions.values()]
    blank = torch.empty(8, 3, 8, 8, memory_format=torch.channels_last)
    assert last and all(stride == blank.stride() for stride in last)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["convolutions with r1", "r1, lazy", "norms and dropouts"])
def test_on_cuda_compiled_and_replayed_steps_are_eagers(name, monkeypatch):
    monkeypatch.setattr(pairs, "DEVICE", "cuda")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    p, q = twins(PROBLEMS[name])
    engine, said = engines.choose(q, "compile")
    assert isinstance(engine, CompiledGraphEngine), said
    found, expected = engine.run(20), EagerEngine(p).run(20)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
