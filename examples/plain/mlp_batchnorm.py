"""mlp_batchnorm.py as a plain loop."""

import torch
import torch.nn.functional as F


def bce(scores, value):
    """Cross-entropy of scores with one value."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, value))


def train(G, D, batches, draw):
    """Yield the two losses of each step."""
    opt_g = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for real, _ in batches:
        fake = G(draw.normal(len(real), 100)).detach()
        d_loss = bce(D(real), 1.0) + bce(D(fake), 0.0)
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        g_loss = bce(D(G(draw.normal(len(real), 100))), 1.0)
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        yield d_loss.item(), g_loss.item()
