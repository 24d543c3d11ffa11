"""linear_leaky_relu: values, derivatives, roads, autocast, errors."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import (
    close,
    devices,
    dtypes,
    layer,
    needs_library,
    roads,
    run,
    scales,
    slopes,
    through_operator,
    with_grads,
)
from torch.autograd import gradcheck, gradgradcheck

from fastgan import ops, random
from fastgan.nn import LinearLeakyReLU
from fastgan.ops import reference


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
