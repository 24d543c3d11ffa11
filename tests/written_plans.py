"""Plans of the fused step written by hand, in the order that csrc/step/decode.cpp reads.

case = written_plans.Case(written_plans.PAIR, batch=8)
statistics = case.run(3)               # torch.ops.fastgan.fused_run on tensors of its own
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan import random

ACTIVATIONS = ("none", "leaky_relu", "tanh", "sigmoid", "elu", "gelu", "gelu_tanh", "silu")
ACTIVATIONS += ("selu", "softplus")


@dataclass
class Layer:
    """A Linear with what follows it."""

    out: int
    activation: str = "leaky_relu"
    slope: float = 0.2
    norm: bool = False
    row_norm: bool = False
    """A LayerNorm."""
    drop: float = 0.0
    bias: bool = True
    source: int | None = None
    """The node that it takes; None: the layer before it."""


@dataclass
class Head:
    """Columns of G's output: kind "columns", "softmax" or "gumbel"."""

    kind: str
    width: int
    activation: str = "none"
    by: float = 0.0
    """A slope or a temperature."""
    hard: bool = False
    asked: bool = False


@dataclass
class Part:
    """Columns of an input behind its own: kind "numbers", "one_hot" or "embedding" of a label."""

    kind: str
    width: int
    classes: int = 1


PAIR = ([Layer(6), Layer(12, "tanh")], [Layer(9, drop=0.3), Layer(1, "none")])
HEADED = ([Layer(6), Layer(12, "none")], [Layer(9, drop=0.3), Layer(1, "none")])
HEADS = (
    Head("columns", 2, "tanh"),
    Head("softmax", 3, by=0.5),
    Head("gumbel", 7, by=0.7, hard=True),
)
NORMED = (
    [Layer(6, "elu", norm=True), Layer(12, "tanh", norm=True, drop=0.1)],
    [Layer(40, "sigmoid", bias=False), Layer(9, norm=True, drop=0.3), Layer(1, "none")],
)
BRANCHED = (
    [Layer(6, "elu"), Layer(6, "tanh", norm=True), Layer(12, "tanh", source=5)],
    [Layer(9, drop=0.3), Layer(9, source=0), Layer(9, source=5), Layer(1, "none", source=6)],
)
JOINS = (
    [(1, 0, 1, 1), (2, 1, 2, 4, 0)],
    [(2, 0, 1, 2), (3, 1, 3, 5, 0)],
)
"""Of each of its networks: the layers before a join, whether it concatenates, the nodes."""


@dataclass
class Case:
    """A plan, its tensors, and the arguments of a run."""

    networks: tuple[list[Layer], list[Layer]] = PAIR
    latent: int = 5
    image: int = 12
    pack: int = 1
    """Images side by side in a row of D's input."""
    batch: int = 8
    count: int = 20
    d_steps: int = 1
    g_steps: int = 1
    shared_fakes: bool = False
    loss: int = 0
    seed: int = 3
    precision: int = 0
    average: bool = True
    bytes: bool = True
    lr: float = 1e-3
    joins: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = ((), ())
    penalties: tuple[tuple[int, int, int, float], ...] = ()
    """Of each the form, the place, the interval and the weight."""
    clips: tuple[float, float] = (math.inf, math.inf)
    """The largest number of a gradient, and the longest gradient."""
    parts: tuple[tuple[Part, ...], tuple[Part, ...]] = ((), ())
    """Of each network's input."""
    drawn: bool = True
    """Whether fake samples have conditions of their own."""
    warmup: float = math.inf
    """Of the average: its half-life over the steps so far."""
    uniforms: tuple[tuple[int, int, float, float], ...] = ()
    """Columns of latents that are uniform: the first, how many, the lowest number, the spread."""
    heads: tuple[Head, ...] = ()
    terms: tuple[tuple[int, float], ...] = ()
    """Of each the kind and the weight."""
    threads: int = 2
    draw: int = 0
    integers: list[int] = field(default_factory=list)
    reals: list[float] = field(default_factory=list)
    state: list[Tensor] = field(default_factory=list)
    values: list[list[list[Tensor | None]]] = field(default_factory=list)
    """Of G and of D, for each layer: weight, bias, BatchNorm's weight and bias; then tables."""

    def __post_init__(self):
        """Write the plan and draw the tensors."""
        self.generator = torch.Generator().manual_seed(self.draw)
        latent, image = (
            pack * (own + sum(part.width for part in parts))
            for own, parts, pack in zip(
                (self.latent, self.image), self.parts, (1, self.pack), strict=True
            )
        )
        self.integers += [latent, image, self.batch, self.d_steps, self.loss, self.seed]
        self.integers += [self.count, self.precision]
        self.reals += [1.0, 0.9]
        for layers, width, averaged, joins, parts in zip(
            self.networks,
            (latent, image),
            (self.average, False),
            self.joins,
            self.parts,
            strict=True,
        ):
            self._network(layers, width, averaged, joins, parts)
        for number, (own, pack) in enumerate(((self.latent, 1), (self.image, self.pack))):
            self.integers.append(pack)
            self._inputs(number, own)
        self._heads()
        self.integers += [self.g_steps, int(self.shared_fakes), len(self.penalties)]
        for *integers, weight in self.penalties:
            self.integers += integers
            self.reals.append(weight)
        self.reals.append(self.warmup)
        self.integers.append(len(self.uniforms))
        for at, width, *bounds in self.uniforms:
            self.integers += [at, width]
            self.reals += bounds
        self.plan = torch.tensor(self.integers)
        self.settings = torch.tensor(self.reals, dtype=torch.float64)
        shape = (self.count, self.image)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=self.generator)
        if not self.bytes:
            self.images = self.images / 127.5 - 1
        self.order = torch.cat(
            [torch.randperm(self.count, generator=self.generator) for _ in range(4)]
        )
        self.rates = torch.tensor([self.lr, self.lr], dtype=torch.float64)
        self._conditions()

    def _inputs(self, network: int, own: int) -> None:
        parts = self.parts[network]
        self.integers += [0, len(parts)]
        for part in parts:
            kind = ("numbers", "one_hot", "embedding").index(part.kind)
            self.integers += [kind, own, part.width, part.classes]
            own += part.width
            if part.kind != "embedding":
                self.integers += [-1] * 4
                continue
            size = part.classes, part.width
            table = torch.randn(size, generator=self.generator)
            self.values[network].append([table])
            self.integers += [self._place(t) for t in (table, torch.zeros(size), torch.zeros(size))]
            averaged = self.average and network == 0
            self.integers.append(self._place(table.clone()) if averaged else -1)

    def _conditions(self) -> None:
        self.condition = self.places = None
        parts = [part for of in self.parts for part in of]
        if not parts:
            return
        if parts[0].kind == "numbers":
            size = self.count, parts[0].width
            self.condition = torch.randn(size, generator=self.generator)
        else:
            classes = min(part.classes for part in parts)
            size = (self.count,)
            self.condition = torch.randint(0, classes, size, generator=self.generator)
        if self.drawn:
            size = 8, self.d_steps + self.g_steps, self.batch
            self.places = torch.randint(0, self.count, size, generator=self.generator)

    def given(self, first: int, steps: int) -> list[Tensor | None]:
        """Conditions, and those that fake samples have in some steps."""
        places = None if self.places is None else self.places[first : first + steps].clone()
        return [self.condition, places]

    def _heads(self) -> None:
        self.integers += [len(self.heads), 0]
        for head in self.heads:
            kind = ("columns", "softmax", "gumbel").index(head.kind)
            activation = ACTIVATIONS.index(head.activation)
            self.integers += [kind, activation, head.width, int(head.hard), int(head.asked)]
            self.reals.append(head.by)
        self.integers += [len(self.terms), *(kind for kind, _ in self.terms)]
        self.reals += [weight for _, weight in self.terms]

    def _place(self, tensor: Tensor) -> int:
        self.state.append(tensor)
        return len(self.state) - 1

    def _network(
        self, layers: list[Layer], width: int, averaged: bool, joins: list, parts: tuple
    ) -> None:
        self.reals += [0.5, 0.99, 1e-8, 0.01, *self.clips, math.inf]
        counts = [1 + layer.bias + 2 * (layer.norm or layer.row_norm) for layer in layers]
        tables = sum(part.kind == "embedding" for part in parts)
        steps = [self._place(torch.zeros(())) for _ in range(sum(counts) + tables)]
        self.integers += [0, len(steps), *steps, len(layers)]
        self.integers.append(len(joins))
        for before, kind, *nodes in joins:
            self.integers += [before, kind, len(nodes), *nodes]
        others = [(n, layer.source) for n, layer in enumerate(layers) if layer.source is not None]
        self.integers += [len(others), *(i for pair in others for i in pair)]
        widths = {0: width, **{n + 1: layer.out for n, layer in enumerate(layers)}}
        for _, kind, *nodes in joins:
            of = [widths[n] for n in nodes]
            widths[len(widths)] = sum(of) if kind else of[0]
        index = 0
        self.values.append([])
        for n, layer in enumerate(layers):
            width = widths[n if layer.source is None else layer.source]
            threshold = round((1 - layer.drop) * 65536) if layer.drop else 0
            self.integers += [layer.out, ACTIVATIONS.index(layer.activation)]
            self.integers.append(2 if layer.row_norm else int(layer.norm))
            self.integers += [int(layer.drop > 0), threshold, index]
            index += layer.drop > 0
            self.reals += [layer.slope, 1e-5, 0.1]
            sizes = [(layer.out, width), (layer.out,) if layer.bias else None]
            sizes += [(layer.out,) if layer.norm or layer.row_norm else None] * 2
            self.values[-1].append([None] * 4)
            for i, size in enumerate(sizes):
                if size is None:
                    self.integers += [-1] * 4
                    continue
                value = self.values[-1][-1][i] = torch.randn(
                    size, generator=self.generator
                ) * width**-0.5 + (i == 2)
                places = [value, torch.zeros(size), torch.zeros(size)]
                self.integers += [self._place(t) for t in places]
                self.integers.append(self._place(value.clone()) if averaged else -1)
            for kept in (layer.norm, layer.norm and averaged):
                if not kept:
                    self.integers += [-1] * 3
                    continue
                running = torch.zeros(layer.out), torch.ones(layer.out), torch.tensor(0)
                self.integers += [self._place(t) for t in running]

    def forward(self, network: int, x: Tensor, rounded: bool = False) -> Tensor:
        """G (0) or D (1) in float64, without BatchNorm and dropout.

        With `rounded` the products are of operands rounded to bfloat16, but for D's last layer.
        """
        for layer, (weight, bias, *_) in zip(
            self.networks[network], self.values[network], strict=True
        ):
            narrow = rounded and not (network == 1 and layer is self.networks[1][-1])
            x, weight = ((t.bfloat16() if narrow else t).double() for t in (x, weight))
            x = x @ weight.T
            x = x if bias is None else x + bias.double()
            x = {
                "none": lambda t: t,
                "leaky_relu": lambda t, slope=layer.slope: F.leaky_relu(t, slope),
                "tanh": torch.tanh,
                "sigmoid": torch.sigmoid,
                "elu": lambda t, slope=layer.slope: F.elu(t, slope),
                "gelu": F.gelu,
                "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
                "silu": F.silu,
                "selu": F.selu,
                "softplus": F.softplus,
            }[layer.activation](x)
        return x

    def latents(self, stream: random.Stream, step: int = 0) -> Tensor:
        """What G takes in D's update of that number, or in G's of that step."""
        return random.normal(self.seed, stream, step, (self.batch, self.latent))

    def numbers(self, network: int) -> int:
        """Of the weights of G (0) or D (1)."""
        layers = self.values[network]
        return sum(t.numel() for layer in layers for t in layer if t is not None)

    def memory(self) -> Tensor:
        """Working memory, zeros at a multiple of 64 bytes."""
        size = torch.ops.fastgan.fused_memory(self.plan, self.settings, self.threads)
        return aligned(size, 64)

    def arguments(self, steps: int, first_step: int = 0) -> list:
        """Those of fused_run; the seventh is the statistics."""
        statistics = torch.zeros(steps, 4)
        fixed = [self.plan, self.settings, self.state, self.memory(), self.images, self.order]
        given = self.given(first_step, steps) if self.condition is not None else []
        return [*fixed, self.rates, statistics, None, first_step, self.threads, *given]

    def run(self, steps: int, first_step: int = 0) -> Tensor:
        """Do some steps; their statistics."""
        arguments = self.arguments(steps, first_step)
        torch.ops.fastgan.fused_run(*arguments)
        return arguments[7]


def aligned(size: int, alignment: int) -> Tensor:
    """uint8 [size], zeros, from a multiple of `alignment` bytes on."""
    memory = torch.zeros(size + alignment, dtype=torch.uint8)
    start = -memory.data_ptr() % alignment
    return memory[start : start + size]
