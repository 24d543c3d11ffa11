"""What the tests of the operators share: devices, dtypes, tolerances, a layer's tensors."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from fastgan import ops
from fastgan.ops import reference

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


def through_function(x, weight, bias, slope):
    return ops.linear_leaky_relu(x, weight, bias, slope)


def through_operator(x, weight, bias, slope):
    return ops.linear._linear_leaky_relu(x, weight, bias, slope)


roads = pytest.mark.parametrize(
    "road", [through_function, pytest.param(through_operator, marks=needs_library)]
)


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


def run(code, **environment):
    """A program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
