"""The plain operations against torch's own and against their definitions in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from fastgan.ops import reference

labels = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), labels)
def test_bce_is_torchs(values, label):
    logits = torch.tensor(values, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
    torch.testing.assert_close(reference.bce(logits, label), expected, rtol=1e-12, atol=1e-12)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), labels)
def test_bce_grad_is_the_derivative(values, label):
    logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(reference.bce(logits, label), logits)
    torch.testing.assert_close(reference.bce_grad(logits, label), expected)


@dtypes
@pytest.mark.parametrize("label", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("logit", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_losses_are_stable(logit, label, dtype):
    logits = torch.full((3,), logit, dtype=dtype, requires_grad=True)
    loss = reference.bce(logits, label)
    loss.backward()
    exact = logits.detach().double()[0].item()
    expected = max(exact, 0) - label * exact + math.log1p(math.exp(-abs(exact)))
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-30)
    assert logits.grad.isfinite().all()


def test_tail_of_the_loss_is_not_rounded_away():
    # 1 - sigmoid(30) is 9.4e-14: a form that subtracts from 1 gives 0.
    logits = torch.full((1,), 30.0)
    assert reference.bce(logits, 1.0).item() == pytest.approx(math.exp(-30), rel=1e-5)
    assert reference.bce_grad(logits, 1.0).item() == pytest.approx(-math.exp(-30), rel=1e-5)


def test_minimax_losses_are_their_definitions():
    torch.manual_seed(0)
    real, fake = torch.randn(5, 1).double(), torch.randn(7, 1).double()
    p, q = torch.sigmoid(real), torch.sigmoid(fake)
    d = -(p.log().mean() + (1 - q).log().mean())
    torch.testing.assert_close(reference.discriminator_loss(real, fake), d)
    torch.testing.assert_close(
        reference.generator_loss(fake, saturating=True), (1 - q).log().mean()
    )
    torch.testing.assert_close(reference.generator_loss(fake), -q.log().mean())
    smoothed = -(0.9 * p.log() + 0.1 * (1 - p).log()).mean() - (1 - q).log().mean()
    torch.testing.assert_close(reference.discriminator_loss(real, fake, 0.9), smoothed)


@pytest.mark.parametrize("slope", [0.2, 0.0, -0.5, 1.5])
@pytest.mark.parametrize("shape", [(4, 3), (3,), (2, 5, 3), (0, 3)])
def test_linear_backward_is_the_derivative(shape, slope):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    y = reference.linear_leaky_relu(x, weight, bias, slope)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, weight, bias), grad)
    sign = F.linear(x, weight, bias)
    found = reference.linear_leaky_relu_backward(grad, x, weight, sign, slope)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_double_backward_of_losses():
    logits = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    for label in (0.0, 0.9, 1.0):
        assert gradcheck(lambda x, y=label: reference.bce(x, y), logits)
        assert gradgradcheck(lambda x, y=label: reference.bce(x, y), logits)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_adam_is_torchs_to_the_bit(beta1, weight_decay, decoupled):
    torch.manual_seed(0)
    cls = torch.optim.AdamW if decoupled else torch.optim.Adam
    p = torch.randn(7, dtype=torch.float64, requires_grad=True)
    mine, m, v = p.detach().clone(), torch.zeros(7).double(), torch.zeros(7).double()
    adam = cls([p], lr=1e-2, betas=(beta1, 0.99), weight_decay=weight_decay, foreach=False)
    for step in range(1, 6):
        p.grad = torch.randn_like(p)
        adam.step()
        reference.adam_(
            [mine], [p.grad], [m], [v], step, 1e-2, beta1, 0.99, 1e-8, weight_decay, decoupled
        )
        assert torch.equal(mine, p.detach())


@pytest.mark.parametrize("kernel", [4, 3, 1])
def test_gradients_of_convolutions_are_the_derivatives(kernel):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, kernel, kernel, dtype=torch.float64, requires_grad=True)
    y = reference.conv2d_leaky_relu(x, weight, None, 1.0)
    grad = torch.randn_like(y)
    gx, gw = torch.autograd.grad(y, (x, weight), grad)
    assert y.shape[2:] == ((3, 2) if kernel == 4 else (6, 4))
    torch.testing.assert_close(reference.conv_transpose2d_leaky_relu(grad, weight, None, 1.0), gx)
    torch.testing.assert_close(reference.conv2d_grad_weight(x, grad, kernel), gw)
    bias = torch.randn(5, dtype=torch.float64)
    shifted = F.leaky_relu(y + bias.view(1, -1, 1, 1), 0.2)
    torch.testing.assert_close(reference.conv2d_leaky_relu(x, weight, bias, 0.2), shifted)
