"""The fused optimisers against torch's own."""

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgan import ops, optim
from fastgan.ops import library

PAIRS = [(optim.Adam, torch.optim.Adam), (optim.AdamW, torch.optim.AdamW)]
pairs = pytest.mark.parametrize(("ours", "theirs"), PAIRS)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def parameters(shapes, dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    return [torch.randn(s, dtype=dtype, device=device, requires_grad=True) for s in shapes]


def give_gradients(*lists, seed=0):
    torch.manual_seed(seed)
    for row in zip(*lists, strict=True):
        grad = torch.randn(row[0].shape, dtype=row[0].dtype) * 10 ** torch.randint(-4, 3, ()).item()
        for p in row:
            p.grad = grad.to(p)


def compare(ours, theirs, dtype=torch.float32):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=4e-6 if dtype == torch.float32 else 1e-12, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pairs
@settings(max_examples=25)
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    beta1=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.05]),
    eps=st.sampled_from([1e-8, 1e-3]),
)
def test_values_are_torchs(ours, theirs, device, shapes, dtype, beta1, weight_decay, eps):
    a, b = (parameters(shapes, dtype, device) for _ in range(2))
    options = {"lr": 1e-2, "betas": (beta1, 0.99), "eps": eps, "weight_decay": weight_decay}
    first, second = ours(a, **options), theirs(b, **options)
    for step in range(4):
        give_gradients(a, b, seed=step)
        first.step()
        second.step()
        compare(a, b, dtype)
    for p, q in zip(a, b, strict=True):
        assert first.state[p].keys() == second.state[q].keys()
        for key, value in second.state[q].items():
            scale = value.abs().max().item() if value.numel() else 0.0
            torch.testing.assert_close(first.state[p][key], value, rtol=4e-6, atol=4e-7 * scale)


@pairs
def test_defaults_are_a_gans(ours, theirs):
    group = ours(parameters([(2,)])).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        2e-4,
        (0.5, 0.999),
        1e-8,
        0.0,
    )
    # torch's own groups have the same keys: the state dicts are interchangeable.
    assert group.keys() == theirs(parameters([(2,)])).param_groups[0].keys()


@pairs
@pytest.mark.parametrize("forward", [True, False])
def test_state_dicts_are_interchangeable(ours, theirs, forward):
    a, b = parameters([(5, 3), (3,)]), parameters([(5, 3), (3,)])
    options = {"lr": 1e-2, "betas": (0.5, 0.9), "weight_decay": 0.1}
    source, target = (ours, theirs) if forward else (theirs, ours)
    first, second = source(a, **options), target(b, **options)
    for step in range(3):
        give_gradients(a, b, seed=step)
        first.step()
    for p, q in zip(a, b, strict=True):
        q.data.copy_(p.data)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(3, 6):
        give_gradients(a, b, seed=step)
        first.step()
        second.step()
    compare(a, b)
    assert all(int(s["step"]) == 6 for s in second.state.values())


@pairs
def test_groups_missing_gradients_and_uneven_steps(ours, theirs):
    lists = parameters([(4,), (5,), (6,)]), parameters([(4,), (5,), (6,)])
    made = []
    for cls, p in zip((ours, theirs), lists, strict=True):
        groups = [{"params": p[:2], "lr": 1e-1}, {"params": p[2:], "weight_decay": 0.1}]
        made.append(cls(groups, lr=1e-2, betas=(0.5, 0.999), weight_decay=0.0))
    for step in range(4):
        give_gradients(*lists, seed=step)
        for p in lists:
            if step % 2:
                p[1].grad = None
        for optimizer in made:
            optimizer.step()
    compare(*lists)


@pairs
def test_learning_rate_schedule(ours, theirs):
    a, b = parameters([(4,)]), parameters([(4,)])
    made = [ours(a, lr=1e-1), theirs(b, lr=1e-1, betas=(0.5, 0.999), weight_decay=0.0)]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in made]
    for step in range(4):
        give_gradients(a, b, seed=step)
        for optimizer, schedule in zip(made, schedules, strict=True):
            optimizer.step()
            schedule.step()
    compare(a, b)


@pairs
@pytest.mark.parametrize(
    "option",
    [
        {"amsgrad": True},
        {"maximize": True},
        {"capturable": False, "differentiable": False, "foreach": True},
        {"fused": True},
        {"lr": torch.tensor(1e-2)},
    ],
    ids=str,
)
def test_options_without_a_fused_form_are_honoured_and_told_once(ours, theirs, option, monkeypatch):
    monkeypatch.setattr(optim, "_told", set())
    a, b = parameters([(4, 3)]), parameters([(4, 3)])
    options = {"lr": 1e-2, "betas": (0.5, 0.999), "weight_decay": 0.0, **option}
    first, second = ours(a, **options), theirs(b, **options)
    give_gradients(a, b)
    with pytest.warns(UserWarning, match="no fused form"):
        first.step()
    second.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.step()
    second.step()
    compare(a, b)


@pairs
@pytest.mark.parametrize("kind", ["bfloat16", "transposed", "expanded gradient"])
def test_parameters_the_kernel_does_not_serve(ours, theirs, kind):
    lists = []
    for _ in range(2):
        torch.manual_seed(0)
        p = torch.randn(4, 3)
        p = p.bfloat16() if kind == "bfloat16" else p.t() if kind == "transposed" else p
        p = p.requires_grad_()
        p.grad = torch.ones((), dtype=p.dtype).expand(p.shape)
        if kind == "transposed":
            p.grad = p.grad.clone(memory_format=torch.preserve_format)
        lists.append([p])
    first = ours(lists[0], lr=1e-2)
    second = theirs(lists[1], lr=1e-2, betas=(0.5, 0.999), weight_decay=0.0)
    first.step()
    second.step()
    assert torch.equal(lists[0][0], lists[1][0])


def convolution(memory_format, dtype=torch.float32):
    torch.manual_seed(0)
    weight = torch.randn(6, 3, 4, 4, dtype=dtype).to(memory_format=memory_format)
    return [weight.requires_grad_(), torch.randn(6, dtype=dtype, requires_grad=True)]


def backward_through(params, seed):
    torch.manual_seed(seed)
    for p in params:
        p.grad = None
    x = torch.randn(2, 3, 9, 9, dtype=params[0].dtype).to(memory_format=torch.channels_last)
    torch.nn.functional.conv2d(x, *params).square().mean().backward()


def no_step_of_torchs(optimizer, monkeypatch):
    def step(self, closure=None):
        raise AssertionError("torch's own step was taken")

    monkeypatch.setattr(type(optimizer), "_torch_step", step)


@pytest.mark.skipif(not ops.has_kernels(torch.device("cpu")), reason="no CPU library")
@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "turned"])
def test_weights_in_any_order_of_memory_take_the_fused_step(
    ours, theirs, dtype, order, monkeypatch
):
    memory_format = torch.channels_last if order == "channels_last" else torch.contiguous_format
    lists = [convolution(memory_format, dtype) for _ in range(3)]
    if order == "turned":  # no memory format has this name
        for params in lists[:2]:
            turned = params[0].detach().permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
            assert not turned.is_contiguous(memory_format=torch.channels_last)
            params[0] = turned.requires_grad_()
    options = {"lr": 1e-2, "betas": (0.5, 0.99), "weight_decay": 0.05}
    first, second, plain = ours(lists[0], **options), theirs(lists[1], **options), None
    if order == "contiguous":
        plain = ours(lists[2], **options)
    no_step_of_torchs(first, monkeypatch)
    for step in range(4):
        for params in lists:
            backward_through(params, step)
        strides = lists[0][0].stride()
        first.step()
        second.step()
        assert lists[0][0].stride() == first.state[lists[0][0]]["exp_avg"].stride() == strides
        if plain is not None:
            plain.step()
            assert all(map(torch.equal, lists[0], lists[2]))
    compare(lists[0], lists[1], dtype)
    for p, q in zip(lists[0], lists[1], strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(first.state[p][key], second.state[q][key])


@pytest.mark.skipif(not ops.has_kernels(torch.device("cpu")), reason="no CPU library")
@pairs
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bfloat16", "torch.bfloat16 has no fused form"),
        ("sparse", "sparse parameter or gradient has no fused form"),
        ("gradient in another order", "strides are not those of the others"),
        ("gradient with gaps", "strides are not those of the others"),
        ("moments in another order", "strides are not those of the others"),
        ("shared memory", "share memory"),
        ("subclass", "Own as a parameter has no fused form"),
    ],
)
def test_a_step_that_falls_to_torchs_says_why_once(ours, theirs, kind, message, monkeypatch):
    class Own(torch.Tensor):
        pass

    monkeypatch.setattr(optim, "_told", set())
    lists, made = [], []
    for cls in (ours, theirs):
        p = torch.linspace(-1, 1, 24).view(2, 3, 2, 2)
        p = p.bfloat16() if kind == "bfloat16" else p.as_subclass(Own) if kind == "subclass" else p
        params = [p.requires_grad_()]
        if kind == "shared memory":
            params.append(p.detach().requires_grad_())
        optimizer = cls(params, lr=1e-2, betas=(0.5, 0.999), weight_decay=0.0)
        if kind == "moments in another order":
            p.grad = torch.ones_like(p)
            optimizer.step()
            state = optimizer.state[p]
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key].to(memory_format=torch.channels_last)
        lists.append(params)
        made.append(optimizer)
    for params in lists:
        for p in params:
            p.grad = torch.linspace(-2, 2, 24, dtype=p.dtype).view(p.shape).as_subclass(type(p))
            if kind == "gradient in another order":
                p.grad = p.grad.to(memory_format=torch.channels_last)
            if kind == "gradient with gaps":
                p.grad = torch.stack((p.grad, p.grad), -1)[..., 0]
            if kind == "sparse":
                p.grad = p.grad.to_sparse()
    if kind == "sparse":  # which torch.optim.Adam refuses: a sentence of its own comes through
        with pytest.warns(UserWarning, match=message), pytest.raises(RuntimeError, match="sparse"):
            made[0].step()
        return
    with pytest.warns(UserWarning, match=message) as told:
        made[0].step()
    assert told[0].filename == __file__
    made[1].step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made[0].step()
    made[1].step()
    for a, b in zip(*lists, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=4e-6, atol=1e-7)


@pairs
def test_a_step_under_another_default_dtype_and_device(ours, theirs):
    lists = parameters([(4, 3), (3,)]), parameters([(4, 3), (3,)])
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        first, second = ours(lists[0], lr=1e-2), theirs(lists[1], lr=1e-2, betas=(0.5, 0.999))
        for group in second.param_groups:
            group["weight_decay"] = 0.0
        for _ in range(3):
            for params in lists:
                for i, p in enumerate(params):
                    p.grad = torch.full(p.shape, 0.1 * (i + 1), dtype=p.dtype, device="cpu")
            first.step()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for _ in range(3):
        second.step()
    compare(*lists)
    assert all(s["step"].device.type == "cpu" for s in first.state.values())


@pairs
def test_a_state_saved_under_a_float64_default_continues(ours, theirs):
    a, b = parameters([(4,)]), parameters([(4,)])
    options = {"lr": 1e-2, "betas": (0.5, 0.999), "weight_decay": 0.0}
    torch.set_default_dtype(torch.float64)
    try:
        second = theirs(b, **options)
        for p in (*a, *b):
            p.grad = torch.ones_like(p)
        second.step()
    finally:
        torch.set_default_dtype(torch.float32)
    first = ours(a, **options)
    first.load_state_dict(copy.deepcopy(second.state_dict()))
    a[0].data.copy_(b[0].data)
    assert first.state[a[0]]["step"].dtype == torch.float64
    first.step()
    second.step()
    compare(a, b)


@pairs
def test_closure_and_hooks_run_once(ours, theirs):
    # Constructing torch's own class makes torch wrap its step too: hooks must still run once.
    theirs(parameters([(2,)]))
    for option in ({}, {"amsgrad": True}):
        p = parameters([(3,)])
        optimizer = ours(p, lr=1e-2, **option)
        calls = []
        optimizer.register_step_pre_hook(lambda *args, c=calls: c.append("before"))
        optimizer.register_step_post_hook(lambda *args, c=calls: c.append("after"))

        def closure(p=p, c=calls):
            c.append("closure")
            p[0].grad = torch.ones(3)
            return p[0].sum()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = optimizer.step(closure)
        assert calls == ["before", "closure", "after"]
        assert loss.requires_grad


@pairs
def test_pickle(ours, theirs):
    p = parameters([(3,)])
    optimizer = ours(p, lr=1e-2)
    give_gradients(p)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    twin.param_groups[0]["params"][0].grad = p[0].grad.clone()
    twin.step()
    optimizer.step()
    assert torch.equal(twin.param_groups[0]["params"][0], p[0])


def test_version_counter_sees_the_update():
    p = parameters([(3,)])
    y = (p[0] * p[0]).sum()
    give_gradients(p)
    optim.Adam(p).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_step_without_the_library(monkeypatch):
    a, b = parameters([(4,)]), parameters([(4,)])
    first, second = optim.Adam(a), optim.Adam(b)
    give_gradients(a, b)
    first.step()
    monkeypatch.setattr(library, "KERNELS", frozenset())
    second.step()
    compare(a, b)


@pairs
def test_inside_torch_compile_the_methods_are_torchs(ours, theirs):
    a, b = (parameters([(3, 4), (5,)]) for _ in range(2))
    options = {"lr": 1e-2, "betas": (0.5, 0.999), "weight_decay": 0.01}
    first, second = ours(a, **options), theirs(b, **options)

    def step(params, optimizer):
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        optimizer.step()
        return loss

    # Without code generation: what is traced is what is in question.
    compiled = torch.compile(step, backend="eager")
    for _ in range(3):
        assert compiled(a, first) == compiled(b, second)
    compare(a, b)
    assert list(first.state_dict()["state"][0]) == list(second.state_dict()["state"][0])


@pytest.mark.skipif(
    not ops.has_kernels(torch.device("cpu")), reason="torch's own update imports it"
)
def test_the_optimisers_do_not_import_torchs_compiler(tmp_path):
    code = (
        "import sys, torch; before = set(sys.modules); from fastgan import optim; "
        "p = torch.ones(2, requires_grad=True); "
        "o = optim.Adam([p]); p.sum().backward(); o.step(); o.load_state_dict(o.state_dict()); "
        "o.zero_grad(); assert p.grad is None; "
        "print('torch._dynamo' in set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "False\n"
