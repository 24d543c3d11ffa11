"""infogan.py as a plain loop."""

import torch
import torch.nn.functional as F


def bce(scores, value):
    """Cross-entropy of scores with one value."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, value))


def latents(draw, b):
    """Noise, a class and two codes."""
    digit, code = draw.classes(b, 10), 2 * draw.uniform(b, 2) - 1
    return torch.cat([draw.normal(b, 62), F.one_hot(digit, 10), code], 1), digit, code


def train(G, D, batches, draw):
    """Yield the two losses of each step."""
    opt_g = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for real, _ in batches:
        z, _, _ = latents(draw, len(real))
        d_loss = bce(D(real)[0], 1.0) + bce(D(G(z).detach())[0], 0.0)
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        z, _, _ = latents(draw, len(real))
        g_loss = bce(D(G(z))[0], 1.0)
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        z, digit, code = latents(draw, len(real))
        _, digit_found, code_found = D(G(z))
        joint = F.cross_entropy(digit_found, digit) + 0.1 * F.mse_loss(code_found, code)
        opt_g.zero_grad()
        opt_d.zero_grad()
        joint.backward()
        opt_d.step()
        opt_g.step()
        yield d_loss.item(), g_loss.item()
