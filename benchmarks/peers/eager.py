"""Clean eager PyTorch: what someone who knows where the time goes writes, compiling nothing.

Data normalised once and kept in memory; losses from logits; G's forward pass of D's step records
nothing; real and fake go through D together where BatchNorm does not forbid it; each backward pass
computes the gradients of the network being updated and no others; Adam's fused implementation.
"""

from __future__ import annotations

import contextlib

import torch
from plans import GP_WEIGHT, R1_WEIGHT
from torch.nn.functional import softplus

from peers import networks
from peers.torchpeer import TorchPeer


def losses_of(plan, generator, discriminator, autocast=contextlib.nullcontext, device="cpu"):
    """(D's loss of a real batch, G's loss of a fresh batch): two functions, for other peers too."""
    batch, latent = plan.batch, plan.latent
    penalised, critic = plan.penalty == "r1", plan.penalty == "wgan-gp"
    together = not (plan.has_batchnorm("d") or penalised)
    nothing = torch.zeros((), device=device, requires_grad=penalised)

    def d_loss(real):
        if penalised:
            # As good as requires_grad_(), which the compiler of torch 2.11 does not follow.
            compiling = torch.compiler.is_compiling()
            real = real + nothing if compiling else real.detach().requires_grad_()
        with autocast():
            with torch.no_grad():
                fake = generator(torch.randn(batch, latent, device=device))
            if together:
                logits = discriminator(torch.cat((real, fake.float()))).float()
                real_logits, fake_logits = logits[:batch], logits[batch:]
            else:
                real_logits = discriminator(real).float()
                fake_logits = discriminator(fake).float()
        if critic:
            points = torch.lerp(fake, real, torch.rand(batch, 1, 1, 1, device=device))
            points = points.requires_grad_()
            (slope,) = torch.autograd.grad(
                discriminator(points).float().sum(), points, create_graph=True
            )
            norm = slope.flatten(1).norm(dim=1)
            distance = (norm - 1).square().mean()
            return fake_logits.mean() - real_logits.mean() + GP_WEIGHT * distance
        loss = softplus(-real_logits).mean() + softplus(fake_logits).mean()
        if penalised:
            (slope,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            loss = loss + R1_WEIGHT * slope.flatten(1).square().sum(1).mean()
        return loss

    def g_loss():
        with autocast():
            fake = generator(torch.randn(batch, latent, device=device))
            logits = discriminator(fake).float()
        return -logits.mean() if critic else softplus(-logits).mean()

    return d_loss, g_loss


class Eager(TorchPeer):
    """One step: two losses, two calls of autograd.grad, two fused Adam updates.

    Option ``channels_last``, of convolutional networks; default True.
    """

    def setup(self, plan, threads):
        self.begin(threads)
        last = self.options.get("channels_last", True)
        self.generator, self.discriminator = networks.build(
            plan, device=self.device, channels_last=last
        )
        self.g_params = list(self.generator.parameters())
        self.d_params = list(self.discriminator.parameters())
        adam = {"lr": plan.lr, "betas": plan.betas, "eps": plan.eps, "fused": True}
        self.optimizer_g = torch.optim.Adam(self.g_params, **adam)
        self.optimizer_d = torch.optim.Adam(self.d_params, **adam)
        self.d_steps = plan.d_steps
        self.data = networks.normalised(plan, self.device, last)
        self.order = networks.Order(plan, self.device)
        self.d_loss, self.g_loss = losses_of(
            plan, self.generator, self.discriminator, self.autocast, self.device
        )

    def run(self, n):
        for _ in range(n):
            for _ in range(self.d_steps):
                d_loss = self.d_loss(networks.take(self.data, self.order.next()))
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
