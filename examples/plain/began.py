"""began.py as a plain loop."""

import torch


def train(G, D, batches, draw):
    """Yield the two losses of each step."""
    opt_g = torch.optim.Adam(G.parameters(), lr=1e-4, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(D.parameters(), lr=1e-4, betas=(0.5, 0.999))
    k = 0.0
    for real, _ in batches:
        fake = G(draw.normal(len(real), 64)).detach()
        of_real, of_fake = (D(real) - real).abs().mean(), (D(fake) - fake).abs().mean()
        d_loss = of_real - k * of_fake
        k = min(max(k + 1e-3 * (0.5 * of_real - of_fake).item(), 0.0), 1.0)
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        fake = G(draw.normal(len(real), 64))
        g_loss = (D(fake) - fake).abs().mean()
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        yield d_loss.item(), g_loss.item()
