"""cgan.py as a plain loop."""

import torch


def train(G, D, batches, draw):
    """Yield the two losses of each step."""
    opt_g = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for real, label in batches:
        asked = draw.conditions(len(real))
        fake = G(draw.normal(len(real), 100), asked).detach()
        on_real, on_fake = D(real, label), D(fake, asked)
        d_loss = 0.5 * ((on_real - 1).square().mean() + on_fake.square().mean())
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        asked = draw.conditions(len(real))
        fake = G(draw.normal(len(real), 100), asked)
        g_loss = 0.5 * (D(fake, asked) - 1).square().mean()
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        yield d_loss.item(), g_loss.item()
