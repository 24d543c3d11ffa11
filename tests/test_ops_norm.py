"""BatchNorm with its rectifier: values, statistics, derivatives of any order, roads, errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgan.ops import library, norm, reference

own = torch.ops.fastgan
LAST = torch.channels_last
kernels = pytest.mark.skipif("cpu" not in library.KERNELS, reason="the CPU library is not built")

SHAPES = st.tuples(
    st.integers(1, 5), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)
).filter(lambda s: s[0] * s[2] * s[3] > 1)
SLOPES = st.sampled_from([1.0, 0.2, 0.0])


def drawn(shape, seed, offset=0.0):
    """x, weight, bias and the two running statistics."""
    torch.manual_seed(seed)
    c = shape[1]
    x = (torch.randn(shape) * torch.rand(1, c, 1, 1) * 3 + offset).to(memory_format=LAST)
    return x, torch.randn(c), torch.randn(c), torch.randn(c), torch.rand(c)


def plain(x, weight, bias, mean, var, momentum=0.1, eps=1e-5, slope=0.2):
    """torch's, in float64."""
    y = F.batch_norm(x, mean, var, weight, bias, True, momentum, eps)
    return F.leaky_relu(y, slope)


def close(found, expected, most=1e-5):
    for a, b in zip(found, expected, strict=True):
        if b is None or a is None:
            assert a is None and (b is None or not b.any())
            continue
        a, b = a.detach().double(), b.detach()
        far, size = float((a - b).abs().max()), float(b.abs().max())
        assert far <= most * max(size, 1e-3)


@kernels
@settings(max_examples=40, deadline=None)
@given(
    shape=SHAPES, slope=SLOPES, seed=st.integers(0, 99), last=st.booleans(), parts=st.integers(1, 3)
)
def test_values_statistics_and_gradients(shape, slope, seed, last, parts):
    few = math.prod(shape) // shape[1] < 8  # what is left of a gradient is a small difference
    shape = (parts * shape[0], *shape[1:])
    x, weight, bias, mean, var = drawn(shape, seed, offset=2.0)
    x = x if last else x.contiguous()
    wide = [t.double().clone() for t in (x, weight, bias, mean, var)]
    y, batch_mean, deviation = own.batch_norm_leaky_relu(
        x, weight, bias, mean, var, 0.3, 1e-5, slope, parts
    )
    expected = reference.batch_norm_leaky_relu(*wide, 0.3, 1e-5, slope, parts)
    means = torch.cat([part.mean((0, 2, 3)) for part in wide[0].chunk(parts)])
    assert y.is_contiguous(memory_format=LAST)
    close((y, mean, var, batch_mean), (expected, *wide[3:], means), 3e-5)
    grad = torch.randn(shape)
    # A pre-activation at zero, to rounding, may fall on either side.
    grad *= (expected.abs() > 1e-4).float() if slope != 1 else 1.0
    arguments = grad, x, weight, bias, batch_mean, deviation, slope
    found = own.batch_norm_leaky_relu_backward(*arguments, True, parts)
    twin = reference.batch_norm_leaky_relu_backward(grad.double(), *wide[:3], 1e-5, slope, parts)
    close(found, twin, 2e-3 if few else 1e-4)
    without = own.batch_norm_leaky_relu_backward(*arguments, False, parts)
    assert without[0].numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(found[1:], without[1:], strict=True))


@pytest.mark.parametrize("slope", [1.0, 0.2, 0.0])
def test_the_twin_is_torchs(slope):
    x, weight, bias, mean, var = (t.double() for t in drawn((3, 4, 3, 2), 0))
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    y = plain(*inputs, mean, var, slope=slope)
    grad = torch.randn_like(y).requires_grad_()
    expected = torch.autograd.grad(y, inputs, grad, create_graph=True)
    found = reference.batch_norm_leaky_relu_backward(grad, *inputs, 1e-5, slope)
    close(found, [g.detach() for g in expected], 1e-10)
    v = [torch.randn_like(g) for g in expected]
    wanted = torch.autograd.grad(expected, [grad, *inputs], v, allow_unused=True)
    given = torch.autograd.grad(found, [grad, *inputs], v, allow_unused=True)
    close(given, wanted, 1e-10)


def of(function, x, weight, bias, mean, var, slope, parts):
    """A penalty on the slopes of a layer, and its gradients; what is plain is done in float64."""
    inputs = [t.detach().clone(memory_format=torch.preserve_format) for t in (x, weight, bias)]
    inputs = [t.requires_grad_() for t in inputs]
    y = function(*inputs, mean.clone(), var.clone(), 0.1, 1e-5, slope)
    slopes = torch.autograd.grad(y.pow(3).sum(), inputs[: 3 if parts else 1], create_graph=True)
    loss = sum((s * s).sum() for s in slopes) + y.sum()
    return torch.autograd.grad(loss, inputs)


@kernels
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, slope=SLOPES, seed=st.integers(0, 99), parts=st.booleans())
def test_double_backward(shape, slope, seed, parts):
    if shape[0] * shape[2] * shape[3] < 8:
        return
    tensors = drawn(shape, seed)
    x, weight, bias = (t.double() for t in tensors[:3])
    y = plain(x, weight, bias, None, None, slope=slope)
    if slope != 1 and (y / max(slope, 1e-9)).abs().min() < 1e-5:
        return
    found = of(norm.batch_norm_leaky_relu, *tensors, slope, parts)
    expected = of(reference.batch_norm_leaky_relu, *(t.double() for t in tensors), slope, parts)
    close(found, expected, 2e-3)


@kernels
def test_derivatives_of_any_order():
    tensors = drawn((3, 4, 5, 4), 1)

    def third(function, x, weight, bias, mean, var):
        x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = function(x, weight, bias, mean.clone(), var.clone(), 0.1, 1e-5, 0.2)
        (first,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
        second = torch.autograd.grad(first.pow(2).sum(), [x, weight], create_graph=True)
        return torch.autograd.grad(sum(s.pow(2).sum() for s in second), [x, weight])

    def elementary(x, weight, bias, mean, var, momentum, eps, slope):
        # torch's has no third derivative
        centred = x - x.mean((0, 2, 3), keepdim=True)
        h = centred / (centred.square().mean((0, 2, 3), keepdim=True) + eps).sqrt()
        return F.leaky_relu(h * weight.view(-1, 1, 1) + bias.view(-1, 1, 1), slope)

    found = third(norm.batch_norm_leaky_relu, *tensors)
    close(found, third(elementary, *(t.double() for t in tensors)), 1e-3)


@kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_the_threads(threads):
    tensors = drawn((16, 33, 15, 16), 2)
    before = torch.get_num_threads()

    def bits():
        x, weight, bias, mean, var = (t.clone() for t in tensors)
        return own.batch_norm_leaky_relu(x, weight, bias, mean, var, 0.1, 1e-5, 0.2), mean, var

    (*expected, expected_mean, expected_var) = (*bits()[0], *bits()[1:])
    try:
        torch.set_num_threads(threads)
        (*found, mean, var) = (*bits()[0], *bits()[1:])
    finally:
        torch.set_num_threads(before)
    pairs = zip((*found, mean, var), (*expected, expected_mean, expected_var), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@kernels
def test_large_means_and_channels_without_variance():
    x, weight, bias, mean, var = drawn((8, 6, 8, 8), 3, offset=1000.0)
    x[:, 2] = 7.5
    wide = [t.double() for t in (x, weight, bias, mean, var)]
    y, _, deviation = own.batch_norm_leaky_relu(x, weight, bias, mean, var, 0.1, 1e-5, 0.2)
    theirs = F.leaky_relu(F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5), 0.2)
    expected = plain(*wide)
    error = (y.double() - expected).abs().max()
    assert error <= 4 * (theirs.double() - expected).abs().max() + 1e-6
    torch.testing.assert_close(deviation[2], torch.tensor(1e-5).rsqrt())


@kernels
def test_what_is_no_number_shows():
    x, weight, bias, mean, var = drawn((4, 5, 3, 3), 4)
    x[0, 1, 2, 2], x[1, 3, 0, 0] = float("nan"), float("inf")
    y, *_ = own.batch_norm_leaky_relu(x, weight, bias, mean, var, 0.1, 1e-5, 0.2)
    assert y.isfinite().all((0, 2, 3)).tolist() == [True, False, True, False, True]
    assert mean[1].isnan() and var[1].isnan() and not mean[3].isfinite()


def test_what_the_operator_does_not_serve_is_torchs():
    x, weight, bias, mean, var = drawn((3, 4, 3, 3), 5)
    for images in (x.contiguous(), x.double(), x[:, :, 0].contiguous()):
        own_kind = [t.to(images.dtype).clone() for t in (weight, bias, mean, var)]
        assert not norm.serves(images)
        y = norm.batch_norm_leaky_relu(images, *own_kind, negative_slope=0.2)
        expected = F.batch_norm(images, None, None, *own_kind[:2], True)
        torch.testing.assert_close(y, F.leaky_relu(expected, 0.2))


@kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "x has shape"),
        ({"x": torch.zeros(2, 3, 4, 4).double()}, "x must be float32"),
        ({"x": torch.zeros(1, 3, 1, 1)}, "more than one value"),
        ({"weight": torch.ones(4)}, "weight has shape"),
        ({"bias": torch.ones(3).double()}, "bias and x have different dtypes"),
        ({"running_mean": torch.ones(6)[::2]}, "running_mean has gaps"),
        ({"momentum": 2.0}, "momentum is 2"),
        ({"eps": -1.0}, "eps is -1"),
        ({"negative_slope": -0.1}, "negative_slope is -0.1"),
        ({"parts": 3}, "parts is 3; expected a divisor of the batch"),
        ({"parts": 0}, "parts is 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    sound = {
        "x": torch.randn(2, 3, 4, 4), "weight": torch.ones(3), "bias": torch.zeros(3),
        "running_mean": torch.zeros(3), "running_var": torch.ones(3), "momentum": 0.1,
        "eps": 1e-5, "negative_slope": 0.2,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        own.batch_norm_leaky_relu(**{**sound, **change})
    shared = torch.zeros(3)
    with pytest.raises(RuntimeError, match="share memory"):
        own.batch_norm_leaky_relu(**{**sound, "running_mean": shared, "running_var": shared})
