"""Rows of a table, by the values of its discrete columns: python examples/ctgan_table.py

L. Xu, M. Skoularidou, A. Cuesta-Infante and K. Veeramachaneni, "Modeling Tabular Data using
Conditional GAN", NeurIPS 2019: G is asked for one value of one discrete column, which is drawn by
the logarithm of how often it is there, and is told by a cross-entropy whether it made it; D sees
ten rows at once. The table is scikit-learn's breast cancer, if that is installed, else a made one.
"""

import argparse

import torch
import torch.nn.functional as F

import fastgan
from fastgan.models import CTGANDiscriminator, CTGANGenerator

PACK = 10


def table():
    """Numbers [rows, columns], choices [rows, columns], and how many values each of these has."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        generator = torch.Generator().manual_seed(0)
        kinds = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 600, True, generator=generator)
        numbers = torch.randn(600, 6, generator=generator) + kinds[:, None]
        return numbers, torch.stack([kinds, (numbers.sum(1) > 4).long()], 1), (3, 2)
    found = load_breast_cancer()
    return torch.from_numpy(found.data).float(), torch.from_numpy(found.target)[:, None], (2,)


def rows(numbers, choices, sizes, n=6000):
    """n rows and what each of them was drawn for, a one-hot value of one discrete column."""
    low, high = numbers.min(0).values, numbers.max(0).values
    one_hot = [F.one_hot(c, size).float() for c, size in zip(choices.T, sizes, strict=True)]
    encoded = torch.cat([2 * (numbers - low) / (high - low) - 1, *one_hot], 1)
    taken, asked = [], []
    for i, part in enumerate(one_hot):
        count = part.sum(0)
        weights = part @ (torch.log1p(count) / count.clamp_min(1))
        at = torch.multinomial(weights, n // len(sizes), replacement=True)
        mine = [p[at] * (i == j) for j, p in enumerate(one_hot)]
        taken.append(encoded[at])
        asked.append(torch.cat(mine, 1))
    return torch.cat(taken), torch.cat(asked)


def networks(numbers, sizes, width=256):
    """The pair of the paper, which fastgan has."""
    heads = (("tanh", numbers), *(("softmax", size) for size in sizes))
    return (
        CTGANGenerator(heads, 128, width, sum(sizes)),
        CTGANDiscriminator(numbers + sum(sizes), width, sum(sizes), PACK),
    )


class ConditionalTable:
    """Wasserstein's game on packs of rows, and the cross-entropy of what was asked for."""

    def __init__(self, numbers, sizes):
        """For rows of so many numbers, then discrete columns of these sizes."""
        self.numbers, self.sizes = numbers, list(sizes)

    def d_loss(self, step):
        """With the gradient penalty between packs."""
        fake, real = (step.fake, step.fake_cond), (step.real, step.cond)
        loss = step.D(*fake).mean() - step.D(*real).mean()
        eps = step.uniform(1)[: len(step.real) // PACK].repeat_interleave(PACK, 0)
        mixed = torch.lerp(torch.cat(fake, 1), torch.cat(real, 1), eps).requires_grad_()
        score = step.D(*mixed.split([step.real.shape[1], step.cond.shape[1]], 1)).sum()
        (slope,) = torch.autograd.grad(score, mixed, create_graph=True)
        norm = slope.reshape(len(slope) // PACK, -1).norm(dim=1)
        return loss + 10 * (norm - 1).square().mean()

    def g_loss(self, step):
        """To pass for real, and to be what was asked for."""
        logits = step.G.logits(step.z, step.fake_cond)
        fake = step.G.activated(logits)
        made = logits[:, self.numbers :].split(self.sizes, 1)
        asked = step.fake_cond.split(self.sizes, 1)
        missed = sum((a * F.log_softmax(m, 1)).sum() for a, m in zip(asked, made, strict=True))
        return -step.D(fake, step.fake_cond).mean() - missed / len(fake)


def trainer(G, D, data, sizes, **settings):
    """Everything that the run is."""
    method = ConditionalTable(data[0].shape[1] - sum(sizes), sizes)
    return fastgan.Trainer(
        G, D, data, latent_dim=128, batch_size=500, drop_last=True, fake_condition="drawn",
        betas=(0.5, 0.9), weight_decay=1e-6, method=method, **settings,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    torch.manual_seed(0)
    numbers, choices, sizes = table()
    pair = networks(numbers.shape[1], sizes)
    run = trainer(*pair, rows(numbers, choices, sizes), sizes, out="runs/ctgan", if_exists="count")
    run.fit(**vars(parser.parse_args()))
