"""Private parts of torch by which work is traced, and traces are called or compiled.

A new torch that changes one of them breaks this file and its tests, and nothing else.
"""

from __future__ import annotations

import operator
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor


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


_DRAWS = {"fallback_random": True}
"""Random numbers are drawn as torch draws them without a compiler."""


def compiled(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., list[Tensor]]:
    """A graph compiled by TorchInductor for tensors like these, and nothing that guards it.

    torch.compile would trace the graph anew and compare all of its inputs in every call. What is
    returned has `save(path=)`.
    """
    from torch._inductor import standalone_compile

    return standalone_compile(
        graph, inputs, dynamic_shapes="from_example_inputs", options={"config_patches": _DRAWS}
    )


def compiled_ahead(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> _Library:
    """The same as a library for the CPU that is called without Python.

    torch documents torch.export and aoti_load_package for it: the one has no form for gradients,
    the other imports the compiler.

    Raises:
        Exception: something in the graph is nothing for it.
    """
    from torch._inductor import aot_compile
    from torch._inductor.package import package_aoti

    for node in graph.graph.find_nodes(op="placeholder"):
        node.meta.pop("val", None)  # what it would go by, were there any for one of them
    inputs = tuple(t.detach() for t in inputs)
    files = aot_compile(graph, inputs, options=_DRAWS | {"aot_inductor.package": True})
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "update.pt2")
        package_aoti(path, files)
        with open(path, "rb") as file:
            return _Library(path, file.read())


def compiled_before(path: str) -> Callable[..., list[Tensor]]:
    """What either has returned, as `save` has kept it; any Exception if that cannot be read."""
    if zipfile.is_zipfile(path):
        return _Library(path)
    from torch._inductor import CompiledArtifact

    return CompiledArtifact.load(path=path)


class _Library:
    """Code for the CPU that is compiled ahead of time."""

    def __init__(self, path: str, packed: bytes = b""):
        """Load it from a file, whose content is needed to save it once more."""
        self._packed = packed
        self._run = torch._C._aoti.AOTIModelPackageLoader(path, "model", False, 1, -1).run

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The graph's results."""
        return self._run(list(inputs))

    def save(self, path: str) -> None:
        """Keep it in a file that is there whole or not at all."""
        part = f"{path}.{os.getpid()}"
        try:
            with open(part, "wb") as file:
                file.write(self._packed)
            os.replace(part, path)
        finally:
            with suppress(FileNotFoundError):
                os.remove(part)


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
