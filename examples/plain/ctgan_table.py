"""ctgan_table.py as a plain loop."""

import torch
import torch.nn.functional as F

PACK = 10


def penalty(D, real, fake, row, draw):
    """How far the slope between packs of real and of fake rows is from one."""
    eps = draw.uniform(len(real) // PACK, 1).repeat_interleave(PACK, 0)
    mixed = torch.lerp(fake, real, eps).requires_grad_()
    score = D(mixed[:, :row], mixed[:, row:]).sum()
    (slope,) = torch.autograd.grad(score, mixed, create_graph=True)
    return (slope.reshape(len(real) // PACK, -1).norm(dim=1) - 1).square().mean()


def train(G, D, batches, draw, sizes):
    """Yield the two losses of each step."""
    adam = {"lr": 2e-4, "betas": (0.5, 0.9), "weight_decay": 1e-6}
    opt_g = torch.optim.Adam(G.parameters(), **adam)
    opt_d = torch.optim.Adam(D.parameters(), **adam)
    for real, cond in batches:
        row, numbers = real.shape[1], real.shape[1] - sum(sizes)
        asked = draw.conditions(len(real))
        fake = G(draw.normal(len(real), 128), asked).detach()
        d_loss = D(fake, asked).mean() - D(real, cond).mean()
        joined = torch.cat([real, cond], 1), torch.cat([fake, asked], 1)
        d_loss = d_loss + 10 * penalty(D, *joined, row, draw)
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()
        asked = draw.conditions(len(real))
        logits = G.logits(draw.normal(len(real), 128), asked)
        g_loss = -D(G.activated(logits), asked).mean()
        parts = zip(asked.split(sizes, 1), logits[:, numbers:].split(sizes, 1), strict=True)
        for wanted, made in parts:
            g_loss = g_loss - (wanted * F.log_softmax(made, 1)).sum() / len(real)
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        yield d_loss.item(), g_loss.item()
