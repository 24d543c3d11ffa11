"""Which compiled libraries there are, what they serve, and what torch's compiler is told."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import torch
from torch import Tensor

from ..torch_private import forward_mode_is_active, functorch_is_active


def _load(name: str) -> str:
    """Import one compiled library; "loaded" or the reason why not."""
    try:
        importlib.import_module(f"fastgan.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"fastgan.{name}":
            return f"failed to load: {error}"
        return "not built: fastgan was installed without it"
    except ImportError as error:
        return f"failed to load: {error}"
    return "loaded"


_status = {"cpu": _load("_C")}
if torch.version.cuda is None:
    _status["cuda"] = "not loaded: this torch was built without CUDA"
elif _status["cpu"] != "loaded":
    _status["cuda"] = "not loaded: it needs the CPU library, which defines the operators"
else:
    _status["cuda"] = _load("_C_cuda")
KERNELS = frozenset(kind for kind, status in _status.items() if status == "loaded")
"""The kinds of devices that a compiled library serves."""

PLAIN = frozenset((Tensor, torch.nn.Parameter))
"""Tensors of torch's own. A subclass may mean something else by an operation."""

DTYPES = {"cpu": frozenset((torch.float32, torch.float64, torch.bfloat16))}
DTYPES["cuda"] = DTYPES["cpu"] | {torch.float16}
"""What the layers and losses of a device take."""


def library_status() -> dict[str, str]:
    """{"cpu": ..., "cuda": ...}: "loaded", or the reason why that compiled library is absent."""
    return dict(_status)


def has_kernels(device: torch.device) -> bool:
    """Whether a compiled library serves tensors on `device`."""
    return device.type in KERNELS


def takes(t: Tensor) -> bool:
    """Whether layers and losses of a compiled library take a tensor of this kind."""
    return has_kernels(t.device) and t.dtype in DTYPES[t.device.type]


def isa() -> str | None:
    """The instruction set of the CPU kernels; None without them.

    "amx", "avx512", "avx2" or "baseline": each has what those after it have.

    Raises RuntimeError if FASTGAN_ISA asks for one that this processor or this build lacks.
    """
    return torch.ops.fastgan.isa() if "cpu" in KERNELS else None


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the fused engine was measured faster with this CPU's products in bfloat16.

    With AMX on Sapphire Rapids, and with avx512_bf16 on Zen 4. Intel's processors take that dot
    product at half the rate of float32's: 2.3 ms a step of the reference pair on Emerald Rapids,
    and 1.7 in float32.
    """
    if device.type != "cpu" or not has_kernels(device):
        return False
    products = torch.ops.fastgan.fused_products("bf16")
    return products == "amx" or (products == "avx512_bf16" and _vendor() == "AuthenticAMD")


@functools.cache
def _vendor() -> str | None:
    """Who has made the processor, as it says itself; None where it cannot be asked."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:  # another system than Linux
        return None
    found = re.search(r"^vendor_id\s*:\s*(\S+)", told, re.MULTILINE)
    return None if found is None else found[1]


def differentiable_here() -> bool:
    """Whether autograd.Functions apply: torch.func and forward mode take the plain operations."""
    return torch.compiler.is_compiling() or not (functorch_is_active() or forward_mode_is_active())


if "cpu" in KERNELS:

    @torch.library.register_fake("fastgan::linear_leaky_relu")
    def _(x, weight, bias, negative_slope):
        return x.new_empty((*x.shape[:-1], weight.shape[0]))

    @torch.library.register_fake("fastgan::linear_leaky_relu_dropout_at")
    def _(x, weight, bias, negative_slope, *mask):
        return x.new_empty((*x.shape[:-1], weight.shape[0]))

    @torch.library.register_fake("fastgan::linear_leaky_relu_dropout_backward_at")
    @torch.library.register_fake("fastgan::linear_leaky_relu_backward")
    def _(grad, x, weight, sign, negative_slope, need_x, need_weight, need_bias, *mask):
        return (
            x.new_empty(x.shape if need_x else (0,)),
            weight.new_empty(weight.shape if need_weight else (0,)),
            weight.new_empty(weight.shape[0] if need_bias else (0,)),
        )

    def _channels_last(t, batch, channels, rows, columns):
        row = columns * channels
        strides = rows * row, 1, row, channels
        return t.new_empty_strided((batch, channels, rows, columns), strides)

    @torch.library.register_fake("fastgan::conv2d_leaky_relu")
    def _(x, weight, bias, negative_slope, sign=None):
        stride = 2 if weight.shape[-1] == 4 else 1
        size = x.shape[0], weight.shape[0], x.shape[2] // stride, x.shape[3] // stride
        return _channels_last(x, *size)

    @torch.library.register_fake("fastgan::conv_transpose2d_leaky_relu")
    def _(x, weight, bias, negative_slope, sign=None):
        stride = 2 if weight.shape[-1] == 4 else 1
        size = x.shape[0], weight.shape[1], x.shape[2] * stride, x.shape[3] * stride
        return _channels_last(x, *size)

    @torch.library.register_fake("fastgan::conv2d_grad_weight")
    def _(x, grad, kernel, channels_last):
        size = grad.shape[1], x.shape[1], kernel, kernel
        return _channels_last(x, *size) if channels_last else x.new_empty(size)

    @torch.library.register_fake("fastgan::batch_norm_leaky_relu")
    def _(x, weight, bias, mean, var, momentum, eps, negative_slope, parts=1):
        size = parts * x.shape[1]
        return _channels_last(x, *x.shape), weight.new_empty(size), weight.new_empty(size)

    @torch.library.register_fake("fastgan::batch_norm_leaky_relu_backward")
    def _(grad, x, weight, bias, mean, deviation, negative_slope, need_x, parts=1):
        dx = _channels_last(x, *x.shape) if need_x else x.new_empty((0,))
        return dx, torch.empty_like(weight), torch.empty_like(weight)

    @torch.library.register_fake("fastgan::batch_norm_leaky_relu_second")
    def _(v, grad, x, weight, *settings):
        return (*(_channels_last(x, *x.shape) for _ in range(2)), torch.empty_like(weight))

    def _loss_like(logits):
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return logits.new_empty((), dtype=wide)

    @torch.library.register_fake("fastgan::discriminator_loss")
    def _(real_logits, fake_logits, real_label, fake_label):
        return (
            _loss_like(real_logits),
            real_logits.new_empty(real_logits.shape),
            fake_logits.new_empty(fake_logits.shape),
        )

    @torch.library.register_fake("fastgan::generator_loss")
    def _(fake_logits, saturating):
        return _loss_like(fake_logits), fake_logits.new_empty(fake_logits.shape)

    @torch.library.register_fake("fastgan::dropout_at")
    def _(x, threshold, seed, stream, counter, multiplier, offset, start):
        return x.new_empty(x.shape)

    @torch.library.register_fake("fastgan::surprise_")
    def _(grad, logits, category, first, wide, scale):
        return logits.new_empty(logits.shape[0])

    @torch.library.register_fake("fastgan::normed_relu_")
    def _(out, x, *others):
        return x.new_empty((2, x.shape[1]))

    @torch.library.register_fake("fastgan::normed_relu_backward_")
    def _(grad, out, x, weight, statistics):
        return x.new_empty((2, x.shape[1]))

    for _name in (
        "add_columns_",
        "heads_",
        "heads_backward_",
        "product_",
        "sum_columns_",
        "adam_",
        "adam_device_",
        "ema_",
        "gather_normalize",
        "philox_words",
        "philox_uniform",
        "philox_normal",
        "philox_normal_at",
        "philox_keep_mask",
        "philox_keep_mask_at",
    ):
        torch.library.register_fake(f"fastgan::{_name}", lambda *args: None)
