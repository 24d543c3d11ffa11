"""Every operator with torch's compiler and torch's own checks."""

import pytest
import torch
from operator_cases import devices, layer, needs_library, roads

from fastgan import ops
from fastgan.ops import reference


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
    if device == "cpu":  # the convolutions have no CUDA side
        image, taps = torch.randn(2, 3, 4, 6), torch.randn(5, 3, 4, 4)
        last = image.to(memory_format=torch.channels_last), taps[:, :, 1:, 1:]
        result = torch.randn(2, 5, 2, 3)
        made |= {
            "conv2d_leaky_relu": [(image, taps, torch.randn(5), 0.2), (*last, None, 1.0)],
            "conv_transpose2d_leaky_relu": [
                (result, taps, torch.randn(3), 0.2),
                (torch.randn(2, 5, 4, 1), taps[:, :, :1, :1], None, 1.0),
            ],
            "conv2d_grad_weight": [
                (image, result, 4, False),
                (last[0], torch.randn(2, 7, 4, 6), 3, True),
            ],
        }
        c, other = [torch.rand(3) for _ in range(6)], torch.randn(2, 3, 4, 6)
        made |= {
            "batch_norm_leaky_relu": [(t, *c[:4], 0.1, 1e-5, 0.2) for t in (image, last[0])],
            "batch_norm_leaky_relu_backward": [
                (other, image, *c[:4], 0.2, True), (other, last[0], *c[:4], 0.0, False),
            ],
            "batch_norm_leaky_relu_second": [(other.neg(), other, image, *c, 0.2)],
        }  # fmt: skip
        five, places = torch.rand(3, 5), torch.tensor([4, 0, 2])
        group = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([2, 2, 3, 3, 3])
        units = [torch.rand(5) for _ in range(4)]
        made |= {
            "product_": [
                (torch.empty(2, 3, 4), torch.rand(3, 6), torch.rand(2, 4, 6).mT, None, False),
                (torch.empty(3, 4), torch.rand(2, 3, 6), torch.rand(2, 6, 4), torch.rand(4), True),
            ],
            "heads_": [(torch.empty(3, 5), five, torch.rand(3, 4), [0, 1, 1, 1, 2, 2], 0.2)],
            "heads_backward_": [(torch.rand(3, 5), five, [0, 1, 1, 1, 2, 2], 0.2)],
            "surprise_": [(torch.rand(3, 5), five, places, *group, 0.5)],
            "normed_relu_": [
                (torch.empty(3, 5), five, *units, 0.1, 1e-5),
                (torch.empty(3, 5), five, *units[:2], None, None, 0.1, 1e-5),
            ],
            "normed_relu_backward_": [
                (torch.rand(3, 5), torch.rand(3, 5), five, units[0], torch.rand(2, 5))
            ],
            "add_columns_": [(torch.rand(3, 4), torch.rand(4, 5), places)],
            "sum_columns_": [(torch.empty(4, 5), torch.rand(3, 4), places)],
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
    "conv2d_leaky_relu",
    "conv_transpose2d_leaky_relu",
    "conv2d_grad_weight",
    "batch_norm_leaky_relu",
    "batch_norm_leaky_relu_backward",
    "batch_norm_leaky_relu_second",
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
    "product_",
    "heads_",
    "heads_backward_",
    "surprise_",
    "normed_relu_",
    "normed_relu_backward_",
    "add_columns_",
    "sum_columns_",
]


@needs_library
@devices
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, device):
    operator = getattr(torch.ops.fastgan, name).default
    for arguments in samples(device).get(name, []):
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


@needs_library
@pytest.mark.parametrize("kernel", [4, 3, 1])
def test_compiled_convolutions(monkeypatch, kernel):
    monkeypatch.setattr(ops.conv, "is_faster", lambda *sizes: True)
    stride, padding = reference.CONV_PLACES[kernel]
    torch.manual_seed(0)
    weight = torch.randn(8, 8, kernel, kernel)
    for x in (torch.randn(2, 8, 4, 4), torch.randn(4, 8, 4, 4)[::2].mT):

        def f(x, weight, bias):
            y = ops.conv2d(x, weight, bias, stride, padding, negative_slope=0.2)
            return ops.conv_transpose2d(y, weight, bias, stride, padding)

        compiled_and_eager(f, x, weight, torch.randn(8))
        compiled_and_eager(lambda x, w: f(x, w, None), x, weight)


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
