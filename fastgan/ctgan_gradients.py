"""CTGAN's two losses with their gradients written out, for its networks in training.

What autograd does for them, with fewer products. The first layer of D is linear, so that between
two rows lies what it makes of them; LeakyReLU and dropout have no curvature, so that the penalty's
gradient is one more pass of products; all gradients of a weight are one product; a condition is one
number of a row, so that its products are rows of the weights; latents have no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan import ops
from fastgan.models.ctgan import CTGANDiscriminator, CTGANGenerator
from fastgan.models.heads import TEMPERATURE
from fastgan.packs import Pack
from fastgan.torch_private import global_hooks, has_hooks, is_compiled

_KINDS = (
    nn.Linear,
    nn.BatchNorm1d,
    nn.ReLU,
    nn.LeakyReLU,
    nn.Dropout,
    nn.Sequential,
    nn.ModuleList,
    Pack,
)


def are_plain(generator: nn.Module, discriminator: nn.Module) -> bool:
    """Whether two networks are CTGAN's as they were made, so that what is here is what they do."""
    pair = ((generator, CTGANGenerator), (discriminator, CTGANDiscriminator))
    if any(type(network) is not kind for network, kind in pair) or global_hooks():
        return False
    for network, kind in pair:
        for m in network.modules():
            if type(m) is not kind and type(m) not in _KINDS:
                return False
            # Those of dropout and of sequences are a step's own.
            replaced = "forward" in vars(m) and not isinstance(m, (nn.Dropout, nn.Sequential))
            if replaced or has_hooks(m) or is_compiled(m) or not m.training:
                return False
            if isinstance(m, nn.BatchNorm1d) and not (m.track_running_stats and m.momentum):
                return False
        if any(p.dtype != torch.float32 for p in network.parameters()):
            return False
    linear = [type(m) for m in discriminator.layers]
    return linear == [nn.Linear, nn.LeakyReLU, nn.Dropout] * 2 + [nn.Linear]


class Known(torch.autograd.Function):
    """A loss whose gradients are known: (loss, gradients, *weights) -> loss."""

    @staticmethod
    def forward(ctx, loss, gradients, *weights):
        """The loss."""
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        """The gradients."""
        gradients, ctx.gradients = ctx.gradients, None
        if grad.is_cuda or float(grad) != 1.0:
            gradients = [gradient * grad for gradient in gradients]
        return None, None, *gradients


# --- the discriminator ---------------------------------------------------------------------------


class OfD(NamedTuple):
    """What comes of D's update."""

    loss: Tensor
    """Without the penalty."""
    penalty: Tensor
    on_real: Tensor
    on_fake: Tensor
    gradients: list[Tensor]
    """In the order of the parameters."""


def _layers(d: CTGANDiscriminator) -> tuple[list[Tensor], list[float]]:
    """Weights and biases, and the slopes of the rectifiers."""
    return list(d.parameters()), [m.negative_slope for m in d.layers if isinstance(m, nn.LeakyReLU)]


def _factor(pre: Tensor, slope: float, mask: Tensor) -> Tensor:
    """What a rectifier and its dropout multiply by."""
    return torch.where(pre > 0, mask, mask * slope)


def _first(d: CTGANDiscriminator, row: int) -> tuple[Tensor, Tensor]:
    """What the first layer has for rows and for conditions, [pack, inputs, width]."""
    weight = d.layers[0].weight.view(d.width, d.pack, -1)
    return weight[:, :, :row].permute(1, 2, 0), weight[:, :, row:].permute(1, 2, 0)


@torch.no_grad()
def of_d(
    d: CTGANDiscriminator,
    real: Tensor,
    fake: Tensor,
    condition: Tensor | None,
    masks: tuple[tuple[Tensor, Tensor], ...],
    places: Tensor,
    weight: float,
) -> OfD:
    """Wasserstein's loss of packs of rows, with a penalty of the slope between them.

    Args:
        d: the network.
        real: [batch, row].
        fake: likewise.
        condition: [batch, conditions] of both, or None.
        masks: of the two dropouts, [packs, width] each, on real, on fake and between.
        places: [packs, 1], from fake to real.
        weight: of the penalty.
    """
    (w1, b1, w2, b2, w3, b3), slopes = _layers(d)
    packs, row, both = len(places), real.shape[1], 2 * len(places)
    of_rows, of_conditions = _first(d, row)
    # Real packs, fake ones, and then what the penalty sends through the layers. A condition stands
    # in real and fake alike, and the slope is not of it.
    inputs = real.new_empty(3 * packs, d.pack, row)
    inputs.view(3, -1, row)[0], inputs.view(3, -1, row)[1] = real, fake
    parts, slope = inputs.transpose(0, 1), inputs[both:].transpose(0, 1)
    mask1, mask2 = (torch.cat(parts) for parts in zip(*masks, strict=True))
    pre = real.new_empty(3 * packs, len(b1))
    ops.product_(pre[:both], parts[:, :both], of_rows, b1)
    if condition is not None:
        asked = condition.reshape(packs, d.pack, -1).transpose(0, 1)
        pre.view(3, packs, -1)[:2] += ops.product_(
            torch.empty_like(pre[both:]), asked, of_conditions
        )
    torch.lerp(pre[packs:both], pre[:packs], places, out=pre[both:])
    factor1 = _factor(pre, slopes[0], mask1)
    h1 = pre.mul_(factor1)
    pre = ops.product_(torch.empty_like(h1), h1, w2.t(), b2)
    factor2 = _factor(pre, slopes[1], mask2)
    h2 = pre.mul_(factor2)[:both]
    scores = torch.addmm(b3, h2, w3.t())
    on_real, on_fake = scores.split(packs)
    # Backwards, from the loss to before each layer.
    up = scores.new_full((both, 1), 1 / packs)
    up[:packs].neg_()
    # The slope between has the same way back, from 1.
    back2 = torch.cat([up, up.new_ones(packs, 1)]) * w3 * factor2
    back1 = ops.product_(torch.empty_like(h1), back2, w2).mul_(factor1)
    ops.product_(slope, back1[both:], of_rows.transpose(1, 2))
    flat = inputs[both:].view(packs, -1)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    penalty = weight * (length - 1).square().mean()
    # Where dropout has left no way, the norm has no direction; its derivative is 0 there.
    flat.mul_(torch.where(length > 0, (2 * weight / packs) * (length - 1) / length, 0.0))
    # And from the penalty forwards.
    ahead1 = ops.product_(h1[both:], slope, of_rows).mul_(factor1[both:])
    ahead2 = torch.mm(ahead1, w2.t()).mul_(factor2[both:])
    gradient = torch.empty_like(w1)
    to = gradient.view(d.width, d.pack, -1).transpose(0, 1)
    ops.product_(to[:, :, :row], back1.t(), parts)
    if condition is not None:
        ops.product_(to[:, :, row:], (back1[:packs] + back1[packs:both]).t(), asked)
    gradients = [
        gradient,
        back1[:both].sum(0),
        ops.product_(torch.empty_like(w2), back2.t(), h1),
        back2[:both].sum(0),
        torch.mm(up.t(), h2).add_(ahead2.sum(0)),
        up.sum(0),
    ]
    return OfD(on_fake.mean() - on_real.mean(), penalty, on_real, on_fake, gradients)


@torch.no_grad()
def against(
    d: CTGANDiscriminator, fake: Tensor, condition: Tensor | None, masks: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Minus the mean of D's scores, and its gradient at the rows.

    Args:
        d: the network.
        fake: [batch, row].
        condition: [batch, conditions], or None.
        masks: of the two dropouts, [packs, width] each.
    """
    (_, b1, w2, b2, w3, b3), slopes = _layers(d)
    packs, row = len(masks[0]), fake.shape[1]
    of_rows, of_conditions = _first(d, row)
    parts = fake.view(packs, d.pack, row).transpose(0, 1)
    pre = ops.product_(fake.new_empty(packs, d.width), parts, of_rows, b1)
    if condition is not None:
        asked = condition.reshape(packs, d.pack, -1).transpose(0, 1)
        ops.product_(pre, asked, of_conditions, add=True)
    factor1 = _factor(pre, slopes[0], masks[0])
    pre = ops.product_(torch.empty_like(pre), pre.mul_(factor1), w2.t(), b2)
    factor2 = _factor(pre, slopes[1], masks[1])
    scores = torch.addmm(b3, pre.mul_(factor2), w3.t())
    back = ops.product_(pre, factor2.mul_(w3).mul_(-1 / packs), w2).mul_(factor1)
    at_rows = torch.empty_like(fake)
    to = at_rows.view(packs, d.pack, row).transpose(0, 1)
    ops.product_(to, back, of_rows.transpose(1, 2))
    return -scores.mean(), at_rows


# --- the generator -------------------------------------------------------------------------------


class Made(NamedTuple):
    """A pass of G."""

    rows: Tensor
    """[batch, row]."""
    logits: Tensor
    inputs: Tensor
    """[second layer | first layer | latents] of each row: what each layer has of it stands last."""
    normed: list[tuple[Tensor, Tensor]]
    """Of each BatchNorm: its input, and its means and inverse deviations."""


@torch.no_grad()
def made(g: CTGANGenerator, z: Tensor, category: Tensor | None, normals: Tensor | None) -> Made:
    """Rows of G in training; the statistics of its BatchNorms move.

    Args:
        g: the network.
        z: [batch, latent_dim].
        category: [batch], which number of the condition is 1, or None.
        normals: [batch, choices], whose places among the normals are the uniform numbers that
            choices are drawn by; None if there are no choices.
    """
    width, noisy = g.width, z.shape[1]
    inputs = z.new_empty(len(z), 2 * width + noisy)
    inputs[:, 2 * width :] = z
    normed = []
    for k, (linear, norm, _) in enumerate(g.layers):
        at = (2 - k) * width
        pre = _linear(linear, inputs[:, at:], category)
        norm.num_batches_tracked.add_(1)
        found = ops.normed_relu_(
            inputs[:, at - width : at], pre, norm.weight, norm.bias,
            norm.running_mean, norm.running_var, norm.momentum, norm.eps,
        )  # fmt: skip
        normed.append((pre, found))
    logits = _linear(g.last, inputs, category)
    rows = ops.heads_(torch.empty_like(logits), logits, normals, _blocks(g), TEMPERATURE)
    return Made(rows, logits, inputs, normed)


def _blocks(g: CTGANGenerator) -> list[int]:
    """G's heads as the operators take them."""
    return [n for kind, *sizes in g.blocks for n in (int(kind == "softmax"), *sizes)]


def _linear(layer: nn.Linear, x: Tensor, category: Tensor | None) -> Tensor:
    """A layer of x and, behind it, a condition."""
    wide = x.shape[1]
    out = x.new_empty(len(x), layer.out_features)
    ops.product_(out, x, layer.weight[:, :wide].t(), layer.bias)
    return out if category is None else ops.add_columns_(out, layer.weight[:, wide:], category)


def _of_linear(layer: nn.Linear, x: Tensor, category: Tensor | None, back: Tensor) -> list[Tensor]:
    """The gradients of its weight and bias."""
    wide = x.shape[1]
    gradient = torch.empty_like(layer.weight)
    ops.product_(gradient[:, :wide], back.t(), x)
    if category is not None:
        ops.sum_columns_(gradient[:, wide:], back, category)
    return [gradient, back.sum(0)]


@torch.no_grad()
def of_g(
    g: CTGANGenerator,
    of: Made,
    category: Tensor | None,
    at_rows: Tensor,
    groups: tuple[Tensor, Tensor] | None,
) -> tuple[list[Tensor], Tensor | None]:
    """The gradients of G's parameters, in their order, and the mean surprise.

    The surprise is the cross-entropy of the categories that were asked for; its gradients are in.

    Args:
        g: the network.
        of: its pass.
        category: as of that.
        at_rows: the loss's gradient at the rows; it is overwritten.
        groups: where the group of each category begins in a row, and how wide it is; None without
            categories.
    """
    back, surprise = ops.heads_backward_(at_rows, of.rows, _blocks(g), TEMPERATURE), None
    if category is not None:
        scale = 1 / len(of.rows)
        surprise = ops.surprise_(back, of.logits, category, *groups, scale).mean()
    width = g.width
    last = _of_linear(g.last, of.inputs, category, back)
    # At what the second layer has made, and at what the first has.
    down = back.new_empty(2, len(back), width)
    ops.product_(down, back, g.last.weight[:, : 2 * width].unflatten(1, (2, width)).transpose(0, 1))
    found: list[list[Tensor]] = []
    for k in (1, 0):
        linear, norm, _ = g.layers[k]
        pre, statistics = of.normed[k]
        at, back = (2 - k) * width, down[1 - k]
        made_of = of.inputs[:, at - width : at]
        of_norm = ops.normed_relu_backward_(back, made_of, pre, norm.weight, statistics)
        found.append([*_of_linear(linear, of.inputs[:, at:], category, back), *of_norm])
        if k:
            ops.product_(down[1], back, linear.weight[:, :width], add=True)
    return [*found[1], *found[0], *last], surprise
