"""Filters of stride 2 that do what a 3x3 one and a change of size beside it do.

T. Karras et al., "Progressive Growing of GANs", ICLR 2018, call it `fused_scale` in their program.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def _taps(turned: bool) -> Tensor:
    """[16, 9]: which taps of a 3x3 filter a tap of the 4x4 one is the sum of."""
    first = torch.eye(4, 3, dtype=torch.float32, device="cpu")
    shifted = first + first.roll(1, 0)
    if turned:
        shifted = shifted.flip(0)
    return torch.kron(shifted, shifted)


def spread(weight: Tensor, turned: bool, factor: float) -> Tensor:
    """The 4x4 filters for convolutions of stride 2, [out, in, 4, 4].

    Args:
        weight: [out, in, 3, 3] of a convolution whose result is halved.
        turned: whether its input is doubled instead. The result is then that of the convolution
            which goes the other way, [in, out, 4, 4].
        factor: of the result.
    """
    if turned:
        weight = weight.transpose(0, 1)
    a, b = weight.shape[:2]
    return (weight.reshape(-1, 9) @ (factor * _taps(turned)).T).view(a, b, 4, 4)


def folded(gradient: Tensor, turned: bool, factor: float, channels_last: bool) -> Tensor:
    """The gradient of the 3x3 filters by that of `spread` of them.

    Args:
        gradient: [out, in, 4, 4].
        turned, factor: those of `spread`.
        channels_last: the memory format of the result, [out, in, 3, 3] of the convolution.
    """
    a, b = gradient.shape[:2]
    slope = (gradient.reshape(-1, 16) @ (factor * _taps(turned))).view(a, b, 3, 3)
    if turned:
        slope = slope.transpose(0, 1)
    plain = torch.contiguous_format  # in a copy also the strides of sides of one are
    if channels_last:
        return slope.permute(0, 2, 3, 1).clone(memory_format=plain).permute(0, 3, 1, 2)
    return slope.clone(memory_format=plain)
