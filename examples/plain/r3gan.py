"""r3gan.py as a plain loop."""

import copy

import torch
import torch.nn.functional as F


def update(average, G):
    """Move a running average of the weights; all else is as it is now."""
    with torch.no_grad():
        for a, w in zip(average.parameters(), G.parameters(), strict=True):
            a.lerp_(w, 1 - 0.999)
        for a, b in zip(average.buffers(), G.buffers(), strict=True):
            a.copy_(b)


def penalty(scores, images):
    """Half the squared slope."""
    (slope,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return 0.5 * slope.flatten(1).square().sum(1).mean()


def train(G, D, batches, draw):
    """Yield the two losses of each step."""
    opt_g = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.0, 0.99))
    opt_d = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.0, 0.99))
    average = copy.deepcopy(G)
    for real, _ in batches:
        real.requires_grad_()
        fake = G(draw.normal(len(real), 64)).detach().requires_grad_()
        on_real, on_fake = D(real), D(fake)
        relativistic = F.softplus(on_fake - on_real).mean()
        d_loss = relativistic + 0.5 * penalty(on_real, real) + 0.5 * penalty(on_fake, fake)
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        real.requires_grad_(False)
        on_fake = D(G(draw.normal(len(real), 64)))
        with torch.no_grad():
            on_real = D(real)
        g_loss = F.softplus(on_real - on_fake).mean()
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        update(average, G)
        yield relativistic.item(), g_loss.item()
