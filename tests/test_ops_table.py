"""Products with steps of their own, and the operators of a table's generator, against their twins.

The twins are in float64 and are held against autograd here; the kernels against the twins.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import needs_library, run

from fastgan import ops
from fastgan.ops import reference_table

sizes = st.integers(1, 70)
few = st.integers(1, 5)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def held(found, expected, scale=1.0, bound=3e-6):
    assert found.dtype == torch.float32 and found.shape == expected.shape
    if found.numel():
        error = (found.double() - expected).abs().max().item()
        assert error <= bound * max(scale, expected.abs().max().item()), error


# --- Products -------------------------------------------------------------------------------------


@given(
    n=few, rows=sizes, depth=st.integers(0, 300), columns=sizes, bias=st.booleans(),
    add=st.booleans(), turned=st.booleans(), total=st.booleans(), shared=st.sampled_from("ab-"),
)  # fmt: skip
@settings(max_examples=60)
def test_products(n, rows, depth, columns, bias, add, turned, total, shared):
    a, b = drawn(rows, n, depth + 2).transpose(0, 1)[:, :, 1:-1], drawn(n, depth, columns, seed=1)
    a, b = a[0] if shared == "a" else a, b[0] if shared == "b" else b
    shift = drawn(columns, seed=2) if bias else None
    start = drawn(rows, n, columns + 3, seed=3)
    start = start[:, 0] if total else start.transpose(0, 1)
    a32, b32, out = a.float(), b.float(), start.clone().float()
    a, b, start = a32.double(), b32.double(), out.double()
    if turned:
        b32 = b32.transpose(-1, -2).contiguous().transpose(-1, -2)
    shift32 = None if shift is None else shift.float()
    expected = start[..., :columns].clone()
    reference_table.product_(expected, a, b, None if shift is None else shift32.double(), add)
    found = ops.product_(out[..., :columns], a32, b32, shift32, add=add)
    held(found, expected, scale=(1 if not total else n) * max(depth, 1) ** 0.5 * 4)
    assert torch.equal(out[..., columns:].double(), start[..., columns:])  # what lies beside it


def test_the_twin_of_a_product():
    a, b, c = drawn(3, 4, 5), drawn(3, 5, 6, seed=1), drawn(6, seed=2)
    out = torch.empty(4, 6, dtype=torch.float64)
    reference_table.product_(out, a, b, c)
    torch.testing.assert_close(out, sum(x @ y for x, y in zip(a, b, strict=True)) + c)
    reference_table.product_(out, a[0], b[0], add=True)
    torch.testing.assert_close(out, sum(x @ y for x, y in zip(a, b, strict=True)) + c + a[0] @ b[0])


# --- The twins of the others, against autograd ----------------------------------------------------

BLOCKS = [0, 1, 2, 1, 3, 2, 1, 4, 1, 0, 2, 1]
ROW, CHOICES = 14, 10


def test_the_twins_of_heads():
    logits, normals = drawn(5, ROW).requires_grad_(), drawn(5, CHOICES, seed=1)
    noise = -(-torch.special.log_ndtr(normals)).log()
    parts = logits.split([2, 3, 3, 4, 2], 1)
    pairs = zip(parts[1:4], noise.split([3, 3, 4], 1), strict=True)
    soft = [((p + g) / 0.5).softmax(1) for p, g in pairs]
    expected = torch.cat([parts[0].tanh(), *soft, parts[4].tanh()], 1)
    rows, grad = torch.empty(5, ROW, dtype=torch.float64), drawn(5, ROW, seed=2)
    reference_table.heads_(rows, logits.detach(), normals, BLOCKS, 0.5)
    torch.testing.assert_close(rows, expected)
    (wanted,) = torch.autograd.grad(expected, logits, grad)
    reference_table.heads_backward_(grad, rows, BLOCKS, 0.5)
    torch.testing.assert_close(grad, wanted)


def asked(widths, before, n):
    wide = torch.tensor(widths)
    first = (wide.cumsum(0) - wide + before).repeat_interleave(wide)
    category = torch.randint(0, sum(widths), (n,), generator=torch.Generator().manual_seed(n))
    return category, first, wide.repeat_interleave(wide)


def test_the_twin_of_surprise():
    logits = drawn(9, 8).requires_grad_()
    category, first, wide = asked([2, 4], 2, 9)
    expected = torch.stack([
        F.cross_entropy(
            logits[i, first[c] : first[c] + wide[c]][None], (c + 2 - first[c])[None]
        )
        for i, c in enumerate(category)
    ])  # fmt: skip
    (wanted,) = torch.autograd.grad(expected.sum() * 0.3, logits)
    before = drawn(9, 8, seed=1)
    grad = before.clone()
    found = reference_table.surprise_(grad, logits.detach(), category, first, wide, 0.3)
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(grad, before + wanted)


def test_the_twins_of_a_norm():
    x, weight, bias = (
        t.requires_grad_() for t in (drawn(7, 3), drawn(3, seed=1), drawn(3, seed=2))
    )
    moving, spread = drawn(3, seed=3), drawn(3, seed=4).abs()
    own, grad = [t.clone() for t in (moving, spread)], drawn(7, 3, seed=5)
    expected = F.batch_norm(x, moving, spread, weight, bias, True, 0.1, 1e-3).relu()
    out = torch.empty_like(x)
    with torch.no_grad():
        found = reference_table.normed_relu_(out, x, weight, bias, *own, 0.1, 1e-3)
    torch.testing.assert_close(out, expected.detach())
    torch.testing.assert_close(own, [moving, spread])
    gx, gw, gb = torch.autograd.grad(expected, (x, weight, bias), grad)
    with torch.no_grad():
        of_norm = reference_table.normed_relu_backward_(grad, out, x, weight, found)
    torch.testing.assert_close(grad, gx)
    torch.testing.assert_close(of_norm, torch.stack([gw, gb]))


def test_the_twins_of_columns():
    columns = drawn(3, 4).requires_grad_()
    category, grad = torch.tensor([1, 3, 1, 0]), drawn(4, 3, seed=1)
    one_hot = F.one_hot(category, 4).double()
    out = drawn(4, 3, seed=2)
    expected = out + one_hot @ columns.t()
    reference_table.add_columns_(out, columns.detach(), category)
    torch.testing.assert_close(out, expected.detach())
    of_columns = torch.empty(3, 4, dtype=torch.float64)
    reference_table.sum_columns_(of_columns, grad, category)
    torch.testing.assert_close(of_columns, *torch.autograd.grad(expected, columns, grad))


# --- The kernels, against their twins -------------------------------------------------------------


@given(
    n=sizes, parts=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 40), few), max_size=4),
    wide=st.sampled_from([0.1, 1.0, 30.0]),
)  # fmt: skip
@settings(max_examples=40)
def test_heads(n, parts, wide):
    blocks = [number for part in parts for number in part]
    row = sum(size * many for _, size, many in parts)
    choices = sum(kind * size * many for kind, size, many in parts)
    logits, normals = (wide * drawn(n, row)).float(), drawn(n, choices, seed=1).float()
    expected = torch.empty(n, row, dtype=torch.float64)
    reference_table.heads_(expected, logits.double(), normals.double(), blocks, 0.2)
    rows = ops.heads_(torch.empty(n, row), logits, normals, blocks, 0.2)
    # A rounding of logits and noise is five times as much after the temperature.
    held(rows, expected, bound=2e-6 * max(1.0, 5 * wide))
    grad = drawn(n, row, seed=2).float()
    wanted = grad.double()
    reference_table.heads_backward_(wanted, rows.double(), blocks, 0.2)
    held(ops.heads_backward_(grad, rows, blocks, 0.2), wanted, scale=10.0)


@needs_library
def test_noise_keeps_its_tails():
    # A choice between two whose noise is known: the logit of the first's share is their difference.
    x = torch.linspace(-5.2, 5.2, 4001)
    normals = torch.stack([x, torch.zeros_like(x)], 1)
    rows = ops.heads_(torch.empty(4001, 2), torch.zeros(4001, 2), normals, [1, 2, 1], 20.0)
    u = torch.special.ndtr(normals.double())
    noise = -(-torch.special.log_ndtr(normals.double())).log()
    assert u.min() > 6e-8
    found = 20 * torch.logit(rows[:, 0].double())
    assert (found - (noise[:, 0] - noise[:, 1])).abs().max() < 2e-5
    far = ops.heads_(
        torch.empty(2, 2), torch.zeros(2, 2), torch.tensor([[50.0, 0], [-50.0, 0]]), [1, 2, 1], 1.0
    )
    assert far.isfinite().all()


@given(
    n=sizes, widths=st.lists(st.integers(1, 30), min_size=1, max_size=4), before=st.integers(0, 9)
)
@settings(max_examples=30)
def test_surprise(n, widths, before):
    where = asked(widths, before, n)
    logits, grad = (3 * drawn(n, before + sum(widths))).float(), drawn(n, before + sum(widths))
    grad = grad.float()
    wanted = grad.double()
    expected = reference_table.surprise_(wanted, logits.double(), *where, 0.5)
    held(ops.surprise_(grad, logits, *where, 0.5), expected)
    held(grad, wanted)


@given(n=st.integers(2, 300), width=sizes, far=st.sampled_from([0.0, 100.0]))
@settings(max_examples=40)
def test_a_norm(n, width, far):
    x, out = (drawn(n, width + 5) + far).float()[:, 2:-3], torch.empty(n, width + 1)[:, 1:]
    weight, bias = drawn(width, seed=1).float(), drawn(width, seed=2).float()
    moving, grad = (
        [drawn(width, seed=3).float(), drawn(width).abs().float()],
        drawn(n, width, seed=4),
    )
    grad = grad.float()
    wide = [t.double() for t in (x, weight, bias, *moving)]
    expected = torch.empty(n, width, dtype=torch.float64)
    wanted = reference_table.normed_relu_(expected, *wide, 0.1, 1e-3)
    found = ops.normed_relu_(out, x, weight, bias, *moving, 0.1, 1e-3)
    bound = 3e-6 * (1 + far) * wanted[1].max().item()
    held(out, expected, bound=bound)
    held(found, wanted, bound=bound)
    for mine, theirs in zip(moving, wide[3:], strict=True):
        held(mine, theirs)
    # Of the same statistics and signs: a rounding at the corner is another gradient.
    at_x = grad.double()
    of_norm = reference_table.normed_relu_backward_(
        at_x, out.double(), wide[0], wide[1], found.double()
    )
    mine = ops.normed_relu_backward_(grad, out, x, weight, found)
    size = n**0.5 * (1 + far) * found[1].max().item()
    held(mine, of_norm, scale=size)
    held(grad, at_x, scale=size * found[1].max().item())


def test_what_is_written_has_another_version():
    x, moving = torch.randn(4, 2), [torch.zeros(2), torch.ones(2)]
    out, versions = torch.empty(4, 2), [t._version for t in moving]
    before = out._version
    ops.normed_relu_(out, x, torch.ones(2), torch.zeros(2), *moving, 0.1, 1e-5)
    assert out._version > before
    assert all(t._version > v for t, v in zip(moving, versions, strict=True))


def test_a_norm_of_what_is_no_number_is_none():
    x = torch.ones(4, 2)
    x[0, 0] = float("nan")
    out = torch.empty(4, 2)
    ops.normed_relu_(out, x, torch.ones(2), torch.zeros(2), None, None, 0.1, 1e-5)
    assert out[:, 0].isnan().all() and out[:, 1].isfinite().all()


@given(n=sizes, units=sizes, categories=st.integers(1, 40))
@settings(max_examples=30)
def test_columns(n, units, categories):
    category = torch.randint(0, categories, (n,), generator=torch.Generator().manual_seed(n))
    columns, out = drawn(units, categories + 4).float()[:, 1:-3], drawn(n, units, seed=1).float()
    expected = out.double()
    reference_table.add_columns_(expected, columns.double(), category)
    held(ops.add_columns_(out, columns, category), expected)
    of_columns = torch.full((units, categories + 1), 7.0)
    wanted = torch.empty(units, categories, dtype=torch.float64)
    reference_table.sum_columns_(wanted, out.double(), category)
    held(ops.sum_columns_(of_columns[:, 1:], out, category), wanted, scale=n**0.5 * 3)
    assert (of_columns[:, 0] == 7).all()


# --- Bits -----------------------------------------------------------------------------------------

BITS = """
import hashlib, torch
from fastgan import ops
def all_bits():
    torch.manual_seed(0)
    found = []
    a, b = torch.randn(7, 150, 33), torch.randn(7, 33, 260)
    found.append(ops.product_(torch.empty(150, 260), a, b, torch.randn(260)))
    found.append(ops.product_(torch.empty(7, 150, 260), a, b))
    x, out = torch.randn(500, 256), torch.empty(500, 256)
    norm = torch.randn(256), torch.randn(256)
    found += [ops.normed_relu_(out, x, *norm, None, None, 0.1, 1e-5), out]
    grad, category = torch.randn(500, 256), torch.randint(0, 9, (500,))
    found += [ops.normed_relu_backward_(grad, out, x, norm[0], found[2]), grad]
    found += [ops.sum_columns_(torch.empty(256, 9), grad, category)]
    found += [ops.add_columns_(torch.zeros(500, 256), torch.randn(256, 9), category)]
    blocks = [0, 1, 6, 1, 10, 5, 1, 100, 2]
    logits, normals = torch.randn(500, 256), torch.randn(500, 250)
    rows = ops.heads_(torch.empty(500, 256), logits, normals, blocks, 0.2)
    found += [rows, ops.heads_backward_(torch.randn(500, 256), rows, blocks, 0.2)]
    return [t.clone() for t in found]
"""


@needs_library
def test_the_number_of_threads_shows_in_no_bit():
    done = run(
        BITS + "\nfound = []\n"
        "for n in (1, 2, 3):\n    torch.set_num_threads(n)\n    found.append(all_bits())\n"
        "assert all(torch.equal(a, b) for f in found[1:] for a, b in zip(found[0], f))"
    )
    assert done.returncode == 0, done.stderr[-2000:]


@needs_library
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    code = (
        "import sys, pytest\n"
        f"sys.exit(pytest.main(['-q', '-x', {__file__!r}, '-p', 'no:cacheprovider', '-k', "
        "'test_products or test_heads or test_surprise or test_a_norm or test_columns']))"
    )
    done = run(code, FASTGAN_ISA=isa)
    if "FASTGAN_ISA is" in done.stdout + done.stderr:
        pytest.skip(f"no {isa} here")
    assert done.returncode == 0, done.stdout[-2000:]


# --- Errors ---------------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o, x, i: o.product_(x, x, x + 1), "out shares memory with a"),
        (lambda o, x, i: o.product_(torch.empty(4, 4), x, x[:3]), "a and b have shapes"),
        (lambda o, x, i: o.product_(torch.empty(4, 3), x, x), "expected .4, 4"),
        (lambda o, x, i: o.product_(torch.empty(4, 4).t(), x, x), "columns lie apart"),
        (lambda o, x, i: o.product_(torch.empty(4, 4), x[:1].expand(4, 4), x), "share memory"),
        (lambda o, x, i: o.product_(torch.empty(4, 4), x, x, x[0, :3]), "bias has shape"),
        (lambda o, x, i: o.heads_(torch.empty(4, 4), x, x, [1, 3, 1], 0.2), "have 3 numbers"),
        (lambda o, x, i: o.heads_(torch.empty(4, 4), x, None, [1, 4, 1], 0.2), "no normals"),
        (lambda o, x, i: o.heads_(torch.empty(4, 4), x, x, [2, 4, 1], 0.2), "kind 0 or 1"),
        (lambda o, x, i: o.heads_(torch.empty(4, 4), x, x, [1, 4, 1], 0.0), "temperature is 0"),
        (lambda o, x, i: o.heads_(x, x, x, [1, 4, 1], 0.2), "rows shares memory with logits"),
        (lambda o, x, i: o.surprise_(torch.empty(4, 4), x, i + 4, i, i, 0.1), "category.0. is 4"),
        (lambda o, x, i: o.surprise_(torch.empty(4, 4), x, i, i, i, 0.1), "say that category 0"),
        (lambda o, x, i: o.add_columns_(torch.empty(4, 4), x, i - 1), "category.0. is -1"),
        (lambda o, x, i: o.sum_columns_(torch.empty(3, 4), x, i), "have shapes"),
    ],
)  # fmt: skip
def test_errors_say_what_was_wrong(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(ops, torch.randn(4, 4), torch.arange(4))


@needs_library
def test_a_norm_needs_two_rows():
    one = torch.ones(3)
    with pytest.raises(RuntimeError, match="at least two rows"):
        ops.normed_relu_(torch.empty(1, 3), torch.ones(1, 3), one, one, None, None, 0.1, 1e-5)
