"""Traces without what is idle: the same bits, fewer operations, less memory."""

from collections import Counter

import pytest
import torch
from compilers import counted, functional
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import needs_library
from recordings import assert_same
from small_runs import assert_same_bits, every_bit
from test_convolutions import always, images, made, pair
from test_norms import Body, Called, every
from torch import nn

from fastgan import Trainer, engines, torch_graphs, torch_private
from fastgan.engines import recorded

assert always and every  # fixtures

aten = torch.ops.aten


def programs():
    """Lists of (operation, two places among what there is so far)."""
    names = st.sampled_from(sorted(OPERATIONS))
    places = st.integers(0, 1 << 16)
    return st.lists(st.tuples(names, places, places), min_size=1, max_size=24)


OPERATIONS = {
    "relu": lambda a, b: torch.relu(a),
    "relu_": lambda a, b: torch.relu_(a.clone()),
    "tanh": lambda a, b: torch.tanh(a),
    "add": lambda a, b: a + b,
    "row": lambda a, b: a + b[:, :, :1, :1],
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / 3.0,
    "leaky": lambda a, b: torch.nn.functional.leaky_relu(a, 0.2),
    "threshold": lambda a, b: aten.threshold_backward(a, b, 0.1),
    "leaky back": lambda a, b: aten.leaky_relu_backward(a, b, 0.2, True),
    "tanh back": lambda a, b: aten.tanh_backward(a, b),
    "last": lambda a, b: a.contiguous(memory_format=torch.channels_last),
    "first": lambda a, b: a.contiguous(),
    "both": lambda a, b: a.clone(memory_format=torch.channels_last).contiguous(),
    "copy": lambda a, b: a.clone(),
    "view": lambda a, b: a.reshape(-1).reshape(a.shape),
    "turn": lambda a, b: a.transpose(2, 3),
    "alias": lambda a, b: aten.alias(a),
    "write": lambda a, b: a.add_(b.sum()),
    "part": lambda a, b: a[:, :2].relu_() if b.sum() is None else torch.relu_(a[:, :2]).sum() + a,
    "draw": lambda a, b: a + torch.rand_like(b),
}


@settings(max_examples=120, deadline=None)
@given(programs(), st.lists(st.integers(0, 1 << 16), min_size=1, max_size=4))
def test_programs_keep_their_bits(program, outputs):
    torch.manual_seed(0)
    given_ = [torch.randn(2, 4, 3, 3).to(memory_format=f) for f in recorded._FORMATS]

    def work(*inputs):
        values = list(inputs)
        for name, i, j in program:
            values.append(OPERATIONS[name](values[i % len(values)], values[j % len(values)]))
        return [values[i % len(values)] for i in outputs]

    def run(function):
        torch.manual_seed(1)
        inputs = [t.clone() for t in given_]
        return [t.clone() for t in function(*inputs)] + inputs

    expected = run(work)
    graph = torch_graphs.traced(work, [t.clone() for t in given_])
    before = sum(n.op == "call_function" for n in graph.graph.nodes)
    graph = recorded.simplified(graph, [t.clone() for t in given_])
    assert sum(n.op == "call_function" for n in graph.graph.nodes) <= before
    for _ in range(2):
        for a, b in zip(run(graph.forward), expected, strict=True):
            assert torch.equal(a, b)


def targets(work, *inputs):
    graph = recorded.simplified(torch_graphs.traced(work, list(inputs)), list(inputs))
    return [n.target for n in graph.graph.nodes if n.op == "call_function"]


def test_what_is_taken_out():
    x, y = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)

    def unused(x, y):
        (x @ y).sum()
        return [aten.alias(x + y)]

    assert targets(unused, x, y) == [aten.add.Tensor]

    def copied(x, y):
        h = torch.relu(x.to(memory_format=torch.channels_last) * 2.0)
        h = h.contiguous().reshape(-1).reshape(h.shape)
        return [h.contiguous(memory_format=torch.channels_last) + 1.0]

    assert targets(copied, x, y) == [
        aten._to_copy.default, aten.mul_.Tensor, aten.relu_.default, aten.add_.Tensor,
    ]  # fmt: skip

    def kept(x, y):
        h = x + y
        return [torch.relu(h) + h.transpose(2, 3)]

    assert aten.relu_.default not in targets(kept, x, y)

    def written(x, y):
        x.add_(y)
        return [y + 1.0]

    assert targets(written, x, y) == [aten.add_.Tensor, aten.add.Tensor]


SHARED = {"shared_fakes": True}
R1, GP = {"penalties": "r1"}, {"penalties": "wgan-gp", "loss": "wasserstein"}


@needs_library
@pytest.mark.parametrize(
    "options",
    [{}, R1, GP, {"d_steps": 2, "ema": 0.9}, SHARED, {**R1, **SHARED, "d_steps": 2, "g_steps": 2}],
)
@pytest.mark.parametrize("kind", [None, Body, Called])
@pytest.mark.parametrize("whole", [False, True])
def test_recorded_steps_are_eagers(every, kind, options, whole, monkeypatch, caplog):
    if not whole:  # what is left changes no bit
        monkeypatch.setattr(recorded, "paired", lambda *trace: False)
    caplog.set_level("INFO", logger="fastgan")
    calls = counted(monkeypatch, functional)
    kinds = () if kind is None else (kind,)
    p, q = made(*kinds, **options), made(*kinds, **options)
    eager, _ = engines.choose(p, "eager")
    engine, said = engines.choose(q, "compile")
    assert "losses and gradients recorded (" in said and not calls
    # Ragged batches are updates of their own.
    most = {"rtol": 1e-3, "atol": 1e-4} if whole else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(engine.run(5), eager.run(5), **most)
    assert_same(p, q, **most)
    assert all(f.distance <= (1e-5 if whole else 0) for f in engine._once.functions.values())
    assert "called by Python" not in caplog.text


@needs_library
@pytest.mark.parametrize("options", [{}, SHARED])
def test_python_calls_the_operations_where_the_interpreter_cannot(
    every, options, monkeypatch, caplog
):
    def refused(graph):
        raise TypeError("no such operation")

    caplog.set_level("INFO", logger="fastgan")
    p, q = made(**options), made(**options)
    interpreted, _ = engines.choose(p, "compile")
    monkeypatch.setattr(torch_graphs, "interpreted", refused)
    engine, _ = engines.choose(q, "compile")
    assert "called by Python, as torch's interpreter cannot: no such operation" in caplog.text
    torch.testing.assert_close(engine.run(3), interpreted.run(3), rtol=0, atol=0)
    assert_same(p, q, rtol=0, atol=0)


class NormTwice(nn.Module):
    """One norm, and so one pair of running averages, that a pass calls twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.norm, self.end = nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        h = self.norm(self.second(torch.tanh(self.norm(self.first(x)))))
        return self.end(h).mean((2, 3))


@needs_library
def test_running_averages_are_written_in_their_order(every):
    p, q = made(NormTwice), made(NormTwice)
    eager, _ = engines.choose(p, "eager")
    engine, _ = engines.choose(q, "compile")
    torch.testing.assert_close(engine.run(3), eager.run(3), rtol=1e-3, atol=1e-4)
    assert_same(p, q, rtol=1e-3, atol=1e-4)


@needs_library
def test_no_compiler_is_needed(always, monkeypatch):
    monkeypatch.setattr("fastgan.engines.compile._no_compiler", lambda device: "there is none")
    assert engines.choose(made(), "compile")[0].name == "compile"
    with pytest.raises(ValueError, match="there is none"):
        engines.choose(made(operators="torch"), "compile")


@needs_library
def test_a_recorded_run_is_continued_to_the_bit(always, tmp_path):
    options = {
        "engine": "compile", "batch_size": 8, "latent_dim": (5, 1, 1), "device": "cpu", "seed": 3,
    }  # fmt: skip
    whole = Trainer(*pair(), images(), **options)
    whole.fit(steps=7)
    first = Trainer(*pair(), images(), out=tmp_path / "run", **options)
    first.fit(steps=4)
    resumed = Trainer.resume(tmp_path / "run", *pair(), images())
    resumed.fit(steps=7)
    assert "recorded" in resumed.engine.describe()
    assert_same_bits(every_bit(whole), every_bit(resumed))


class Counting(torch_private.OperationMode):
    """How often an operation is done."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


@needs_library
def test_gradients_that_a_penalty_does_not_need_are_not_made(always):
    made_of = []
    for name in ("eager", "compile"):
        engine, _ = engines.choose(made(**R1), name)
        with Counting() as seen:
            engine.run(1)
        made_of.append(seen.calls[torch.ops.fastgan.conv2d_grad_weight.default])
    # Of D's three layers, whose weights have gradients by the penalty and by the loss.
    assert made_of[0] - made_of[1] == 3
