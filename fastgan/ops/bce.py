"""The minimax losses with their gradients in the same pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..torch_private import functorch_is_active
from . import library, reference


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
    if not library.takes(logits):
        return False
    # torch.func's transforms differentiate the plain operations instead.
    return torch.compiler.is_compiling() or not functorch_is_active()


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
