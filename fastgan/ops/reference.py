"""Every operation of fastgan in plain PyTorch; those of tables are in reference_table.py.

This file is three things at once: the fallback when the compiled libraries are absent, the oracle
the tests compare the kernels with, and the baseline of the benchmarks. It is written to be read; a
kernel elsewhere is an optimisation of a line here. The names are those of :mod:`fastgan.ops` and
:mod:`fastgan.random`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# --- Counter-based randomness ---------------------------------------------------------------------
# Philox4x32-10: J. K. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

PHILOX_M0, PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
PHILOX_W0, PHILOX_W1 = 0x9E3779B9, 0xBB67AE85
PHILOX_ROUNDS = 10
_MASK = 0xFFFFFFFF
MAX_ELEMENTS = 1 << 34  # 2**32 blocks of four words


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Four words from four counter words. Words are int64 tensors holding values in [0, 2**32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        # The product of two 32-bit values wraps in int64; its 64 bits are still right, so both
        # halves are.
        p0, p1 = c0 * PHILOX_M0, c2 * PHILOX_M1
        hi0, lo0 = (p0 >> 32) & _MASK, p0 & _MASK
        hi1, lo1 = (p1 >> 32) & _MASK, p1 & _MASK
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + PHILOX_W0) & _MASK, (k1 + PHILOX_W1) & _MASK
    return c0, c1, c2, c3


def philox_words(
    seed: int,
    stream: int,
    step: int | Tensor,
    start: int,
    n: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Words start .. start + n - 1 of a stream: int64 [n], values in [0, 2**32).

    `step` may be an int64 tensor of one element on `device`, here and in what is drawn from words.
    """
    first, last = start >> 2, (start + n + 3) >> 2
    block = torch.arange(first, last, dtype=torch.int64, device=device)
    constant = [block * 0 + v for v in (stream, step & _MASK, (step >> 32) & _MASK)]
    words = philox4x32((block, *constant), (seed & _MASK, (seed >> 32) & _MASK))
    skip = start - (first << 2)
    return torch.stack(words, dim=1).reshape(-1)[skip : skip + n].clone()


def philox_uniform(
    seed: int, stream: int, step: int | Tensor, n: int, device: torch.device | str = "cpu"
) -> Tensor:
    """float32 [n] in [0, 1): the top 24 bits of each word, exact."""
    return (philox_words(seed, stream, step, 0, n, device) >> 8).float() * 2.0**-24


def philox_normal(
    seed: int, stream: int, step: int | Tensor, n: int, device: torch.device | str = "cpu"
) -> Tensor:
    """float32 [n], standard normal by Box and Muller (1958); computed in float64 and rounded once.

    Words 2j and 2j + 1 give elements 2j (cosine) and 2j + 1 (sine); an odd n drops the last sine.
    """
    words = philox_words(seed, stream, step, 0, n + (n & 1), device).view(-1, 2)
    u1 = ((words[:, 0] >> 8) + 1).double() * 2.0**-24  # (0, 1]: the logarithm is finite
    angle = (2 * math.pi) * ((words[:, 1] >> 8).double() * 2.0**-24)
    radius = torch.sqrt(-2 * torch.log(u1))
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)
    return pairs.reshape(-1)[:n].float()


def keep_threshold(p: float) -> int:
    """A 16-bit half below this value is kept: round((1 - p) * 65536), ties to even."""
    return round((1.0 - p) * 65536)


def keep_scale(p: float) -> float:
    """The inverse of the exact probability of keeping: what is kept times this is unbiased."""
    threshold = keep_threshold(p)
    return 65536 / threshold if threshold else 0.0


def philox_keep_mask(
    seed: int,
    stream: int,
    step: int | Tensor,
    n: int,
    threshold: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """bool [n]; element e reads the 16-bit half e of the stream (low half of a word first)."""
    words = philox_words(seed, stream, step, 0, (n + 1) >> 1, device)
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=1).reshape(-1)[:n]
    return halves < threshold


# --- What a replayed step reads from the device ---------------------------------------------------
# A captured step is not told its number, so it counts on the device: `counter` is int64 [1], and a
# draw is made at step counter * multiplier + offset.


def step_at(counter: Tensor, multiplier: int, offset: int) -> Tensor:
    """The step of a draw, int64 [1]."""
    return counter.view(1) * multiplier + offset


def dropout_at(
    x: Tensor,
    threshold: int,
    seed: int,
    stream: int,
    counter: Tensor,
    multiplier: int,
    offset: int,
    start: int = 0,
) -> Tensor:
    """x * 65536 / threshold where the mask keeps, else 0; the mask begins at `start`."""
    n, step = start + x.numel(), step_at(counter, multiplier, offset)
    mask = philox_keep_mask(seed, stream, step, n, threshold, x.device)[start:].view(x.shape)
    # In float32 at least, and rounded once.
    scale = 65536 / threshold if threshold else 0.0
    return torch.where(mask, _wide(x) * scale, 0.0).to(x.dtype)


def gather_normalize(
    pixels: Tensor,
    order: Tensor,
    counter: Tensor,
    multiplier: int,
    offset: int,
    batch: int,
    batches_per_epoch: int,
    rows: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The first `rows` images of a batch [rows, ...]: uint8 pixels as x * (2 / 255) - 1.

    Update u = counter * multiplier + offset takes batch u % batches_per_epoch of `order` int64 [n].
    """
    position = step_at(counter, multiplier, offset).remainder(batches_per_epoch)
    row = torch.arange(rows, device=order.device)
    images = pixels[order[position * batch + row]]
    if pixels.dtype == torch.uint8:
        images = images.to(torch.promote_types(dtype, torch.float32)).mul_(2 / 255).sub_(1)
    return images.to(dtype)


# --- Linear layer with a leaky rectifier ----------------------------------------------------------


def linear_leaky_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2
) -> Tensor:
    """leaky_relu(x @ weight.T + bias): x [..., in], weight [out, in], bias [out] -> [..., out]."""
    return F.leaky_relu(F.linear(x, weight, bias), negative_slope)


def leaky_relu_backward(grad: Tensor, sign: Tensor, negative_slope: float) -> Tensor:
    """grad * (1 if sign > 0, else negative_slope); sign has the sign of the pre-activation."""
    return torch.where(sign > 0, grad, grad * negative_slope)


def linear_leaky_relu_backward(
    grad: Tensor, x: Tensor, weight: Tensor, sign: Tensor, negative_slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, in differentiable operations: its own double backward."""
    grad_pre = leaky_relu_backward(grad, sign, negative_slope)
    batch = x.shape[:-1].numel()  # said, not inferred: a feature dimension may be empty
    rows = grad_pre.reshape(batch, weight.shape[0])
    return grad_pre @ weight, rows.t() @ x.reshape(batch, weight.shape[1]), rows.sum(0)


def linear_leaky_relu_dropout_at(
    x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float, *mask
) -> Tensor:
    """The layer above and `dropout_at`, whose other arguments are `mask`."""
    return dropout_at(linear_leaky_relu(x, weight, bias, negative_slope), *mask)


def linear_leaky_relu_dropout_backward_at(
    grad: Tensor, x: Tensor, weight: Tensor, sign: Tensor, negative_slope: float, *mask
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients of x, weight and bias; `sign` as above, at least where the mask keeps."""
    return linear_leaky_relu_backward(dropout_at(grad, *mask), x, weight, sign, negative_slope)


# --- Convolutions with a leaky rectifier ----------------------------------------------------------

CONV_PLACES = {4: (2, 1), 3: (1, 1), 1: (1, 0)}
"""The stride and the padding that go with a square kernel of that size."""


def conv2d_leaky_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float,
    sign: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """x [batch, in, height, width], weight [out, in, kernel, kernel] -> [batch, out, ...].

    The rectifier takes for negative what `sign`, in the shape of the result, says.
    """
    y = F.conv2d(x, weight, bias, *CONV_PLACES[weight.shape[-1]])
    return leaky_relu_backward(y, y if sign is None else sign, negative_slope)


def conv_transpose2d_leaky_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float,
    sign: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The same with F.conv_transpose2d and weight [in, out, kernel, kernel].

    Without bias and rectifier it is the gradient of conv2d's x, and x that of its result; with the
    sign of conv2d's x, and its negative slope, that of what a rectifier has made this x of.
    """
    y = F.conv_transpose2d(x, weight, bias, *CONV_PLACES[weight.shape[-1]])
    return leaky_relu_backward(y, y if sign is None else sign, negative_slope)


def conv2d_grad_weight(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """The gradient of the weight [out, in, kernel, kernel] of conv2d for that of its result."""
    stride, padding = CONV_PLACES[kernel]
    size = grad.shape[1], x.shape[1], kernel, kernel
    return torch.nn.grad.conv2d_weight(x, size, grad, stride, padding)


# --- BatchNorm with a leaky rectifier -------------------------------------------------------------
# S. Ioffe and C. Szegedy, "Batch Normalization", ICML 2015.


def batch_norm_leaky_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    negative_slope: float,
    parts: int = 1,
) -> Tensor:
    """x [batch, channels, ...], the others [channels]; as in training, which moves the running.

    The parts of the batch, equal in size, are normalised one after the other.
    """
    settings = running_mean, running_var, weight, bias, True, momentum, eps
    y = torch.cat([F.batch_norm(part, *settings) for part in x.chunk(parts)])
    return F.leaky_relu(y, negative_slope)


def batch_norm_leaky_relu_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, negative_slope: float,
    parts: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and bias, in differentiable operations: its own double backward."""
    if parts > 1:
        pairs = zip(grad.chunk(parts), x.chunk(parts), strict=True)
        own = weight, bias, eps, negative_slope
        dx, *sums = zip(*(batch_norm_leaky_relu_backward(*t, *own) for t in pairs), strict=True)
        return torch.cat(dx), *(torch.stack(each).sum(0) for each in sums)
    around = [0, *range(2, x.dim())]
    view = (1, -1, *[1] * (x.dim() - 2))
    centred = x - x.mean(around, keepdim=True)
    deviation = torch.rsqrt(centred.square().mean(around, keepdim=True) + eps)
    h, scale = centred * deviation, weight.view(view) * deviation
    pre = (h * weight.view(view) + bias.view(view)).detach()
    grad_pre = leaky_relu_backward(grad, pre, negative_slope)
    along = (grad_pre * h).mean(around, keepdim=True)
    dx = scale * (grad_pre - grad_pre.mean(around, keepdim=True) - h * along)
    return dx, (grad_pre * h).sum(around), grad_pre.sum(around)


# --- Minimax losses from logits -------------------------------------------------------------------
# I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014; with labels smoothed as in T.
# Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016. Every loss is a mean over
# all elements, in float32 at least.


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def bce(logits: Tensor, label: float) -> Tensor:
    """mean of softplus(l) - label * l: the cross-entropy of sigmoid(l) against label.

    Finite for every finite logit.
    """
    logits = _wide(logits)
    # softplus(l) is -logsigmoid(-l), and softplus(l) - label * l is this mixture, in which nothing
    # large cancels.
    return -((1 - label) * F.logsigmoid(-logits) + label * F.logsigmoid(logits)).mean()


def bce_grad(logits: Tensor, label: float) -> Tensor:
    """d bce / d logits, in float32 at least: (sigmoid(l) - label) / n."""
    logits = _wide(logits)
    grad = (1 - label) * torch.sigmoid(logits) - label * torch.sigmoid(-logits)
    return grad / max(logits.numel(), 1)


def discriminator_loss(
    real_logits: Tensor, fake_logits: Tensor, real_label: float = 1.0, fake_label: float = 0.0
) -> Tensor:
    """bce(real_logits, real_label) + bce(fake_logits, fake_label): a scalar."""
    return bce(real_logits, real_label) + bce(fake_logits, fake_label)


def generator_loss(fake_logits: Tensor, saturating: bool = False) -> Tensor:
    """Saturating: mean log(1 - sigmoid(l)). Non-saturating: mean -log sigmoid(l)."""
    return -bce(fake_logits, 0.0) if saturating else bce(fake_logits, 1.0)


# --- Adam -----------------------------------------------------------------------------------------
# D. P. Kingma and J. Ba, "Adam", ICLR 2015; decoupled decay: I. Loshchilov and F. Hutter, ICLR
# 2019.


@torch.no_grad()
def adam_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> None:
    """One update in place with torch.optim.Adam's arithmetic; `step`, its number, counts from 1."""
    step_size = lr / (1 - beta1**step)
    root_correction = math.sqrt(1 - beta2**step)
    for w, g, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if weight_decay and decoupled:
            w.mul_(1 - lr * weight_decay)
        elif weight_decay:
            g = g.add(w, alpha=weight_decay)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        w.addcdiv_(m, (v.sqrt() / root_correction).add_(eps), value=-step_size)


@torch.no_grad()
def adam_device_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """`adam_` with `step` and `lr` as tensors of one element, and without waiting for them.

    Gradients are divided by grad_scale; nothing changes where found_inf is not 0.
    """
    t, rate = step.double().view(()), lr.double().view(())
    step_size = rate / (1 - beta1**t)
    root_correction = torch.sqrt(1 - beta2**t)
    keep = None if found_inf is None else found_inf.view(()) != 0
    for w, g, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        g = g if grad_scale is None else g / grad_scale.view(())
        shrunk = w * (1 - rate * weight_decay) if weight_decay and decoupled else w
        if weight_decay and not decoupled:
            g = g.add(w, alpha=weight_decay)
        new_m = m.lerp(g, 1 - beta1)
        new_v = (v * beta2).addcmul_(g, g, value=1 - beta2)
        new_w = shrunk - step_size * new_m / (new_v.sqrt() / root_correction + eps)
        for old, new in ((w, new_w), (m, new_m), (v, new_v)):
            old.copy_(new if keep is None else torch.where(keep, old, new))


@torch.no_grad()
def ema_(averages: list[Tensor], values: list[Tensor], decay: float) -> None:
    """averages = decay * averages + (1 - decay) * values, in place."""
    for average, value in zip(averages, values, strict=True):
        average.lerp_(value, 1 - decay)
