"""The operators that read a counter on the device, for replayed steps."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import DTYPES, close, devices, dtypes, layer, needs_library, scales, with_grads
from torch.autograd import gradcheck, gradgradcheck

from fastgan import ops, random
from fastgan.ops import reference


@devices
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    count=st.integers(0, 2**40),
    multiplier=st.integers(0, 9),
    offset=st.integers(0, 9),
    n=st.integers(0, 600),
    p=st.sampled_from([0.0, 0.3, 0.999, 1.0]),
)
def test_draws_at_a_counter(device, seed, stream, count, multiplier, offset, n, p):
    counter = torch.tensor([count], device=device)
    step = count * multiplier + offset
    out = torch.empty(n, device=device)
    assert ops.philox_normal_at(out, seed, stream, counter, multiplier, offset) is out
    expected = random.normal(seed, stream, step, n)
    assert n == 0 or (out.cpu() - expected).abs().max() <= 2e-6
    mask = torch.empty(n, dtype=torch.bool, device=device)
    assert ops.keep_mask_at(mask, seed, stream, counter, multiplier, offset, p) is mask
    assert torch.equal(mask.cpu(), random.keep_mask(seed, stream, step, n, p))


@devices
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("start", [0, 5])
def test_dropout_at(device, dtype, p, start):
    x = torch.randn(7, 9).to(device, dtype).t().requires_grad_()
    counter = torch.tensor([3], device=device)
    y = ops.dropout_at(x, p, 11, 64, counter, 2, 1, start=start)
    mask = random.keep_mask(11, 64, 7, start + 63, p)[start:].view(9, 7).to(device)
    expected = torch.where(mask, x.detach().double() * random.keep_scale(p), 0.0)
    close(y.detach(), expected, dtype)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    close(grad, mask.double() * random.keep_scale(p), dtype)
    twin = reference.dropout_at(
        x.detach(), reference.keep_threshold(p), 11, 64, counter, 2, 1, start
    )
    close(twin, expected, dtype)


def test_derivatives_of_dropout():
    x, counter = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([3])

    def f(x):
        return ops.dropout_at(x, 0.4, 1, 64, counter)

    assert gradcheck(f, x)
    assert gradgradcheck(lambda x: f(x.square()), x)
    penalty = torch.autograd.grad(f(x.pow(3)).sum(), x, create_graph=True)[0].square().sum()
    (found,) = torch.autograd.grad(penalty, x)
    kept = f(torch.ones_like(x))
    torch.testing.assert_close(found, 36 * kept.square() * x.detach().pow(3))
    # Forward mode and torch.func take the plain operations.
    torch.testing.assert_close(torch.func.grad(lambda x: f(x).sum())(x.detach()), kept)
    torch.testing.assert_close(torch.func.jvp(f, (x.detach(),), (torch.ones_like(x),))[1], kept)


@needs_library
def test_a_counter_that_moves_before_the_backward_pass_is_an_error():
    x, counter = torch.randn(8, requires_grad=True), torch.tensor([3])
    y = ops.dropout_at(x, 0.5, 1, 64, counter)
    counter.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def dropping_operator(
    x, weight, bias, slope, p, seed, stream, counter, multiplier=1, offset=0, *, start=0
):
    where = ops.draws.keep_threshold(p), seed, stream, multiplier, offset, start
    return ops.linear._LinearLeakyReLUDropoutAt.apply(x, weight, bias, slope, counter, where)


dropping_roads = pytest.mark.parametrize(
    "road",
    [ops.linear_leaky_relu_dropout_at, pytest.param(dropping_operator, marks=needs_library)],
)


@devices
@dtypes
@dropping_roads
@settings(max_examples=30)
@given(
    lead=st.lists(st.integers(0, 9), max_size=3),
    features=st.integers(0, 40),
    out=st.integers(0, 40),
    bias=st.booleans(),
    slope=st.sampled_from([0.2, 0.0, 1.0]),
    p=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    start=st.integers(0, 9),
)
def test_linear_leaky_relu_and_dropout(
    road, dtype, device, lead, features, out, bias, slope, p, start
):
    tensors = layer((*lead, features), out, bias, dtype, device)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    mask = 11, 64, torch.tensor([3], device=device), 2, 1
    y = road(*tensors, slope, p, *mask, start=start)
    twin = reference.keep_threshold(p), *mask, start
    expected = reference.linear_leaky_relu_dropout_at(*exact, slope, *twin)
    grad = torch.randn(y.shape, dtype=torch.float64).to(y)
    grad = grad.masked_fill(F.linear(*exact).abs() < 2e-2, 0)  # away from the kink
    # The layer and the mask as they are alone: what is dropped is zero to the bit.
    kept = ops.dropout_at(torch.ones_like(y), p, *mask, start=start)
    assert (y[kept == 0] == 0).all()
    sizes = [random.keep_scale(p) * scale for scale in scales(*exact, grad)]
    close(y, expected, dtype, sizes[0])
    found = with_grads(y, tensors, grad)
    wanted = with_grads(expected, exact, grad.double())
    for a, b, scale in zip(found, wanted, sizes[1:] if bias else sizes[1:3], strict=True):
        close(a, b, dtype, scale)


@dropping_roads
@pytest.mark.parametrize("bias", [True, False])
def test_derivatives_of_linear_leaky_relu_and_dropout(road, bias):
    tensors, counter = layer((3, 5), 4, bias), torch.tensor([3])
    inputs = [t for t in tensors if t is not None]

    def f(x, weight, bias=None):
        return road(x, weight, bias, 0.2, 0.4, 1, 64, counter)

    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)
    twin = reference.keep_threshold(0.4), 1, 64, counter, 1, 0, 0
    y, grad = f(*inputs), torch.ones(3, 4, dtype=torch.float64)
    found = with_grads(y, tensors, grad)
    wanted = reference.linear_leaky_relu_dropout_backward_at(grad, *tensors[:2], y, 0.2, *twin)
    for a, b in zip(found, wanted if bias else wanted[:2], strict=True):
        torch.testing.assert_close(a, b)
    (only,) = torch.autograd.grad(f(*inputs), tensors[1], grad)
    assert torch.equal(only, found[1])


@needs_library
@dropping_roads
@pytest.mark.parametrize("bias", [True, False])
def test_a_layers_counter_that_moves_before_the_backward_pass_is_an_error(road, bias):
    tensors, counter = layer((3, 5), 4, bias), torch.tensor([3])
    y = road(*tensors, 0.2, 0.4, 1, 64, counter)
    counter.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@devices
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gather_normalize(device, dtype, channels_last):
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (23, 3, 4, 5), dtype=torch.uint8)
    order, per_epoch = torch.randperm(23), 5
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for update in (0, 4, 7, 2**40):
        position = (3 * update + 2) % per_epoch
        rows = min(5, 23 - 5 * position)
        out = torch.empty(rows, 3, 4, 5, dtype=dtype, device=device, memory_format=layout)
        counter = torch.tensor([update], device=device)
        images = pixels[order[5 * position :][:rows]]
        where = {"multiplier": 3, "offset": 2, "batch": 5, "batches_per_epoch": per_epoch}
        arguments = order.to(device), counter
        found = ops.gather_normalize(pixels.to(device), *arguments, **where, out=out)
        assert found is out and out.is_contiguous(memory_format=layout)
        wide = torch.promote_types(dtype, torch.float32)
        expected = images.to(wide).mul_(2 / 255).sub_(1).to(dtype)
        assert torch.equal(out.cpu(), expected)
        floats = torch.randn(23, 6)
        found = ops.gather_normalize(
            floats.to(device), *arguments, **where, out=torch.empty(rows, 6, device=device)
        )
        assert torch.equal(found.cpu(), floats[order[5 * position :][:rows]])
    whole = {"batch": 5, "batches_per_epoch": 4, "dtype": dtype}
    found = ops.gather_normalize(pixels.to(device), *arguments, **whole)
    assert found.shape == (5, 3, 4, 5) and found.dtype == dtype


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": torch.tensor([0, 1, 2])}, "out has 2 rows, but batch 1"),
        ({"order": torch.tensor([0, 1, 2, 9])}, "order has an entry 9; expected 0 <= entry < 6"),
        ({"order": torch.tensor([0, 1, 2, 3]).int()}, "order must be a contiguous int64 vector"),
        ({"pixels": torch.zeros(6, 4).int()}, "pixels must be uint8 or float32"),
        ({"pixels": torch.zeros(6, 5)}, r"out has shape \[2, 4\]; expected images"),
        ({"out": torch.zeros(3, 4)}, "batch is 2 and out has 3 rows"),
        ({"out": torch.zeros(4, 2).t()}, "out is neither contiguous nor channels_last"),
        ({"out": torch.zeros(2, 4).int()}, "out must be float32"),
        ({"batches_per_epoch": 0}, "batches_per_epoch is 0"),
    ],
    ids=str,
)
def test_errors_of_gather_normalize(change, message):
    arguments = {
        "pixels": torch.zeros(6, 4),
        "order": torch.arange(4),
        "counter": torch.tensor([1]),
        "batch": 2,
        "batches_per_epoch": 2,
        "out": torch.zeros(2, 4),
    }
    with pytest.raises(RuntimeError, match=message):
        ops.gather_normalize(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 1.5}, "p is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"stream": 2**32}, "stream is 4294967296"),
        ({"counter": torch.zeros(2, dtype=torch.int64)}, r"counter has shape \(2,\)"),
        ({"counter": torch.zeros(1)}, "it must be an int64 tensor"),
    ],
    ids=str,
)
def test_errors_of_draws_at_a_counter(change, message):
    arguments = {"p": 0.5, "seed": 1, "stream": 2, "counter": torch.tensor([0])}
    arguments |= {"multiplier": 1, "offset": 0}
    with pytest.raises(ValueError, match=message):
        ops.dropout_at(torch.zeros(3), **{**arguments, **change})
    with pytest.raises(ValueError, match=message):
        ops.keep_mask_at(torch.zeros(3, dtype=torch.bool), **{**arguments, **change})


@needs_library
def test_errors_of_the_operators_at_a_counter():
    counter = torch.tensor([0])
    with pytest.raises(RuntimeError, match="out has the wrong dtype; expected float32"):
        ops.philox_normal_at(torch.zeros(3).double(), 1, 2, counter)
    with pytest.raises(RuntimeError, match="out is not contiguous"):
        ops.philox_normal_at(torch.zeros(4, 3).t(), 1, 2, counter)
    with pytest.raises(RuntimeError, match="x must be float32"):
        ops.dropout_at(torch.zeros(3).int(), 0.5, 1, 2, counter)
    with pytest.raises(RuntimeError, match="start is -1"):
        ops.dropout_at(torch.zeros(3), 0.5, 1, 2, counter, start=-1)
    with pytest.raises(RuntimeError, match="2\\*\\*34"):
        ops.dropout_at(torch.zeros(3), 0.5, 1, 2, counter, start=2**35)
