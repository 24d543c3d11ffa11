"""pix2pix.py as a plain loop."""

import torch
import torch.nn.functional as F


def bce(scores, value):
    """Cross-entropy of scores with one value."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, value))


def train(G, D, batches, draw):
    """Yield the two losses of each step."""
    opt_g = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for real, outline in batches:
        fake = G(outline).detach()
        d_loss = 0.5 * (bce(D(real, outline), 1.0) + bce(D(fake, outline), 0.0))
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        fake = G(outline)
        g_loss = bce(D(fake, outline), 1.0)
        total = g_loss + 100 * F.l1_loss(fake, real)
        opt_g.zero_grad()
        total.backward()
        opt_g.step()
        yield d_loss.item(), g_loss.item()
