"""The operators and their Python face: values, derivatives, compiler, autocast, errors."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from fastgan import ops, random
from fastgan.nn import LinearLeakyReLU
from fastgan.ops import library, reference

needs_library = pytest.mark.skipif(
    ops.library_status()["cpu"] != "loaded", reason=f"CPU library {ops.library_status()['cpu']}"
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu(library=True))]
devices = pytest.mark.parametrize("device", DEVICES)
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# What one rounding of the result, and float32 sums over the widths drawn here, can cost.
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3, torch.float16: 1e-3}
slopes = st.sampled_from([0.2, 0.0, 1.0, -0.3, 1.7])


def close(found, expected, dtype, scale=None):
    """Within the tolerance of `dtype`, relative to the largest value that was summed."""
    assert found.dtype == dtype and found.shape == expected.shape
    if found.numel():
        scale = max(scale or 0.0, expected.abs().max().item(), 1e-30)
        error = (found.double() - expected.double()).abs().max().item()
        assert error <= TOLERANCE[dtype] * scale, f"error {error}, scale {scale}"


def scales(x, weight, bias, grad):
    """What rounding is relative to, of y and of the gradients: the sums without cancellation."""
    x, weight, grad = (t.detach().double().abs() for t in (x, weight, grad))
    y = F.linear(x, weight, None if bias is None else bias.detach().double().abs())
    sums = (y, *reference.linear_leaky_relu_backward(grad, x, weight, y, 1.0))
    return [t.max().item() if t.numel() else 0.0 for t in sums]


def layer(shape, out, bias, dtype=torch.float64, device="cpu", seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        t = torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype).to(device)
        return t.requires_grad_(grad)

    return draw(*shape), draw(out, shape[-1]), draw(out) if bias else None


def with_grads(y, inputs, grad):
    inputs = [t for t in inputs if t is not None]
    return torch.autograd.grad(y, inputs, grad)


# --- linear_leaky_relu: the function that chooses a road, and the operator itself ---


def through_function(x, weight, bias, slope):
    return ops.linear_leaky_relu(x, weight, bias, slope)


def through_operator(x, weight, bias, slope):
    return ops.linear._linear_leaky_relu(x, weight, bias, slope)


roads = pytest.mark.parametrize(
    "road", [through_function, pytest.param(through_operator, marks=needs_library)]
)


@devices
@dtypes
@roads
@settings(max_examples=30)
@given(
    lead=st.lists(st.integers(0, 9), max_size=3),
    features=st.integers(0, 70),
    out=st.integers(0, 70),
    bias=st.booleans(),
    slope=slopes,
)
def test_linear_leaky_relu(road, dtype, device, lead, features, out, bias, slope):
    if road is through_operator and slope < 0:
        slope = -slope  # the sign of the output must tell the sign of the pre-activation
    tensors = layer((*lead, features), out, bias, dtype, device)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    y, expected = road(*tensors, slope), reference.linear_leaky_relu(*exact, slope)
    # Gradients are compared away from the kink, where rounding decides the branch.
    grad = torch.randn(y.shape, dtype=torch.float64).to(y)
    near = F.linear(*exact).abs() < 2e-2
    grad = grad.masked_fill(near, 0)
    found = with_grads(y, tensors, grad)
    wanted = with_grads(expected, exact, grad.double())
    sizes = scales(*exact, grad)
    close(y, expected, dtype, sizes[0])
    for a, b, scale in zip(found, wanted, sizes[1:] if bias else sizes[1:3], strict=True):
        close(a, b, dtype, scale)


@needs_library
@dtypes
@pytest.mark.parametrize("batch", [1, 4, 5, 14, 15, 64, 100])
@pytest.mark.parametrize(("features", "out"), [(100, 256), (784, 31), (1, 1), (33, 65)])
def test_operator_on_the_shapes_of_a_gan(batch, features, out, dtype):
    x, weight, bias = layer((batch, features), out, True, dtype, grad=False)
    for slope in (0.2, -0.4):
        y = torch.ops.fastgan.linear_leaky_relu(x, weight, bias, slope)
        pre = F.linear(x.double(), weight.double(), bias.double())
        grad = torch.randn_like(y)
        sizes = scales(x, weight, bias, grad)
        close(y, F.leaky_relu(pre, slope), dtype, sizes[0])
        # For a negative slope the caller passes what has the right sign.
        found = torch.ops.fastgan.linear_leaky_relu_backward(
            grad, x, weight, pre.to(dtype), slope, True, True, True
        )
        wanted = reference.linear_leaky_relu_backward(
            grad.double(), x.double(), weight.double(), pre.to(dtype).double(), slope
        )
        for a, b, scale in zip(found, wanted, sizes[1:], strict=True):
            close(a, b, dtype, scale)


@needs_library
def test_operator_under_autocast():
    x, weight, bias = layer((9, 33), 17, True, torch.float32, grad=False)
    grad = torch.randn(9, 17)
    y = torch.ops.fastgan.linear_leaky_relu(x, weight, bias, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.ops.fastgan.linear_leaky_relu(x, weight, bias, 0.2)
        grads = torch.ops.fastgan.linear_leaky_relu_backward(
            grad, x, weight, y, 0.2, True, True, True
        )
    for a, b in zip(
        (found, *grads),
        (y, *reference.linear_leaky_relu_backward(grad, x, weight, y, 0.2)),
        strict=True,
    ):
        # Of the dtype of x, though the products may be autocast's.
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 2e-2 * b.abs().max()


@roads
@pytest.mark.parametrize("kind", ["transposed", "sliced", "expanded"])
def test_non_contiguous_inputs(road, kind):
    x, weight, bias = layer((12, 8), 8, True, torch.float32, grad=False)
    if kind == "transposed":
        x, weight = x.t()[:, :8], weight.t()
    elif kind == "sliced":
        x, weight, bias = x[::2, ::2], weight[::2, ::2], bias[::2]
    else:
        x = x[:1].expand(12, 8)
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    y, expected = road(x, weight, bias, 0.2), F.leaky_relu(F.linear(x, weight, bias), 0.2)
    torch.testing.assert_close(y, expected)
    grad = torch.randn(y.shape[::-1]).t()
    for a, b in zip(
        with_grads(y, (x, weight, bias), grad),
        with_grads(expected, (x, weight, bias), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@needs_library
def test_operator_does_not_depend_on_the_number_of_threads():
    x, weight, bias = layer((65, 300), 130, True, torch.float32, grad=False)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = torch.ops.fastgan.linear_leaky_relu(x, weight, bias, 0.2)
            g = torch.ops.fastgan.linear_leaky_relu_backward(y, x, weight, y, 0.2, True, True, True)
            results.append((y, *g))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@roads
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("slope", [0.2, 0.0])
def test_derivatives_of_linear_leaky_relu(road, bias, slope):
    tensors = [t for t in layer((3, 4), 5, bias) if t is not None]

    def f(*t):
        return road(t[0], t[1], t[2] if bias else None, slope)

    assert gradcheck(f, tensors)
    assert gradgradcheck(f, tensors)


def test_derivatives_with_a_negative_slope():
    tensors = layer((3, 4), 5, True)
    assert gradcheck(lambda *t: ops.linear_leaky_relu(*t, -0.5), tensors)
    assert gradgradcheck(lambda *t: ops.linear_leaky_relu(*t, -0.5), tensors)


@roads
def test_only_the_gradients_asked_for(road):
    for wanted in range(1, 8):
        tensors = layer((3, 4), 5, True)
        for i, t in enumerate(tensors):
            t.requires_grad_(bool(wanted >> i & 1))
        road(*tensors, 0.2).sum().backward()
        assert [t.grad is not None for t in tensors] == [bool(wanted >> i & 1) for i in range(3)]


@roads
def test_gradient_penalty_trains(road):
    # The double backward that R1 and WGAN-GP take: a gradient inside a loss.
    x, weight, bias = layer((6, 4), 3, True)

    def penalty(f):
        (g,) = torch.autograd.grad(f(x, weight, bias, 0.2).sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), weight)[0]

    torch.testing.assert_close(
        penalty(road), penalty(lambda x, w, b, s: F.leaky_relu(F.linear(x, w, b), s))
    )


@pytest.fixture
def few_rows_road(monkeypatch):
    """The road for few rows and wide weights, opened for small weights on every processor."""
    monkeypatch.setattr(ops.linear, "_WIDE", 1)
    monkeypatch.setattr(ops.linear, "_WIDE_ENOUGH_TO_RECORD", 1)
    monkeypatch.setattr(ops.linear, "_LONG", 1)
    monkeypatch.setattr(ops.linear, "_few_rows_isa", lambda: True)


@needs_library
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 40), (16, 33), (2, 3, 7), (5, 128)])
def test_few_rows(few_rows_road, shape, bias):
    x, weight, b = layer(shape, 21, bias, torch.float32)
    assert ops.linear._few_rows(x, weight, b, 0.2)
    y, expected = ops.linear_leaky_relu(x, weight, b), reference.linear_leaky_relu(x, weight, b)
    assert "LinearLeakyReLU" in y.grad_fn.name()
    torch.testing.assert_close(y, expected)
    with torch.no_grad():
        assert torch.equal(ops.linear_leaky_relu(x, weight, b), y)
    grad = torch.randn_like(y)
    tensors = [t for t in (x, weight, b) if t is not None]
    for a, c in zip(
        torch.autograd.grad(y, tensors, grad, create_graph=True),
        torch.autograd.grad(expected, tensors, grad, create_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(a, c)
        if a.grad_fn is not None and c.requires_grad:
            for d, e in zip(
                torch.autograd.grad(
                    a.square().sum(), tensors, allow_unused=True, retain_graph=True
                ),
                torch.autograd.grad(
                    c.square().sum(), tensors, allow_unused=True, retain_graph=True
                ),
                strict=True,
            ):
                if d is not None and e is not None:
                    torch.testing.assert_close(d, e, rtol=1e-4, atol=1e-4)
    for a, c in zip(
        torch.autograd.grad(ops.linear_leaky_relu(x, weight, b), tensors, grad),
        torch.autograd.grad(reference.linear_leaky_relu(x, weight, b), tensors, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, c)


@needs_library
def test_few_rows_leaves_the_rest_to_torch(few_rows_road):
    x, weight, bias = layer((5, 40), 21, True, torch.float32)
    assert ops.linear._few_rows(x, weight, bias, 0.2)
    wide = layer((5, 40), 21, True, torch.float64)
    assert not ops.linear._few_rows(*wide, 0.2)
    assert not ops.linear._few_rows(x[:3], weight, bias, 0.2)
    assert not ops.linear._few_rows(x.repeat(4, 1), weight, bias, 0.2)
    assert not ops.linear._few_rows(x, weight, bias, -0.2)
    assert not ops.linear._few_rows(x.t().contiguous().t(), weight, bias, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        assert not ops.linear._few_rows(x, weight, bias, 0.2)
        assert ops.linear_leaky_relu(x, weight, bias).dtype == torch.bfloat16
    with torch.autograd.forward_ad.dual_level():
        assert not ops.linear._few_rows(x, weight, bias, 0.2)
    torch.func.grad(lambda x: ops.linear_leaky_relu(x, weight, bias).sum())(x.detach())


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(5)}, "weight has shape"),
        ({"weight": torch.zeros(5, 3)}, r"x has shape \[2, 4\]; expected \[..., 3\]"),
        ({"x": torch.zeros(())}, "x has no dimensions"),
        ({"bias": torch.zeros(4)}, r"bias has shape \[4\]; expected \[5\]"),
        ({"bias": torch.zeros(5).double()}, "bias and x have different dtypes"),
        ({"weight": torch.zeros(5, 4).double()}, "weight and x have different dtypes"),
        ({"negative_slope": float("nan")}, "negative_slope"),
        (
            {"x": torch.zeros(2, 4).int(), "weight": torch.zeros(5, 4).int(), "bias": None},
            "x must be",
        ),
    ],
    ids=str,
)
def test_errors_of_the_operator(change, message):
    arguments = {
        "x": torch.zeros(2, 4),
        "weight": torch.zeros(5, 4),
        "bias": torch.zeros(5),
        "negative_slope": 0.2,
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.linear_leaky_relu(**{**arguments, **change})


def test_autocast_of_linear_leaky_relu():
    x, weight, bias = layer((3, 4), 5, True, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.linear_leaky_relu(x, weight, bias)
        expected = F.leaky_relu(F.linear(x, weight, bias), 0.2)
    assert y.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    y.sum().backward()
    assert weight.grad.dtype == torch.float32


def test_fx_records_one_call():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = LinearLeakyReLU(4, 3)

        def forward(self, x):
            return self.layer(x) + 1

    net = Net()
    traced = torch.fx.symbolic_trace(net)
    assert ops.linear_leaky_relu in [node.target for node in traced.graph.nodes]
    x = torch.randn(2, 4)
    assert torch.equal(traced(x), net(x))


needs_cuda = pytest.mark.gpu(library=True)


@needs_cuda
def test_half_precision_on_cuda():
    tensors = layer((6, 8), 16, True, torch.float16, "cuda")
    exact = [t.detach().double().requires_grad_() for t in tensors]
    y, expected = ops.linear_leaky_relu(*tensors), reference.linear_leaky_relu(*exact)
    assert "LinearLeakyReLU" in y.grad_fn.name()
    close(y.detach(), expected.detach(), torch.float16, 30.0)
    grad = torch.randn_like(y).masked_fill(expected.abs() < 1e-2, 0)
    for a, b in zip(
        with_grads(y, tensors, grad), with_grads(expected, exact, grad.double()), strict=True
    ):
        close(a, b, torch.float16, 30.0)
    logits = torch.randn(9, device="cuda", dtype=torch.float16, requires_grad=True)
    wide = logits.detach().double().requires_grad_()
    found, wanted = ops.generator_loss(logits), reference.generator_loss(wide)
    close(found, wanted, torch.float32)
    close(
        *(torch.autograd.grad(f, t)[0] for f, t in ((found, logits), (wanted, wide))), logits.dtype
    )


@needs_cuda
@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_as_torch_allows_it(monkeypatch, allowed):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", allowed)
    x, weight, bias = layer((256, 512), 512, True, torch.float32, "cuda", grad=False)
    y = ops.linear_leaky_relu(x, weight, bias)
    torch.testing.assert_close(y, F.leaky_relu(x @ weight.t() + bias, 0.2), rtol=1e-5, atol=1e-5)
    exact = reference.linear_leaky_relu(x.double(), weight.double(), bias.double())
    assert (y - exact).abs().max() < (0.2 if allowed else 2e-4)


@needs_cuda
def test_tiles_on_cuda():
    code = """
import torch
from fastgan import ops
from fastgan.ops import reference
for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)):
    for sizes in ((64, 784, 1024), (64, 100, 256), (7, 33, 1), (0, 5, 6), (5, 0, 6)):
        batch, features, out = sizes
        x, w, b = (torch.randn(s, device="cuda", dtype=dtype, requires_grad=True)
                   for s in ((batch, features), (out, features), (out,)))
        exact = [t.detach().double().requires_grad_() for t in (x, w, b)]
        y, expected = ops.linear_leaky_relu(x, w, b), reference.linear_leaky_relu(*exact)
        grad = torch.randn_like(y).masked_fill(expected.abs() < 5e-2, 0)
        pairs = [(y, expected)]
        pairs += zip(torch.autograd.grad(y, (x, w, b), grad),
                     torch.autograd.grad(expected, exact, grad.double()))
        for found, wanted in pairs:
            error = (found.double() - wanted).abs().max().item() if wanted.numel() else 0
            assert error <= tolerance * 4 * (max(sizes) ** 0.5 + 1), (dtype, sizes, error)
print("fine")
"""
    done = run(code, FASTGAN_LINEAR="tiles")
    assert done.stdout.strip() == "fine", done.stderr
    done = run(code, FASTGAN_LINEAR="fast")
    assert "FASTGAN_LINEAR is 'fast'" in done.stderr


@needs_cuda
def test_operators_in_a_captured_graph():
    counter = torch.zeros(1, dtype=torch.int64, device="cuda")
    order = torch.randperm(8, device="cuda")
    pixels = torch.randint(0, 256, (8, 5), dtype=torch.uint8, device="cuda")
    lists = [[torch.rand(1000, device="cuda"), torch.rand(3, device="cuda")] for _ in range(4)]
    copies = [[t.clone() for t in ts] for ts in lists]
    step, lr = torch.zeros((), device="cuda"), torch.tensor(0.01, device="cuda")
    normal, batch = torch.empty(100, device="cuda"), torch.empty(4, 5, device="cuda")

    def body():
        step.add_(1)
        ops.philox_normal_at(normal, 1, 2, counter)
        ops.gather_normalize(pixels, order, counter, batch=4, batches_per_epoch=2, out=batch)
        ops.adam_device_(*lists, step, lr)
        dropped = ops.dropout_at(normal, 0.5, 1, 64, counter)
        counter.add_(1)
        return dropped

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        body()
    torch.cuda.current_stream().wait_stream(side)
    for ts, saved in zip(lists, copies, strict=True):
        torch._foreach_copy_(ts, saved)
    step.zero_(), counter.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dropped = body()
    for t in range(3):
        graph.replay()
        expected = random.normal(1, 2, t, 100)
        assert (normal.cpu() - expected).abs().max() <= 2e-6
        mask = random.keep_mask(1, 64, t, 100, 0.5)
        torch.testing.assert_close(dropped.cpu(), 2 * mask * normal.cpu())
        rows = pixels[order[t % 2 * 4 :][:4]].float().mul_(2 / 255).sub_(1)
        assert torch.equal(batch, rows)
        reference.adam_(*copies, t + 1, 0.01, 0.5, 0.999, 1e-8)
        for found, wanted in zip(lists, copies, strict=True):
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_tensor_subclasses_are_respected():
    class Tagged(torch.Tensor):
        pass

    x, weight, bias = layer((3, 4), 5, True, torch.float32, grad=False)
    assert type(ops.linear_leaky_relu(x.as_subclass(Tagged), weight, bias)) is Tagged


# --- losses ---


@devices
@dtypes
@settings(max_examples=30)
@given(
    n=st.integers(1, 600),
    m=st.integers(1, 600),
    label=st.sampled_from([1.0, 0.9]),
    fake_label=st.sampled_from([0.0, 0.1]),
    spread=st.sampled_from([1.0, 30.0]),
)
def test_losses_equal_the_reference(dtype, device, n, m, label, fake_label, spread):
    torch.manual_seed(n)
    real = (torch.randn(n, 1) * spread).to(device, dtype).requires_grad_()
    fake = (torch.randn(m) * spread).to(device, dtype).requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (real, fake)]
    result = torch.float64 if dtype == torch.float64 else torch.float32
    pairs = [
        (
            ops.discriminator_loss(real, fake, real_label=label, fake_label=fake_label),
            reference.discriminator_loss(*exact, label, fake_label),
        )
    ]
    for saturating in (False, True):
        pairs.append(
            (
                ops.generator_loss(fake, saturating=saturating),
                reference.generator_loss(exact[1], saturating),
            )
        )
    for found, expected in pairs:
        close(found, expected, result)
        found = torch.autograd.grad(found * 3, (real, fake), allow_unused=True)
        expected = torch.autograd.grad(expected * 3, exact, allow_unused=True)
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                close(a, b, dtype)


@devices
@dtypes
@pytest.mark.parametrize("logit", [-1e4, -88.0, 0.0, 88.0, 1e4])
def test_losses_are_stable_at_extreme_logits(logit, dtype, device):
    real = torch.full((5,), logit, dtype=dtype, device=device, requires_grad=True)
    fake = torch.full((3,), -logit, dtype=dtype, device=device, requires_grad=True)
    wide = [t.detach().double().requires_grad_() for t in (real, fake)]
    for f, g in [
        (ops.discriminator_loss, reference.discriminator_loss),
        (
            lambda r, f: ops.discriminator_loss(r, f, real_label=0.9),
            lambda r, f: reference.discriminator_loss(r, f, 0.9),
        ),
        (lambda r, f: ops.generator_loss(f), lambda r, f: reference.generator_loss(f)),
        (
            lambda r, f: ops.generator_loss(f, saturating=True),
            lambda r, f: reference.generator_loss(f, True),
        ),
    ]:
        loss, expected = f(real, fake), g(*wide)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7)
        found = torch.autograd.grad(loss, (real, fake), allow_unused=True)
        wanted = torch.autograd.grad(expected, wide, allow_unused=True)
        for a, b in zip(found, wanted, strict=True):
            if b is not None:
                assert a.isfinite().all()
                torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-7)


def test_derivatives_of_losses():
    real = torch.linspace(-3, 3, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    fake = torch.linspace(-2, 4, 5, dtype=torch.float64).requires_grad_()
    for f, inputs in [
        (lambda r, f: ops.discriminator_loss(r, f, real_label=0.9), (real, fake)),
        (lambda f: ops.generator_loss(f), (fake,)),
        (lambda f: ops.generator_loss(f, saturating=True), (fake,)),
    ]:
        assert gradcheck(f, inputs)
        assert gradgradcheck(f, inputs)


def test_one_tensor_as_both_logits():
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(ops.discriminator_loss(logits, logits), logits)
    (expected,) = torch.autograd.grad(reference.discriminator_loss(logits, logits), logits)
    torch.testing.assert_close(found, expected)


def test_losses_of_no_logits_are_nan_as_torchs():
    empty = torch.zeros(0, 1, requires_grad=True)
    loss = ops.generator_loss(empty)
    assert loss.isnan()
    loss.backward()
    assert empty.grad.shape == (0, 1)


def test_losses_under_autocast_are_float32():
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(torch.randn(4, 8), torch.randn(1, 8))
        assert logits.dtype == torch.bfloat16
        assert ops.discriminator_loss(logits, logits).dtype == torch.float32


@needs_library
def test_large_losses_do_not_depend_on_the_number_of_threads():
    logits = torch.randn(50001)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(ops.generator_loss(logits).item())
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_functional_transforms_see_the_losses():
    logits = torch.randn(6, dtype=torch.float64)
    found = torch.func.grad(lambda x: ops.generator_loss(x))(logits)
    torch.testing.assert_close(found, reference.bce_grad(logits, 1.0))


# --- Adam ---


@devices
@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 10000), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    step=st.integers(1, 1000),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decoupled=st.booleans(),
)
def test_adam_equals_the_reference(device, sizes, dtype, step, weight_decay, decoupled):
    torch.manual_seed(0)
    lists = [[torch.randn(n, dtype=torch.float64) for n in sizes] for _ in range(4)]
    lists[3] = [v.square() for v in lists[3]]
    found = [[t.to(device, dtype) for t in ts] for ts in lists]
    options = {
        "step": step,
        "lr": 1e-2,
        "beta1": 0.5,
        "beta2": 0.999,
        "weight_decay": weight_decay,
        "decoupled": decoupled,
    }
    ops.adam_(*found, **options)
    exact = [[t.to(dtype).double() for t in ts] for ts in lists]
    reference.adam_(*exact, eps=1e-8, **options)
    for name in (0, 2, 3):
        for a, b in zip(found[name], exact[name], strict=True):
            torch.testing.assert_close(
                a.cpu().double(), b, rtol=3e-6 if dtype == torch.float32 else 1e-12, atol=1e-6
            )


def test_adam_on_one_flat_buffer_is_adam_on_its_parts():
    torch.manual_seed(0)
    flat = [torch.randn(5000) for _ in range(3)] + [torch.rand(5000)]
    parts = [[t.clone()[:1234], t.clone()[1234:]] for t in flat]
    ops.adam_(*flat, step=3, lr=1e-2)
    ops.adam_(*parts, step=3, lr=1e-2)
    for whole, pieces in zip(flat, parts, strict=True):
        assert torch.equal(whole, torch.cat(pieces))


def test_errors_of_adam():
    t = torch.zeros(3)
    with pytest.raises(ValueError, match="step is 0"):
        ops.adam_(t, t, t, t, step=0, lr=1.0)
    with pytest.raises(ValueError, match="equally many tensors; they are 1, 1, 2, 1"):
        ops.adam_(t, t, [t, t], t, step=1, lr=1.0)


@needs_library
@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.zeros(4), "each of grads has shape"),
        (torch.zeros(3).double(), "different dtypes"),
        (torch.zeros(6)[::2], "have different strides"),
    ],
)
def test_errors_of_the_adam_operator(grad, message):
    tensors = [[torch.zeros(3)], [grad], [torch.zeros(3)], [torch.zeros(3)]]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.adam_(*tensors, 1, 1e-3, 0.5, 0.9, 1e-8, 0.0, False)


@devices
@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    lr_dtype=st.sampled_from([torch.float32, torch.float64]),
    step=st.integers(1, 1000),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decoupled=st.booleans(),
    grad_scale=st.sampled_from([None, 1.0, 512.0]),
    found_inf=st.sampled_from([None, 0.0, 1.0]),
)
def test_adam_on_the_device(
    device, sizes, dtype, lr_dtype, step, weight_decay, decoupled, grad_scale, found_inf
):
    torch.manual_seed(0)
    lists = [[torch.randn(n, dtype=torch.float64).to(dtype) for n in sizes] for _ in range(4)]
    lists[3] = [v.square() for v in lists[3]]
    twin, exact = ([[t.to(torch.float64, copy=True) for t in ts] for ts in lists] for _ in range(2))
    numbers = {"beta1": 0.5, "beta2": 0.999, "eps": 1e-8, "weight_decay": weight_decay}
    numbers["decoupled"] = decoupled
    scaler = {"grad_scale": grad_scale, "found_inf": found_inf}
    scaler = {k: None if v is None else torch.tensor([v]) for k, v in scaler.items()}
    lr, steps = torch.tensor([1e-2], dtype=lr_dtype), torch.tensor(float(step))
    found = [[t.to(device, copy=True) for t in ts] for ts in lists]
    versions = [t._version for t in found[0]]
    on_device = {k: None if v is None else v.to(device) for k, v in scaler.items()}
    ops.adam_device_(*found, steps.to(device), lr.to(device), **numbers, **on_device)
    assert all(t._version > v for t, v in zip(found[0], versions, strict=True))
    reference.adam_device_(*twin, steps, lr, **numbers, **scaler)
    # The twin itself is adam_ with the same numbers.
    if not found_inf:
        exact[1] = [g / (grad_scale or 1.0) for g in exact[1]]
        reference.adam_(*exact, step=step, lr=lr.item(), **numbers)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-11
    for kind in (0, 2, 3):
        for a, b, c in zip(found[kind], twin[kind], exact[kind], strict=True):
            torch.testing.assert_close(b, c, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(a.cpu().double(), b, rtol=tolerance, atol=tolerance)


@devices
@pytest.mark.parametrize("grad_scale", [None, 8.0])
@pytest.mark.parametrize("step_dtype", [torch.float32, torch.float64], ids=str)
def test_adam_and_averages_of_channels_last_tensors(device, grad_scale, step_dtype):
    torch.manual_seed(0)
    lists = [[torch.rand(6, 3, 5, 5), torch.rand(4)] for _ in range(4)]
    step, lr = torch.tensor(3.0, dtype=step_dtype, device=device), torch.tensor(0.1, device=device)
    scale = None if grad_scale is None else torch.tensor(grad_scale, device=device)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        made = [[t.to(device, copy=True) for t in ts] for ts in lists]
        for ts in made:
            ts[0] = ts[0].to(memory_format=memory_format)
        ops.adam_(*made, step=2, lr=0.1, weight_decay=0.1)
        ops.adam_device_(*made, step, lr, grad_scale=scale)
        ops.ema_(made[2], made[3], 0.7)
        assert made[0][0].is_contiguous(memory_format=memory_format)
        results.append(made)
    for contiguous, channels_last in zip(*results, strict=True):
        assert all(map(torch.equal, contiguous, channels_last))


@devices
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.4, 0.999, 1.0])
def test_ema(device, dtype, decay):
    torch.manual_seed(0)
    averages, values = ([torch.randn(n).to(dtype) for n in (7, 5000, 0)] for _ in range(2))
    found = [t.to(device, copy=True) for t in averages]
    ops.ema_(found, [t.to(device) for t in values], decay)
    reference.ema_(averages, values, decay)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype.itemsize == 2 else {}
    for a, b in zip(found, averages, strict=True):
        torch.testing.assert_close(a.cpu(), b, **tolerance)
    ops.ema_([], [], decay)


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": torch.tensor(1)}, "step has the wrong dtype; expected float32 or float64"),
        ({"lr": torch.zeros(2)}, r"lr has shape \[2\]; expected one element"),
        ({"lr": torch.tensor(1)}, "lr has the wrong dtype; expected float32 or float64"),
        ({"grad_scale": torch.zeros(()).double()}, "grad_scale has the wrong dtype"),
        ({"found_inf": torch.zeros(3)}, "found_inf has shape"),
        ({"grads": [torch.zeros(4)]}, "each of grads has shape"),
        ({"grads": []}, "1, 0, 1 and 1 tensors"),
        ({"step": torch.tensor(0.0)}, "counted from 1"),
        ({"step": torch.tensor(float("nan"))}, "step is nan; updates are counted from 1"),
    ],
    ids=str,
)
def test_errors_of_adam_on_the_device(change, message):
    arguments = {k: [torch.zeros(3)] for k in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    arguments |= {"step": torch.tensor(1.0), "lr": torch.tensor(0.1)}
    with pytest.raises(RuntimeError, match=message):
        ops.adam_device_(**{**arguments, **change})


@needs_library
@pytest.mark.parametrize(
    ("averages", "values", "decay", "message"),
    [
        ([torch.zeros(3)], [], 0.9, "averages and values have 1 and 0 tensors"),
        ([torch.zeros(3)], [torch.zeros(4)], 0.9, "each of values has shape"),
        ([torch.zeros(3)], [torch.zeros(3).double()], 0.9, "different dtypes"),
        ([torch.zeros(6)[::2]], [torch.zeros(3)], 0.9, r"averages\[0\] has gaps"),
        ([torch.zeros(3)], [torch.zeros(3)], 1.5, "decay is 1.5"),
        ([torch.zeros(3).int()], [torch.zeros(3).int()], 0.5, "averages must be"),
    ],
)
def test_errors_of_ema(averages, values, decay, message):
    with pytest.raises(RuntimeError, match=message):
        ops.ema_(averages, values, decay)


# --- what a replayed step reads from the device ---


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


# --- arguments that nobody should pass ---


def resized(t):
    t.untyped_storage().resize_(0)
    return t


def unaligned(n):
    return torch.frombuffer(bytearray(4 * n + 4), dtype=torch.float32, count=n, offset=1)


def adam_arguments(params, grads=None, exp_avgs=None, exp_avg_sqs=None):
    lists = [[torch.ones(3)] if ts is None else ts for ts in (grads, exp_avgs, exp_avg_sqs)]
    return (params, *lists, 1, 1e-3, 0.5, 0.9, 1e-8, 0.0, False)


SHARED, COUNTER, LONGS = torch.zeros(8), torch.tensor([0]), torch.zeros(8, dtype=torch.int64)
HOSTILE = {
    "overflow of a draw": ("dropout_at", (SHARED, 9, 1, 2, COUNTER, 1, 0, 2**63 - 1), "elements"),
    "overflow of words": ("philox_words", (LONGS.clone(), 1, 2, 3, 2**63 - 1), "elements from 92"),
    "rows without features": (
        "linear_leaky_relu",
        (torch.empty(2**62, 0), torch.empty(0, 0), None, 0.2),
        "at most 2\\*\\*48 rows",
    ),
    "overflow of a batch": (
        "gather_normalize",
        (torch.zeros(1, 2), torch.zeros(3, 2), torch.arange(3), COUNTER, 1, 5, 2**62, 2**62),
        "no more than 2\\*\\*62 images",
    ),
    "an order written while it is read": (
        "gather_normalize",
        (LONGS.view(torch.float64).view(4, 2), torch.zeros(3, 2), LONGS[:4], COUNTER, 1, 0, 4, 1),
        "out share memory",
    ),
    "a counter that is drawn over": (
        "philox_normal_at",
        (LONGS.view(torch.float32), 1, 2, LONGS[:1], 1, 0),
        "out share memory",
    ),
    "a storage resized away": ("generator_loss", (resized(torch.zeros(3)), False), "was resized"),
    "a weight's storage resized away": (
        "linear_leaky_relu",
        (torch.zeros(2, 3), resized(torch.zeros(4, 3)), None, 0.2),
        "weight has shape .* was resized to 0 bytes",
    ),
    "memory between elements": ("philox_uniform", (unaligned(5), 1, 2, 3), "no multiple"),
    "a parameter that is its moment": (
        "adam_",
        adam_arguments([SHARED[:3]], exp_avgs=[SHARED[1:4]]),
        "share memory",
    ),
    "a parameter twice": (
        "adam_",
        adam_arguments([SHARED[:3]] * 2, *([torch.ones(3), torch.ones(3)] for _ in range(3))),
        "share memory",
    ),
    "a parameter of one element seen often": (
        "adam_",
        adam_arguments(*([torch.ones(1).expand(3)] for _ in range(4))),
        "gaps or overlaps",
    ),
    "averages twice": ("ema_", ([SHARED, SHARED], [torch.ones(8)] * 2, 0.5), "share memory"),
}


@needs_library
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_arguments_are_errors(name):
    operator, arguments, message = HOSTILE[name]
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.fastgan, operator)(*arguments)


@needs_library
def test_columns_without_rows_end():
    # 2**40 columns and no rows: nothing to do, so it is done at once.
    weight, x, grad = torch.empty(2**40, 0), torch.empty(0, 0), torch.empty(0, 2**40)
    assert torch.ops.fastgan.linear_leaky_relu(x, weight, None, 0.2).shape == (0, 2**40)
    found = torch.ops.fastgan.linear_leaky_relu_backward(
        grad, x, weight, grad, 0.2, True, True, False
    )
    assert [tuple(t.shape) for t in found] == [(0, 0), (2**40, 0), (0,)]


@needs_library
def test_under_another_default_dtype_and_device_values_are_the_same():
    def values():
        def cpu(*shape):
            return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float32, device="cpu").view(
                shape
            )

        counter = torch.tensor([3], device="cpu")
        x, weight, bias = cpu(4, 6), cpu(5, 6), cpu(5)
        lists = [[cpu(7)] for _ in range(4)]
        lists[3][0].abs_()
        ops.adam_(*lists, step=2, lr=0.1)
        step = torch.tensor(3.0, device="cpu")
        ops.adam_device_(*lists, step, step / 10)
        pixels = torch.arange(24, dtype=torch.uint8, device="cpu").view(4, 6)
        order = torch.arange(4, device="cpu")
        return [
            ops.linear_leaky_relu(x, weight, bias),
            ops.discriminator_loss(x, weight),
            ops.generator_loss(x),
            ops.dropout_at(x, 0.4, 1, 2, counter),
            ops.gather_normalize(pixels, order, counter, batch=2, batches_per_epoch=2),
            ops.philox_normal_at(torch.empty(5, device="cpu", dtype=torch.float32), 1, 2, counter),
            random.normal(1, 2, 3, 5),
            random.uniform(1, 2, 3, 5),
            random.words(1, 2, 3, 5),
            random.keep_mask(1, 2, 3, 5, 0.5),
            random.permutation(1, 2, 5),
            *(ts[0] for ts in lists),
        ]

    expected = values()
    before = library.KERNELS
    for kernels in (before, frozenset()):
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        library.KERNELS = kernels
        try:
            found = values()
        finally:
            library.KERNELS = before
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype and a.device == b.device
            if kernels:
                assert torch.equal(a, b)
            else:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# --- every operator with torch's compiler and torch's own checks ---


def samples(device="cpu"):
    x, weight, bias = layer((5, 7), 6, True, torch.float32, device)
    y = torch.ops.fastgan.linear_leaky_relu(x.detach(), weight.detach(), bias.detach(), 0.2)
    logits = torch.randn(4, 1, device=device)
    adam = [[torch.rand(9, device=device), torch.rand(2, device=device)] for _ in range(4)]
    made = {
        "linear_leaky_relu": [
            (x, weight, bias, 0.2),
            (x.detach()[0], weight, None, 0.0),
            (x.detach()[:0], weight.detach().t().contiguous().t(), bias, 0.2),
        ],
        "linear_leaky_relu_backward": [
            (torch.randn_like(y), x, weight, y, 0.2, True, True, True),
            (torch.randn_like(y), x, weight, y, 0.2, False, True, False),
            (torch.randn_like(y), x, weight, y, 0.2, True, False, True),
        ],
        "discriminator_loss": [
            (logits, torch.randn(3, device=device), 0.9, 0.0),
            (logits.bfloat16(), logits.bfloat16(), 1.0, 0.0),
        ],
        "generator_loss": [(logits, False), (logits.double(), True), (logits.t(), True)],
        "adam_": [(*adam, 3, 1e-3, 0.5, 0.999, 1e-8, 0.0, False)],
        "philox_words": [(torch.empty(9, dtype=torch.int64, device=device), 1, 2, 3, 4)],
        "philox_uniform": [(torch.empty(9, device=device), -1, 2, 3)],
        "philox_normal": [(torch.empty(3, 3, device=device), 1, 2, 3)],
        "philox_keep_mask": [(torch.empty(9, dtype=torch.bool, device=device), 1, 2, 3, 4000)],
    }
    counter = torch.tensor([5], device=device)
    one, half = (torch.tensor(v, device=device) for v in (1.0, 0.5))
    pixels = torch.randint(0, 256, (9, 3, 4, 5), dtype=torch.uint8, device=device)
    order, batch = torch.randperm(9, device=device), torch.empty(4, 3, 4, 5, device=device)
    lists = [[torch.rand(9, device=device), torch.rand(2, device=device)] for _ in range(4)]
    made |= {
        "philox_normal_at": [(torch.empty(3, 3, device=device), 1, 2, counter, 2, 1)],
        "philox_keep_mask_at": [
            (torch.empty(9, dtype=torch.bool, device=device), 1, 2, counter, 2, 1, 4000)
        ],
        "dropout_at": [
            (torch.randn(3, 5, device=device), 40000, 1, 2, counter, 2, 1, 0),
            (torch.randn(5, 3, device=device).t().bfloat16(), 40000, 1, 2, counter, 2, 1, 7),
        ],
        "linear_leaky_relu_dropout_at": [
            (x, weight, bias, 0.2, 40000, 1, 2, counter, 2, 1, 0),
            (x.detach()[0], weight, None, 0.0, 40000, 1, 2, counter, 2, 1, 7),
        ],
        "linear_leaky_relu_dropout_backward_at": [
            (*(y, x, weight, y, 0.2, True, True, True), *(40000, 1, 2, counter, 2, 1, 0)),
            (*(y, x, weight, y, 0.2, False, True, False), *(40000, 1, 2, counter, 2, 1, 7)),
        ],
        "gather_normalize": [
            (batch, pixels, order, counter, 1, 0, 4, 2),
            (batch[:2].to(memory_format=torch.channels_last), pixels, order, counter, 1, 0, 4, 2),
        ],
        "adam_device_": [
            (*lists, one, half, 0.5, 0.999, 1e-8, 0.1, True, one, torch.zeros_like(one)),
            (*lists, one, half.double(), 0.5, 0.999, 1e-8, 0.0, False, None, None),
        ],
        "ema_": [(lists[0], lists[1], 0.9)],
    }
    return made


NAMES = [
    "linear_leaky_relu",
    "linear_leaky_relu_backward",
    "discriminator_loss",
    "generator_loss",
    "adam_",
    "philox_words",
    "philox_uniform",
    "philox_normal",
    "philox_keep_mask",
    "philox_normal_at",
    "philox_keep_mask_at",
    "dropout_at",
    "linear_leaky_relu_dropout_at",
    "linear_leaky_relu_dropout_backward_at",
    "gather_normalize",
    "adam_device_",
    "ema_",
]


@needs_library
@devices
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, device):
    operator = getattr(torch.ops.fastgan, name).default
    for arguments in samples(device)[name]:
        detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
        torch.library.opcheck(operator, tuple(detached))


@needs_library
def test_every_operator_is_checked():
    # A schema added without a sample above would slip through opcheck.
    registered = {
        name.split("::")[1]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastgan::")
    }
    own = {n for n in registered if not n.startswith("step")}
    assert set(NAMES) <= own
    assert "isa" in own


def compiled_and_eager(f, *tensors):
    torch.compiler.reset()
    results = []
    for g in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        inputs = [t.detach().clone().requires_grad_() for t in tensors]
        y = g(*inputs)
        grads = torch.autograd.grad(y, inputs, torch.ones_like(y))
        results.append((y, *grads))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@roads
def test_compiled_linear_leaky_relu(road):
    x, weight, bias = layer((6, 6), 6, True, grad=False)
    compiled_and_eager(lambda x, w, b: road(x, w, b, 0.2), x, weight, bias)
    compiled_and_eager(lambda x, w: road(x, w, None, 0.0), x, weight)
    # One tensor in two places: torch.compile has halved such gradients before.
    compiled_and_eager(lambda x: road(x, x, None, 0.2), x)
    compiled_and_eager(lambda x, w: road(road(x, w, None, 0.2), w, None, 0.2), x, weight)


def test_compiled_wide_layer_with_few_rows():
    x, weight, bias = layer((4, 1024), 1024, True, torch.float32, grad=False)
    compiled_and_eager(lambda x, w, b: ops.linear_leaky_relu(x, w, b, 0.2), x, weight, bias)


def test_compiled_losses():
    torch.manual_seed(0)
    real, fake = torch.randn(5, 1), torch.randn(4, 1)
    compiled_and_eager(lambda r, f: ops.discriminator_loss(r, f, real_label=0.9), real, fake)
    compiled_and_eager(lambda r: ops.discriminator_loss(r, r), real)
    compiled_and_eager(lambda f: ops.generator_loss(f) + ops.generator_loss(f * 2), fake)
    compiled_and_eager(lambda f: ops.generator_loss(f, saturating=True) * 3, fake)


def test_compiled_by_inductor():
    # The default back end generates C++; one function keeps the test short.
    x, weight, bias = layer((6, 4), 3, True, torch.float32)

    def f(x, weight, bias):
        return ops.generator_loss(ops.linear_leaky_relu(x, weight, bias))

    torch.compiler.reset()
    found = torch.autograd.grad(torch.compile(f, fullgraph=True)(x, weight, bias), (x, weight))
    expected = torch.autograd.grad(f(x, weight, bias), (x, weight))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@needs_library
def test_mutating_operators_compile():
    def f(p, g, m, v, out):
        torch.ops.fastgan.adam_([p], [g], [m], [v], 1, 1e-2, 0.5, 0.9, 1e-8, 0.0, False)
        torch.ops.fastgan.philox_normal(out, 1, 2, 3)
        ops.philox_normal_at(out, 1, 2, torch.ones(1, dtype=torch.int64))
        return p + ops.dropout_at(out, 0.3, 1, 64, torch.ones(1, dtype=torch.int64))

    def inputs():
        torch.manual_seed(0)
        return [torch.rand(5) for _ in range(5)]

    eager, compiled = inputs(), inputs()
    a = f(*eager)
    b = torch.compile(f, fullgraph=True, backend="aot_eager")(*compiled)
    torch.testing.assert_close(a, b)
    for x, y in zip(eager, compiled, strict=True):
        assert torch.equal(x, y)


# --- loading ---


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_library_status_is_a_sentence():
    status = ops.library_status()
    assert set(status) == {"cpu", "cuda"}
    for value in status.values():
        assert value == "loaded" or value.startswith(("not ", "failed to load: "))
    status["cpu"] = "changed"
    assert ops.library_status()["cpu"] != "changed"


@needs_library
@pytest.mark.parametrize("isa", ["baseline", ops.isa()])
def test_isa_can_be_forced(isa):
    done = run("from fastgan import ops; print(ops.isa())", FASTGAN_ISA=isa)
    assert done.stdout.strip() == isa, done.stderr


@needs_library
def test_unknown_isa_is_an_error_that_lists_the_choices():
    done = run("from fastgan import ops; ops.isa()", FASTGAN_ISA="sse9")
    assert done.returncode != 0
    assert "FASTGAN_ISA is 'sse9'" in done.stderr and "baseline" in done.stderr


def test_without_the_library_everything_still_works():
    code = """
import sys
sys.modules["fastgan._C"] = None  # import fails
import torch
from fastgan import ops, random
from fastgan.ops import library, reference
assert ops.library_status()["cpu"] != "loaded" and ops.isa() is None
x, w = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
loss = ops.discriminator_loss(ops.linear_leaky_relu(x, w), ops.linear_leaky_relu(x, w))
(loss + ops.generator_loss(x)).backward()
assert random.normal(0, 0, 0, (2, 3)).shape == (2, 3)
t = [torch.rand(3) for _ in range(4)]
ops.adam_(*t, step=1, lr=0.1)
ops.adam_device_(*[[x] for x in t], torch.ones(()), torch.ones(()))
ops.ema_(t[:1], t[1:2], 0.5)
at = torch.tensor([2])
assert torch.equal(ops.philox_normal_at(torch.empty(5), 1, 2, at, 3), random.normal(1, 2, 6, 5))
mask = ops.keep_mask_at(torch.empty(5, dtype=torch.bool), 1, 2, at, 3, 0, 0.5)
assert torch.equal(mask, random.keep_mask(1, 2, 6, 5, 0.5))
assert torch.equal(ops.dropout_at(torch.ones(5), 0.5, 1, 2, at, 3), 2.0 * mask)
batch = ops.gather_normalize(torch.eye(4), torch.arange(4), at, batch=2, batches_per_epoch=2)
assert torch.equal(batch, torch.eye(4)[:2])
print("fine")
"""
    done = run(code)
    assert done.stdout.strip() == "fine", done.stderr
