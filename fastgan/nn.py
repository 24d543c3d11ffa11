"""Modules over the operators of :mod:`fastgan.ops`, and what puts them into a network.

State dicts do not change: a network saved before :func:`fuse` loads after it, and the other way
round.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, nn

from . import ops
from .heads import Heads
from .ops.reference import CONV_PLACES
from .packs import Pack
from .torch_private import buffers, children, has_hooks, leaky_relu, parameters

__all__ = [
    "AbsorbedLeakyReLU",
    "AbsorbedReLU",
    "Conv2dLeakyReLU",
    "ConvTranspose2dLeakyReLU",
    "Heads",
    "LinearLeakyReLU",
    "Pack",
    "fuse",
    "spectral_norm",
    "unfuse",
]

_NORMALISED = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.Embedding,
)  # fmt: skip


class LinearLeakyReLU(nn.Module):
    """torch.nn.Linear followed by torch.nn.LeakyReLU as one operator.

    Args:
        in_features, out_features, bias: as for torch.nn.Linear, whose state-dict keys (`weight`
            [out, in], `bias` [out]) and initial values it has.
        negative_slope: the factor of negative values; any finite number.

    Shapes: [..., in_features] -> [..., out_features].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        negative_slope: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """See the class."""
        super().__init__()
        slope = _finite(negative_slope)
        self._adopt(nn.Linear(in_features, out_features, bias, device, dtype), slope)

    def _adopt(self, linear: nn.Linear, negative_slope: float) -> None:
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.negative_slope = float(negative_slope)
        self.weight = linear.weight
        # register_parameter takes None too, which keeps the key out of the state dict as Linear
        # does.
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return ops.linear_leaky_relu(x, self.weight, self.bias, self.negative_slope)

    def extra_repr(self) -> str:
        """What print(module) shows in the parentheses."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, negative_slope={self.negative_slope}"
        )


class Conv2dLeakyReLU(nn.Conv2d):
    """torch.nn.Conv2d followed by torch.nn.LeakyReLU, by :func:`fastgan.ops.conv2d`.

    Args:
        negative_slope: the factor of negative values; any finite number. 1 leaves them alone.
        The others are those of torch.nn.Conv2d, whose state-dict keys and initial values it has.
    """

    def __init__(self, *args, negative_slope: float = 0.2, **kwargs):
        """See the class."""
        super().__init__(*args, **kwargs)
        self.negative_slope = _finite(negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, in, height, width] -> [batch, out, rows, columns]."""
        if self.padding_mode != "zeros":
            return leaky_relu(super().forward(x), self.negative_slope)
        places = self.stride, self.padding, self.dilation, self.groups
        slope = self.negative_slope
        return ops.conv2d(x, self.weight, self.bias, *places, negative_slope=slope)

    def extra_repr(self) -> str:
        """What print(module) shows in the parentheses."""
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}"


class ConvTranspose2dLeakyReLU(nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d followed by LeakyReLU, by :func:`fastgan.ops.conv_transpose2d`.

    Args:
        negative_slope: the factor of negative values; any finite number. 1 leaves them alone.
        The others are those of torch.nn.ConvTranspose2d, whose state dict it has, too.
    """

    def __init__(self, *args, negative_slope: float = 0.2, **kwargs):
        """See the class."""
        super().__init__(*args, **kwargs)
        self.negative_slope = _finite(negative_slope)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """x [batch, in, height, width] -> [batch, out, rows, columns]."""
        slope = self.negative_slope
        if output_size is not None:
            return leaky_relu(super().forward(x, output_size), slope)
        places = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return ops.conv_transpose2d(x, self.weight, self.bias, *places, negative_slope=slope)

    def extra_repr(self) -> str:
        """What print(module) shows in the parentheses."""
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}"


def _finite(negative_slope: float) -> float:
    if not math.isfinite(negative_slope):
        raise ValueError(f"negative_slope is {negative_slope}; it must be a finite number")
    return float(negative_slope)


class AbsorbedLeakyReLU(nn.Identity):
    """The place of a LeakyReLU that the layer before it has absorbed.

    It keeps the names of the later layers.
    """

    def __init__(self, negative_slope: float, inplace: bool):
        """See the class."""
        super().__init__()
        self.negative_slope = negative_slope
        self.inplace = inplace

    def extra_repr(self) -> str:
        """What print(module) shows in the parentheses."""
        return f"negative_slope={self.negative_slope}"


class AbsorbedReLU(AbsorbedLeakyReLU):
    """The place of a ReLU, which is a LeakyReLU of slope 0."""

    def __init__(self, inplace: bool):
        """See the class."""
        super().__init__(0.0, inplace)


def fuse(module: nn.Module) -> nn.Module:
    """Replace layers by those over the operators of :mod:`fastgan.ops`, anywhere in a tree.

    A Linear and the LeakyReLU after it become a :class:`LinearLeakyReLU`. A Conv2d or
    ConvTranspose2d that the operators serve (4x4 with stride 2 and padding 1, 3x3 with padding 1 or
    1x1) becomes a :class:`Conv2dLeakyReLU` or :class:`ConvTranspose2dLeakyReLU`, with the LeakyReLU
    or ReLU after it if there is one; the operators run where they were measured faster, and torch
    elsewhere (:func:`fastgan.ops.conv2d`).

    Works in place and returns `module`. Neighbours are looked for in every nn.Sequential; a Dropout
    after the pair stays as it is, and the engines take it together with the layer. The parameters
    stay the same objects (optimisers remain valid), state-dict keys, training mode, device, dtype,
    memory format and requires_grad do not change, and an activation's place is kept by an identity.

    Left alone, because something there would be lost: subclasses of the layers (parametrised
    modules are such), modules with hooks, with a forward of their own or with more than the usual
    parameters, and modules used in more than one place. Undo with :func:`unfuse`.
    """
    uses = _uses(module)

    def free(m: nn.Module) -> bool:
        return _plain(m) and uses[id(m)] == 1

    for parent, before, after in _neighbours(module):
        layer, act = children(parent)[before], children(parent)[after]
        if not (free(layer) and free(act)) or set(parameters(layer)) != {"weight", "bias"}:
            continue
        slope = _slope(act)
        if slope is None or not math.isfinite(slope):
            continue
        if type(layer) is nn.Linear and type(act) is nn.LeakyReLU:
            fused = LinearLeakyReLU.__new__(LinearLeakyReLU)
            nn.Module.__init__(fused)
            fused._adopt(layer, slope)
            fused.training = layer.training
        elif _is_served(layer):
            fused = _become(_CONVOLUTIONS[type(layer)], layer, negative_slope=slope)
        else:
            continue
        relu = type(act) is nn.ReLU
        placeholder = AbsorbedReLU(act.inplace) if relu else AbsorbedLeakyReLU(slope, act.inplace)
        placeholder.training = act.training
        children(parent).update({before: fused, after: placeholder})
    for parent, name, layer in _places(module):
        if free(layer) and _is_served(layer):
            plain = _become(_CONVOLUTIONS[type(layer)], layer, negative_slope=1.0)
            children(parent)[name] = plain
    return module


def spectral_norm(network: nn.Module) -> nn.Module:
    """Divide the weight of every linear layer, convolution and embedding by its largest factor.

    T. Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018; by
    torch's own parametrization, with one step of the power iteration in each pass of training.

    Args:
        network: changed in place; layers that have the norm already stay as they are.

    Returns:
        the network.

    Raises:
        ValueError: it has fused layers, which multiply by their weights themselves.
    """
    layers = [m for m in network.modules() if type(m) in _NORMALISED]
    for path, m in network.named_modules():
        if isinstance(m, (LinearLeakyReLU, Conv2dLeakyReLU, ConvTranspose2dLeakyReLU)):
            raise ValueError(
                f"{path or 'the network'} is a {type(m).__name__}, which takes no spectral norm; "
                "call fastgan.unfuse(network) before"
            )
    for m in layers:
        nn.utils.parametrizations.spectral_norm(m)
    return network


def unfuse(module: nn.Module) -> nn.Module:
    """Undo :func:`fuse`, in place; returns `module`. The parameters stay the same objects.

    A layer with an activation that fuse did not put there stays.
    """
    for parent, before, after in _neighbours(module):
        fused, placeholder = children(parent)[before], children(parent)[after]
        if not isinstance(placeholder, AbsorbedLeakyReLU):
            continue
        if type(fused) is LinearLeakyReLU:
            # On the meta device nothing is allocated or drawn from the generator before the
            # parameters replace it.
            linear = nn.Linear(
                fused.in_features, fused.out_features, fused.bias is not None, "meta"
            )
            linear.weight = fused.weight
            linear.bias = fused.bias
            linear.training = fused.training
            layer = linear
        elif type(fused) in _CONVOLUTIONS.values():
            layer = _become(type(fused).__base__, fused)
        else:
            continue
        slope, inplace = placeholder.negative_slope, placeholder.inplace
        relu = type(placeholder) is AbsorbedReLU
        act = nn.ReLU(inplace) if relu else nn.LeakyReLU(slope, inplace)
        act.training = placeholder.training
        children(parent).update({before: layer, after: act})
    for parent, name, layer in _places(module):
        if type(layer) in _CONVOLUTIONS.values() and layer.negative_slope == 1:
            children(parent)[name] = _become(type(layer).__base__, layer)
    return module


_CONVOLUTIONS = {nn.Conv2d: Conv2dLeakyReLU, nn.ConvTranspose2d: ConvTranspose2dLeakyReLU}


def _slope(act: nn.Module) -> float | None:
    """The factor of negative values; None if this is no rectifier of torch's own."""
    if type(act) is nn.ReLU:
        return 0.0
    return act.negative_slope if type(act) is nn.LeakyReLU else None


def _is_served(layer: nn.Module) -> bool:
    """Whether this is a convolution of torch's own that the operators can do."""
    if type(layer) not in _CONVOLUTIONS or set(parameters(layer)) != {"weight", "bias"}:
        return False
    stride, padding = CONV_PLACES.get(layer.kernel_size[0], (0, 0))
    size = layer.kernel_size[0]
    given = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding
    wanted = (size, size), (stride, stride), (padding, padding), (1, 1), (0, 0)
    return given == wanted and layer.groups == 1 and layer.padding_mode == "zeros"


def _become(cls: type[nn.Module], module: nn.Module, **more) -> nn.Module:
    """A module of another class with the same parameters and settings, and `more`."""
    new = cls.__new__(cls)
    new.__dict__.update({k: v for k, v in vars(module).items() if k != "negative_slope"}, **more)
    return new


def runs(sequence: nn.Sequential) -> list[tuple[nn.Module, nn.Dropout | None]]:
    """The modules of a sequence in order; a LinearLeakyReLU with the Dropout that follows it.

    Together are only modules that a hook or a forward of their own would not notice.
    """
    found: list[tuple[nn.Module, nn.Dropout | None]] = []
    rest = list(sequence)
    while rest:
        absorbed = len(rest) > 1 and type(rest[1]) is AbsorbedLeakyReLU
        group = rest[: 3 if absorbed else 2]
        kinds = type(group[0]), type(group[-1])
        if kinds == (LinearLeakyReLU, nn.Dropout) and all(map(_plain, group)):
            found.append((group[0], group[-1]))
            del rest[: len(group)]
        else:
            found.append((rest.pop(0), None))
    return found


def sequences(root: nn.Module) -> list[nn.Sequential]:
    """Containers that call their modules one after the other, and do nothing else."""
    return [
        m
        for m in root.modules()
        if isinstance(m, nn.Sequential)
        and type(m).forward is nn.Sequential.forward
        and "forward" not in m.__dict__
    ]


def _neighbours(root: nn.Module):
    """(container, name, next name) of all modules that are certainly called one after the other."""
    for parent in sequences(root):
        names = list(children(parent))
        yield from ((parent, a, b) for a, b in zip(names, names[1:], strict=False))


def _places(root: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(container, name, module) of all modules below the root."""
    return [
        (p, name, m) for p in root.modules() for name, m in children(p).items() if m is not None
    ]


def _uses(root: nn.Module) -> Counter:
    """In how many places of the tree each module stands, by id."""
    return Counter(id(child) for parent in root.modules() for child in children(parent).values())


def _plain(module: nn.Module) -> bool:
    """Whether a module has nothing that a replacement would lose."""
    return not (
        has_hooks(module) or buffers(module) or children(module) or "forward" in module.__dict__
    )
