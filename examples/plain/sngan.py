"""sngan.py as a plain loop."""

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


def train(G, D, batches, draw):
    """Yield the two losses of each step."""
    opt_g = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.0, 0.9))
    opt_d = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.0, 0.9))
    average = copy.deepcopy(G)
    for number, (real, label) in enumerate(batches, 1):
        asked = draw.conditions(len(real))
        fake = G(draw.normal(len(real), 128), asked).detach()
        d_loss = F.relu(1 - D(real, label)).mean() + F.relu(1 + D(fake, asked)).mean()
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        if number % 5:
            continue
        asked = draw.conditions(len(real))
        g_loss = -D(G(draw.normal(len(real), 128), asked), asked).mean()
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        update(average, G)
        yield d_loss.item(), g_loss.item()
