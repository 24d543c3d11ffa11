"""The operators of the losses: values, derivatives, extremes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import close, devices, dtypes, needs_library
from torch.autograd import gradcheck, gradgradcheck

from fastgan import ops
from fastgan.ops import reference


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
