"""A module's forward as a graph of torch.fx, found without leaving a trace on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import torch
from torch import fx, nn

from fastgan.engines.base import CannotRun
from fastgan.engines.probe import copied, drawn, first_line, randomness_kept
from fastgan.engines.snapshot import Snapshot
from fastgan.heads import Heads
from fastgan.nn import LinearLeakyReLU, Pack

_tracing = threading.Lock()  # torch.fx replaces nn.Module.__call__ for the whole process meanwhile

_CPU = torch.device("cpu")

_TRIALS = 5
"""A forward that draws random numbers does so every time; another thread may do it now and then."""


class NoPlan(CannotRun):
    """The reason, in a user's words, why a network has no plan."""


def trace(module: nn.Module, name: str) -> fx.Graph:
    """What a module's forward does, found on a copy, as it may do something to the module, too."""
    try:
        (copy,) = copied((module,))
    except Exception as error:
        raise NoPlan(f"{name} cannot be copied to be looked at ({first_line(error)})") from error
    before = Snapshot({name: copy})
    try:
        with randomness_kept(_CPU), _tracing, torch.no_grad():
            for _ in range(_TRIALS):
                untouched = drawn()
                graph = _traced(copy)
                if drawn() == untouched:
                    break
            else:
                raise NoPlan(
                    f"{name}: its forward draws random numbers in a way with no fused form"
                )
    except NoPlan:
        raise
    except Exception as error:
        raise NoPlan(f"{name}: torch.fx cannot trace its forward ({first_line(error)})") from error
    if difference := before.difference():
        raise NoPlan(f"{difference} by its forward, which has no fused form")
    return graph


def _traced(module: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    if not tracer.is_leaf_module(module, ""):
        return tracer.trace(module)
    # A network that is one layer: torch.fx would go into its forward.
    graph = fx.Graph()
    graph.output(graph.call_module("", (graph.placeholder("x"),)))
    return graph


class _Tracer(fx.Tracer):
    """Goes into every module but torch's own, fastgan's fused layer, heads and packs.

    While it traces, torch.fx sends it the calls of every module in the process; those that other
    threads make are theirs.
    """

    def __init__(self):
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict) -> object:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, (LinearLeakyReLU, Heads, Pack)) or super().is_leaf_module(
            module, qualified_name
        )

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        """The pieces of a tensor that is cut into a number of them that the call tells."""
        count = _pieces(obj.node)
        return super().iter(obj) if count is None else iter([obj[i] for i in range(count)])


def _pieces(node: fx.Node) -> int | None:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    how = [*node.args[1:2], *(node.kwargs[key] for key in _HOW if key in node.kwargs)]
    if name not in ("split", "chunk", "tensor_split") or not how:
        return None
    if isinstance(how[0], (list, tuple)):
        return len(how[0]) + (name == "tensor_split")
    return how[0] if isinstance(how[0], int) and name != "split" else None


_HOW = ("split_size_or_sections", "split_size", "chunks", "sections", "indices_or_sections")
"""The argument that says into what a tensor is cut."""
