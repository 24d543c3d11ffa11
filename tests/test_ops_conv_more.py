"""Convolutions by large tiles, and those with one pixel on a side."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import needs_library
from test_ops_conv import all_agree, as_good_as_torch, both, close, draw, memory_orders, tensors

from fastgan.ops import conv


@needs_library
@pytest.mark.parametrize("kernel", [4, 3])
@settings(max_examples=6)
@given(
    batch=st.integers(8, 10),
    inside=st.integers(64, 80),
    outside=st.integers(64, 80),
    rows=st.integers(15, 16),
    columns=st.integers(15, 20),
    seed=st.integers(0, 1000),
)
def test_operators_on_large_tiles(kernel, batch, inside, outside, rows, columns, seed):
    x, weight, grad = tensors(kernel, batch, inside, outside, rows, columns, True, seed)
    all_agree(kernel, x, weight, grad, None, 1.0)
    # Small tiles take what is not channels last, and round otherwise.
    own = torch.ops.fastgan.conv2d_leaky_relu
    found, other = (own(t, weight, None, 1.0) for t in (x, x.contiguous()))
    assert not torch.equal(found, other)
    torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-3)


@needs_library
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel", [(4, 4), (3, 5)])
@pytest.mark.parametrize("slope", [1.0, 0.2])
@pytest.mark.parametrize("with_bias", [False, True])
def test_layers_of_one_pixel_are_products(monkeypatch, transposed, kernel, slope, with_bias):
    products = []
    multiply = conv._product
    monkeypatch.setattr(conv, "_product", lambda *a: products.append(a) or multiply(*a))
    for batch, (x_last, w_last) in zip((3, 1, 2, 0), memory_orders(), strict=True):
        x, weight = draw(batch, 6, *((1, 1) if transposed else kernel)), draw(6, 7, *kernel, seed=1)
        weight = weight if transposed else weight.transpose(0, 1).contiguous()
        x = x.to(memory_format=torch.channels_last) if x_last else x
        weight = weight.to(memory_format=torch.channels_last) if w_last else weight
        bias = draw(7, seed=2) if with_bias else None
        given = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
        wide = [t.detach().double().requires_grad_() for t in given]
        ours, torchs = both(transposed)
        y = ours(*given, *([] if with_bias else [None]), 2, negative_slope=slope)
        with torch.no_grad():
            z = torchs(*given, *([] if with_bias else [None]), 2)
        for format in (torch.channels_last, torch.contiguous_format):
            same = y.is_contiguous(memory_format=format) == z.is_contiguous(memory_format=format)
            assert same or batch == 0
        exact = F.leaky_relu(torchs(*wide, *([] if with_bias else [None]), 2), slope)
        assert y.shape == exact.shape
        if batch == 0:
            continue
        as_good_as_torch(y.detach(), F.leaky_relu(z, slope), exact.detach())
        # A gradient of a gradient, as a penalty takes it.
        for made, inputs in ((y, given), (exact, wide)):
            slopes = torch.autograd.grad(made.square().sum(), inputs, create_graph=True)
            inputs.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), inputs))
        for a, b in zip(given[-1], wide[-1], strict=True):
            close(a, b)
    assert len(products) == 4
    x, weight = draw(2, 6, *((1, 1) if transposed else (4, 4))), draw(6, 6, 4, 4)
    both(transposed)[0](x, weight, None, 1, 1)
    both(transposed)[0](x, weight if transposed else weight[:, :3], None, groups=2)
    assert len(products) == 4
