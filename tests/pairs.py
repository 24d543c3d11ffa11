"""Small pairs of networks, problems made of them, and the step written by hand."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from fastgan import data, random
from fastgan.problem import make_problem
from fastgan.random import Stream

SHAPE = (1, 6, 6)


class Mlp(nn.Module):
    """A generator or the logits of a discriminator, with whatever layers a test wants inside."""

    def __init__(self, *layers, out_shape=()):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), *layers)
        self.out_shape = out_shape

    def forward(self, x):
        return self.body(x).view(len(x), *self.out_shape)


def generator(*middle, latent=5, shape=SHAPE):
    pixels = torch.Size(shape).numel()
    layers = (nn.Linear(latent, 16), *middle, nn.LeakyReLU(0.2), nn.Linear(16, pixels), nn.Tanh())
    return Mlp(*layers, out_shape=shape)


def discriminator(*end, middle=(), shape=SHAPE):
    pixels = torch.Size(shape).numel()
    return Mlp(
        nn.Linear(pixels, 16), nn.LeakyReLU(0.2), *middle, nn.Linear(16, 1), *end, out_shape=(1,)
    )


def images(n=22, shape=SHAPE, seed=0):
    pixels = torch.randint(
        0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return data.open(pixels)


DEVICE = "cpu"


def problem(g=None, d=None, source=None, **options):
    torch.manual_seed(1)
    options = {"batch_size": 8, "latent_dim": 5, "device": DEVICE, "seed": 11, **options}
    source = source or images()
    if options["device"] != "cpu":
        source = source.to(options["device"], budget_bytes=None if source.resident else 1)
    return make_problem(g or generator(), d or discriminator(), source, **options)


def weights(module):
    return [t.detach().clone() for t in module.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def by_hand(p, steps):
    """The step as the protocol's text has it, in plain PyTorch with torch.optim.Adam."""
    g, d = p.generator, p.discriminator
    kind = next(g.parameters()).dtype
    adam = {"betas": (0.5, 0.999), "lr": 2e-4}
    adam_g, adam_d = (
        torch.optim.Adam(g.parameters(), **adam),
        torch.optim.Adam(d.parameters(), **adam),
    )

    class Drop(nn.Module):
        def __init__(self, index, p):
            super().__init__()
            self.index, self.p = index, p

        def forward(self, x):
            stream = Stream.DROPOUT + 8 * self.index + Drop.use
            keep = random.keep_mask(p.seed, stream, Drop.step, x.shape, self.p)
            return torch.where(keep, x * random.keep_scale(self.p), 0.0)

    for network in (g, d):
        index = 0
        for parent in network.modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(parent, name, Drop(index, child.p))
                    index += 1
    found = []
    per_epoch = p.data.batches_per_epoch(p.batch_size, p.drop_last)
    for t in range(steps):
        for k in range(p.d_steps):
            u = t * p.d_steps + k
            order = random.permutation(p.seed, u // per_epoch, len(p.data))
            order = order[u % per_epoch * p.batch_size :][: p.batch_size]
            real = (p.data.samples[order].float() * (2 / 255) - 1).to(kind)
            Drop.step, Drop.use = u, 3
            z = random.normal(p.seed, Stream.LATENT_D, u, (len(real), *p.latent.shape)).to(kind)
            made = g(z)
            fake = made.detach()
            Drop.use = 0
            on_real = d(real).flatten()
            Drop.use = 1
            on_fake = d(fake).flatten()
            d_loss = F.binary_cross_entropy_with_logits(on_real, torch.ones_like(on_real))
            d_loss = d_loss + F.binary_cross_entropy_with_logits(on_fake, torch.zeros_like(on_fake))
            adam_d.zero_grad()
            d_loss.backward()
            adam_d.step()
        z = random.normal(p.seed, Stream.LATENT_G, t, (len(real), *p.latent.shape)).to(kind)
        Drop.step, Drop.use = t, 4
        fake = made if p.config.shared_fakes else g(z)
        Drop.use = 2
        score = d(fake).flatten()
        g_loss = F.binary_cross_entropy_with_logits(score, torch.ones_like(score))
        adam_g.zero_grad()
        g_loss.backward()
        adam_g.step()
        if p.ema is not None:
            kept, now = p.ema.state_dict(), g.state_dict()
            for name, value in kept.items():
                if name in dict(g.named_parameters()):
                    value.mul_(p.ema_decay).add_(now[name], alpha=1 - p.ema_decay)
                else:
                    value.copy_(now[name])
        found.append([x.mean().item() for x in (d_loss, g_loss, on_real, on_fake)])
    return torch.tensor(found)


def changed(p, **parts):
    """A problem with other parts: a problem itself is frozen."""
    return dataclasses.replace(p, **parts)


class Twice(nn.Module):
    """One dropout layer that a pass calls twice."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.end = nn.Linear(36, 1)

    def forward(self, x):
        ones = torch.ones(len(x), 36, device=x.device)
        masks = self.drop(ones), self.drop(ones)
        self.note(torch.stack(masks).detach())
        return self.end(x.flatten(1) * masks[0] * masks[1])

    def note(self, masks):
        pass
