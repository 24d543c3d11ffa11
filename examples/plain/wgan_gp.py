"""wgan_gp.py as a plain loop."""

import torch


def penalty(D, real, fake, eps):
    """How far the slope between real and fake images is from one."""
    mixed = torch.lerp(fake, real, eps).requires_grad_()
    (slope,) = torch.autograd.grad(D(mixed).sum(), mixed, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def train(G, D, batches, draw):
    """Yield the two losses of each step."""
    opt_g = torch.optim.Adam(G.parameters(), lr=1e-4, betas=(0.0, 0.9))
    opt_d = torch.optim.Adam(D.parameters(), lr=1e-4, betas=(0.0, 0.9))
    for number, (real, _) in enumerate(batches, 1):
        fake = G(draw.normal(len(real), 128)).detach()
        wasserstein = D(fake).mean() - D(real).mean()
        d_loss = wasserstein + 10 * penalty(D, real, fake, draw.uniform(len(real), 1, 1, 1))
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        if number % 5:
            continue
        g_loss = -D(G(draw.normal(len(real), 128))).mean()
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        yield wasserstein.item(), g_loss.item()
