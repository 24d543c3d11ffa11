"""Each private part of torch that fastgan touches does what it is touched for."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from fastgan import torch_private


def test_leaky_relu_is_torchs_and_writes_in_place():
    x = torch.randn(50)
    expected = nn.functional.leaky_relu(x, 0.3)
    assert torch.equal(torch_private.leaky_relu(x, 0.3), expected)
    assert torch_private.leaky_relu_(x, 0.3) is x and torch.equal(x, expected)


def test_a_transform_of_torch_func_is_seen():
    seen = []

    def f(x):
        seen.append(torch_private.functorch_is_active())
        return x.square().sum()

    assert torch_private.functorch_is_active() is False
    torch.func.grad(f)(torch.ones(2))
    torch.func.vmap(f)(torch.ones(2, 2))
    assert seen == [True, True]


def test_forward_mode_is_seen():
    assert not torch_private.forward_mode_is_active()
    with forward_ad.dual_level():
        assert torch_private.forward_mode_is_active()
    assert not torch_private.forward_mode_is_active()


def test_add_to_all_counts_in_place():
    steps = [torch.zeros(()), torch.ones((), dtype=torch.float64)]
    torch_private.add_to_all(steps, 1.0)
    assert [s.item() for s in steps] == [1.0, 2.0]


@pytest.mark.parametrize("name", ["add_param_group", "zero_grad", "state_dict", "load_state_dict"])
def test_optimisers_methods_have_a_form_without_the_compiler(name):
    method = getattr(torch.optim.Optimizer, name)
    plain = torch_private.uncompiled(method)
    assert plain.__name__ == name
    assert plain.__code__.co_filename.endswith("optimizer.py")
    assert "_dynamo" not in plain.__code__.co_names


def test_a_step_that_torch_has_wrapped_has_a_form_without_hooks():
    p = torch.ones(2, requires_grad=True)
    optimizer, called = torch.optim.Adam([p]), []
    optimizer.register_step_pre_hook(lambda *args: called.append(1))
    p.grad = torch.ones(2)
    torch_private.unhooked(torch.optim.Adam.step)(optimizer)
    assert called == [] and p[0] < 1
    optimizer.step()
    assert called == [1]


def test_a_modules_own_parts_are_what_it_is_made_of():
    one = nn.BatchNorm1d(2)
    net = nn.Sequential(one, nn.ReLU(), one)
    assert list(torch_private.children(net)) == ["0", "1", "2"]
    torch_private.children(net)["1"] = nn.Tanh()
    assert type(net[1]) is nn.Tanh and "Tanh" in repr(net)
    assert set(torch_private.parameters(one)) == {"weight", "bias"}
    assert set(torch_private.parameters(nn.Linear(1, 1, False))) == {"weight", "bias"}
    assert set(torch_private.buffers(one)) == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize(
    "register",
    [
        lambda m, f: m.register_forward_hook(f),
        lambda m, f: m.register_forward_hook(f, always_call=True),
        lambda m, f: m.register_forward_pre_hook(f),
        lambda m, f: m.register_full_backward_hook(f),
        lambda m, f: m.register_full_backward_pre_hook(f),
        lambda m, f: m.register_state_dict_post_hook(f),
        lambda m, f: m.register_state_dict_pre_hook(f),
        lambda m, f: m.register_load_state_dict_pre_hook(f),
        lambda m, f: m.register_load_state_dict_post_hook(f),
    ],
)
def test_every_kind_of_hook_is_seen(register):
    module = nn.Linear(2, 2)
    assert not torch_private.has_hooks(module)
    handle = register(module, lambda *args: None)
    assert torch_private.has_hooks(module)
    if handle is not None:
        handle.remove()
        assert not torch_private.has_hooks(module)
