"""The Python face of the compiled operators: derivatives, and the choice of road.

An operator travels from a module of :mod:`fastgan.nn` through a function here to
``torch.ops.fastgan.*``, whose schemas stand in csrc/schema.cpp. Where no compiled library serves
the device, the same function of :mod:`fastgan.ops.reference` runs; the values agree to rounding.
Derivatives are torch.autograd.Functions around the operators. When a backward pass is itself
recorded (create_graph=True), it is expressed in differentiable torch operations, so derivatives of
any order exist.
"""

from __future__ import annotations

import torch.fx

from .adam import adam_, adam_device_, ema_
from .bce import discriminator_loss, generator_loss
from .conv import conv2d, conv_transpose2d, release_memory
from .draws import dropout_at, keep_mask_at, philox_normal_at
from .gather import gather_normalize
from .library import has_fast_bf16, has_kernels, isa, library_status
from .linear import linear_leaky_relu, linear_leaky_relu_dropout_at
from .norm import batch_norm_leaky_relu
from .table import (
    add_columns_,
    heads_,
    heads_backward_,
    normed_relu_,
    normed_relu_backward_,
    product_,
    sum_columns_,
    surprise_,
)

__all__ = [
    "adam_",
    "add_columns_",
    "adam_device_",
    "batch_norm_leaky_relu",
    "conv2d",
    "conv_transpose2d",
    "discriminator_loss",
    "dropout_at",
    "ema_",
    "gather_normalize",
    "generator_loss",
    "has_fast_bf16",
    "has_kernels",
    "heads_",
    "heads_backward_",
    "isa",
    "keep_mask_at",
    "library_status",
    "linear_leaky_relu",
    "linear_leaky_relu_dropout_at",
    "normed_relu_",
    "normed_relu_backward_",
    "philox_normal_at",
    "product_",
    "release_memory",
    "sum_columns_",
    "surprise_",
]

# torch.fx patches names module by module; modules call these here.
for _name in ("conv2d", "conv_transpose2d", "linear_leaky_relu"):
    torch.fx.wrap(_name)
