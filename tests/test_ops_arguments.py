"""Arguments that nobody should pass, and defaults that others have changed."""

import math

import pytest
import torch
from operator_cases import needs_library

from fastgan import ops, random
from fastgan.ops import library


def resized(t):
    t.untyped_storage().resize_(0)
    return t


def unaligned(n):
    return torch.frombuffer(bytearray(4 * n + 4), dtype=torch.float32, count=n, offset=1)


def adam_arguments(params, grads=None, exp_avgs=None, exp_avg_sqs=None):
    lists = [[torch.ones(3)] if ts is None else ts for ts in (grads, exp_avgs, exp_avg_sqs)]
    return (params, *lists, 1, 1e-3, 0.5, 0.9, 1e-8, 0.0, False)


SHARED, COUNTER, LONGS = torch.zeros(8), torch.tensor([0]), torch.zeros(8, dtype=torch.int64)
HOSTILE = {
    "overflow of a draw": ("dropout_at", (SHARED, 9, 1, 2, COUNTER, 1, 0, 2**63 - 1), "elements"),
    "overflow of words": ("philox_words", (LONGS.clone(), 1, 2, 3, 2**63 - 1), "elements from 92"),
    "rows without features": (
        "linear_leaky_relu",
        (torch.empty(2**62, 0), torch.empty(0, 0), None, 0.2),
        "at most 2\\*\\*48 rows",
    ),
    "overflow of a batch": (
        "gather_normalize",
        (torch.zeros(1, 2), torch.zeros(3, 2), torch.arange(3), COUNTER, 1, 5, 2**62, 2**62),
        "no more than 2\\*\\*62 images",
    ),
    "an order written while it is read": (
        "gather_normalize",
        (LONGS.view(torch.float64).view(4, 2), torch.zeros(3, 2), LONGS[:4], COUNTER, 1, 0, 4, 1),
        "out share memory",
    ),
    "a counter that is drawn over": (
        "philox_normal_at",
        (LONGS.view(torch.float32), 1, 2, LONGS[:1], 1, 0),
        "out share memory",
    ),
    "a storage resized away": ("generator_loss", (resized(torch.zeros(3)), False), "was resized"),
    "a weight's storage resized away": (
        "linear_leaky_relu",
        (torch.zeros(2, 3), resized(torch.zeros(4, 3)), None, 0.2),
        "weight has shape .* was resized to 0 bytes",
    ),
    "memory between elements": ("philox_uniform", (unaligned(5), 1, 2, 3), "no multiple"),
    "a parameter that is its moment": (
        "adam_",
        adam_arguments([SHARED[:3]], exp_avgs=[SHARED[1:4]]),
        "share memory",
    ),
    "a parameter twice": (
        "adam_",
        adam_arguments([SHARED[:3]] * 2, *([torch.ones(3), torch.ones(3)] for _ in range(3))),
        "share memory",
    ),
    "a parameter of one element seen often": (
        "adam_",
        adam_arguments(*([torch.ones(1).expand(3)] for _ in range(4))),
        "gaps or overlaps",
    ),
    "averages twice": ("ema_", ([SHARED, SHARED], [torch.ones(8)] * 2, 0.5), "share memory"),
}


@needs_library
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_arguments_are_errors(name):
    operator, arguments, message = HOSTILE[name]
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.fastgan, operator)(*arguments)


@needs_library
def test_columns_without_rows_end():
    # 2**40 columns and no rows: nothing to do, so it is done at once.
    weight, x, grad = torch.empty(2**40, 0), torch.empty(0, 0), torch.empty(0, 2**40)
    assert torch.ops.fastgan.linear_leaky_relu(x, weight, None, 0.2).shape == (0, 2**40)
    found = torch.ops.fastgan.linear_leaky_relu_backward(
        grad, x, weight, grad, 0.2, True, True, False
    )
    assert [tuple(t.shape) for t in found] == [(0, 0), (2**40, 0), (0,)]


@needs_library
def test_under_another_default_dtype_and_device_values_are_the_same():
    def values():
        def cpu(*shape):
            return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float32, device="cpu").view(
                shape
            )

        counter = torch.tensor([3], device="cpu")
        x, weight, bias = cpu(4, 6), cpu(5, 6), cpu(5)
        lists = [[cpu(7)] for _ in range(4)]
        lists[3][0].abs_()
        ops.adam_(*lists, step=2, lr=0.1)
        step = torch.tensor(3.0, device="cpu")
        ops.adam_device_(*lists, step, step / 10)
        pixels = torch.arange(24, dtype=torch.uint8, device="cpu").view(4, 6)
        order = torch.arange(4, device="cpu")
        return [
            ops.linear_leaky_relu(x, weight, bias),
            ops.discriminator_loss(x, weight),
            ops.generator_loss(x),
            ops.dropout_at(x, 0.4, 1, 2, counter),
            ops.gather_normalize(pixels, order, counter, batch=2, batches_per_epoch=2),
            ops.philox_normal_at(torch.empty(5, device="cpu", dtype=torch.float32), 1, 2, counter),
            random.normal(1, 2, 3, 5),
            random.uniform(1, 2, 3, 5),
            random.words(1, 2, 3, 5),
            random.keep_mask(1, 2, 3, 5, 0.5),
            random.permutation(1, 2, 5),
            *(ts[0] for ts in lists),
        ]

    expected = values()
    before = library.KERNELS
    for kernels in (before, frozenset()):
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        library.KERNELS = kernels
        try:
            found = values()
        finally:
            library.KERNELS = before
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype and a.device == b.device
            if kernels:
                assert torch.equal(a, b)
            else:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
