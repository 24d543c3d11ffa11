"""What stands for TorchInductor in tests: a second of torch's compiler an update is too long."""

import torch
from torch._functorch.aot_autograd import aot_module_simplified

from fastgan.engines.compiled_step import CompiledStep
from fastgan.engines.halves import Halves


def traced_only(graph, inputs):
    """The trace as it is."""
    return graph


def functional(graph, inputs):
    """The trace as torch's compiler sees it: without writes into inputs, put back at the end."""
    with torch.no_grad():
        return aot_module_simplified(graph, tuple(inputs), fw_compiler=lambda graph, _: graph)


def uses(functions):
    """How often the compiler makes functions: those in halves twice."""
    return sum(2 if isinstance(f.code, Halves) else 1 for f in functions.values())


def counted(monkeypatch, compiler):
    """Let the engine use it; returns a list that grows with every use."""
    calls = []

    def compile_(graph, inputs):
        calls.append(graph)
        return compiler(graph, inputs)

    monkeypatch.setattr(CompiledStep, "compiler", staticmethod(compile_))
    return calls
