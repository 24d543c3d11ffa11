"""The operators of Adam and of running averages: values and errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import DTYPES, devices, needs_library

from fastgan import ops
from fastgan.ops import reference


@devices
@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 10000), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    step=st.integers(1, 1000),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decoupled=st.booleans(),
)
def test_adam_equals_the_reference(device, sizes, dtype, step, weight_decay, decoupled):
    torch.manual_seed(0)
    lists = [[torch.randn(n, dtype=torch.float64) for n in sizes] for _ in range(4)]
    lists[3] = [v.square() for v in lists[3]]
    found = [[t.to(device, dtype) for t in ts] for ts in lists]
    options = {
        "step": step,
        "lr": 1e-2,
        "beta1": 0.5,
        "beta2": 0.999,
        "weight_decay": weight_decay,
        "decoupled": decoupled,
    }
    ops.adam_(*found, **options)
    exact = [[t.to(dtype).double() for t in ts] for ts in lists]
    reference.adam_(*exact, eps=1e-8, **options)
    for name in (0, 2, 3):
        for a, b in zip(found[name], exact[name], strict=True):
            torch.testing.assert_close(
                a.cpu().double(), b, rtol=3e-6 if dtype == torch.float32 else 1e-12, atol=1e-6
            )


def test_adam_on_one_flat_buffer_is_adam_on_its_parts():
    torch.manual_seed(0)
    flat = [torch.randn(5000) for _ in range(3)] + [torch.rand(5000)]
    parts = [[t.clone()[:1234], t.clone()[1234:]] for t in flat]
    ops.adam_(*flat, step=3, lr=1e-2)
    ops.adam_(*parts, step=3, lr=1e-2)
    for whole, pieces in zip(flat, parts, strict=True):
        assert torch.equal(whole, torch.cat(pieces))


def test_errors_of_adam():
    t = torch.zeros(3)
    with pytest.raises(ValueError, match="step is 0"):
        ops.adam_(t, t, t, t, step=0, lr=1.0)
    with pytest.raises(ValueError, match="equally many tensors; they are 1, 1, 2, 1"):
        ops.adam_(t, t, [t, t], t, step=1, lr=1.0)


@needs_library
@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.zeros(4), "each of grads has shape"),
        (torch.zeros(3).double(), "different dtypes"),
        (torch.zeros(6)[::2], "have different strides"),
    ],
)
def test_errors_of_the_adam_operator(grad, message):
    tensors = [[torch.zeros(3)], [grad], [torch.zeros(3)], [torch.zeros(3)]]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.adam_(*tensors, 1, 1e-3, 0.5, 0.9, 1e-8, 0.0, False)


@devices
@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    lr_dtype=st.sampled_from([torch.float32, torch.float64]),
    step=st.integers(1, 1000),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decoupled=st.booleans(),
    grad_scale=st.sampled_from([None, 1.0, 512.0]),
    found_inf=st.sampled_from([None, 0.0, 1.0]),
)
def test_adam_on_the_device(
    device, sizes, dtype, lr_dtype, step, weight_decay, decoupled, grad_scale, found_inf
):
    torch.manual_seed(0)
    lists = [[torch.randn(n, dtype=torch.float64).to(dtype) for n in sizes] for _ in range(4)]
    lists[3] = [v.square() for v in lists[3]]
    twin, exact = ([[t.to(torch.float64, copy=True) for t in ts] for ts in lists] for _ in range(2))
    numbers = {"beta1": 0.5, "beta2": 0.999, "eps": 1e-8, "weight_decay": weight_decay}
    numbers["decoupled"] = decoupled
    scaler = {"grad_scale": grad_scale, "found_inf": found_inf}
    scaler = {k: None if v is None else torch.tensor([v]) for k, v in scaler.items()}
    lr, steps = torch.tensor([1e-2], dtype=lr_dtype), torch.tensor(float(step))
    found = [[t.to(device, copy=True) for t in ts] for ts in lists]
    versions = [t._version for t in found[0]]
    on_device = {k: None if v is None else v.to(device) for k, v in scaler.items()}
    ops.adam_device_(*found, steps.to(device), lr.to(device), **numbers, **on_device)
    assert all(t._version > v for t, v in zip(found[0], versions, strict=True))
    reference.adam_device_(*twin, steps, lr, **numbers, **scaler)
    # The twin itself is adam_ with the same numbers.
    if not found_inf:
        exact[1] = [g / (grad_scale or 1.0) for g in exact[1]]
        reference.adam_(*exact, step=step, lr=lr.item(), **numbers)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-11
    for kind in (0, 2, 3):
        for a, b, c in zip(found[kind], twin[kind], exact[kind], strict=True):
            torch.testing.assert_close(b, c, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(a.cpu().double(), b, rtol=tolerance, atol=tolerance)


@devices
@pytest.mark.parametrize("grad_scale", [None, 8.0])
@pytest.mark.parametrize("step_dtype", [torch.float32, torch.float64], ids=str)
def test_adam_and_averages_of_channels_last_tensors(device, grad_scale, step_dtype):
    torch.manual_seed(0)
    lists = [[torch.rand(6, 3, 5, 5), torch.rand(4)] for _ in range(4)]
    step, lr = torch.tensor(3.0, dtype=step_dtype, device=device), torch.tensor(0.1, device=device)
    scale = None if grad_scale is None else torch.tensor(grad_scale, device=device)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        made = [[t.to(device, copy=True) for t in ts] for ts in lists]
        for ts in made:
            ts[0] = ts[0].to(memory_format=memory_format)
        ops.adam_(*made, step=2, lr=0.1, weight_decay=0.1)
        ops.adam_device_(*made, step, lr, grad_scale=scale)
        ops.ema_(made[2], made[3], 0.7)
        assert made[0][0].is_contiguous(memory_format=memory_format)
        results.append(made)
    for contiguous, channels_last in zip(*results, strict=True):
        assert all(map(torch.equal, contiguous, channels_last))


@devices
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.4, 0.999, 1.0])
def test_ema(device, dtype, decay):
    torch.manual_seed(0)
    averages, values = ([torch.randn(n).to(dtype) for n in (7, 5000, 0)] for _ in range(2))
    found = [t.to(device, copy=True) for t in averages]
    ops.ema_(found, [t.to(device) for t in values], decay)
    reference.ema_(averages, values, decay)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype.itemsize == 2 else {}
    for a, b in zip(found, averages, strict=True):
        torch.testing.assert_close(a.cpu(), b, **tolerance)
    ops.ema_([], [], decay)


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": torch.tensor(1)}, "step has the wrong dtype; expected float32 or float64"),
        ({"lr": torch.zeros(2)}, r"lr has shape \[2\]; expected one element"),
        ({"lr": torch.tensor(1)}, "lr has the wrong dtype; expected float32 or float64"),
        ({"grad_scale": torch.zeros(()).double()}, "grad_scale has the wrong dtype"),
        ({"found_inf": torch.zeros(3)}, "found_inf has shape"),
        ({"grads": [torch.zeros(4)]}, "each of grads has shape"),
        ({"grads": []}, "1, 0, 1 and 1 tensors"),
        ({"step": torch.tensor(0.0)}, "counted from 1"),
        ({"step": torch.tensor(float("nan"))}, "step is nan; updates are counted from 1"),
    ],
    ids=str,
)
def test_errors_of_adam_on_the_device(change, message):
    arguments = {k: [torch.zeros(3)] for k in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    arguments |= {"step": torch.tensor(1.0), "lr": torch.tensor(0.1)}
    with pytest.raises(RuntimeError, match=message):
        ops.adam_device_(**{**arguments, **change})


@needs_library
@pytest.mark.parametrize(
    ("averages", "values", "decay", "message"),
    [
        ([torch.zeros(3)], [], 0.9, "averages and values have 1 and 0 tensors"),
        ([torch.zeros(3)], [torch.zeros(4)], 0.9, "each of values has shape"),
        ([torch.zeros(3)], [torch.zeros(3).double()], 0.9, "different dtypes"),
        ([torch.zeros(6)[::2]], [torch.zeros(3)], 0.9, r"averages\[0\] has gaps"),
        ([torch.zeros(3)], [torch.zeros(3)], 1.5, "decay is 1.5"),
        ([torch.zeros(3).int()], [torch.zeros(3).int()], 0.5, "averages must be"),
    ],
)
def test_errors_of_ema(averages, values, decay, message):
    with pytest.raises(RuntimeError, match=message):
        ops.ema_(averages, values, decay)
