"""The convolutions: values, derivatives, memory formats, roads, errors."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import needs_library, run

from fastgan import ops
from fastgan.ops import conv, reference

KERNELS = [4, 3, 1]
WAYS = ("forward", "data", "weight")
kernels = pytest.mark.parametrize("kernel", KERNELS)
EPSILON = torch.finfo(torch.float32).eps
channels = st.one_of(st.integers(1, 9), st.integers(10, 70))


def draw(*size, last=False, seed=0):
    t = torch.randn(*size, generator=torch.Generator().manual_seed(seed))
    return t.to(memory_format=torch.channels_last) if last else t


def tensors(kernel, batch, inside, outside, rows, columns, last=False, seed=0):
    """x, weight and the gradient of the result; rows and columns are those of the result."""
    stride = 2 if kernel == 4 else 1
    x = draw(batch, inside, rows * stride, columns * stride, last=last, seed=seed)
    weight = draw(outside, inside, kernel, kernel, last=last, seed=seed + 1)
    return x, weight, draw(batch, outside, rows, columns, last=last, seed=seed + 2)


def as_good_as_torch(found, torchs, exact):
    """At most four times the error of torch's own, or of one rounding if that is larger."""
    assert found.shape == exact.shape and found.dtype == torch.float32
    if exact.numel():
        errors = [(t.double() - exact).abs().max().item() for t in (found, torchs)]
        rounding = EPSILON * exact.abs().max().item()
        assert errors[0] <= 4 * max(errors[1], rounding), errors


def all_agree(kernel, x, weight, grad, bias, slope):
    own, wide = torch.ops.fastgan, [t.double() for t in (x, weight, grad)]
    bias_wide = None if bias is None else bias.double()
    for name, a, b in (("conv2d", 0, 1), ("conv_transpose2d", 2, 1)):
        fits = bias is not None and len(bias) == weight.shape[a // 2]
        narrow = [(x, weight, grad)[i] for i in (a, b)]
        shift = (bias, bias_wide) if fits else (None, None)
        twin = getattr(reference, f"{name}_leaky_relu")
        as_good_as_torch(
            getattr(own, f"{name}_leaky_relu")(*narrow, shift[0], slope),
            twin(*narrow, shift[0], slope),
            twin(wide[a], wide[b], shift[1], slope),
        )
        # By the sign of something else of the result's shape.
        sign = (grad, None, x)[a]
        as_good_as_torch(
            getattr(own, f"{name}_leaky_relu")(*narrow, shift[0], slope, sign),
            twin(*narrow, shift[0], slope, sign),
            twin(wide[a], wide[b], shift[1], slope, sign),
        )
    for last in (False, True):
        found = own.conv2d_grad_weight(x, grad, kernel, last)
        format = torch.channels_last if last else torch.contiguous_format
        assert found.is_contiguous(memory_format=format)
        twin = reference.conv2d_grad_weight
        as_good_as_torch(found, twin(x, grad, kernel), twin(wide[0], wide[2], kernel))


@needs_library
@kernels
@settings(max_examples=40)
@given(
    batch=st.integers(0, 5),
    inside=channels,
    outside=channels,
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    last=st.booleans(),
    slope=st.sampled_from([1.0, 0.2, 0.0, -0.3]),
    bias=st.sampled_from([None, "in", "out"]),
    seed=st.integers(0, 1000),
)
def test_operators(kernel, batch, inside, outside, rows, columns, last, slope, bias, seed):
    x, weight, grad = tensors(kernel, batch, inside, outside, rows, columns, last, seed)
    shift = bias and draw(inside if bias == "in" else outside, seed=seed + 3)
    all_agree(kernel, x, weight, grad, shift, slope)


@needs_library
@pytest.mark.parametrize(
    ("kernel", "batch", "inside", "outside", "rows"),
    [(4, 8, 3, 64, 16), (4, 4, 64, 128, 8), (4, 3, 256, 512, 4), (4, 2, 64, 3, 8)]
    + [(3, 5, 3, 64, 16), (3, 4, 64, 64, 16), (3, 4, 64, 3, 16), (3, 1, 256, 128, 4)]
    + [(1, 4, 64, 128, 16), (1, 3, 3, 64, 16), (1, 3, 64, 3, 8)],
)
def test_operators_on_the_layers_of_a_gan(kernel, batch, inside, outside, rows):
    for last in (False, True):
        x, weight, grad = tensors(kernel, batch, inside, outside, rows, rows, last)
        all_agree(kernel, x, weight, grad, draw(outside), 0.2)


@needs_library
@kernels
@pytest.mark.parametrize("sizes", [(0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0, 0)])
def test_empty_sizes(kernel, sizes):
    batch, inside, outside = sizes
    x, weight, grad = tensors(kernel, batch, inside, outside, 2, 3)
    bias, own = draw(outside), torch.ops.fastgan
    y = own.conv2d_leaky_relu(x, weight, bias, 0.2)
    # With no input channels a result is the rectified bias.
    expected = F.leaky_relu(bias, 0.2).view(1, -1, 1, 1).expand_as(grad)
    assert y.shape == grad.shape
    if inside == 0:
        assert torch.equal(y, expected)
    assert not own.conv_transpose2d_leaky_relu(grad * 0, weight, None, 1.0).any()
    found = own.conv2d_grad_weight(x, grad, kernel, False)
    assert found.shape == weight.shape and (batch > 0 or not found.any())


@needs_library
@kernels
@pytest.mark.parametrize("kind", ["sliced", "transposed", "expanded", "flipped weight"])
def test_any_strides(kernel, kind):
    x, weight, grad = tensors(kernel, 3, 16, 24, 4, 4)
    if kind == "sliced":
        x, weight = torch.stack((x, x), -1)[..., 0], torch.stack((weight, weight), -1)[..., 0]
    elif kind == "transposed":
        x, weight = x.transpose(2, 3), weight.transpose(2, 3)
    elif kind == "expanded":
        x, grad = x[:1].expand_as(x), grad[:, :1].expand_as(grad)
    else:
        weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    all_agree(kernel, x, weight, grad, None, 1.0)


@needs_library
@kernels
def test_bits_do_not_depend_on_the_number_of_threads(kernel):
    own, results, before = torch.ops.fastgan, [], torch.get_num_threads()
    layers = [(65, 40, 7), (3, 33, 9), (40, 3, 8), (100, 130, 3), (70, 80, 13), (16, 24, 20)]
    try:
        for threads in (1, 2, 5):  # those of gradients in parts for a thread each, and in fewer
            torch.set_num_threads(threads)
            for inside, outside, rows in layers:
                x, weight, grad = tensors(kernel, 9, inside, outside, rows, rows, rows == 13)
                results.append(own.conv2d_leaky_relu(x, weight, None, 0.2))
                results.append(own.conv_transpose2d_leaky_relu(grad, weight, None, 0.2))
                results.append(own.conv2d_grad_weight(x, grad, kernel, False))
    finally:
        torch.set_num_threads(before)
    n = 3 * len(layers)
    for i in range(n):
        assert torch.equal(results[i], results[n + i])
        assert torch.equal(results[i], results[2 * n + i])


@needs_library
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "amx"])
def test_other_instruction_sets(isa):
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from test_ops_conv import all_agree, draw, tensors
from fastgan import ops
sizes = [(3, 64, 40, 5), (2, 3, 33, 8), (2, 33, 3, 8), (2, 17, 130, 3), (1, 130, 9, 6)]
sizes += [(8, 64, 70, 15)]  # large tiles
sizes += [(3, 65, 100, 6), (2, 260, 257, 3)]  # of matrices, the last ones partly filled
for kernel in (4, 3, 1):
    for batch, inside, outside, rows in sizes:
        for last in (False, True):
            x, weight, grad = tensors(kernel, batch, inside, outside, rows, rows + 1, last)
            all_agree(kernel, x, weight, grad, draw(outside), 0.2)
print(ops.isa())
"""
    done = run(code.replace("sys.argv[1]", repr(str(__file__).rsplit("/", 1)[0])), FASTGAN_ISA=isa)
    if "does not have" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert done.stdout.strip() == isa, done.stderr


# --- Derivatives


@pytest.fixture
def always(monkeypatch):
    """The operators take every layer that they can do."""
    monkeypatch.setattr(conv, "is_faster", lambda way, *sizes: True)


def both(transposed):
    return (ops.conv_transpose2d, F.conv_transpose2d) if transposed else (ops.conv2d, F.conv2d)


def close(found, exact):
    # Sums over some hundred products of numbers about 1.
    scale = max(exact.abs().max().item(), 1e-6)
    assert (found.double() - exact).abs().max().item() < 3e-5 * scale


@needs_library
@kernels
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("slope", "ours"),
    [(1.0, WAYS), (0.2, WAYS), (0.0, WAYS), *((0.2, (way,)) for way in WAYS)],
)
def test_derivatives_of_any_order(monkeypatch, kernel, transposed, slope, ours):
    monkeypatch.setattr(conv, "is_faster", lambda way, *sizes: way in ours)
    x, weight, grad = tensors(kernel, 2, 9, 11, 3, 2)
    if transposed:
        x = grad
    places = reference.CONV_PLACES[kernel]
    bias = draw(weight.shape[1 if transposed else 0], seed=9)
    found = [t.clone().requires_grad_() for t in (x, weight, bias)]
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    function, torchs = both(transposed)
    y = function(*found, *places, negative_slope=slope)
    assert y.grad_fn.name() == "_ConvBackward"
    pre = torchs(*exact, *places)
    z = F.leaky_relu(pre, slope)
    close(y.detach(), z)
    # Away from the kink, where rounding decides the branch.
    direction = draw(*y.shape, seed=5).masked_fill(pre.abs() < 1e-3, 0)
    directions = [draw(*t.shape, seed=6 + i) for i, t in enumerate(found)]
    for _ in range(3):
        first = torch.autograd.grad(y, found, direction, create_graph=True, allow_unused=True)
        wanted = torch.autograd.grad(
            z, exact, direction.double(), create_graph=True, allow_unused=True
        )
        y, z = 0.0, 0.0
        for a, b, d in zip(first, wanted, directions, strict=True):
            if a is None:  # torch gives zeros for some of these
                assert b is None or not b.any()
            else:
                close(a, b)
                y = y + (a * a * d).sum() / len(d)
                z = z + (b * b * d.double()).sum() / len(d)
        direction = torch.ones(())


@needs_library
@kernels
@pytest.mark.parametrize("transposed", [False, True])
def test_only_the_gradients_asked_for(always, kernel, transposed):
    for wanted in range(1, 8):
        x, weight, grad = tensors(kernel, 2, 8, 9, 2, 2)
        x = grad if transposed else x
        given = [x, weight, draw(weight.shape[1 if transposed else 0])]
        for i, t in enumerate(given):
            t.requires_grad_(bool(wanted >> i & 1))
        y = both(transposed)[0](*given, *reference.CONV_PLACES[kernel], negative_slope=0.2)
        y.square().sum().backward()
        assert [t.grad is not None for t in given] == [bool(wanted >> i & 1) for i in range(3)]


@needs_library
@kernels
def test_gradient_penalty_trains(always, kernel):
    # The double backward that R1 and WGAN-GP take: a gradient inside a loss.
    x, weight, _ = tensors(kernel, 3, 8, 9, 4, 4)
    places = reference.CONV_PLACES[kernel]

    def penalty(f, *given):
        x, weight = (t.requires_grad_() for t in given)
        (g,) = torch.autograd.grad(f(x, weight, None, *places).sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), weight)[0]

    close(penalty(ops.conv2d, x, weight), penalty(F.conv2d, x.double(), weight.double()))


# --- Roads


def memory_orders():
    """Strides of what torch makes of tensors in several memory formats, odd ones too."""
    for x_last in (False, True):
        for w_last in (False, True):
            yield x_last, w_last


@needs_library
@kernels
@pytest.mark.parametrize(
    "sizes", [(2, 8, 9, 4, 4), (2, 1, 8, 1, 1), (1, 8, 8, 1, 1), (2, 8, 1, 3, 3)]
)
def test_results_have_the_memory_format_that_torch_gives_them(always, kernel, sizes):
    places = reference.CONV_PLACES[kernel]
    for x_last, w_last in memory_orders():
        x, weight, grad = tensors(kernel, *sizes)
        if x_last:
            x, grad = (t.to(memory_format=torch.channels_last) for t in (x, grad))
        if w_last:
            weight = weight.to(memory_format=torch.channels_last)
        for transposed, image in ((False, x), (True, grad)):
            ours, torchs = (f(image, weight, None, *places) for f in both(transposed))
            for format in (torch.channels_last, torch.contiguous_format):
                assert ours.is_contiguous(memory_format=format) == torchs.is_contiguous(
                    memory_format=format
                )


@needs_library
def test_layers_that_are_left_to_torch(always):
    x, weight, grad = tensors(4, 2, 8, 8, 4, 4)
    bias = draw(8)

    def taken(*arguments, stride=2, padding=1, dilation=1, groups=1, slope=0.2, **options):
        transposed = options.pop("transposed", False)
        return conv._serves(*arguments, stride, padding, dilation, groups, slope, transposed)

    assert taken(x, weight, bias) and taken(x, weight, None, stride=(2, 2), padding=(1, 1))
    assert taken(grad, weight, bias, transposed=True)
    assert not taken(x, weight, bias, stride=1)
    assert not taken(x, weight, bias, padding=0)
    assert not taken(x, weight, bias, padding="same")
    assert not taken(x, weight, bias, dilation=2)
    assert not taken(x, weight, bias, groups=2)
    assert not taken(x, weight, bias, slope=-0.2)
    assert not taken(x[:, :, 1:], weight, bias)
    assert not taken(x[0], weight, bias)
    assert not taken(x, weight[:, :, :2], bias)
    assert not taken(x[:, :4], weight, bias)
    assert not taken(x.double(), weight.double(), bias.double())
    assert not taken(x, weight, bias.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not taken(x, weight, bias)
        assert ops.conv2d(x, weight, bias, 2, 1).dtype == torch.bfloat16
    with torch.autograd.forward_ad.dual_level():
        assert not taken(x, weight, bias)
    torch.func.grad(lambda x: ops.conv2d(x, weight, bias, 2, 1).sum())(x)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("slope", [1.0, 0.2, 0.0, -0.5])
def test_the_rest_is_torchs_to_the_bit(transposed, slope):
    x, weight, bias = draw(2, 6, 7, 5), draw(6, 6, 5, 3, seed=1), draw(6, seed=2)
    ours, torchs = both(transposed)
    y = ours(x, weight, bias, 2, (2, 1), negative_slope=slope)
    expected = torchs(x, weight, bias, 2, (2, 1))
    assert torch.equal(y, expected if slope == 1 else F.leaky_relu(expected, slope))
    with pytest.raises(RuntimeError):
        ours(x, weight[:, :2] if not transposed else weight[:2], bias, 2, (2, 1))


@needs_library
def test_a_layer_of_dcgan_takes_the_operators_by_itself():
    x, weight, _ = tensors(4, 64, 64, 128, 8, 8, last=True)
    y = ops.conv2d(x, weight.requires_grad_(), None, 2, 1, negative_slope=0.2)
    assert y.grad_fn.name() == "_ConvBackward"
    few = ops.conv2d(x[:1, :, :2, :2], weight, None, 2, 1, negative_slope=0.2)
    assert few.grad_fn.name() != "_ConvBackward"


def test_where_the_operators_are_faster():
    def ways(*sizes):
        return tuple(way for way in WAYS if conv.is_faster(way, *sizes))

    assert ways(4, 64, 64, 128, 16, 16, True) == ways(4, 64, 64, 128, 16, 16, False) == WAYS
    assert ways(3, 64, 64, 64, 16, 16, True) == WAYS
    wide = ops.isa() in ("avx512", "amx")
    assert ways(4, 64, 3, 64, 32, 32, True) == (("data",) if wide else ("forward", "data"))
    assert ways(3, 64, 16, 32, 16, 16, True) == (("forward",) if wide else WAYS)
    assert ways(3, 64, 48, 96, 5, 5, True) == (() if wide else ("data", "weight"))
    assert ways(3, 16, 512, 512, 4, 4, False) == (("weight",) if wide else WAYS)
    assert ways(4, 4, 128, 256, 8, 8, True) == (("data", "weight") if wide else WAYS)
    assert ways(4, 16, 128, 256, 8, 8, True) == ways(4, 16, 256, 512, 4, 4, True) == WAYS
    assert ways(3, 64, 64, 3, 32, 32, True) == ("forward", "weight")
    assert ways(4, 64, 16, 32, 16, 16, True) == ("data",)
    assert ways(1, 64, 64, 128, 16, 16, True) == ("weight",)
    assert ways(1, 64, 64, 64, 16, 16, True) == ()
    assert ways(4, 64, 64, 128, 1, 1, True) == ways(1, 64, 64, 128, 16, 16, False) == ()
    assert ways(4, 1, 16, 16, 4, 4, True) == ways(3, 64, 64, 3, 32, 32, False) == ()


@needs_library
def test_memory_is_kept_and_released():
    x, weight, _ = tensors(3, 4, 16, 16, 8, 8)
    before = torch.get_num_threads()
    try:
        # With more, the blocks depend on how many threads happen to work at the same time.
        torch.set_num_threads(1)
        ops.release_memory()
        torch.ops.fastgan.conv2d_leaky_relu(x, weight, None, 1.0)
        first = ops.release_memory()
        assert first > 0 and ops.release_memory() == 0
        for _ in range(3):  # what is there is used again
            torch.ops.fastgan.conv2d_leaky_relu(x, weight, None, 1.0)
        assert ops.release_memory() == first
    finally:
        torch.set_num_threads(before)


# --- Errors

SOUND = {
    "x": torch.zeros(2, 4, 6, 6),
    "weight": torch.zeros(5, 4, 4, 4),
    "bias": torch.zeros(5),
    "negative_slope": 0.2,
}


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(5, 4)}, "weight has shape .* expected 4 dimensions"),
        ({"weight": torch.zeros(5, 4, 2, 2)}, "the kernel is 2 x 2; expected 1 x 1, 3 x 3 or 4"),
        ({"weight": torch.zeros(5, 4, 3, 1)}, "the kernel is 3 x 1"),
        ({"weight": torch.zeros(5, 3, 4, 4)}, "x has shape .* expected 3 channels"),
        ({"x": torch.zeros(4, 6, 6)}, "x has shape .* expected .batch, channels, height, width"),
        ({"x": torch.zeros(2, 4, 5, 6)}, "images are 5 x 6; a 4 x 4 kernel takes even sizes"),
        ({"bias": torch.zeros(4)}, r"bias has shape \[4\]; expected \[5\]"),
        ({"bias": torch.zeros(5).double()}, "bias and x have different dtypes"),
        ({"weight": SOUND["weight"].double()}, "weight and x have different dtypes"),
        ({"negative_slope": float("nan")}, "negative_slope is nan"),
        ({"sign": torch.zeros(2, 5, 6, 6)}, r"sign has shape \[2, 5, 6, 6\]; expected that of"),
        ({"sign": torch.zeros(2, 5, 3, 3).double()}, "sign and x have different dtypes"),
        (
            {"x": SOUND["x"].double(), "weight": SOUND["weight"].double(), "bias": None},
            "x must be float32",
        ),
        ({"x": torch.zeros(1).expand(2**41, 4, 2, 2)}, r"at most 2\*\*40 pixels"),
        (
            {"x": torch.zeros(1).expand(1, 2**21, 2, 2), "weight": torch.zeros(5, 2**21, 1, 1)},
            r"at most 2\*\*20",
        ),
    ],
    ids=str,
)
def test_errors_of_the_operators(change, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.conv2d_leaky_relu(**{**SOUND, **change})


@needs_library
def test_errors_of_the_gradients():
    own = torch.ops.fastgan
    with pytest.raises(RuntimeError, match="expected 5 channels, because weight has shape"):
        own.conv_transpose2d_leaky_relu(SOUND["x"], SOUND["weight"], None, 1.0)
    with pytest.raises(RuntimeError, match="grad has shape .* expected that of"):
        own.conv2d_grad_weight(SOUND["x"], SOUND["x"], 4, False)
    with pytest.raises(RuntimeError, match="the kernel is 5 x 5"):
        own.conv2d_grad_weight(SOUND["x"], SOUND["x"], 5, False)
