"""The graph engine: its step held against `eager`, and the rules of recording.

Without a GPU a recording is the same work done again, which is all that a CUDA graph promises: the
numbers of a step then come from the device's counter alone.
"""

import logging

import pytest
import torch
from graph_changes import CHANGES
from pairs import generator, images, problem
from recordings import (
    PROBLEMS,
    TIGHT,
    Again,
    assert_replayed_is_eagers,
    assert_same,
    everything,
    twins,
    with_fused_layers,
    with_norms,
)
from torch import nn

from fastgan import ops
from fastgan.engines import device_step, graph
from fastgan.engines.eager import EagerEngine
from fastgan.engines.graph import GraphEngine


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_replayed_step_is_eagers(name):
    p, q = twins(PROBLEMS[name])
    recorder = Again()
    assert_replayed_is_eagers(p, q, GraphEngine(q, recorder), recorder)


@pytest.mark.skipif(not ops.has_kernels(torch.device("cpu")), reason="the CPU library")
def test_a_layer_and_its_dropout_are_one_operator_where_there_is_one(monkeypatch):
    calls = []

    def operator(x, weight, bias, slope, p, seed, stream, counter, *when, start):
        calls.append((stream, start))
        where = ops.draws.keep_threshold(p), seed, stream, *when, start
        return ops.linear._LinearLeakyReLUDropoutAt.apply(x, weight, bias, slope, counter, where)

    monkeypatch.setattr(ops, "linear_leaky_relu_dropout_at", operator)
    p, q = twins(with_fused_layers)
    engine = GraphEngine(q, Again())
    torch.testing.assert_close(engine.run(5), EagerEngine(p).run(5), **TIGHT)
    assert_same(p, q, **TIGHT)
    # The layer that a pass calls twice goes on in its stream.
    assert set(calls) == {(64 + use, n) for use in range(3) for n in (0, 6 * 16, 8 * 16)}


def test_runs_of_many_steps_are_replayed_in_chunks():
    p, q = twins(lambda: problem(source=images(24)))
    recorder = Again()
    engine = GraphEngine(q, recorder)
    torch.testing.assert_close(engine.run(40), EagerEngine(p).run(40), **TIGHT)
    # The first chunk's worth goes step by step, as no such sequence was seen before.
    assert recorder.captured == 2 and recorder.replayed == 1 + (40 - 1) // 8 + (40 - 1) % 8


def test_the_ring_comes_round(monkeypatch):
    monkeypatch.setattr(graph, "RING", 16)
    monkeypatch.setattr(device_step, "RING", 16)
    p, q = twins(lambda: problem(lr_schedule=lambda t: 1 / (1 + t)))
    engine = GraphEngine(q, Again())
    found = torch.cat([engine.run(5), engine.run(50)])
    torch.testing.assert_close(found, EagerEngine(p).run(55), **TIGHT)


def test_recordings_of_chunks_are_bounded(monkeypatch):
    monkeypatch.setattr(graph, "MOST_CHUNKS", 1)
    p, q = twins(problem)
    recorder = Again()
    engine = GraphEngine(q, recorder)
    torch.testing.assert_close(engine.run(60), EagerEngine(p).run(60), **TIGHT)
    assert recorder.captured == 3, "full batch, short batch, one chunk"


def test_a_chunk_that_cannot_be_recorded_goes_step_by_step(caplog):
    class Small(Again):
        def capture(self, work):
            replay = super().capture(work)
            if self.captured == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return replay

    p, q = twins(lambda: problem(source=images(24)))
    with caplog.at_level(logging.WARNING, "fastgan"):
        found = GraphEngine(q, Small()).run(50)
    torch.testing.assert_close(found, EagerEngine(p).run(50), **TIGHT)
    assert caplog.text.count("CUDA out of memory") == 1


# --- leaving no trace -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["norms and dropouts", "two updates of D, all at once", "fp16"])
def test_making_the_engine_leaves_no_trace(name):
    p = PROBLEMS[name]()
    EagerEngine(p).run(3)
    before, state = everything(p), torch.get_rng_state()
    lying = [t.data_ptr() for t in p.generator.state_dict().values()]
    recorder = Again()
    engine = GraphEngine(p, recorder)
    assert recorder.captured == 1
    after = everything(p)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert lying == [t.data_ptr() for t in p.generator.state_dict().values()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(w.grad is None for w in (*p.generator.parameters(), *p.discriminator.parameters()))
    engine.close()


class Noisy(nn.Module):
    """Randomness of torch's own, and a parameter that no pass uses."""

    def __init__(self):
        super().__init__()
        self.body = generator()
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, z):
        return self.body(z + 0.1 * torch.randn_like(z))


def test_torchs_own_generator_goes_on_as_it_would():
    def noisy():
        torch.manual_seed(4)
        return problem(Noisy())

    p, q = noisy(), noisy()
    torch.manual_seed(8)
    expected = EagerEngine(p).run(9)
    torch.manual_seed(8)
    found = GraphEngine(q, Again()).run(9)
    torch.testing.assert_close(found, expected, **TIGHT)
    assert_same(p, q, **TIGHT)
    assert q.generator.unused not in q.optimizer_g.state


# --- what the user changes between runs -----------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_between_runs_count(change):
    p, q = twins(lambda: with_norms(source=images(24)))
    eager, recorder = EagerEngine(p), Again()
    engine = GraphEngine(q, recorder)
    eager.run(4), engine.run(4)
    recorder.captured = 0
    change(p), change(q)
    torch.testing.assert_close(engine.run(4), eager.run(4), **TIGHT)
    assert_same(p, q, **TIGHT)
    assert (recorder.captured > 0) == CHANGES[change], "recorded anew only where it must be"


def test_a_change_of_how_products_are_rounded_counts():
    matmul, kept = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        for precision in ("tf32", "ieee"):
            # The older names of the setting raise from here on.
            matmul.fp32_precision = precision
            recorder = Again()
            engine = GraphEngine(problem(), recorder)
            engine.run(1)
            assert recorder.captured == 1
        matmul.fp32_precision = "tf32"
        engine.run(1)
        assert recorder.captured == 2
    finally:
        matmul.fp32_precision = kept


def test_an_attribute_of_a_method_that_has_changed_counts():
    class Weighed:
        def __init__(self):
            self.weight = 2.0

        def d_loss(self, step):
            return self.weight * (step.D(step.fake) - step.D(step.real)).mean()

        def g_loss(self, step):
            return -step.D(step.fake).mean()

    p = problem(method=Weighed(), source=images(24))
    recorder = Again()
    engine = GraphEngine(p, recorder)
    engine.run(2)
    captured = recorder.captured
    engine.run(2)
    assert recorder.captured == captured
    p.method.weight = 3.0
    engine.run(2)
    assert recorder.captured > captured


def test_the_step_can_be_set_and_a_closed_engine_runs_again():
    p, q = twins(problem)
    eager, engine = EagerEngine(p), GraphEngine(q, Again())
    eager.step = engine.step = 1
    torch.testing.assert_close(engine.run(4), eager.run(4), **TIGHT)
    eager.step = engine.step = 2**40 + 1
    torch.testing.assert_close(engine.run(4), eager.run(4), **TIGHT)
    engine.close()
    torch.testing.assert_close(engine.run(4), eager.run(4), **TIGHT)


def test_autograd_notices_that_weights_have_changed():
    class Unseen(Again):
        """A graph writes to tensors without torch's knowledge."""

        def capture(self, work):
            return lambda: None

    p = problem()
    engine = GraphEngine(p, Unseen())
    loss = p.generator(torch.ones(2, 5)).square().sum()
    engine.run(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_bad_argument_or_rate_is_told():
    bad = [True]
    p = problem(lr_schedule=lambda t: float("nan") if t == 3 and bad else 1.0)
    engine = GraphEngine(p, Again())
    with pytest.raises(ValueError, match="n is -1"):
        engine.run(-1)
    with pytest.raises(ValueError, match=r"lr_schedule\(3\) returned nan"):
        engine.run(5)
    bad.clear()
    assert torch.isfinite(engine.run(2)).all()
