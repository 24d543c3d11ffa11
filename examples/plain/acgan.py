"""acgan.py as a plain loop."""

import torch
import torch.nn.functional as F


def bce(scores, value):
    """Cross-entropy of scores with one value."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, value))


def train(G, D, batches, draw):
    """Yield the two losses of each step."""
    opt_g = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for real, label in batches:
        asked = draw.conditions(len(real))
        fake = G(draw.normal(len(real), 100), asked).detach()
        on_real, of_real = D(real)
        on_fake, of_fake = D(fake)
        digits = F.cross_entropy(of_real, label) + F.cross_entropy(of_fake, asked)
        d_loss = bce(on_real, 1.0) + bce(on_fake, 0.0) + digits
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        asked = draw.conditions(len(real))
        on_fake, of_fake = D(G(draw.normal(len(real), 100), asked))
        g_loss = bce(on_fake, 1.0) + F.cross_entropy(of_fake, asked)
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        yield d_loss.item(), g_loss.item()
