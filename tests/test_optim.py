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
