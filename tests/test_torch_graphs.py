"""Each private part of torch that traces, calls or compiles does what it is touched for."""

import os

import pytest
import torch
from torch import nn

from fastgan import torch_graphs, torch_private


def test_a_trace_has_gradients_of_gradients_and_tells_what_reads_a_value():
    w = torch.tensor([2.0, 3.0], requires_grad=True)

    def slope_s_slope(x):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad((w * x.pow(3)).sum(), x, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), [w]))

    x = torch.tensor([1.0, 2.0])
    graph = torch_graphs.traced(lambda x, w: slope_s_slope(x), [x, w])
    other = torch.tensor([0.5, 1.5])
    assert torch.equal(graph(other, w)[0], slope_s_slope(other)[0])
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        torch_graphs.traced(lambda x: [x * x.sum().item()], [x])


def test_the_compiler_s_cache_is_where_it_is_told_unless_the_user_said_so(monkeypatch, tmp_path):
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.delenv(name, raising=False)
    with torch_graphs.compiler_cache(str(tmp_path)):
        assert os.environ[name] == str(tmp_path)
    assert os.environ.get(name) != str(tmp_path)
    monkeypatch.setenv(name, str(tmp_path / "mine"))
    with torch_graphs.compiler_cache(str(tmp_path)):
        assert os.environ[name] == str(tmp_path / "mine")


def test_code_that_was_never_compiled_is_no_code(tmp_path):
    (tmp_path / "code").write_bytes(b"nothing of the kind")
    with pytest.raises(Exception):  # noqa: B017 - which one depends on what is there
        torch_graphs.compiled_before(str(tmp_path / "code"))
    assert isinstance(torch_graphs.compiler_settings(), bytes)


def kinds_of_operations(a, b):
    c = a @ b
    first, second = torch.split(c, 2)
    variance, mean = torch.var_mean(c, dim=(0, 1), keepdim=True)
    half = nn.functional.leaky_relu(c, 1).to(torch.float64)
    half = half.view(1, 2, 2, 4).clone(memory_format=torch.channels_last)
    half.mul_(2).add_(c.view(1, 2, 2, 4), alpha=2)
    into = torch.empty(4, 4, device="cpu").copy_(c)
    torch.ops.aten.tanh_backward.grad_input(c, into, grad_input=into)
    return [
        first * second, variance, mean, half, into, c / 2, c.pow(2), torch.where(c > 0, c, 0.5),
        torch.zeros(3, dtype=torch.int64), torch.rand(2), c.clamp(min=0),
        nn.functional.pad(c, (1, 0)), nn.functional.gelu(c, approximate="tanh"), c,
        torch.cat([c, c], 1), c.max(1)[0],
    ]  # fmt: skip


def test_operations_called_by_the_interpreter_are_those_called_by_python():
    a, b = torch.randn(4, 3), torch.randn(3, 4)
    graph = torch_graphs.traced(kinds_of_operations, [a, b])
    update = torch_graphs.interpreted(graph)
    for _ in range(2):
        results = []
        for called in (update, graph.forward):
            torch.manual_seed(0)
            results.append(called(a, b))
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)
            assert (one.dtype, one.stride()) == (other.dtype, other.stride())
        a.add_(1)  # what is given is read anew


def test_results_that_no_operation_needs_any_more_are_gone_before_the_end():
    counts, held = [], []

    class Looking(torch_private.OperationMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            counts.append(sum(not torch.UntypedStorage._expired(one) for one in held))
            made = function(*args, **(kwargs or {}))
            held.append(made.untyped_storage()._weak_ref())
            return made

    x = torch.zeros(1000)
    graph = torch_graphs.traced(lambda x: [x.sin().cos().exp().tanh()], [x])
    update = torch_graphs.interpreted(graph)
    with Looking():
        update(x)
    assert counts == [0, 1, 1, 1]  # what it works with, and nothing of before


def test_what_the_interpreter_does_not_know_is_refused():
    graph = torch_graphs.traced(lambda x: [x + 1], [torch.ones(2)])
    (added,) = (n for n in graph.graph.nodes if n.op == "call_function")
    added.target = torch.add  # no operation with a schema
    with pytest.raises(AttributeError, match="_schema"):
        torch_graphs.interpreted(graph)
    added.target, added.args = torch.ops.aten.add.Tensor, (added.args[0], "one")
    with pytest.raises(TypeError, match="no schema.* in place of aten::add.Tensor"):
        torch_graphs.interpreted(graph)

    @torch.library.custom_op("fastgan_tests::python", mutates_args=())
    def python(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    python.register_fake(torch.empty_like)
    graph = torch_graphs.traced(lambda x: [python(x)], [torch.ones(2)])
    with pytest.raises(TypeError, match="fastgan_tests::python is written in Python"):
        torch_graphs.interpreted(graph)
