"""Convolutions of networks that do not know, by our operators and in one memory format.

While a pass of a network is at work, calls of torch's convolutions are taken to
:mod:`fastgan.ops`, which run where they were measured faster, and to torch's own elsewhere; under
autocast to bfloat16 all are torch's, and only the memory format is ours to choose. In an
update that is penalised, rectifiers are those that send no zeros back through the network. The
modules are not touched: what a hook, a callback or a copy sees of them is what the user made. What
passes return, and gradients at their inputs, are in the memory format that they have without, for
programs that flatten them by ``view``; where hooks or attributes would show the other, it is not
taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastgan import ops, torch_private
from fastgan.engines import norms, probe
from fastgan.method import LossMethod
from fastgan.ops import conv, library, rectifier

if TYPE_CHECKING:
    from fastgan.problem import Problem

_DTYPES = torch.float32, torch.bfloat16
"""Of images that are brought into the format."""
_TRIED = 2
"""Samples that a network is tried with: BatchNorm wants more than one."""


class Convolutions:
    """Which road the convolutions of a problem's networks take, a function of their shapes."""

    def __init__(self, problem: Problem):
        """Look at the networks, by passes of copies."""
        self._problem = problem
        self._plays_game = isinstance(problem.method, LossMethod)
        # Another method may want what zeros show, several ranks a norm over all of them.
        self._joins = self._plays_game and problem.world.size == 1
        self._shapes: list[tuple] | None = None
        self.look()

    def look(self) -> None:
        """Look at the networks, closely unless they are still of the shapes that were seen."""
        shapes = _shapes(self._problem)
        if shapes != self._shapes:
            self._shapes = shapes
            self._look_closely()
        p, found = self._problem, []
        for network, slopes in zip((p.generator, p.discriminator), self._rectified, strict=True):
            still = norms.norms_of(network) if slopes else []
            found += [
                (network.get_submodule(name), slopes[name]) for name in slopes if name in still
            ]
        self._norms = norms.Norms(found)
        if self._mode is not None:
            self._mode.norms = self._norms

    def _look_closely(self) -> None:
        problem = self._problem
        self._mode: _Taken | None = None
        self._counts: list[tuple[int, int]] = []
        """For G and D: convolutions that have a faster pass, and all."""
        self._rectified: list[norms.Slopes] = [{}, {}]
        wanted = problem.config.channels_last
        if may_take(problem):
            formats = (True, False) if wanted is None else (wanted,)
        elif wanted is None and _only_format(problem):
            formats = (True,)
        else:
            return
        for channels_last in formats:
            if channels_last and wanted is None and _hooked(problem):
                continue
            try:
                counts, rectified = _counted(problem, channels_last)
            except Exception:  # a view that the other format does not allow, say
                continue
            if _only_format(problem):
                self._mode = _Taken(channels_last)
                return
            if any(faster for faster, _ in counts):
                self._mode, self._counts = _Taken(channels_last), counts
                # A hook may look at any module.
                if self._joins and channels_last and not _hooked(problem):
                    self._rectified = rectified
                return

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Passes take torch's own operators meanwhile."""
        mode, self._mode = self._mode, None
        try:
            yield
        finally:
            self._mode = mode

    @property
    def taken(self) -> bool:
        """Whether a pass of one of them is by an operator of fastgan's."""
        return bool(self._counts)

    def call(self, function: Any, args: tuple, kwargs: dict, *, penalised: bool) -> Any:
        """A pass, whose convolutions are taken; rectifiers too, if it may be penalised."""
        if self._mode is None:
            return function(*args, **kwargs)
        self._mode.penalised = penalised and self.taken
        hidden = self._mode.channels_last and self._problem.config.channels_last is None
        if hidden:
            args, kwargs = _each(_with_plain_gradient, args), _each(_with_plain_gradient, kwargs)
        with self._mode, self._norms.active():
            out = function(*args, **kwargs)
        return _each(_plain, out) if hidden else out

    def zeros(self, loss: Tensor, weights: Iterable[Tensor]) -> list[Tensor]:
        """Those of some weights without a gradient that would have one, of zeros, in torch."""
        # A game of scores and penalties reaches all of D by the scores.
        if self._mode is None or not self._mode.penalised:
            return []
        return [] if self._plays_game else rectifier.by_zeros(loss, weights)

    def describe(self) -> list[str]:
        """What there is to say of it, in a few words each."""
        if self._mode is None:
            first = self._problem.device.type == "cpu" and _channels_first(self._problem)
            return ["convolutions are often faster with channels_last=True"] if first else []
        if not self._counts:
            return ["convolutions by torch in channels-last memory"]
        (of_g, all_g), (of_d, all_d) = self._counts
        counts = f"{of_g} of {all_g} of G, {of_d} of {all_d} of D"
        said = [f"convolutions by fastgan's operators: {counts}"]
        if self._mode.channels_last:
            said.append("in channels-last memory")
        if joined := sum(map(len, self._rectified)):
            said.append(f"{joined} BatchNorm2d with their rectifiers")
        return [", ".join(said)]


def may_take(problem: Problem) -> bool:
    """Whether taking calls is possible at all: what it costs to ask is a walk of the networks."""
    if problem.precision != "fp32" or "cpu" not in library.KERNELS:
        return False
    return problem.config.operators != "torch" and _may_reach(problem)


def _only_format(problem: Problem) -> bool:
    """Whether torch's convolutions take images in another memory format: in bfloat16 they are a
    multiple faster channels last, and ours are for float32."""
    return problem.precision == "bf16" and _may_reach(problem)


def _may_reach(problem: Problem) -> bool:
    """Whether there are convolutions on the CPU whose calls pass by here."""
    p = problem
    if p.device.type != "cpu" or p.divided:
        return False
    networks = (p.generator, p.discriminator)
    # The compiler would trace what stands between it and torch's operations.
    if any(torch_private.is_compiled(m) for network in networks for m in network.modules()):
        return False
    return any(w.dim() == 4 for network in networks for w in network.parameters())


def _channels_first(problem: Problem) -> bool:
    """Whether there are convolutions whose weights are not in the channels-last format."""
    return any(
        not m.weight.is_contiguous(memory_format=torch.channels_last)
        for network in (problem.generator, problem.discriminator)
        for m in network.modules()
        if type(m) in (nn.Conv2d, nn.ConvTranspose2d)
    )


def _counted(
    problem: Problem, channels_last: bool
) -> tuple[list[tuple[int, int]], list[norms.Slopes]]:
    """What `Convolutions` keeps of G and D; ValueError where a network would show the format."""
    p, counts, rectified = problem, [], []
    originals = p.generator, p.discriminator
    with probe.tried(p) as (g, d):
        batch = len(p.world.rows(min(p.batch_size, len(p.data))))
        for original, network, given in (
            (originals[0], g, probe.given_g(p, g, _TRIED)),
            (originals[1], d, probe.given_d(p, d, probe.samples(p, _TRIED))),
        ):
            watched = norms.Watched(network, norms.norms_of(original))
            with _Counted(channels_last, batch, watched) as seen, watched.in_place():
                network(*given)
            if channels_last and p.config.channels_last is None and _shows(network):
                raise ValueError("an attribute holds a tensor of a pass")
            counts.append((sum(seen.faster), len(seen.faster)))
            rectified.append(watched.whole())
    return counts, rectified


def _hooked(problem: Problem) -> bool:
    return any(map(probe.has_hooks, (problem.generator, problem.discriminator)))


def _shows(network: nn.Module) -> bool:
    """Whether an attribute holds a tensor that would have another format without."""
    held: list[Tensor] = []
    for module in network.modules():
        _each(held.append, list(vars(module).values()))
    return any(t.dim() > 2 and not t.is_contiguous() for t in held)


def _each(function: Callable[[Tensor], Any], value: Any) -> Any:
    """A value with function(tensor) in place of its tensors, in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)(_each(function, part) for part in value)
    if type(value) is dict:
        return {key: _each(function, part) for key, part in value.items()}
    return value


def _plain(x: Tensor) -> Tensor:
    return x.contiguous() if type(x) is Tensor and x.dim() > 2 else x


def _with_plain_gradient(x: Tensor) -> Tensor:
    """The same, whose gradient comes in its own memory format."""
    if type(x) is Tensor and x.requires_grad and x.dim() == 4 and x.is_contiguous():
        return x.view(-1).view(x.shape)
    return x


def _shapes(problem: Problem) -> list[tuple]:
    hooked = _hooked(problem)
    return [(hooked,)] + [
        (type(m), getattr(m, "negative_slope", None), *_sizes(m))
        for network in (problem.generator, problem.discriminator)
        for m in network.modules()
    ]


def _sizes(m: nn.Module) -> list[torch.Size]:
    return [
        w.shape
        for w in torch_private.parameters(m).values()
        if w is not None and not isinstance(w, nn.parameter.UninitializedTensorMixin)
    ]


def _relu(x, inplace=False):
    return rectifier.rectifier(x, 0.0, inplace)


def _leaky_relu(x, negative_slope=0.01, inplace=False):
    return rectifier.rectifier(x, negative_slope, inplace)


class _Taken(TorchFunctionMode):
    """Takes torch's convolutions to ours, and leaves out rectifiers whose work is done."""

    roads = {torch.conv2d: ops.conv2d, torch.conv_transpose2d: ops.conv_transpose2d}
    rectifiers = {
        F.relu: _relu,
        F.leaky_relu: _leaky_relu,
        F.leaky_relu_: functools.partial(_leaky_relu, inplace=True),
        torch.relu: rectifier.rectifier,
        Tensor.relu: rectifier.rectifier,
        torch.relu_: functools.partial(_relu, inplace=True),
        Tensor.relu_: functools.partial(_relu, inplace=True),
    }

    def __init__(self, channels_last: bool):
        super().__init__()
        self.channels_last = channels_last
        self.penalised = False
        self.norms = norms.Norms([])

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run the call, or ours in its place."""
        kwargs = kwargs or {}
        if self.norms.rectified(func, args, kwargs):
            return args[0]
        road = self.roads.get(func)
        rectified = self.rectifiers.get(func) if self.penalised else None
        # What activation checkpointing records it does again in the backward pass, where nothing
        # is taken, and compares.
        if not (road or rectified) or not args or torch_private.saved_tensors_are_hooked():
            return func(*args, **kwargs)
        if rectified:
            return rectified(*args, **kwargs)
        x, *rest = args
        if self.channels_last and type(x) is Tensor and x.dim() == 4 and x.dtype in _DTYPES:
            x = conv.to_channels_last(x)
        return self.call(road, x, *rest, **kwargs)

    def call(self, road, *args, **kwargs):
        """Do it."""
        return road(*args, **kwargs)


class _Counted(_Taken):
    """Looks which of them would be faster in a batch of another size, and runs torch's."""

    roads = {
        torch.conv2d: (conv.conv2d_is_faster, torch.conv2d),
        torch.conv_transpose2d: (conv.conv_transpose2d_is_faster, torch.conv_transpose2d),
    }

    def __init__(self, channels_last: bool, batch: int, watched: norms.Watched):
        super().__init__(channels_last)
        self.batch, self.watched = batch, watched
        self.faster: list[bool] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run the call, which is told."""
        out = super().__torch_function__(func, types, args, kwargs)
        self.watched.used(func, args, kwargs or {}, out)
        return out

    def call(self, road, *args, **kwargs):
        """See the class."""
        is_faster, plain = road
        self.faster.append(is_faster(self.batch, self.channels_last, *args, **kwargs))
        return plain(*args, **kwargs)
