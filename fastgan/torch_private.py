"""Every private part of torch that fastgan touches, with the reason.

A new torch that changes one of them breaks this file and its tests, and nothing else.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _module
from torch.optim import optimizer as _optimizer
from torch.utils._python_dispatch import TorchDispatchMode

OperationMode = TorchDispatchMode
"""Sees every operation while it is entered; torch documents it under its private name."""

# --- modules --------------------------------------------------------------------------------------

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where a module keeps what is called around its passes. There is no public way to list it."""

TABLES = ("_parameters", "_buffers", "_modules", *HOOKS)
"""Attributes of a module that hold what it consists of, and what is called around its passes."""

MODULE_STATE = frozenset(vars(nn.Module()))
"""Attributes that every module has; the others are its own."""

GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


def hooks_of(m: nn.Module) -> Iterator[dict]:
    """The tables of hooks that a pass of a module calls, by number; they may be empty."""
    return (getattr(m, name) for name in HOOKS)


def global_hooks() -> list:
    """Hooks that torch calls around the passes of every module, and the steps of every optimiser.

    torch.nn.modules.module.register_module_forward_hook and its siblings put them there.
    """
    return [hook for table in global_tables() for hook in table.values()]


def global_tables() -> list[dict]:
    """Where torch keeps the hooks that it calls for every module and every optimiser."""
    return [getattr(_module, name) for name in GLOBAL_HOOKS] + _global_step_tables()


@contextmanager
def without_global_hooks() -> Iterator[None]:
    """No hook for all modules is called meanwhile."""
    tables = [getattr(_module, name) for name in GLOBAL_HOOKS]
    kept = [dict(table) for table in tables]
    try:
        for table in tables:
            table.clear()
        yield
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)


def global_step_hooks() -> list:
    """Those of them that are called around the steps of optimisers."""
    return [hook for table in _global_step_tables() for hook in table.values()]


def _global_step_tables() -> list[dict]:
    return [_optimizer._global_optimizer_pre_hooks, _optimizer._global_optimizer_post_hooks]


def gradient_hooks(t: Tensor) -> list:
    """Hooks that are called with a tensor's gradient."""
    tables = (t._backward_hooks, getattr(t, "_post_accumulate_grad_hooks", None))
    return [hook for table in tables if table for hook in table.values()]


def is_compiled(m: nn.Module) -> bool:
    """Whether torch.compile wraps a module, or m.compile() has compiled it in place."""
    return "_orig_mod" in m._modules or m.__dict__.get("_compiled_call_impl") is not None


def compiler_loaded() -> bool:
    """Whether the program has compiled anything, without importing the compiler to ask."""
    return "torch._dynamo" in sys.modules


def computed_attributes(m: nn.Module) -> list[str]:
    """Plain attributes that a hook of torch's own computes anew in each pass: weight_norm's weight.

    Under such a name the module's parameter is looked for in vain.
    """
    return [
        hook.name
        for hook in m._forward_pre_hooks.values()
        if type(hook).__module__.startswith("torch.nn.utils") and hasattr(hook, "name")
    ]


# --- optimisers -----------------------------------------------------------------------------------


def step_hooks(optimizer: torch.optim.Optimizer) -> list:
    """Hooks that are called around an optimiser's step."""
    return [hook for table in step_tables(optimizer) for hook in table.values()]


def step_tables(optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    """Where an optimiser keeps them."""
    return optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks


def replaced_step(optimizer: torch.optim.Optimizer) -> object | None:
    """A step or zero_grad put on the instance, but for the step by which lr_scheduler counts."""
    step = vars(optimizer).get("step")
    counts = hasattr(step, "_wrapped_by_lr_sched") or hasattr(step, "_with_counter")
    return vars(optimizer).get("zero_grad") or (None if counts else step)


def forget_unscaled(scaler: torch.amp.GradScaler) -> None:
    """Let a GradScaler forget an update that broke off: its next one would refuse to begin."""
    scaler._per_optimizer_states.clear()


def scaler_tensors(scaler: torch.amp.GradScaler) -> list[Tensor]:
    """What a GradScaler keeps on the device; made when it first scales something."""
    return [scaler._scale, scaler._growth_tracker]


# --- autograd -------------------------------------------------------------------------------------


def saved_tensors_are_hooked() -> bool:
    """Whether hooks on saved tensors are active, as within activation checkpointing.

    torch.utils.checkpoint does its non-reentrant form by them, and says in no other way that it is
    at work.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def without_function_modes() -> AbstractContextManager:
    """No torch function mode sees what is called meanwhile, attributes of tensors included."""
    return torch._C.DisableTorchFunction()


# --- devices --------------------------------------------------------------------------------------


def end_allocation_to_pool(device: int, pool: tuple) -> None:
    """Tell the CUDA allocator that a capture which broke off no longer goes on.

    Raises:
        RuntimeError: nothing was going on.
        AttributeError: this torch has no such function.
    """
    torch._C._cuda_endAllocateToPool(device, pool)


def release_pool(device: int, pool: tuple) -> None:
    """Take back the claim that a capture has on a pool of the CUDA allocator.

    Raises:
        RuntimeError: nothing has a claim on it.
        AttributeError: this torch has no such function.
    """
    torch._C._cuda_releasePool(device, pool)


def graphs_tidy_up() -> bool:
    """Whether CUDA graphs find the generators that they draw from, and give back broken captures.

    Since 2.14 a graph registers a generator at its first draw, and register_generator_state() does
    nothing but warn (pytorch#176753); reset() releases the pool of a capture that did not end
    (pytorch#190348).
    """
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)


def cpu_has(precision: str) -> bool:
    """Whether this processor computes products in bf16 or fp16 itself; else torch emulates them.

    True where it cannot be asked.
    """
    try:
        if not torch.cpu._is_avx2_supported():  # no x86: torch does not say
            return True
        if precision == "bf16":
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.cpu._is_amx_fp16_supported()
    except AttributeError:
        return True


# --- operators ----------------------------------------------------------------------------------

leaky_relu, leaky_relu_ = torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_
"""What F.leaky_relu calls: its Python function costs a microsecond a layer."""

functorch_is_active = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func is at work: autograd.Functions without rules for it fail."""


def forward_mode_is_active() -> bool:
    """Whether torch differentiates in forward mode, which autograd.Functions would have to know."""
    return forward_ad._current_level >= 0


def add_to_all(tensors: list[Tensor], value: float) -> None:
    """value added to each in one call, as torch's optimisers count their steps."""
    torch._foreach_add_(tensors, value)


def subtract_from_all(tensors: list[Tensor], others: list[Tensor]) -> None:
    """From each its own, in place."""
    torch._foreach_sub_(tensors, others)


def mix_into_all(tensors: list[Tensor], others: list[Tensor], weight: float | Tensor) -> None:
    """Each becomes itself + weight * (the other - itself): a running average, in one call.

    A weight on the device takes a call a tensor.
    """
    if isinstance(weight, Tensor):
        for tensor, other in zip(tensors, others, strict=True):
            tensor.lerp_(other, weight.to(tensor.dtype))
    else:
        torch._foreach_lerp_(tensors, others, weight)


def copy_to_all(tensors: list[Tensor], others: list[Tensor]) -> None:
    """The others' values copied to each in one call."""
    torch._foreach_copy_(tensors, others)


def uncompiled(method):
    """A method of torch's optimisers without the wrapper that keeps torch's compiler out of it.

    That wrapper imports the compiler: 0.8 s for every program that never compiles anything.
    """
    return getattr(method, "__wrapped__", method)


def unhooked(step):
    """An optimiser's step without its hooks.

    torch wraps the step of every class it has constructed, so that a subclass which calls it would
    run the hooks twice.
    """
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """A module's own submodules by name; writing to it replaces them where they stand.

    named_children() leaves out what stands in two places.
    """
    return module._modules


def reads_its_state(module: nn.Module) -> bool:
    """Whether a module has a say in how its state dict is loaded: a hook, or code of its own."""
    own = (
        method
        for kind in type(module).__mro__
        if kind.__module__.split(".")[0] not in ("torch", "fastgan", "builtins")
        for method in ("load_state_dict", "_load_from_state_dict")
        if method in vars(kind)
    )
    return bool(module._load_state_dict_pre_hooks) or any(own)


def parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own parameters by name, those that are None included."""
    return module._parameters


def buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """A module's own buffers by name, those that are None included."""
    return module._buffers


def has_hooks(module: nn.Module) -> bool:
    """Whether anything runs before, after or instead of a part of a module's call or state."""
    return any(
        value
        for name, value in vars(module).items()
        if name.endswith(("_hooks", "_hooks_always_called"))
    )


# --- the compiler -------------------------------------------------------------------------------


def traced(function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> torch.fx.GraphModule:
    """The operations below autograd that a function does, as a graph of its inputs.

    make_fx lives among torch's experiments. Unlike torch.compile it sees what autograd itself does:
    torch.compile has no double backward through what it has compiled (aot_autograd refuses it).
    The memory formats that the compiler expects of operations are not always those of torch's
    kernels (GroupNorm's is one), so that what was a view may be none there: it is a reshape.

    Raises:
        RuntimeError: a value is read from a tensor.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    # Or every result has a mode of its own, which takes as long as some operations.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        graph = make_fx(function)(*inputs)
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    graph.recompile()
    return graph


_FORMATS = (
    torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d,
)  # fmt: skip
"""In the order of their numbers."""
_OF_NUMBERS = "Scalar", "Tensor_Scalar"


def interpreted(graph: torch.fx.GraphModule) -> Callable[..., list[Tensor]]:
    """The operations of a trace, called by torch's interpreter in C++ instead of by Python.

    The interpreter is TorchScript's, which does nothing here but to call them: no script is
    compiled, and its optimisations, which change the order of sums, are off. Torch has no other
    for operations of any kind. Python took a tenth of a small step, as convolutions leave nothing
    of it in the caches.

    Raises:
        Exception: something in the trace is nothing for it.
    """
    script, known = torch._C.Graph(), {}

    def inserted(kind: str, inputs: list, outputs: int = 1):
        return script.insertNode(script.create(kind, inputs, outputs))

    def made(kind: str, inputs: list, type_):
        value = inserted(kind, inputs).output()
        value.setType(type_)
        return value

    def value_of(x):
        if isinstance(x, torch.fx.Node):
            return known[x]
        if isinstance(x, (list, tuple)):
            items = [value_of(item) for item in x]
            of = items[0].type() if items else torch._C.IntType.get()
            return made("prim::ListConstruct", items, torch._C.ListType(of))
        if x is None:
            return made("prim::Constant", [], torch._C.NoneType.get())
        return script.insertConstant(_FORMATS.index(x) if x in _FORMATS else x)

    for node in graph.graph.nodes:
        if node.op == "placeholder":
            known[node] = script.addInput()
        elif node.op == "output":
            script.registerOutput(value_of(list(node.args[0])))
        elif node.target is operator.getitem:
            whole, i = node.args
            of = known[whole]
            if not isinstance(of, list):  # one result, which is a list of tensors
                of = {i: made("aten::__getitem__", [of, value_of(i)], torch._C.TensorType.get())}
            known[node] = of[i]
        else:
            schema, given = node.target._schema, list(node.args)
            if node.target._defined_in_python:  # whose exceptions would lose their type
                raise TypeError(f"{schema.name} is written in Python")
            for i, argument in enumerate(schema.arguments):
                if i >= len(given):
                    given.append(node.kwargs.get(argument.name, argument.default_value))
                if argument.type.kind() == "FloatType" and given[i] is not None:
                    given[i] = float(given[i])
            results = inserted(schema.name, [value_of(x) for x in given], len(schema.returns))
            # Overloads are found by the kinds of values; a number may stand where a tensor did.
            found, numbers = results.schema(), (f"{schema.name}.{n}(" for n in _OF_NUMBERS)
            if found != str(schema) and not found.startswith(tuple(numbers)):
                raise TypeError(f"{found} in place of {schema}")
            outputs = list(results.outputs())
            for output, result in zip(outputs, schema.returns, strict=True):
                output.setType(result.type)
            known[node] = outputs[0] if len(outputs) == 1 else outputs
    script.lint()
    called = torch._C._create_function_from_graph("update", script)

    def update(*inputs: Tensor) -> list[Tensor]:
        with torch.jit.optimized_execution(False):
            return called(*inputs)

    return update


def compiled(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., list[Tensor]]:
    """A graph compiled by TorchInductor for tensors like these, and nothing that guards it.

    torch.compile would trace the graph anew and compare all of its inputs in every call. What is
    returned has `save(path=)`. Random numbers are drawn as torch draws them without a compiler.
    """
    from torch._inductor import standalone_compile

    return standalone_compile(
        graph, inputs, dynamic_shapes="from_example_inputs",
        options={"config_patches": {"fallback_random": True}},
    )  # fmt: skip


def compiled_before(path: str) -> Callable[..., list[Tensor]]:
    """What `compiled` returned, as `save` has kept it; any Exception if that cannot be read."""
    from torch._inductor import CompiledArtifact

    return CompiledArtifact.load(path=path)


def compiler_settings() -> bytes:
    """A digest of all settings of TorchInductor."""
    from torch._inductor import config

    return config.get_hash()


@contextmanager
def compiler_cache(folder: str) -> Iterator[None]:
    """Where TorchInductor keeps what it makes, libraries included, unless the user has said where.

    torch has an environment variable for it, which it sets itself to a place that ends with the
    machine's session.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir, temporary_cache_dir

    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) != default_cache_dir():
        yield
        return
    with temporary_cache_dir(folder):
        yield
