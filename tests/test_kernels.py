"""Every instruction-set variant of every torch-free kernel against float64, on numpy arrays."""

import shutil
import subprocess

import native
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import building

from fastgan.ops import reference

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))

# Those that x86-64 processors of the last ten years may or may not have; the module knows which.
ISAS = ["baseline", "avx2", "avx512"]
FLOATS = [("f32", np.float32, 3e-6), ("f64", np.float64, 1e-13)]


@pytest.fixture(scope="module", params=ISAS)
def isa(request):
    if request.param not in native.load().isas():
        pytest.skip(f"this processor has no {request.param}")
    return request.param


@pytest.fixture(scope="module")
def kernels():
    return native.load()


def close(found, expected, scale, tolerance):
    assert found.shape == expected.shape
    if found.size:
        assert np.abs(found.astype(np.float64) - expected).max() <= tolerance * max(scale, 1e-30)


# --- Philox ---


@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**64 - 1),
    begin=st.integers(0, 300).map(lambda b: 2 * b),
    n=st.integers(0, 700),
    threshold=st.integers(0, 65536),
)
def test_philox(kernels, isa, seed, stream, step, begin, n, threshold):
    where = (seed, stream, step)
    words = reference.philox_words(*where, begin, n).numpy()
    assert (kernels.words(isa, *where, begin, n) == words).all()
    uniform = reference.philox_uniform(*where, begin + n).numpy()[begin:]
    assert (kernels.uniform(isa, *where, begin, n) == uniform).all()
    normal = reference.philox_normal(*where, begin + n).numpy()[begin:]
    assert n == 0 or np.abs(kernels.normal(isa, *where, begin, n) - normal).max() <= 2e-6
    mask = reference.philox_keep_mask(*where, begin + n, threshold).numpy()[begin:]
    assert (kernels.keep_mask(isa, *where, begin, n, threshold) == mask).all()


def test_words_at_an_odd_beginning(kernels, isa):
    for begin in (1, 3, 255, 257):
        expected = reference.philox_words(1, 2, 3, begin, 600).numpy()
        assert (kernels.words(isa, 1, 2, 3, begin, 600) == expected).all()


def test_words_at_the_end_of_a_stream(kernels, isa):
    begin = 2**34 - 7
    expected = reference.philox_words(1, 2, 3, begin, 7).numpy()
    assert (kernels.words(isa, 1, 2, 3, begin, 7) == expected).all()


# --- Losses ---


def bce_in_float64(logits, label):
    logits = logits.astype(np.float64)
    loss = np.logaddexp(0, logits) * (1 - label) + np.logaddexp(0, -logits) * label
    up, down = np.exp(-np.logaddexp(0, -logits)), np.exp(-np.logaddexp(0, logits))
    return loss, (1 - label) * up - label * down


@given(
    n=st.integers(0, 900),
    spread=st.sampled_from([0.1, 1.0, 20.0, 1e4]),
    label=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    scale=st.sampled_from([1.0, -1.0, 1 / 64]),
)
def test_bce(kernels, isa, n, spread, label, scale):
    logits = np.random.default_rng(n).normal(size=n) * spread
    for name, dtype, tolerance in [*FLOATS, ("bf16", np.float32, 5e-3)]:
        given_logits = logits.astype(dtype)
        if name == "bf16":
            bits = torch.from_numpy(given_logits).bfloat16()
            given_logits = bits.float().numpy()
            total, grad = kernels.bce_bf16(isa, bits.view(torch.uint16).numpy(), label, scale)
            grad = torch.from_numpy(grad).view(torch.bfloat16).float().numpy()
        else:
            total, grad = getattr(kernels, f"bce_{name}")(isa, given_logits, label, scale)
        loss, expected = bce_in_float64(given_logits, label)
        assert total == pytest.approx(loss.sum(), rel=1e-6, abs=1e-7)
        close(grad, scale * expected, abs(scale), tolerance)


@pytest.mark.parametrize("label", [0.0, 0.3, 1.0])
def test_bce_keeps_its_tails(kernels, isa, label):
    logits = np.array([-1e4, -90, -87.5, -30, -1e-6, 0, 1e-6, 30, 87.5, 90, 1e4], np.float32)
    total, grad = kernels.bce_f32(isa, logits, label, 1.0)
    loss, expected = bce_in_float64(logits, label)
    assert total == pytest.approx(loss.sum(), rel=1e-6)
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(grad, expected, rtol=2e-6, atol=2e-38)


# --- Adam ---


@given(
    n=st.integers(0, 200),
    step=st.integers(1, 10000),
    beta1=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decoupled=st.booleans(),
)
def test_adam(kernels, isa, n, step, beta1, weight_decay, decoupled):
    draw = np.random.default_rng(n)
    for name, dtype, tolerance in FLOATS:
        g, w, m, v = (draw.normal(size=n).astype(dtype) for _ in range(4))
        v = v * v
        exact = [[torch.from_numpy(t.astype(np.float64))] for t in (w, g, m, v)]
        options = (step, 1e-2, beta1, 0.999, 1e-8, weight_decay, decoupled)
        getattr(kernels, f"adam_{name}")(isa, g, w, m, v, *options)
        reference.adam_(*exact, *options)
        for found, wanted in zip((w, m, v), (exact[0], exact[2], exact[3]), strict=True):
            np.testing.assert_allclose(found, wanted[0], rtol=2 * tolerance, atol=2 * tolerance)


# --- Linear ---


@settings(max_examples=40)
@given(
    batch=st.integers(0, 40),
    features=st.integers(0, 90),
    out=st.integers(0, 90),
    bias=st.booleans(),
    slope=st.sampled_from([0.2, 0.0, -0.7, 1.0]),
    data=st.data(),
)
def test_linear(kernels, isa, batch, features, out, bias, slope, data):
    draw = np.random.default_rng(batch * 10007 + features * 101 + out)
    cut_out = data.draw(st.integers(0, out)) if out else 0
    cut_in = data.draw(st.integers(0, features)) if features else 0
    for name, dtype, tolerance in FLOATS:
        call = {k: getattr(kernels, f"{k}_{name}") for k in NAMES}
        x, w, b, g = (
            draw.normal(size=s).astype(dtype)
            for s in ((batch, features), (out, features), (out,), (batch, out))
        )
        wide = [t.astype(np.float64) for t in (x, w, b, g)]
        pre = wide[0] @ wide[1].T + (wide[2] if bias else 0)
        y = call["forward"](isa, x, w, b if bias else None, slope, cut_out)
        close(y, np.where(pre > 0, pre, slope * pre), 4 * np.sqrt(features) + 4, tolerance)

        sign = pre.astype(dtype)
        grad_pre, grad_bias = call["activation_backward"](isa, g, sign, slope, cut_out)
        expected = np.where(sign > 0, wide[3], slope * wide[3])
        close(grad_pre, expected, 4, tolerance)
        close(grad_bias, expected.sum(0), 4 * np.sqrt(batch) + 4, tolerance)

        found = call["grad_x"](isa, g, w, cut_in)
        close(found, wide[3] @ wide[1], 4 * np.sqrt(out) + 4, tolerance)
        found = call["grad_weight"](isa, g, x, cut_in)
        close(found, wide[3].T @ wide[0], 4 * np.sqrt(batch) + 4, tolerance)


NAMES = ("forward", "activation_backward", "grad_x", "grad_weight")


def test_where_the_columns_are_cut_does_not_show(kernels, isa):
    draw = np.random.default_rng(0)
    x, w, g = (draw.normal(size=s).astype(np.float32) for s in ((33, 50), (96, 50), (33, 96)))
    for cut in (32, 64):
        for call, arguments in (
            (kernels.forward_f32, (x, w, None, 0.2)),
            (kernels.grad_x_f32, (g, w)),
            (kernels.grad_weight_f32, (g, x)),
        ):
            whole, pieces = call(isa, *arguments, 0), call(isa, *arguments, min(cut, 32))
            assert (whole == pieces).all()


# --- The scalar arithmetic, which is also the GPU's ---


def ulps(found, expected):
    """The largest error, in units of the last place of the exact value."""
    spacing = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    return (np.abs(found.astype(np.float64) - expected) / spacing).max()


def test_exp(kernels):
    x = np.linspace(-87.3, 88.3, 200001).astype(np.float32)
    assert ulps(kernels.scalar("exp", x), np.exp(x.astype(np.float64))) <= 2
    edge = kernels.scalar("exp", np.array([-1e30, -104, 0, 1e30, np.nan], np.float32))
    assert edge[0] == edge[1] == 0 and edge[2] == 1 and np.isfinite(edge[3]) and np.isnan(edge[4])


def test_log_and_log1p(kernels):
    x = np.exp(np.linspace(-80, 80, 100001)).astype(np.float32)
    assert ulps(kernels.scalar("log", x), np.log(x.astype(np.float64))) <= 2
    x = np.concatenate([np.linspace(0, 1, 100001), np.logspace(-30, 0, 10001)]).astype(np.float32)
    assert ulps(kernels.scalar("log1p", x), np.log1p(x.astype(np.float64))) <= 3


def test_activations(kernels):
    x = np.linspace(-30, 30, 200000).astype(np.float32)
    wide = x.astype(np.float64)
    assert ulps(kernels.scalar("tanh", x), np.tanh(wide)) <= 3
    assert ulps(kernels.scalar("sigmoid", x), 1 / (1 + np.exp(-wide))) <= 4
    assert np.isnan(kernels.scalar("tanh", np.array([np.nan], np.float32))).all()


def test_elu_keeps_its_small_values_and_its_derivative(kernels):
    x = np.concatenate([np.linspace(-87, 87, 100001), -np.logspace(-36, 1, 100001)])
    x = x.astype(np.float32)
    wide = np.minimum(x.astype(np.float64), 0)
    expected = np.where(x > 0, x.astype(np.float64), 1.5 * np.expm1(wide))
    assert ulps(kernels.scalar("elu", x), expected) <= 3
    assert ulps(kernels.scalar("elu_slope", x), np.where(x > 0, 1.0, 1.5 * np.exp(wide))) <= 3
    assert ulps(kernels.scalar("expm1", x), np.expm1(x.astype(np.float64))) <= 2
    odd = np.array([-np.inf, np.nan], np.float32)
    for name, least in (("elu", -1.5), ("elu_slope", 0)):
        found = kernels.scalar(name, odd)
        assert found[0] == least and np.isnan(found[1])


@pytest.mark.parametrize(
    ("name", "share", "far"),
    [
        ("gelu", lambda x: torch.special.erfc(-x * 0.5**0.5) / 2, 5e-6),
        (
            "gelu_tanh",
            lambda x: torch.sigmoid(x * (8 / torch.pi) ** 0.5 * (1 + 0.044715 * x * x)),
            2e-5,
        ),
        ("silu", torch.sigmoid, 1e-6),
    ],
)
def test_gelu_and_silu_keep_their_tails_and_both_derivatives(kernels, name, share, far):
    """`share`: what the input is multiplied with; `far`: a bound of the relative error."""
    x = torch.cat([torch.linspace(-12, 12, 100001), -torch.logspace(-30, 0, 1001)])
    wide = x.double().requires_grad_()
    value = wide * share(wide)
    slope = torch.autograd.grad(value.sum(), wide, create_graph=True)[0]
    bend = torch.autograd.grad(slope.sum(), wide)[0]
    found = torch.from_numpy(kernels.scalar(name, x.numpy())).double()
    there = value.abs() > 1e-35
    assert ((found - value) / value)[there].abs().max() < far
    assert ((found - value) / value)[there & (x.abs() < 3)].abs().max() < 1.5e-6
    for part, exact in (("slope", slope), ("bend", bend)):
        found = torch.from_numpy(kernels.scalar(f"{name}_{part}", x.numpy())).double()
        assert (found - exact).abs().max() < 5e-7
    large = np.array([-3e38, -100, 100, 3e38, np.nan], np.float32)
    np.testing.assert_array_equal(kernels.scalar(name, large), [0, 0, 100, large[3], np.nan])
    np.testing.assert_array_equal(kernels.scalar(f"{name}_slope", large), [0, 0, 1, 1, np.nan])
    np.testing.assert_array_equal(kernels.scalar(f"{name}_bend", large), [0, 0, 0, 0, np.nan])


def test_softplus_keeps_its_tail_and_both_derivatives(kernels):
    x = torch.cat([torch.linspace(-87, 87, 100001), torch.logspace(-30, 0, 1001)])
    wide = x.double()
    value, slope = torch.logaddexp(wide, wide * 0), wide.sigmoid()
    found = {
        part: torch.from_numpy(kernels.scalar(f"softplus{part}", x.numpy())).double()
        for part in ("", "_slope", "_bend")
    }
    assert ((found[""] - value) / value).abs().max() < 1e-6
    assert ((found["_slope"] - slope) / slope).abs().max() < 1e-6
    assert (found["_bend"] - slope * (1 - slope)).abs().max() < 1e-7
    large = np.array([-3e38, -100, 100, 3e38, np.nan], np.float32)
    np.testing.assert_array_equal(kernels.scalar("softplus", large), [0, 0, 100, large[3], np.nan])
    np.testing.assert_array_equal(kernels.scalar("softplus_slope", large), [0, 0, 1, 1, np.nan])


def test_selu_is_a_scaled_elu(kernels):
    x = torch.cat([torch.linspace(-87, 87, 100001), -torch.logspace(-30, 0, 1001)])
    wide = x.double().requires_grad_()
    value = torch.selu(wide)
    slope = torch.autograd.grad(value.sum(), wide)[0]
    for name, exact in (("selu", value.detach()), ("selu_slope", slope)):
        found = torch.from_numpy(kernels.scalar(name, x.numpy())).double()
        assert ((found - exact) / exact.abs().clamp_min(1e-35)).abs().max() < 6e-7


def test_cosine_and_sine(kernels):
    turns = np.unique(
        np.concatenate([np.arange(0, 2**24, 997), np.arange(0, 2**24, 2**21), [2**24 - 1]])
    ).astype(np.uint32)
    cosine, sine = kernels.cos_sin(turns)
    angle = turns * (2 * np.pi / 2**24)
    assert np.abs(cosine - np.cos(angle)).max() <= 1.5e-7
    assert np.abs(sine - np.sin(angle)).max() <= 1.5e-7


def test_bfloat16_rounding_is_torchs(kernels):
    draw = np.random.default_rng(0)
    x = draw.integers(0, 2**32, 100000, dtype=np.uint32).view(np.float32)
    expected = torch.from_numpy(x).bfloat16().float().numpy()
    for name in ("bf16", "round_to_bf16"):
        np.testing.assert_array_equal(kernels.scalar(name, x), expected)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_keep_scale(kernels, p):
    found = kernels.keep_scale(reference.keep_threshold(p))
    assert found == pytest.approx(reference.keep_scale(p), rel=1e-7)


# --- Programs of their own ---


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
@pytest.mark.parametrize(
    ("program", "others"),
    [
        ("conv_main", ["csrc/cpu/isa.cpp", "csrc/cpu/kernels_amx.cpp"]),
        ("norm_main", []),
        ("workspace_main", ["csrc/cpu/workspace.cpp"]),
    ],
)
def test_native(program, others):
    """Kernels with vectors that the processor lacks, made by the compiler of what there is; the
    working memory from several threads."""
    flags = ["-O1", "-Wno-psabi", *native.FLAGS]
    parts = building.objects([f"tests/native/{program}.cpp", *others], flags)
    made = building.program(program, parts, ["-pthread"])
    done = subprocess.run([made], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "0 failures\n", done.stdout
