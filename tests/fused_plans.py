"""Pairs of MLPs for the fused engine, the problems they make, and ways to compare two runs."""

import copy
import os
from pathlib import Path

import torch
from torch import nn

from fastgan import data, ops, optim
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine
from fastgan.heads import Heads
from fastgan.models import Discriminator, Generator
from fastgan.problem import make_problem

PATHS = [str(Path(ops.__file__).resolve().parents[2]), str(Path(__file__).parent)]
"""For child processes: the fastgan under test, which need not be the checkout's, and this file."""


def eager_run(engine, n):
    torch.set_num_threads(1)
    try:
        return engine.run(n)
    finally:
        torch.set_num_threads(2)


def mlp(*parts):
    return nn.Sequential(nn.Flatten(), *parts)


def reference_pair():
    return Generator(), Discriminator()


def deep_normed():
    g = mlp(
        nn.Linear(20, 48, bias=False),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(48, 70),
        nn.BatchNorm1d(70, momentum=None),
        nn.ELU(0.7),
        nn.Linear(70, 75),
        nn.Tanh(),
        nn.Unflatten(1, (3, 5, 5)),
    )
    d = mlp(
        nn.Linear(75, 50),
        nn.LeakyReLU(0.3),
        nn.Dropout(0.4),
        nn.Linear(50, 33),
        nn.BatchNorm1d(33),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(33, 17),
        nn.Sigmoid(),
        nn.Linear(17, 1),
    )
    return g, d


def plain():
    return (
        mlp(nn.Linear(7, 30), nn.LeakyReLU(0.1), nn.Linear(30, 36), nn.Unflatten(1, (1, 6, 6))),
        mlp(nn.Linear(36, 40), nn.ReLU(), nn.Linear(40, 1), nn.Flatten(0, 1)),
    )


def critic():
    # The last bias has no gradient but rounding, which Adam makes as large as any other.
    g, d = plain()
    d[3] = nn.Linear(40, 1, bias=False)
    return g, d


def single_layers():
    return (
        mlp(nn.Linear(5, 12), nn.Sigmoid(), nn.Unflatten(1, (3, 2, 2))),
        mlp(nn.Linear(12, 1, bias=False), nn.Sigmoid()),
    )


def smooth():
    g = mlp(
        nn.Linear(9, 40),
        nn.GELU(),
        nn.Linear(40, 33),
        nn.SiLU(),
        nn.Dropout(0.1),
        nn.Linear(33, 36),
        nn.GELU(approximate="tanh"),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(
        nn.Linear(36, 50),
        nn.SiLU(),
        nn.Linear(50, 20),
        nn.GELU(),
        nn.Dropout(0.2),
        nn.Linear(20, 17),
        nn.GELU(approximate="tanh"),
        nn.Linear(17, 1),
        nn.SiLU(),
    )
    return g, d


def selu_and_softplus():
    g = mlp(
        nn.Linear(9, 40),
        nn.SELU(),
        nn.Linear(40, 33),
        nn.Dropout(0.1),
        nn.ReLU(),
        nn.Linear(33, 36),
        nn.Softplus(),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(
        nn.Linear(36, 50),
        nn.Softplus(),
        nn.Dropout(0.2),
        nn.Linear(50, 20),
        nn.SELU(),
        nn.Linear(20, 1),
    )
    return g, d


def rows_normed():
    g = mlp(
        nn.Linear(9, 40),
        nn.LayerNorm(40),
        nn.LeakyReLU(0.2),
        nn.Linear(40, 33, bias=False),
        nn.LayerNorm(33, elementwise_affine=False),
        nn.SiLU(),
        nn.Dropout(0.1),
        nn.Linear(33, 36),
        nn.LayerNorm(36, bias=False),
        nn.Tanh(),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(
        nn.Linear(36, 70),
        nn.LayerNorm(70),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.2),
        nn.Linear(70, 20),
        nn.LayerNorm(20, eps=0.1),
        nn.Linear(20, 17),
        nn.LayerNorm(17),
        nn.ELU(),
        nn.Linear(17, 1),
    )
    return g, d


def with_heads():
    columns = [("tanh", 1), ("softmax", 4), ("gumbel", 5), ("gumbel", 9, 0.5), ("sigmoid", 2)]
    columns += [("none", 3), ("softmax", 11, 2.0), ("relu", 1)]
    g = mlp(
        nn.Linear(9, 40),
        nn.BatchNorm1d(40),
        nn.LeakyReLU(0.2),
        nn.Linear(40, 36),
        Heads(columns),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(nn.Linear(36, 70), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(70, 1))
    return g, d


class Add(nn.Module):
    """What comes in beside what a block makes of it, as a sum."""

    def __init__(self, *block, shortcut=None):
        super().__init__()
        self.block, self.shortcut = nn.Sequential(*block), shortcut or nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.block(x)


class Concat(nn.Sequential):
    """What a block makes of what comes in, and that behind it, as in CTGAN's generator."""

    def forward(self, x):
        return torch.cat([super().forward(x), x], 1)


def normed(n, m, act):
    return nn.Linear(n, m), nn.BatchNorm1d(m), act


def added():
    """Sums past one layer and several, one in the other, from the inputs, with new widths."""
    inner = Add(nn.Linear(33, 33), nn.Dropout(0.1))
    g = mlp(
        Add(nn.Linear(9, 40), nn.ReLU(), nn.Linear(40, 9), nn.Tanh()),
        Add(*normed(9, 33, nn.LeakyReLU(0.2)), inner, shortcut=nn.Linear(9, 33, bias=False)),
        nn.Linear(33, 36),
        nn.Tanh(),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(
        Add(nn.Linear(36, 70), nn.SiLU(), nn.Linear(70, 36)),
        nn.Linear(36, 33),
        nn.LayerNorm(33),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.2),
        Add(nn.Linear(33, 33), nn.BatchNorm1d(33), nn.LeakyReLU(0.2)),
        nn.Linear(33, 1),
    )
    return g, d


def concatenated():
    """CTGAN's generator, and a discriminator whose score sees its input, too."""
    g = mlp(
        Concat(*normed(9, 40, nn.ReLU())),
        Concat(*normed(49, 40, nn.ReLU())),
        nn.Linear(89, 36),
        nn.Tanh(),
        nn.Unflatten(1, (1, 6, 6)),
    )
    d = mlp(
        Concat(nn.Linear(36, 50), nn.ELU(), nn.Linear(50, 33), nn.LayerNorm(33), nn.ReLU()),
        nn.Linear(69, 1),
    )
    return g, d


def plain_norm():
    g = mlp(
        nn.Linear(16, 64),
        nn.BatchNorm1d(64, affine=False),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 49),
        nn.Tanh(),
        nn.Unflatten(1, (1, 7, 7)),
    )
    d = mlp(
        nn.Linear(49, 64),
        nn.BatchNorm1d(64, track_running_stats=False),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 64),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 1),
    )
    return g, d


# name: networks, latent, image, and what differs from the defaults
PLANS = {
    "reference": (reference_pair, 100, (1, 28, 28), {"loss": "non-saturating"}),
    "reference, ragged": (
        reference_pair,
        100,
        (1, 28, 28),
        {"count": 101, "batch_size": 33, "loss": "minimax"},
    ),
    "deep": (
        deep_normed,
        20,
        (3, 5, 5),
        {"count": 130, "batch_size": 40, "d_steps": 2, "label_smoothing": 0.1},
    ),
    "hinge": (
        plain,
        7,
        (1, 6, 6),
        {"loss": "hinge", "count": 50, "batch_size": 16, "weight_decay": 0.05},
    ),
    "least squares": (
        plain,
        7,
        (1, 6, 6),
        {"loss": "least-squares", "kind": torch.optim.AdamW, "weight_decay": 0.1},
    ),
    "wasserstein": (
        critic,
        7,
        (1, 6, 6),
        {"loss": "wasserstein", "d_steps": 3, "batch_size": 100, "count": 256},
    ),
    "single layers": (single_layers, 5, (3, 2, 2), {"batch_size": 3, "count": 20}),
    "norms": (
        plain_norm,
        16,
        (1, 7, 7),
        {"batch_size": 64, "kind": optim.AdamW, "loss": "minimax", "label_smoothing": 0.2},
    ),
    "several of G": (
        deep_normed,
        20,
        (3, 5, 5),
        {"count": 130, "batch_size": 40, "d_steps": 2, "g_steps": 3},
    ),
    "uniform, warming": (
        plain,
        {"noise": 3, "code": "uniform:4:-2:1"},
        (1, 6, 6),
        {"count": 50, "batch_size": 16, "ema": None, "ema_half_life": 64.0, "ema_warmup": 0.5},
    ),
    "floats": (plain, 7, (1, 6, 6), {"floats": True}),
    "added": (added, 9, (1, 6, 6), {"count": 70, "batch_size": 24, "d_steps": 2, "g_steps": 2}),
    "concatenated": (
        concatenated,
        9,
        (1, 6, 6),
        {"count": 70, "batch_size": 24, "loss": "least-squares"},
    ),
    "rows normed": (rows_normed, 9, (1, 6, 6), {"count": 70, "batch_size": 24, "d_steps": 2}),
    "heads": (with_heads, 9, (1, 6, 6), {"count": 70, "batch_size": 24, "d_steps": 2}),
    "selu and softplus": (selu_and_softplus, 9, (1, 6, 6), {"count": 70, "batch_size": 24}),
    "smooth": (smooth, 9, (1, 6, 6), {"count": 70, "batch_size": 24, "loss": "least-squares"}),
}


def problem(name="reference", *, double=False, draw=1, **changes):
    """A problem of one of the plans: settings, and count, floats and kind of PLANS."""
    make, latent, image, options = PLANS[name]
    options = {
        "count": 128, "batch_size": 32, "kind": torch.optim.Adam, "floats": False, "ema": 0.9,
        "betas": (0.5, 0.99), "seed": 2**63 + 5, **options, **changes,
    }  # fmt: skip
    torch.manual_seed(draw)
    g, d = make()
    if double:
        g, d = g.double(), d.double()
    samples = torch.randint(0, 256, (options.pop("count"), *image), dtype=torch.uint8)
    if options.pop("floats"):
        samples = samples.float() * (2 / 255) - 1
    options["optimizer"] = options.pop("kind")
    source = options.pop("source", None) or data.open(samples)
    return make_problem(g, d, source, latent_dim=latent, device="cpu", **options)


def tensors(p):
    """Everything a step changes, by name."""
    found = {}
    for name, net in (("g", p.generator), ("d", p.discriminator), ("ema", p.ema)):
        found |= {f"{name}.{key}": value for key, value in net.state_dict().items()}
    for name, net, opt in (
        ("g", p.generator, p.optimizer_g),
        ("d", p.discriminator, p.optimizer_d),
    ):
        for key, w in net.named_parameters():
            found |= {f"{name}.{key}.{k}": v for k, v in opt.state[w].items()}
    return found


def same(p, q):
    a, b = tensors(p), tensors(q)
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


def same_by_threads_calls_and_copies(made, *others):
    """Runs by other numbers of threads and of calls change no bit, and a copy goes on as they do.

    Args:
        made: makes the problem anew.
        others: more ways than three, (threads, steps of each call).
    """
    found = []
    for threads, parts in ((1, [7]), (2, [1, 6]), (3, [7]), *others):
        torch.set_num_threads(threads)
        p = made()
        engine = FusedEngine(p)
        found.append((torch.cat([engine.run(n) for n in parts]), p))
    for statistics, p in found[1:]:
        assert torch.equal(statistics, found[0][0])
        assert same(p, found[0][1]) == []
    same_from_a_copy(engine, 5)


def first_step(engine, p):
    """Gradients of the first step's updates, from Adam's first moments, of D and of G."""
    eager_run(engine(p), 1)
    return [
        torch.cat([2 * optimizer.state[w]["exp_avg"].detach().double().flatten() for w in w_of])
        for optimizer, w_of in (
            (p.optimizer_d, list(p.discriminator.parameters())),
            (p.optimizer_g, list(p.generator.parameters())),
        )
    ]


def gradients_as_good_as_torchs(made):
    """The first step's gradients are as near float64's as torch's are in float32.

    Args:
        made: (dtype) makes the problem.

    Returns:
        float64's and the fused engine's, of D and of G.
    """
    exact, torchs, ours = (
        first_step(engine, made(dtype))
        for engine, dtype in (
            (EagerEngine, torch.float64),
            (EagerEngine, torch.float32),
            (FusedEngine, torch.float32),
        )
    )
    for of_exact, of_torch, of_ours in zip(exact, torchs, ours, strict=True):
        error = (of_ours - of_exact).norm()
        assert error <= 3 * (of_torch - of_exact).norm() + 2e-7 * of_exact.norm()
    return exact, ours


def same_from_a_copy(engine, steps):
    """A copy of an engine's problem goes on as it does."""
    p = engine.problem
    q = copy.deepcopy(p)
    other = FusedEngine(q)
    other.step = engine.step
    assert torch.equal(engine.run(steps), other.run(steps))
    assert same(p, q) == []


def biases_before_norm(net):
    """Their gradient is rounding alone, which Adam makes as large as any other."""
    names = dict(net.named_modules())
    order = list(names)
    return {
        f"{a}.bias"
        for a, b in zip(order, order[1:], strict=False)
        if isinstance(names[a], nn.Linear) and isinstance(names[b], nn.BatchNorm1d)
    }


def child_environment(**changes):
    """For a child process that uses this file."""
    return {**os.environ, **changes}


class Read(torch.utils.data.Dataset):
    """Samples that are not in memory."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]
