"""The torch-free CUDA kernels, emulated on the CPU, against reference.py on random shapes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from native import emulator

from fastgan.ops import reference

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CODE = {dtype: code for code, dtype in enumerate((*DTYPES, torch.uint8))}
# One rounding of the result; float32 sums.
TOLERANCE = {
    torch.float32: 2e-6,
    torch.float64: 1e-13,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}
dtypes = st.sampled_from(DTYPES)
seeds = st.sampled_from([0, 1, 2])  # of the interleaving of threads
slopes = st.sampled_from([0.2, 0.0, -0.7, 1.0])
SOURCES = (
    *("adam/adam", "adam/ema", "gather/gather", "linear/linear", "linear/tiles"),
    *("losses/losses", "random/philox"),
)


@pytest.fixture(scope="module")
def kernels():
    return emulator.load(
        "operators", "tests/native/cuda_module.cpp", *(f"csrc/ops/{name}.cu" for name in SOURCES)
    )


def draw(n, dtype, shift=0, seed=0):
    """n values at an address that is `shift` elements past one aligned to 16 bytes."""
    generator = torch.Generator().manual_seed(seed + 7 * n)
    memory = torch.empty(n + shift + 16, dtype=dtype)
    first = -memory.data_ptr() % 16 // memory.element_size() + shift
    memory[first : first + n] = torch.randn(n, dtype=torch.float64, generator=generator)
    return memory[first : first + n]


def close(found, expected, scale=1.0):
    assert found.shape == expected.shape
    if found.numel():
        error = (found.double() - expected.double()).abs().max().item()
        assert error <= TOLERANCE[found.dtype] * max(scale, 1e-30), error


# --- Philox ---


@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**63 - 1),
    start=st.integers(0, 300),
    n=st.integers(0, 700),
    threshold=st.integers(0, 65536),
    multiplier=st.integers(0, 5),
    counted=st.booleans(),
    order=seeds,
)
def test_philox(kernels, seed, stream, step, start, n, threshold, multiplier, counted, order):
    kernels.seed(order)
    words = torch.empty(n, dtype=torch.int64)
    kernels.words(seed, stream, step, start, n, words)
    assert torch.equal(words, reference.philox_words(seed, stream, step, start, n))
    uniform = torch.empty(n)
    kernels.uniform(seed, stream, step, n, uniform)
    assert torch.equal(uniform, reference.philox_uniform(seed, stream, step, n))

    offset, count = step % 97, step >> 8
    counter = torch.tensor([count]) if counted else None
    at = count * multiplier + offset if counted else step
    normal, mask = torch.empty(n), torch.empty(n, dtype=torch.bool)
    kernels.normal(seed, stream, step, counter, multiplier, offset, n, normal)
    expected = reference.philox_normal(seed, stream, at, n)
    assert n == 0 or (normal - expected).abs().max() <= 2e-6
    kernels.keep_mask(seed, stream, step, counter, multiplier, offset, n, threshold, mask)
    assert torch.equal(mask, reference.philox_keep_mask(seed, stream, at, n, threshold))


def test_more_words_than_one_stride_of_the_grid(kernels):
    n = 4096 * 256 * 4 + 5
    uniform = torch.empty(n)
    kernels.uniform(1, 2, 3, n, uniform)
    assert torch.equal(uniform, reference.philox_uniform(1, 2, 3, n))


@given(
    dtype=dtypes,
    n=st.integers(0, 900),
    start=st.integers(0, 60),
    shift=st.integers(0, 3),
    threshold=st.sampled_from([0, 1, 32768, 45875, 65536]),
    order=seeds,
)
def test_dropout(kernels, dtype, n, start, shift, threshold, order):
    kernels.seed(order)
    x, y, counter = draw(n, dtype, shift), torch.empty(n, dtype=dtype), torch.tensor([7])
    kernels.dropout_at(CODE[dtype], counter, start, threshold, n, x, y)
    expected = reference.dropout_at(x, *mask_of((counter, start, threshold)))
    assert torch.equal(y == 0, expected == 0)
    close(y, expected, expected.double().abs().max().item() if n else 1.0)


def mask_of(drop):
    """The mask that the native functions draw for (counter, start, threshold), as the twin's."""
    counter, start, threshold = drop
    return threshold, 5, 64, counter, 3, 2, start


drops = st.one_of(
    st.just((None, 0, 0)),
    st.tuples(
        st.just(torch.tensor([7])),
        st.integers(0, 60),
        st.sampled_from([0, 300, 32768, 45875, 65536]),  # float16 holds what 1/300 scales
    ),
)


def dropped(x, drop):
    return x if drop[0] is None else reference.dropout_at(x, *mask_of(drop))


def scale_of(drop):
    return 65536 / drop[2] if drop[0] is not None and drop[2] else 1.0


# --- Batches ---


@given(
    pixel=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    dtype=dtypes,
    channels=st.integers(1, 4),
    plane=st.integers(0, 90),
    batch=st.integers(1, 9),
    images=st.integers(1, 30),
    update=st.integers(0, 2**40),
    channels_last=st.booleans(),
    order=seeds,
)
def test_gather(
    kernels, pixel, dtype, channels, plane, batch, images, update, channels_last, order
):
    kernels.seed(order)
    if pixel == torch.float64:
        dtype = pixel
    generator = torch.Generator().manual_seed(update % 1000)
    size = (images, channels, plane)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    if pixel != torch.uint8:
        pixels = torch.randn(size, dtype=pixel, generator=generator)
    permutation = torch.randperm(images, generator=generator)
    per_epoch = -(-images // batch)
    counter, multiplier, offset = torch.tensor([update]), 2, 1
    position = (2 * update + 1) % per_epoch
    rows = min(batch, images - position * batch)
    out = torch.full((rows, plane, channels) if channels_last else (rows, channels, plane), 9.0)
    out = out.to(dtype)
    sizes = rows, channels, plane, channels_last, images, images, batch, per_epoch
    where = permutation, counter, multiplier, offset
    kernels.gather(CODE[pixel], CODE[dtype], *sizes, *where, pixels, out)
    expected = reference.gather_normalize(
        pixels, permutation, counter, multiplier, offset, batch, per_epoch, rows, dtype
    )
    assert torch.equal(out.transpose(1, 2) if channels_last else out, expected)


def test_rows_outside_the_data_are_nan(kernels):
    pixels = torch.zeros(4, 1, 3, dtype=torch.uint8)
    order, counter = torch.tensor([0, 9, -1]), torch.tensor([0])
    out = torch.zeros(4, 1, 3)
    kernels.gather(4, 0, 4, 1, 3, False, 4, 3, 4, 1, order, counter, 1, 0, pixels, out)
    assert (out[0] == -1).all() and out[1:].isnan().all()


# --- What surrounds the products ---


@given(
    dtype=dtypes,
    rows=st.integers(0, 40),
    columns=st.integers(0, 90),
    shift=st.integers(0, 2),
    bias=st.booleans(),
    slope=slopes,
    drop=drops,
    order=seeds,
)
def test_bias_leaky_relu(kernels, dtype, rows, columns, shift, bias, slope, drop, order):
    kernels.seed(order)
    y, b = draw(rows * columns, dtype, shift), draw(columns, dtype, shift, 1)
    shifted = y.double().view(rows, columns) + (b.double() if bias else 0)
    kernels.bias_rectify(CODE[dtype], y, b if bias else None, rows, columns, slope, *drop)
    y, expected = y.view(rows, columns), dropped(F.leaky_relu(shifted, slope), drop)
    close(y, expected, 6.0 * scale_of(drop))
    assert drop[0] is None or (y[dropped(torch.ones_like(shifted), drop) == 0] == 0).all()


@given(
    dtype=dtypes,
    rows=st.sampled_from([0, 1, 5, 64, 511, 512, 513, 1100]),
    columns=st.integers(0, 70),
    shift=st.integers(0, 2),
    slope=slopes,
    sums=st.booleans(),
    drop=drops,
    order=seeds,
)
def test_leaky_relu_backward(kernels, dtype, rows, columns, shift, slope, sums, drop, order):
    kernels.seed(order)
    grad, sign = (draw(rows * columns, dtype, shift, i) for i in range(2))
    found = torch.empty_like(grad)
    wide = torch.promote_types(dtype, torch.float32)
    strips = kernels._library.strips(rows)
    assert strips == -(-rows // 512)
    total = torch.full((strips, columns), 3.0, dtype=wide) if sums else None
    kernels.rectify_backward(CODE[dtype], grad, sign, rows, columns, slope, *drop, found, total)
    expected = reference.leaky_relu_backward(dropped(grad.double(), drop), sign.double(), slope)
    close(found, expected, 6.0 * scale_of(drop))
    if sums:
        scale = 4.0 * max(rows, 1) ** 0.5 * scale_of(drop)
        close(total.sum(0), expected.view(rows, columns).sum(0), scale)


def test_a_matrix_taller_than_the_grid(kernels):
    y = draw(40_000 * 256, torch.float32)
    before = y.clone()
    kernels.bias_rectify(0, y, None, 40_000 * 256, 1, 0.2, None, 0, 0)
    assert torch.equal(y, F.leaky_relu(before, 0.2))


sides = st.one_of(st.integers(0, 70), st.sampled_from([8, 32, 64, 96]))


@settings(max_examples=60)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    batch=sides,
    features=st.one_of(sides, st.just(200)),
    out=sides,
    shift=st.sampled_from([0, 0, 1]),
    bias=st.booleans(),
    slope=slopes,
    drop=drops,
    wanted=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]),
    order=seeds,
)
def test_tiles(kernels, dtype, batch, features, out, shift, bias, slope, drop, wanted, order):
    kernels.seed(order)
    x, weight, b, grad = (
        draw(n, dtype, shift, i)
        for i, n in enumerate((batch * features, out * features, out, batch * out))
    )
    y, sizes = torch.empty(batch, out, dtype=dtype), (batch, features, out)
    kernels.tiles(CODE[dtype], *sizes, x, weight, b if bias else None, slope, *drop, y)
    x, weight, grad = x.view(batch, features), weight.view(out, features), grad.view(batch, out)
    # float32 keeps about 22 bits of each factor.
    widest = 2 if dtype == torch.float32 else 1
    pre = F.linear(x.double(), weight.double(), b.double() if bias else None)
    expected = dropped(F.leaky_relu(pre, slope), drop)
    close(y, expected, widest * (4 * features**0.5 + 4) * scale_of(drop))
    gx, gw = torch.full_like(x, 7), torch.full_like(weight, 7)
    given_to = [t if want else None for t, want in zip((gx, gw), wanted, strict=True)]
    kernels.backward_tiles(CODE[dtype], *sizes, grad, x, weight, *given_to)
    if wanted[0]:
        close(gx, grad.double() @ weight.double(), widest * (4 * out**0.5 + 4))
    if wanted[1]:
        close(gw, grad.double().t() @ x.double(), widest * (4 * batch**0.5 + 4))


def test_an_infinite_value_spoils_its_row_only(kernels):
    x, weight = torch.tensor([[torch.inf, 1.0], [1.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    y = torch.empty(2, 1)
    kernels.tiles(0, 2, 2, 1, x, weight, None, 0.2, None, 0, 0, y)
    assert not y[0].isfinite() and y[1] == 3


# --- Losses ---


@given(
    dtype=dtypes,
    n=st.integers(1, 1300),
    m=st.integers(1, 1300),
    spread=st.sampled_from([1.0, 30.0]),
    label=st.sampled_from([1.0, 0.9]),
    order=seeds,
)
def test_bce(kernels, dtype, n, m, spread, label, order):
    kernels.seed(order)
    first, second = draw(n, dtype).mul_(spread), draw(m, dtype, 1, 1).mul_(spread)
    grads = torch.empty_like(first), torch.empty_like(second)
    loss = torch.empty(1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    kernels.bce_pair(CODE[dtype], first, n, label, second, m, 0.1, 1.0, *grads, loss)
    expected = reference.discriminator_loss(first.double(), second.double(), label, 0.1)
    close(loss[0], expected, max(1.0, expected.item()))
    close(grads[0], reference.bce_grad(first.double(), label), 1 / n)
    close(grads[1], reference.bce_grad(second.double(), 0.1), 1 / m)


# --- Lists of tensors ---


def lists_of(sizes, dtype, shift, kinds):
    return [[draw(n, dtype, shift, 100 * k + i) for i, n in enumerate(sizes)] for k in range(kinds)]


@settings(max_examples=60)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    sizes=st.lists(st.sampled_from([0, 1, 3, 4, 255, 1024, 1025, 3001]), max_size=40),
    shift=st.integers(0, 1),
    step=st.integers(1, 1000),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decoupled=st.booleans(),
    on_device=st.sampled_from([None, torch.float32, torch.float64]),
    grad_scale=st.sampled_from([None, 1.0, 1024.0]),
    found_inf=st.sampled_from([None, 0.0, 1.0]),
    order=seeds,
)
def test_adam(
    kernels,
    dtype,
    sizes,
    shift,
    step,
    weight_decay,
    decoupled,
    on_device,
    grad_scale,
    found_inf,
    order,
):
    kernels.seed(order)
    w, m, v, g = lists_of(sizes, dtype, shift, 4)
    v[:] = [t.square_() for t in v]
    before = [[t.clone() for t in ts] for ts in (w, m, v)]
    exact = [[t.double() for t in ts] for ts in (w, g, m, v)]
    numbers = (0.01, 0.5, 0.999, 1e-8, weight_decay)
    device = [None] * 5
    if on_device is not None:
        lr = torch.tensor([0.01], dtype=on_device)
        device = [torch.tensor([float(step)]), None, None]
        device[1 if on_device == torch.float32 else 2] = lr
        device += [None if x is None else torch.tensor([x]) for x in (grad_scale, found_inf)]
    launched = kernels.launches()
    kernels.adam_lists(
        *(CODE[dtype], len(sizes), w, m, v, g, torch.tensor(sizes, dtype=torch.int64)),
        *(0 if on_device else step, *numbers, decoupled, *device),
    )
    assert kernels.launches() - launched == (1 if any(sizes) else 0)
    if on_device is not None and found_inf:
        for found, expected in zip((w, m, v), before, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        return
    if on_device is not None and grad_scale:
        exact[1] = [t / grad_scale for t in exact[1]]
    reference.adam_(*exact, step, *numbers, decoupled)
    for found, expected in zip((w, m, v), (exact[0], exact[2], exact[3]), strict=True):
        for a, b in zip(found, expected, strict=True):
            tolerance = 5e-6 if dtype == torch.float32 else 1e-12
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("count", "launches"), [(32, 1), (33, 1), (640, 1), (641, 2), (1300, 3)])
def test_long_lists_of_tensors(kernels, count, launches):
    sizes = [1 + i % 5 for i in range(count)]
    averages, values = lists_of(sizes, torch.float32, 0, 2)
    expected = [a.lerp(b, 0.25) for a, b in zip(averages, values, strict=True)]
    launched = kernels.launches()
    kernels.ema_lists(0, count, averages, values, torch.tensor(sizes), 0.75)
    assert kernels.launches() - launched == launches
    for found, wanted in zip(averages, expected, strict=True):
        torch.testing.assert_close(found, wanted)


@given(
    dtype=dtypes,
    sizes=st.lists(st.integers(0, 3000), max_size=5),
    shift=st.integers(0, 2),
    decay=st.sampled_from([0.0, 0.3, 0.999, 1.0]),
    order=seeds,
)
def test_ema(kernels, dtype, sizes, shift, decay, order):
    kernels.seed(order)
    averages, values = lists_of(sizes, dtype, shift, 2)
    expected = [
        a.double().lerp(b.double(), 1 - decay) for a, b in zip(averages, values, strict=True)
    ]
    kernels.ema_lists(
        CODE[dtype], len(sizes), averages, values, torch.tensor(sizes, dtype=torch.int64), decay
    )
    for found, wanted in zip(averages, expected, strict=True):
        close(found, wanted, 6.0)


def test_one_large_tensor(kernels):
    average, value = torch.rand(3_000_001), torch.rand(3_000_001)
    expected = average.lerp(value, 0.1)
    kernels.ema_lists(0, 1, [average], [value], torch.tensor([3_000_001]), 0.9)
    torch.testing.assert_close(average, expected)


# --- Half precision ---


def test_half_precision_rounding_is_torchs(kernels):
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16).float()
    step = torch.nextafter(every, torch.tensor(torch.inf))
    middle = (every + every.roll(-1)) / 2  # ties
    wide = torch.cat([every, step, middle, -middle, torch.randn(100_000) * 1e-6])
    wide = torch.cat([wide, torch.tensor([65519.99, 65520.0, 1e9, -1e9, torch.inf, torch.nan])])
    bits, back = torch.empty(len(wide), dtype=torch.float16), torch.empty_like(wide)
    kernels.round_fp16(len(wide), wide, bits, back)
    expected = wide.half()
    both = torch.stack([bits.float(), back])
    torch.testing.assert_close(both, expected.float().expand(2, -1), rtol=0, atol=0, equal_nan=True)
