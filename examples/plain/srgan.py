"""srgan.py as a plain loop."""

import torch
import torch.nn.functional as F


def bce(scores, value):
    """Cross-entropy of scores with one value."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, value))


def train(G, D, batches, draw, features):
    """Yield the two losses of each step."""
    features.eval().requires_grad_(False)
    opt_g = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for real, small in batches:
        d_loss = bce(D(real), 1.0) + bce(D(G(small).detach()), 0.0)
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        fake = G(small)
        g_loss = bce(D(fake), 1.0)
        with torch.no_grad():
            wanted = features(real)
        total = g_loss + 1000 * F.mse_loss(features(fake), wanted)
        opt_g.zero_grad()
        total.backward()
        opt_g.step()
        yield d_loss.item(), g_loss.item()
