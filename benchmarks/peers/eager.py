"""Clean eager PyTorch: what someone who knows where the time goes writes, compiling nothing.

Data normalised once and kept in memory; losses from logits; G's forward pass of D's step records
nothing; real and fake go through D together where BatchNorm does not forbid it; each backward pass
computes the gradients of the network being updated and no others; Adam's fused implementation.
"""

from __future__ import annotations

import contextlib

import torch
from torch.nn.functional import softplus

from peers import Peer, networks


def losses_of(plan, generator, discriminator, autocast=contextlib.nullcontext):
    """(D's loss of a real batch, G's loss of a fresh batch): two functions, for other peers too."""
    batch, latent = plan.batch, plan.latent
    together = not plan.has_batchnorm("d")

    def d_loss(real):
        with autocast():
            with torch.no_grad():
                fake = generator(torch.randn(batch, latent))
            if together:
                logits = discriminator(torch.cat((real, fake.float()))).float()
                real_logits, fake_logits = logits[:batch], logits[batch:]
            else:
                real_logits = discriminator(real).float()
                fake_logits = discriminator(fake).float()
        return softplus(-real_logits).mean() + softplus(fake_logits).mean()

    def g_loss():
        with autocast():
            logits = discriminator(generator(torch.randn(batch, latent))).float()
        return softplus(-logits).mean()

    return d_loss, g_loss


class Eager(Peer):
    """One step: two losses, two calls of autograd.grad, two fused Adam updates."""

    autocast = staticmethod(contextlib.nullcontext)

    def setup(self, plan, threads):
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        self.generator, self.discriminator = networks.build(plan)
        self.g_params = list(self.generator.parameters())
        self.d_params = list(self.discriminator.parameters())
        adam = {"lr": plan.lr, "betas": plan.betas, "eps": plan.eps, "fused": True}
        self.optimizer_g = torch.optim.Adam(self.g_params, **adam)
        self.optimizer_d = torch.optim.Adam(self.d_params, **adam)
        self.data = networks.images(plan).float().mul_(2 / 255).sub_(1)
        self.order = networks.Order(plan)
        self.d_loss, self.g_loss = losses_of(
            plan, self.generator, self.discriminator, self.autocast
        )

    def run(self, n):
        for _ in range(n):
            d_loss = self.d_loss(self.data.index_select(0, self.order.next()))
            update(self.optimizer_d, self.d_params, d_loss)
            g_loss = self.g_loss()
            update(self.optimizer_g, self.g_params, g_loss)
        self.latest = d_loss, g_loss

    def losses(self):
        return tuple(loss.item() for loss in self.latest)


def update(optimizer, params, loss) -> None:
    for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
        param.grad = grad
    optimizer.step()
