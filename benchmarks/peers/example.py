"""The public DCGAN example's loop in PyTorch, for convolutions and, as WGAN-GP's well-known
programs, for MLPs with a penalty: what most people start from.

Channels first, a Sigmoid and BCELoss, both halves of D's update backward one by one, one fake batch
for both updates, D's gradients in G's update computed and thrown away, Adam as it comes. Penalties
as the well-known programs add them: in a pass of D of their own. Images lie in memory, so that the
loop alone is timed.
"""

from __future__ import annotations

import torch
from plans import GP_WEIGHT, R1_WEIGHT
from torch import nn

from peers import Unavailable, networks
from peers.torchpeer import TorchPeer


class Example(TorchPeer):
    """One step; see above."""

    def setup(self, plan, threads):
        if plan.network == "mlp" and plan.penalty == "none":
            raise Unavailable("this peer's MLPs have a penalty; `reference` is the one without")
        self.begin(threads)
        self.plan = plan
        critic = plan.penalty == "wgan-gp"
        self.generator, self.discriminator = networks.build(
            plan, sigmoid=not critic, device=self.device, channels_last=False
        )
        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(network.parameters(), lr=plan.lr, betas=plan.betas)
            for network in (self.generator, self.discriminator)
        )
        self.data = networks.normalised(plan, self.device, channels_last=False)
        self.order = networks.Order(plan, self.device)
        self.criterion = nn.BCELoss()
        self.update_d, self.update_g = self.minimax, self.non_saturating
        if critic:
            self.update_d, self.update_g = self.critic, self.generator_of_critic

    def run(self, n):
        for _ in range(n):
            for _ in range(self.plan.d_steps):
                real = self.data.index_select(0, self.order.next())
                noise = torch.randn(len(real), self.plan.latent, device=self.device)
                d_loss, fake = self.update_d(real, noise)
            self.latest = d_loss, self.update_g(noise, fake)

    def minimax(self, real, noise):
        ones = torch.ones(len(real), 1, device=self.device)
        self.discriminator.zero_grad()
        on_real = self.criterion(self.discriminator(real), ones)
        on_real.backward()
        if self.plan.penalty == "r1":
            points = real.detach().requires_grad_()
            # Of the logits, which this program has from their sigmoid.
            logits = torch.logit(self.discriminator(points), 1e-6)
            (slope,) = torch.autograd.grad(logits.sum(), points, create_graph=True)
            (R1_WEIGHT * slope.flatten(1).square().sum(1).mean()).backward()
        fake = self.generator(noise)
        on_fake = self.criterion(self.discriminator(fake.detach()), torch.zeros_like(ones))
        on_fake.backward()
        self.optimizer_d.step()
        return on_real + on_fake, fake

    def non_saturating(self, noise, fake):
        self.generator.zero_grad()
        ones = torch.ones(len(fake), 1, device=self.device)
        g_loss = self.criterion(self.discriminator(fake), ones)
        g_loss.backward()
        self.optimizer_g.step()
        return g_loss

    def critic(self, real, noise):
        self.discriminator.zero_grad()
        fake = self.generator(noise)
        d_loss = self.discriminator(fake).mean() - self.discriminator(real).mean()
        eps = torch.rand(len(real), 1, 1, 1, device=self.device)
        points = (eps * real + (1 - eps) * fake.detach()).requires_grad_()
        out = self.discriminator(points)
        (slope,) = torch.autograd.grad(out, points, torch.ones_like(out), create_graph=True)
        penalty = ((slope.flatten(1).norm(2, dim=1) - 1) ** 2).mean()
        (d_loss + GP_WEIGHT * penalty).backward()
        self.optimizer_d.step()
        return d_loss, fake

    def generator_of_critic(self, noise, fake):
        self.generator.zero_grad()
        g_loss = -self.discriminator(self.generator(noise)).mean()
        g_loss.backward()
        self.optimizer_g.step()
        return g_loss

    def losses(self):
        return tuple(loss.item() for loss in self.latest)
