"""Reads a pair of modules into the layer plan of the fused engine, or says why it cannot.

A network fits when its forward, traced by torch.fx, is of layers

    Linear -> [BatchNorm1d or LayerNorm] -> [activation] -> [Dropout]

each of which takes the one before it, or sums and concatenations of those before it (see nodes.py),
with any number of changes of shape that keep the batch in front, conditions joined to its input
(see inputs.py), rows of a discriminator's input side by side in packs, and columns of a generator's
output with activations of their own (see heads.py).
What the network's classes are called does not matter; what they compute does.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from fastgan.engines.fused import activations, modules
from fastgan.engines.fused.chain import NORMS, Chain, Layer
from fastgan.engines.fused.heads import Cutter
from fastgan.engines.fused.inputs import Condition, Reader
from fastgan.engines.fused.inputs import check as check_inputs
from fastgan.engines.fused.nodes import Nodes
from fastgan.engines.fused.trace import NoPlan, trace
from fastgan.nn import LinearLeakyReLU, Pack

_CPU = torch.device("cpu")

_BATCH = 7  # of the tensors without data that follow the shapes; a size no layer has by accident


def read(
    module: nn.Module,
    name: str,
    input_shape: tuple[int, ...],
    device: torch.device = _CPU,
    condition: Condition | None = None,
    pack: int = 1,
) -> Chain:
    """The chain of layers that a module's forward is.

    Args:
        module: takes one tensor [batch, *input_shape].
        name: what messages call the module: "generator" or "discriminator".
        input_shape: of one sample.
        device: where the module's parameters must be.
        condition: what it is given beside its input.
        pack: samples that one row of its output is of. Default 1.

    Raises:
        NoPlan: the module is no such chain; the message says where and why.
    """
    modules.check(module, name)
    chain = _Walk(module, name, input_shape, condition, pack).run(trace(module, name))
    check_inputs(chain.inputs, condition)
    if chain.pack > 1 and chain.inputs.tables:
        where = next(part.where for part in chain.inputs.parts if part.embedding)
        raise NoPlan(f"{where}: an Embedding in packs of rows has no fused form; one_hot has")
    if chain.inputs.tables and (
        chain.layers[0].source or any(0 in join.nodes for join in chain.joins)
    ):
        where = next(part.where for part in chain.inputs.parts if part.embedding)
        raise NoPlan(
            f"{where}: an Embedding in an input that others than the first Linear take has no "
            "fused form; one_hot has"
        )
    modules.check_parameters(module, name, chain, device)
    return chain


_SHAPE_METHODS = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous"}
_QUESTIONS = {"size", "dim", "numel", "ndimension", "nelement"}
_ARITHMETIC = {
    operator.getitem,
    operator.mul,
    operator.add,
    operator.sub,
    operator.floordiv,
    operator.neg,
    math.prod,
    getattr,
}
_SHAPE_FUNCTIONS = {
    torch.flatten,
    torch.reshape,
    torch.squeeze,
    torch.unsqueeze,
    torch.unflatten,
}


class _Walk:
    """Follows the tensors of a traced forward from the input to the output.

    Their shapes are carried along by tensors without data, so that arithmetic on sizes and every
    kind of view get torch's own answers.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        input_shape: tuple[int, ...],
        condition: Condition | None,
        pack: int,
    ):
        self.module = module
        self.name = name
        self.pack = pack
        self.shape = (_BATCH * pack, *input_shape)
        self.layers: list[Layer] = []
        self.dropouts = [m for m in module.modules() if type(m) is nn.Dropout]
        self.used: Counter[nn.Module] = Counter()
        self.values: dict[fx.Node, object] = {}
        self.nodes = Nodes(self.layers, self.values)
        self.width: int | None = None
        self.joined = Reader(condition, self.values, _BATCH * pack)
        self.cutter = Cutter(module, self.values, _BATCH)
        self.cut_node: fx.Node | None = None

    def run(self, graph: fx.Graph) -> Chain:
        for node in graph.nodes:
            if node.op == "placeholder":
                self.start(node)
            elif node.op == "get_attr":
                raise NoPlan(self.of_tensor(node.target))
            elif node.op == "call_module":
                self.call_module(node)
            elif node.op == "output":
                if not self.layers:
                    raise NoPlan(f"{self.name} has no Linear layer")
                joins = self.nodes.finish(node.args[0], self.name)
            else:
                self.call(node)
        return Chain(self.layers, self.width * self.pack, self.joined.inputs, self.pack, joins)

    def of_tensor(self, target: str) -> str:
        path, _, tensor = target.rpartition(".")
        owner = type(self.module.get_submodule(path)).__name__
        return (
            f"{self.path(path)}: {owner} computes with its own tensor {tensor!r}, which has no "
            "fused form; layers that are nn.Linear and nn.BatchNorm1d themselves have"
        )

    def path(self, inside: str) -> str:
        return f"{self.name}.{inside}" if inside else self.name

    def start(self, node: fx.Node) -> None:
        if self.width is not None:
            if self.joined.start(node):
                return
            if node.args:  # an argument with a default
                self.values[node] = node.args[0]
                return
            raise NoPlan(f"{self.name} takes more than one input")
        self.nodes.start(node)
        self.values[node] = torch.empty(self.shape, device="meta")
        self.width = math.prod(self.shape[1:])

    def where(self, node: fx.Node) -> str:
        """What a message calls the place: the innermost module that makes the call."""
        stack = node.meta.get("nn_module_stack") or {}
        path = [entry[0] if isinstance(entry, tuple) else entry for entry in stack.values()]
        return self.path(path[-1] if path else "")

    def follow(self, node: fx.Node, where: str, what: str) -> Tensor:
        """The tensor that comes in."""
        if not node.args or node.args[0] not in self.nodes:
            raise NoPlan(f"{where}: {what} is not applied to what a layer makes, or to the input")
        return self.values[node.args[0]]

    def comes_in(self, node: fx.Node) -> fx.Node | None:
        """What comes in, if it is such a tensor."""
        return node.args[0] if node.args and node.args[0] in self.nodes else None

    def move(self, node: fx.Node, tensor: Tensor, where: str) -> None:
        """The tensor that comes in, in another shape."""
        rows = self.values[node.args[0]].shape[0]
        if tensor.dim() >= 1 and tensor.shape[0] == rows:
            self.nodes.move(node, node.args[0])
        elif tensor.dim() >= 1 and tensor.shape[0] == _BATCH and self.nodes.is_input(node.args[0]):
            self.nodes.start(node)  # its rows side by side
        else:
            raise NoPlan(f"{where}: a change of shape mixes the samples of a batch")
        self.values[node] = tensor

    def call_module(self, node: fx.Node) -> None:
        m = self.module.get_submodule(node.target)
        where = self.path(node.target)
        kind = type(m).__name__
        self.used[m] += 1
        if parametrize.is_parametrized(m):
            raise NoPlan(f"{where}: a parametrized {kind} has no fused form")
        if self.joined.takes(node):
            self.joined.module(node, m, where)
            return
        if self.cutter.takes(node, self.comes_in(node)):
            self.cut(node, where, kind)
            return
        x = self.follow(node, where, kind)
        if type(m) in (nn.Flatten, nn.Unflatten):
            self.move(node, self.changed(where, kind, m.forward, x), where)
            return
        if type(m) is Pack:
            if x.shape[0] % m.rows:
                raise NoPlan(f"{where}: {m} in a network of packs of {self.pack} has no fused form")
            self.move(node, m.forward(x), where)
            return
        if isinstance(m, nn.Identity) or (type(m) is nn.Dropout and _idle(m)):
            self.move(node, x, where)
            return
        if type(m) in (nn.Linear, LinearLeakyReLU):
            self.linear(node, m, x, where)
            return
        if type(m) in NORMS:
            self.norm(node, m, x, where)
        elif type(m) is nn.Dropout:
            self.dropout(node, m, where)
        elif (said := activations.MODULES.get(type(m))) is not None:
            self.activation(node, *said(m), where, kind)
        else:
            raise NoPlan(f"{where}: {kind} has no fused form")
        self.further(node)

    def further(self, node: fx.Node) -> None:
        """One more part of a layer."""
        self.nodes.further(node, node.args[0])
        self.values[node] = self.values[node.args[0]]

    def call(self, node: fx.Node) -> None:
        """A function or a method: arithmetic on sizes, a change of shape or an activation."""
        target = node.target
        where = self.where(node)
        what = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values.get(n))
        if target in _QUESTIONS and node.op == "call_method":
            self.values[node] = getattr(args[0], target)(*args[1:], **kwargs)
            return
        moved = any(n in self.nodes for n in node.all_input_nodes)
        told = target is getattr and args[1] in ("shape", "dtype", "device")
        if self.joined.takes(node) and not told:
            self.join(node, where, what, args, kwargs)
            return
        if self.cutter.takes(node, self.comes_in(node)) and not told:
            self.cut(node, where, what)
            return
        if self.nodes.joins(node):
            self.values[node] = self.nodes.join(node, where)
            return
        if target in _ARITHMETIC and (not moved or told):
            self.values[node] = target(*args, **kwargs)
            return
        if target in _SHAPE_METHODS and node.op == "call_method":
            change = getattr(self.follow(node, where, what), target)
            self.move(node, self.changed(where, what, change, *args[1:], **kwargs), where)
            return
        if target in _SHAPE_FUNCTIONS:
            x = self.follow(node, where, what)
            self.move(node, self.changed(where, what, target, x, *args[1:], **kwargs), where)
            return
        function = activations.METHODS.get(target) if node.op == "call_method" else target
        if (said := activations.FUNCTIONS.get(function)) is not None:
            self.follow(node, where, what)
            self.activation(node, *said(*args[1:], **kwargs), where, what)
            self.further(node)
            return
        hint = "; use nn.Dropout" if target is F.dropout else ""
        raise NoPlan(f"{where}: {what} has no fused form{hint}")

    def changed(self, where: str, what: str, change: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """What a change of shape returns; those that fit some batches only have no fused form."""
        try:
            return change(*args, **kwargs)
        except RuntimeError as error:
            raise NoPlan(f"{where}: {what} does not fit every batch ({error})") from error

    def join(self, node: fx.Node, where: str, what: str, args: tuple, kwargs: dict) -> None:
        """A call of what comes of the condition."""
        own = next((n for n in node.all_input_nodes if n in self.nodes), None)
        joined = self.joined.function(node, own, where, what, args, kwargs)
        if joined is None:
            return
        if self.layers:
            raise NoPlan(f"{where}: a condition that is joined behind a layer has no fused form")
        self.nodes.start(node)
        self.values[node] = joined
        self.width = joined.shape[1]

    def cut(self, node: fx.Node, where: str, what: str) -> None:
        """A call of some columns of a layer's output."""
        if self.cut_node is None:
            if self.nodes.unfinished(node.args[0], where, what).stage > 0:
                raise NoPlan(f"{where}: {what} is fused only right after a Linear")
            self.cut_node = node.args[0]
        whole = self.cut_node
        ends = self.cutter.step(node, self.values[whole], whole, where, what)
        if ends is None:
            return
        layer = self.nodes.unfinished(whole, where, what)
        layer.ends, layer.stage = ends, 4
        self.nodes.further(node, whole)
        self.cut_node = None

    def layer(self, node: fx.Node, where: str, what: str, stage: int, after: str) -> Layer:
        """The layer that takes one more part, if the part comes in the order that is fused."""
        layer = self.nodes.unfinished(node.args[0], where, what)
        if layer.stage >= stage:
            raise NoPlan(f"{where}: {what} is fused only after {after}")
        layer.stage = stage
        return layer

    def linear(self, node: fx.Node, m: nn.Linear | LinearLeakyReLU, x: Tensor, where: str) -> None:
        if self.used[m] > 1:
            raise NoPlan(f"{where}: a Linear that is used twice has no fused form")
        if x.dim() != 2:
            raise NoPlan(
                f"{where}: a Linear on a tensor of shape {['batch', *x.shape[1:]]} has no fused "
                "form; flatten it first"
            )
        if x.shape[0] != _BATCH:
            raise NoPlan(f"{where}: a Linear before rows become packs has no fused form")
        if x.shape[1] != m.in_features:
            raise NoPlan(f"{where}: takes {m.in_features} features, but gets {x.shape[1]}")
        if any(layer.ends is not None for layer in self.layers):
            raise NoPlan(
                f"{where}: a Linear behind columns with activations of their own has no fused form"
            )
        self.layers.append(Layer(where, m))
        if isinstance(m, LinearLeakyReLU):
            self.set_activation(self.layers[-1], "leaky_relu", m.negative_slope, where, "LeakyReLU")
        self.nodes.layer(node, node.args[0], where)
        self.values[node] = x.new_empty(_BATCH, m.out_features)

    def norm(self, node: fx.Node, m: nn.BatchNorm1d | nn.LayerNorm, x: Tensor, where: str) -> None:
        kind = type(m).__name__
        if self.used[m] > 1:
            raise NoPlan(f"{where}: a {kind} that is used twice has no fused form")
        if x.dim() != 2:
            raise NoPlan(f"{where}: {kind} is fused on [batch, features] only")
        if isinstance(m, nn.LayerNorm) and m.normalized_shape != tuple(x.shape[1:]):
            raise NoPlan(
                f"{where}: LayerNorm over {m.normalized_shape}, but gets {x.shape[1]} features"
            )
        if isinstance(m, nn.BatchNorm1d) and not m.training:
            raise NoPlan(f"{where}: BatchNorm1d is in eval mode; call .train()")
        self.layer(node, where, kind, 1, "a Linear, before its activation").norm = m

    def activation(
        self, node: fx.Node, kind: str | None, slope: float, where: str, what: str
    ) -> None:
        if kind is None:
            raise NoPlan(f"{where}: {what} of this kind has no fused form")
        layer = self.nodes.unfinished(node.args[0], where, what)
        if layer.stage == 3 and layer.activation == "none" and kind == "leaky_relu":
            # What a mask keeps is only scaled, and by more than 0: the two may change places.
            self.set_activation(layer, kind, slope, where, what)
            layer.stage = 5
            return
        self.layer(node, where, what, 2, "a Linear or its norm, before its Dropout")
        self.set_activation(layer, kind, slope, where, what)

    def set_activation(self, layer: Layer, kind: str, slope: float, where: str, what: str) -> None:
        layer.stage = 2
        if not (math.isfinite(slope) and slope >= 0):
            raise NoPlan(
                f"{where}: {what} is fused with a slope of at least 0; this one has {slope}"
            )
        layer.activation, layer.slope = kind, float(slope)

    def dropout(self, node: fx.Node, m: nn.Dropout, where: str) -> None:
        if self.used[m] > 1:
            raise NoPlan(f"{where}: a Dropout that is used twice has no fused form")
        layer = self.layer(node, where, "Dropout", 3, "a Linear or its activation")
        layer.dropout = m
        layer.dropout_index = next(i for i, d in enumerate(self.dropouts) if d is m)


def _idle(m: nn.Dropout) -> bool:
    return not m.training or m.p == 0
