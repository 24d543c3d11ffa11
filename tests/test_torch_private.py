"""Each private part of torch that fastgan touches does what it is touched for."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode

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


# --- what the engines touch -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_around_passes_are_listed_of_one_module_and_of_all(kind):
    module, hook = nn.Linear(2, 2), print
    assert not any(torch_private.hooks_of(module)) and not torch_private.global_hooks()
    handle = getattr(module, f"register_{kind}_hook")(hook)
    assert [h for table in torch_private.hooks_of(module) for h in table.values()] == [hook]
    handle.remove()
    assert not any(torch_private.hooks_of(module))
    handle = getattr(nn.modules.module, f"register_module_{kind}_hook")(hook)
    try:
        assert torch_private.global_hooks() == [hook]
        with torch_private.without_global_hooks():
            assert torch_private.global_hooks() == []
        assert torch_private.global_hooks() == [hook]
    finally:
        handle.remove()
    assert not torch_private.global_hooks()


def test_a_modules_state_is_what_every_module_has():
    own = set(vars(nn.Linear(2, 3))) - torch_private.MODULE_STATE
    assert own == {"in_features", "out_features"}


def test_hooks_on_gradients_and_steps_are_listed():
    p = torch.ones(2, requires_grad=True)
    assert torch_private.gradient_hooks(p) == []
    handles = p.register_hook(abs), p.register_post_accumulate_grad_hook(print)
    assert torch_private.gradient_hooks(p) == [abs, print]
    for handle in handles:
        handle.remove()
    assert torch_private.gradient_hooks(p) == []
    optimizer = torch.optim.SGD([p], 0.1)
    assert torch_private.step_hooks(optimizer) == []
    optimizer.register_step_pre_hook(abs), optimizer.register_step_post_hook(print)
    assert torch_private.step_hooks(optimizer) == [abs, print]
    handle = register_optimizer_step_post_hook(print)
    assert torch_private.global_step_hooks() == [print] == torch_private.global_hooks()
    handle.remove()


def test_a_step_of_a_users_own_is_told_from_a_schedulers():
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], 0.1)
    assert torch_private.replaced_step(optimizer) is None
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    assert "step" in vars(optimizer) and torch_private.replaced_step(optimizer) is None
    optimizer.step = print
    assert torch_private.replaced_step(optimizer) is print


def test_what_torch_computes_anew_in_each_pass_is_named():
    assert torch_private.computed_attributes(nn.Linear(2, 2)) == []
    assert torch_private.computed_attributes(nn.utils.spectral_norm(nn.Linear(2, 2))) == ["weight"]
    with pytest.warns(FutureWarning):
        normed = nn.utils.weight_norm(nn.Linear(2, 2), "weight")
    assert torch_private.computed_attributes(normed) == ["weight"]


def test_compiled_modules_are_known():
    module = nn.Linear(2, 2)
    assert not torch_private.is_compiled(module)
    assert torch_private.is_compiled(torch.compile(module, backend="eager"))
    module.compile(backend="eager")
    assert torch_private.is_compiled(module) and torch_private.compiler_loaded()


def test_hooks_on_saved_tensors_are_seen_where_checkpointing_is_at_work():
    seen = []

    def f(x):
        seen.append(torch_private.saved_tensors_are_hooked())
        return x.exp()

    x = torch.ones(2, requires_grad=True)
    f(x)
    torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False).sum().backward()
    assert seen == [False, True, True]


def test_a_scaler_has_its_tensors_and_can_forget_an_update():
    scaler = torch.amp.GradScaler("cpu")
    p = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([p], 0.1)
    scaler.scale(p.sum()).backward()
    assert [t.shape for t in torch_private.scaler_tensors(scaler)] == [(), ()]
    scaler.unscale_(optimizer)
    torch_private.forget_unscaled(scaler)
    scaler.unscale_(optimizer)


def test_many_tensors_are_mixed_and_copied_in_one_call():
    a, b = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.ones(3)]
    torch_private.mix_into_all(a, b, 0.25)
    assert [t.tolist() for t in a] == [[0.25] * 2, [0.25] * 3]
    torch_private.copy_to_all(a, b)
    assert [t.tolist() for t in a] == [[1.0] * 2, [1.0] * 3]


def test_every_operation_is_seen():
    class Names(torch_private.OperationMode):
        seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Names():
        torch.ones(2) + 1
    assert "aten::add.Tensor" in Names.seen


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_processor_says_what_it_has(precision, monkeypatch):
    assert torch_private.cpu_has(precision) in (True, False)
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: True)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert torch_private.cpu_has(precision) is False
    monkeypatch.delattr(torch.cpu, "_is_avx2_supported")
    assert torch_private.cpu_has(precision) is True


def test_without_function_modes():
    class Seen(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    calls, x = [], torch.ones(3)
    with Seen():
        with torch_private.without_function_modes():
            assert x.shape == torch.relu(x).shape
        assert not calls
        torch.relu(x)
    assert calls == [torch.relu]


def test_modules_that_have_a_say_in_how_they_are_loaded_are_known():
    class Own(nn.Linear):
        def _load_from_state_dict(self, state, *others):
            super()._load_from_state_dict(dict(state), *others)

    hooked = nn.Linear(1, 1)
    assert not any(map(torch_private.reads_its_state, (hooked, nn.BatchNorm1d(2))))
    hooked.register_load_state_dict_pre_hook(lambda *_: None)
    assert torch_private.reads_its_state(hooked) and torch_private.reads_its_state(Own(1, 1))
