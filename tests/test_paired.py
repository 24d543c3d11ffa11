"""Two passes by the same weights as one: the same gradients, half of the operations."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from operator_cases import needs_library
from test_convolutions import always

from fastgan import ops, torch_graphs
from fastgan.engines import recorded
from fastgan.ops import reference

pytestmark = needs_library
assert always  # a fixture

aten, own = torch.ops.aten, torch.ops.fastgan
LAST = torch.channels_last


def drawn(dtype=torch.float32, wanted=True):
    """Two batches, weights of two layers and the statistics of a norm."""
    torch.manual_seed(0)
    batches = [torch.randn(4, 3, 8, 8).to(memory_format=LAST) + i for i in range(2)]
    weights = [torch.randn(8, 3, 4, 4) / 4, torch.randn(8, 8, 3, 3) / 4]
    scale, shift = torch.rand(8) + 0.5, torch.randn(8)
    weights = [w.to(dtype).requires_grad_(wanted) for w in (*weights, scale, shift)]
    running = torch.zeros(8, dtype=dtype), torch.ones(8, dtype=dtype)
    return [*(x.to(dtype) for x in batches), *weights, *running]


def network(wide):
    """A discriminator by fastgan's operators, or by torch's in float64."""

    def norm(h, scale, shift, mean, var):
        join = reference.batch_norm_leaky_relu if wide else ops.batch_norm_leaky_relu
        return join(h, scale, shift, mean, var, 0.1, 1e-5, 0.2)

    def score(x, first, second, scale, shift, mean, var):
        conv = F.conv2d if wide else ops.conv2d
        h = F.leaky_relu_(conv(x, first, None, 2, 1), 0.2)
        return norm(conv(h, second, None, 1, 1), scale, shift, mean, var).mean((1, 2, 3))

    return score


def loss_of(score, a, b, *own_):
    return F.softplus(score(a, *own_)).mean() + F.softplus(-score(b, *own_)).mean()


def plain(score, a, b, *own_):
    loss = loss_of(score, a, b, *own_)
    return [loss.detach(), *torch.autograd.grad(loss, own_[:4])]


def penalised(score, a, b, *own_):
    a = a.detach().requires_grad_()
    on_a, on_b = score(a, *own_), score(b, *own_)
    (slope,) = torch.autograd.grad(on_a.sum(), a, create_graph=True)
    loss = F.softplus(on_a).mean() + F.softplus(-on_b).mean() + slope.square().sum()
    return [loss.detach(), *torch.autograd.grad(loss, own_[:4])]


def traced(work):
    graph = torch_graphs.traced(work, drawn())
    return recorded.simplified(graph, drawn())


def counts(graph):
    return Counter(n.target for n in graph.graph.nodes if n.op == "call_function")


@pytest.mark.parametrize("update", [plain, penalised])
def test_gradients_and_statistics(always, update):
    wide, narrow, found = drawn(torch.float64), drawn(), drawn()
    expected = update(network(True), *wide)
    usual = update(network(False), *narrow)
    graph = traced(lambda *given: update(network(False), *given))
    with torch.no_grad():
        made = graph(*found)
    results = (made, found), (usual, narrow), (expected, wide)
    for a, b, c in zip(*([*values, *given[-2:]] for values, given in results), strict=True):
        assert a.shape == b.shape and a.stride() == b.stride()
        far, by = ((t.double() - c).abs().max() / c.abs().max() for t in (a, b))
        assert far < 4 * by + 1e-6


def test_every_operation_is_done_once(always):
    found = counts(traced(lambda *given: plain(network(False), *given)))
    assert found[own.batch_norm_leaky_relu.default] == 1
    assert found[own.batch_norm_leaky_relu_backward.default] == 1
    assert found[own.conv2d_leaky_relu.default] == 2
    assert found[own.conv2d_grad_weight.default] == 2
    assert found[own.conv_transpose2d_leaky_relu.default] == 1
    # Of the samples, and of the gradients of the last layer's results.
    assert found[aten.cat.default] == 2


def test_one_pass_is_left_alone(always):
    def one(x, _, first, second, scale, shift, mean, var):
        conv = ops.conv2d(x, first, None, 2, 1)
        return [ops.conv2d(ops.conv2d(conv, second, None, 1, 1), second, None, 1, 1)]

    tensors = drawn(wanted=False)
    graph = traced(one)
    assert aten.cat.default not in counts(graph)
    assert torch.equal(graph(*tensors)[0], one(*tensors)[0])


def test_what_stands_between_is_not_moved(always):
    def read(a, b, first, second, scale, shift, mean, var):
        score = network(False)
        own_ = first, second, scale, shift, mean, var
        on_a = score(a, *own_)
        between = mean + 0.0
        return [on_a, score(b, *own_), between]

    def written(a, b, first, *others):
        c = ops.conv2d(a, first, None, 2, 1)
        b.mul_(c.mean())
        return [c, ops.conv2d(b, first, None, 2, 1)]

    for work in (read, written):
        tensors, again = drawn(wanted=False), drawn(wanted=False)
        graph = traced(work)
        assert aten.cat.default not in counts(graph)
        for x, y in zip([*graph(*tensors), *tensors], [*work(*again), *again], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_halves_are_what_others_get(always):
    def both(a, b, first, second, scale, shift, mean, var):
        score = network(False)
        own_ = first, second, scale, shift, mean, var
        return [score(a, *own_).sum(), score(b, *own_) * 2]

    tensors, again = drawn(wanted=False), drawn(wanted=False)
    graph = traced(both)
    assert counts(graph)[own.batch_norm_leaky_relu.default] == 1
    for x, y in zip([*graph(*tensors), *tensors], [*both(*again), *again], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_are_normalised_as_by_themselves(parts):
    torch.manual_seed(1)
    x, grad = (torch.randn(8, 33, 5, 4).to(memory_format=LAST) + 1 for _ in range(2))
    weight, bias = torch.randn(33), torch.randn(33)
    together, apart = ([torch.zeros(33), torch.ones(33)] for _ in range(2))
    settings = 0.1, 1e-5, 0.2
    y, mean, deviation = own.batch_norm_leaky_relu(x, weight, bias, *together, *settings, parts)
    dx, dweight, dbias = own.batch_norm_leaky_relu_backward(
        grad, x, weight, bias, mean, deviation, 0.2, True, parts
    )
    each = [own.batch_norm_leaky_relu(t, weight, bias, *apart, *settings) for t in x.chunk(parts)]
    assert all(map(torch.equal, together, apart))
    for t, one_by_one in zip((y, mean, deviation), zip(*each, strict=True), strict=True):
        assert torch.equal(t, torch.cat(one_by_one))
    slopes = [
        own.batch_norm_leaky_relu_backward(g, t, weight, bias, *own_, 0.2, True)
        for g, t, (_, *own_) in zip(grad.chunk(parts), x.chunk(parts), each, strict=True)
    ]
    assert torch.equal(dx, torch.cat([slope[0] for slope in slopes]))
    torch.testing.assert_close(dweight, sum(slope[1] for slope in slopes))
    torch.testing.assert_close(dbias, sum(slope[2] for slope in slopes))
