"""The Python face of the compiled operators: loading, fakes, derivatives, the choice of road.

An operator travels from a module of :mod:`fastgan.nn` through a function here to
``torch.ops.fastgan.*``, whose schemas stand in csrc/schema.cpp. Where no compiled library serves
the device, the same function of :mod:`fastgan.reference` runs; the values agree to rounding.
Derivatives are torch.autograd.Functions around the operators. When a backward pass is itself
recorded (create_graph=True), it is expressed in differentiable torch operations, so derivatives of
any order exist.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from . import reference

__all__ = [
    "adam_",
    "adam_device_",
    "discriminator_loss",
    "dropout_at",
    "ema_",
    "gather_normalize",
    "generator_loss",
    "has_kernels",
    "isa",
    "keep_mask_at",
    "library_status",
    "linear_leaky_relu",
    "linear_leaky_relu_dropout_at",
    "philox_normal_at",
]

# --- Loading --------------------------------------------------------------------------------------


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
_kernels = frozenset(kind for kind, status in _status.items() if status == "loaded")


def library_status() -> dict[str, str]:
    """{"cpu": ..., "cuda": ...}: "loaded", or the reason why that compiled library is absent."""
    return dict(_status)


def has_kernels(device: torch.device) -> bool:
    """Whether a compiled library serves tensors on `device`."""
    return device.type in _kernels


def has_bf16(device: torch.device) -> bool:
    """Whether the CPU has instructions for products in bfloat16 that the fused engine takes."""
    if device.type != "cpu" or not has_kernels(device):
        return False
    return torch.ops.fastgan.fused_products(True) in ("avx512_bf16", "amx")


def isa() -> str | None:
    """The instruction set of the CPU kernels; None without them.

    "amx", "avx512", "avx2" or "baseline": each has what those after it have.

    Raises RuntimeError if FASTGAN_ISA asks for one that this processor or this build lacks.
    """
    return torch.ops.fastgan.isa() if "cpu" in _kernels else None


if "cpu" in _kernels:

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

    for _name in (
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


# --- Linear layer with a leaky rectifier ----------------------------------------------------------


class _LinearLeakyReLU(torch.autograd.Function):
    """The operator with its derivative, for negative_slope >= 0.

    The sign of the result is then that of the pre-activation, and nothing else need be kept.
    """

    # The context is taken by forward: a separate setup_context costs 20 us a call.
    @staticmethod
    def forward(ctx, x, weight, bias, negative_slope):
        out = torch.ops.fastgan.linear_leaky_relu(x, weight, bias, negative_slope)
        ctx.negative_slope = negative_slope
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, out = ctx.saved_tensors
        need, slope = ctx.needs_input_grad, ctx.negative_slope
        recorded = torch.is_grad_enabled()
        if torch.compiler.is_compiling() or (grad.is_cuda and not recorded):
            gx, gw, gb = torch.ops.fastgan.linear_leaky_relu_backward(
                grad, x, weight, out, slope, need[0], need[1], need[2]
            )
        elif recorded:
            # `out` carries the sign only: the rectifier has no curvature, so nothing is
            # differentiated through it.
            gx, gw, gb = reference.linear_leaky_relu_backward(grad, x, weight, out.detach(), slope)
        else:
            # torch's products: on the shapes this road is taken for, they are the faster ones.
            pre = torch.ops.aten.leaky_relu_backward(grad, out, slope, True)
            batch = x.shape[:-1].numel()
            rows = pre.reshape(batch, weight.shape[0])
            gx = pre @ weight if need[0] else None
            gw = rows.t() @ x.reshape(batch, weight.shape[1]) if need[1] else None
            gb = rows.sum(0) if need[2] else None
        return gx if need[0] else None, gw if need[1] else None, gb if need[2] else None, None


def _linear_leaky_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float
) -> Tensor:
    """The operator, differentiable; negative_slope >= 0."""
    if x is weight:
        weight = weight.view_as(weight)  # torch.compile takes no tensor twice
    return _LinearLeakyReLU.apply(x, weight, bias, negative_slope)


@torch.fx.wrap  # torch.fx records one call and does not look at the shapes that choose the road
def linear_leaky_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2
) -> Tensor:
    """leaky_relu(x @ weight.T + bias), one layer of a multi-layer perceptron.

    Args:
        x: [..., in]; float32, float64, bfloat16, or on CUDA float16; any strides; empty and size-1
            dimensions are fine.
        weight: [out, in], same dtype as x.
        bias: [out] or None.
        negative_slope: the factor of negative values; any finite number, 0 and negative ones
            included.

    Returns:
        [..., out] in the dtype of x, or in autocast's dtype where that is on.

    The road is chosen by shape, dtype, device and instruction set alone, never by timing, so equal
    calls give equal bits. On CUDA the products are torch's, under its settings (allow_tf32), with
    one pass for bias and rectifier and one for the derivatives of both. FASTGAN_LINEAR=tiles, read
    once from the environment, gives layers of at most 2048 rows and features and 2**26 products
    tiles of our own: one launch forward and two backward, float32 to about its precision whatever
    the settings. Rectifier: A. Maas, A. Hannun, A. Ng, "Rectifier Nonlinearities Improve Neural
    Network Acoustic Models", 2013.
    """
    if weight.is_cuda and _on_cuda(x, weight, bias, negative_slope):
        layer = (
            _linear_leaky_relu if torch.is_grad_enabled() else torch.ops.fastgan.linear_leaky_relu
        )
        return layer(x, weight, bias, negative_slope)
    wide = weight.numel()
    if wide >= _WIDE:
        recording = torch.is_grad_enabled()
        if (wide >= _WIDE_ENOUGH_TO_RECORD or not recording) and _few_rows(
            x, weight, bias, negative_slope
        ):
            layer = _linear_leaky_relu if recording else torch.ops.fastgan.linear_leaky_relu
            return layer(x, weight, bias, negative_slope)
    y = _linear(x, weight, bias)
    # A negative slope maps both signs to positive values: the result no longer tells the sign that
    # the derivative needs, so torch keeps the pre-activation.
    if negative_slope < 0 or y.numel() < _IN_PLACE_FROM:
        return _leaky_relu(y, negative_slope)
    # The product is fresh memory, so the rectifier may overwrite it: one allocation and one pass
    # over new pages fewer than torch.
    return _leaky_relu_(y, negative_slope)


# torch's own built-ins, without the Python function that F.leaky_relu puts before them.
_linear, _leaky_relu, _leaky_relu_ = F.linear, torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_

# Below this many elements the bookkeeping of an in-place operation costs more than it saves.
_IN_PLACE_FROM = 16384

# Where the operator is faster (benchmarks/operators.py): a few rows against a wide weight, with
# AVX-512. Its vectors run along the features of both, so the weight is read once, as it lies; MKL
# takes about twice the time. On all other shapes torch's product is as fast or faster.
_FEW_ROWS = range(4, 17)
_WIDE, _LONG = 1 << 20, 1024
# Recording it for autograd in Python costs about 25 us, which a product of this size repays.
_WIDE_ENOUGH_TO_RECORD = 1 << 22


@functools.cache
def _few_rows_isa() -> bool:
    return "cpu" in _kernels and isa() in ("avx512", "amx")


def _on_cuda(x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float) -> bool:
    """Whether the CUDA operator takes this layer: it needs fewer launches than torch."""
    return (
        "cuda" in _kernels
        and not torch.compiler.is_compiling()
        and negative_slope >= 0
        and _plain(x, weight, bias)
        and x.dtype == weight.dtype
        and x.dtype in _DTYPES["cuda"]
        and x.device == weight.device
        and not torch.is_autocast_enabled("cuda")
        and _differentiable_here()
    )


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are tensors of torch's own, not subclasses with a mind of theirs."""
    return type(x) is Tensor and type(weight) in _PLAIN and (bias is None or type(bias) in _PLAIN)


def _few_rows(x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float) -> bool:
    """Whether the operator takes this layer: a rule of shapes and dtypes, never of timings."""
    features = weight.shape[-1]
    return (
        not torch.compiler.is_compiling()
        and features >= _LONG
        and x.numel() // features in _FEW_ROWS
        and negative_slope >= 0
        and _plain(x, weight, bias)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.is_contiguous()
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and _differentiable_here()
        and _few_rows_isa()
    )


_PLAIN = frozenset((Tensor, torch.nn.Parameter))

# What the layers and losses of a device take.
_DTYPES = {"cpu": frozenset((torch.float32, torch.float64, torch.bfloat16))}
_DTYPES["cuda"] = _DTYPES["cpu"] | {torch.float16}


# --- Minimax losses -------------------------------------------------------------------------------


def _bce_grad(logits: Tensor, label: float, upstream: Tensor) -> Tensor:
    return (upstream * reference.bce_grad(logits, label)).to(logits.dtype)


class _DiscriminatorLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, real_logits, fake_logits, real_label, fake_label):
        loss, grad_real, grad_fake = torch.ops.fastgan.discriminator_loss(
            real_logits, fake_logits, real_label, fake_label
        )
        ctx.labels = real_label, fake_label
        ctx.save_for_backward(real_logits, fake_logits, grad_real, grad_fake)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        real_logits, fake_logits, grad_real, grad_fake = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grad_real = _bce_grad(real_logits, ctx.labels[0], upstream)
            grad_fake = _bce_grad(fake_logits, ctx.labels[1], upstream)
        else:
            grad_real = (upstream * grad_real).to(real_logits.dtype)
            grad_fake = (upstream * grad_fake).to(fake_logits.dtype)
        need = ctx.needs_input_grad
        return grad_real if need[0] else None, grad_fake if need[1] else None, None, None


class _GeneratorLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fake_logits, saturating):
        loss, grad = torch.ops.fastgan.generator_loss(fake_logits, saturating)
        ctx.saturating = saturating
        ctx.save_for_backward(fake_logits, grad)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        fake_logits, grad = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if ctx.saturating:
                grad = _bce_grad(fake_logits, 0.0, -upstream)
            else:
                grad = _bce_grad(fake_logits, 1.0, upstream)
        else:
            grad = (upstream * grad).to(fake_logits.dtype)
        return grad, None


def _served(logits: Tensor) -> bool:
    """Whether the operators take these logits."""
    if logits.device.type not in _kernels or logits.dtype not in _DTYPES[logits.device.type]:
        return False
    # torch.func's transforms differentiate the plain operations instead.
    return torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()


def discriminator_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    real_label: float = 1.0,
    fake_label: float = 0.0,
) -> Tensor:
    """mean BCE(real_logits, real_label) + mean BCE(fake_logits, fake_label), gradient included.

    Logits may have any shapes (the two need not agree). The loss is a float32 scalar (float64 for
    float64 logits), finite for every finite logit. One-sided label smoothing is real_label = 1 - s.

    I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014; labels: T. Salimans et al.,
    NeurIPS 2016.
    """
    if _served(real_logits) and _served(fake_logits) and real_logits.dtype == fake_logits.dtype:
        if real_logits is fake_logits:
            fake_logits = fake_logits.view_as(fake_logits)  # torch.compile takes no tensor twice
        return _DiscriminatorLoss.apply(
            real_logits, fake_logits, float(real_label), float(fake_label)
        )
    return reference.discriminator_loss(real_logits, fake_logits, real_label, fake_label)


def generator_loss(fake_logits: Tensor, *, saturating: bool = False) -> Tensor:
    """The generator's minimax loss, with its gradient in the same pass.

    Saturating: mean log(1 - sigmoid(l)), the game's own value. Non-saturating (the default): mean
    -log sigmoid(l). Shapes and dtypes as in :func:`discriminator_loss`; same source.
    """
    if _served(fake_logits):
        return _GeneratorLoss.apply(fake_logits, bool(saturating))
    return reference.generator_loss(fake_logits, saturating)


# --- Adam -----------------------------------------------------------------------------------------


def adam_(
    params: Tensor | Sequence[Tensor],
    grads: Tensor | Sequence[Tensor],
    exp_avgs: Tensor | Sequence[Tensor],
    exp_avg_sqs: Tensor | Sequence[Tensor],
    *,
    step: int,
    lr: float,
    beta1: float = 0.5,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> None:
    """One Adam update in place, of a list of tensors or of one flat buffer; torch's arithmetic.

    Args:
        params, grads, exp_avgs, exp_avg_sqs: tensors, or lists of tensors that match one another in
            number, shape and dtype (float32 or float64 in the kernel; the reference takes any
            floating dtype).
        step: the number of this update, counted from 1.
        weight_decay: added to the gradient (Adam), or, if `decoupled`, taken from the weight
            (AdamW).

    D. Kingma and J. Ba, "Adam", ICLR 2015; I. Loshchilov and F. Hutter, "Decoupled Weight Decay",
    ICLR 2019.
    """
    lists = [
        [t] if isinstance(t, Tensor) else list(t) for t in (params, grads, exp_avgs, exp_avg_sqs)
    ]
    if step < 1:
        raise ValueError(f"step is {step}; updates are counted from 1")
    if len({len(tensors) for tensors in lists}) != 1:
        raise ValueError(
            "params, grads, exp_avgs and exp_avg_sqs must be equally many tensors; they are "
            + ", ".join(str(len(tensors)) for tensors in lists)
        )
    if not lists[0]:
        return
    options = step, lr, beta1, beta2, eps, weight_decay, decoupled
    with torch.no_grad():
        if all(
            t.device.type in _kernels and t.dtype in _ADAM_DTYPES and t.is_contiguous()
            for tensors in lists
            for t in tensors
        ):
            _adam_operator(*lists, *options)
        else:
            reference.adam_(*lists, *options)


def _adam_operator(params, grads, exp_avgs, exp_avg_sqs, *options) -> None:
    torch.ops.fastgan.adam_(params, grads, exp_avgs, exp_avg_sqs, *options)
    # The stable ABI leaves this to us: a backward pass over an overwritten weight must fail, not
    # go wrong.
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs])


_ADAM_DTYPES = frozenset((torch.float32, torch.float64))


def adam_device_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: Tensor,
    lr: Tensor,
    *,
    beta1: float = 0.5,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """:func:`adam_` for a captured step: what changes from step to step is read on the device.

    One launch for all tensors of a network on CUDA (one for each 640 tensors).

    Args:
        params, grads, exp_avgs, exp_avg_sqs: as for :func:`adam_`, contiguous, on one device.
        step: float32, one element: the number of this update, counted from 1, so already
            incremented.
        lr: float32 or float64, one element.
        weight_decay, decoupled: as for :func:`adam_`.
        grad_scale: float32, one element; the gradients are divided by it. Default: 1.
        found_inf: float32, one element; if it is not 0, nothing changes. Default: 0.

    Raises RuntimeError for tensors that do not match, naming the argument.
    """
    lists = [list(tensors) for tensors in (params, grads, exp_avgs, exp_avg_sqs)]
    options = beta1, beta2, eps, weight_decay, decoupled, grad_scale, found_inf
    with torch.no_grad():
        if not has_kernels(step.device):
            reference.adam_device_(*lists, step, lr, *options)
            return
        torch.ops.fastgan.adam_device_(*lists, step, lr, *options)
        torch.autograd.graph.increment_version([*lists[0], *lists[2], *lists[3]])


def ema_(averages: Sequence[Tensor], values: Sequence[Tensor], decay: float) -> None:
    """averages = decay * averages + (1 - decay) * values in place, with torch.lerp's arithmetic.

    Args:
        averages, values: lists of contiguous tensors that match in number, shape, device and dtype
            (float32, float64, bfloat16 or float16; one dtype). One launch for all of them on CUDA
            (one for each 640).
        decay: 0 <= decay <= 1.

    Raises RuntimeError for tensors that do not match, naming the argument.
    """
    averages, values = list(averages), list(values)
    with torch.no_grad():
        if not averages or not has_kernels(averages[0].device):
            reference.ema_(averages, values, decay)
            return
        torch.ops.fastgan.ema_(averages, values, decay)
        torch.autograd.graph.increment_version(averages)


# --- What a replayed step reads from the device ---------------------------------------------------
# A captured step is not told its number. It counts on the device: `counter` is an int64 tensor of
# one element on the device of the other tensors, and a draw is made at step counter * multiplier +
# offset, with the values that fastgan.random gives for that step.


def signed(value: int) -> int:
    """An operator's int argument is a signed 64-bit number; this one has the bits of `value`."""
    return value - (1 << 64) if value >= 1 << 63 else value


def keep_threshold(p: float) -> int:
    """round((1 - p) * 65536), for 0 <= p <= 1."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p is {p}; the probability of dropping an element must lie in [0, 1]")
    return reference.keep_threshold(p)


def _check_draw(seed: int, stream: int, counter: Tensor) -> None:
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; it must be an integer in [0, 2**64)")
    if not 0 <= stream < 1 << 32:
        raise ValueError(f"stream is {stream}; it must be an integer in [0, 2**32)")
    if counter.dtype != torch.int64 or counter.numel() != 1:
        raise ValueError(
            f"counter has shape {tuple(counter.shape)} and dtype {counter.dtype}; it must be an "
            "int64 tensor of one element"
        )


def philox_normal_at(
    out: Tensor, seed: int, stream: int, counter: Tensor, multiplier: int = 1, offset: int = 0
) -> Tensor:
    """random.normal at step counter * multiplier + offset, into `out`, which is returned.

    Args:
        out: contiguous float32 tensor of any shape.
        seed, stream: as for random.normal.
        counter: int64, one element, on the device of `out`.
    """
    _check_draw(seed, stream, counter)
    if has_kernels(out.device):
        torch.ops.fastgan.philox_normal_at(
            out, signed(seed), int(stream), counter, multiplier, offset
        )
        torch.autograd.graph.increment_version(out)
        return out
    step = reference.step_at(counter, multiplier, offset)
    drawn = reference.philox_normal(seed, stream, step, out.numel(), out.device)
    return out.copy_(drawn.view(out.shape))


def keep_mask_at(
    out: Tensor, seed: int, stream: int, counter: Tensor, multiplier: int, offset: int, p: float
) -> Tensor:
    """random.keep_mask at step counter * multiplier + offset, into `out`, which is returned.

    Args:
        out: contiguous bool tensor of any shape; True: keep.
        seed, stream, p: as for random.keep_mask.
        counter: int64, one element, on the device of `out`.
    """
    _check_draw(seed, stream, counter)
    threshold = keep_threshold(p)
    if has_kernels(out.device):
        torch.ops.fastgan.philox_keep_mask_at(
            out, signed(seed), int(stream), counter, multiplier, offset, threshold
        )
        torch.autograd.graph.increment_version(out)
        return out
    step = reference.step_at(counter, multiplier, offset)
    drawn = reference.philox_keep_mask(seed, stream, step, out.numel(), threshold, out.device)
    return out.copy_(drawn.view(out.shape))


class _DropoutAt(torch.autograd.Function):
    """Linear in x, so its derivative is itself: every backward pass draws the mask again."""

    @staticmethod
    def forward(ctx, x, counter, where):
        ctx.where = where
        ctx.save_for_backward(counter)  # autograd refuses if it has moved on before the backward
        return _dropout_operator(x, counter, where)

    @staticmethod
    def backward(ctx, grad):
        (counter,) = ctx.saved_tensors
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return _dropout_operator(grad, counter, ctx.where), None, None
        return _DropoutAt.apply(grad, counter, ctx.where), None, None


def _dropout_operator(x, counter, where):
    return torch.ops.fastgan.dropout_at(x, *_mask(counter, where))


def _mask(counter, where):
    """The last arguments of an operator that drops."""
    threshold, seed, stream, multiplier, offset, start = where
    return threshold, seed, stream, counter, multiplier, offset, start


def dropout_at(
    x: Tensor,
    p: float,
    seed: int,
    stream: int,
    counter: Tensor,
    multiplier: int = 1,
    offset: int = 0,
    *,
    start: int = 0,
) -> Tensor:
    """x times its keep mask times random.keep_scale(p), in one pass; the mask is never stored.

    Args:
        x: any shape; float32, float64, bfloat16 or float16. Element i of x, flattened in its
            logical order, takes element start + i of the mask.
        p: probability of dropping, 0 <= p <= 1.
        seed, stream: as for random.keep_mask.
        counter: int64, one element, on the device of x. It must not change before the backward
            pass, which draws the mask again.

    Returns:
        A contiguous tensor like x, differentiable any number of times.

    N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR
    2014.
    """
    _check_draw(seed, stream, counter)
    threshold = keep_threshold(p)
    if has_kernels(x.device) and _differentiable_here():
        where = threshold, signed(seed), int(stream), multiplier, offset, start
        return _DropoutAt.apply(x, counter, where)
    return reference.dropout_at(x, threshold, seed, stream, counter, multiplier, offset, start)


class _LinearLeakyReLUDropoutAt(torch.autograd.Function):
    """The layer with its dropout, for negative_slope >= 0.

    What is kept has the sign of the pre-activation; what is dropped passes no gradient.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, negative_slope, counter, where):
        out = torch.ops.fastgan.linear_leaky_relu_dropout_at(
            x, weight, bias, negative_slope, *_mask(counter, where)
        )
        ctx.negative_slope, ctx.where = negative_slope, where
        ctx.save_for_backward(x, weight, out, counter)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, out, counter = ctx.saved_tensors
        need = ctx.needs_input_grad
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            gx, gw, gb = torch.ops.fastgan.linear_leaky_relu_dropout_backward_at(
                *(grad, x, weight, out, ctx.negative_slope, *need[:3]), *_mask(counter, ctx.where)
            )
        else:
            # As where nothing is dropped, but for the mask, which is linear.
            grad = _DropoutAt.apply(grad, counter, ctx.where)
            gx, gw, gb = reference.linear_leaky_relu_backward(
                grad, x, weight, out.detach(), ctx.negative_slope
            )
        none = None, None, None
        return gx if need[0] else None, gw if need[1] else None, gb if need[2] else None, *none


def linear_leaky_relu_dropout_at(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    negative_slope: float,
    p: float,
    seed: int,
    stream: int,
    counter: Tensor,
    multiplier: int = 1,
    offset: int = 0,
    *,
    start: int = 0,
) -> Tensor:
    """:func:`dropout_at` of :func:`linear_leaky_relu`: the same mask, and no pass of its own.

    On CUDA bias, rectifier and dropout are one pass, and so are the derivatives of the three;
    elsewhere, and where the operator does not take the layer, the two functions are called. The
    result is rounded once. Arguments and result are theirs.
    """
    if weight.is_cuda and _on_cuda(x, weight, bias, negative_slope):
        _check_draw(seed, stream, counter)
        where = keep_threshold(p), signed(seed), int(stream), multiplier, offset, start
        return _LinearLeakyReLUDropoutAt.apply(x, weight, bias, negative_slope, counter, where)
    y = linear_leaky_relu(x, weight, bias, negative_slope)
    return dropout_at(y, p, seed, stream, counter, multiplier, offset, start=start)


def _differentiable_here() -> bool:
    """Whether autograd.Functions apply: torch.func and forward mode take the plain operations."""
    return torch.compiler.is_compiling() or (
        not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0
    )


def gather_normalize(
    pixels: Tensor,
    order: Tensor,
    counter: Tensor,
    *,
    multiplier: int = 1,
    offset: int = 0,
    batch: int,
    batches_per_epoch: int,
    out: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The batch of update u = counter * multiplier + offset, gathered and normalised in one pass.

    Row i is pixels[order[(u % batches_per_epoch) * batch + i]], mapped by x * (2 / 255) - 1 if the
    pixels are bytes.

    Args:
        pixels: contiguous [images, ...], uint8 or float32 (float64 for a float64 result).
        order: int64 [n], the images of the epoch at hand in their order; the caller refills it.
        counter: int64, one element, on the device of pixels.
        batch: images in a full batch.
        batches_per_epoch: after so many updates `order` starts anew.
        out: [rows, ...] with rows <= batch (a ragged last batch has fewer), contiguous or
            channels_last; float32, float64, bfloat16 or float16. Default: new, `batch` rows of
            `dtype`.

    Returns:
        `out`. A row that lies outside of `order` or `pixels` is an error on the CPU; on CUDA, where
        nobody waits for the answer, it becomes NaN.
    """
    _check_draw(0, 0, counter)
    if out is None:
        out = torch.empty((batch, *pixels.shape[1:]), dtype=dtype, device=pixels.device)
    where = multiplier, offset, batch, batches_per_epoch
    if has_kernels(out.device):
        torch.ops.fastgan.gather_normalize(out, pixels, order, counter, *where)
        torch.autograd.graph.increment_version(out)
        return out
    rows = out.shape[0]
    return out.copy_(
        reference.gather_normalize(pixels, order, counter, *where, rows, dtype=out.dtype)
    )
