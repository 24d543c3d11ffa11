"""Problems of pairs of MLPs for the fused engine, and ways to compare two runs."""

import copy
import os
from pathlib import Path

import torch
from fused_networks import (
    added,
    concatenated,
    critic,
    deep_normed,
    plain,
    plain_norm,
    reference_pair,
    rows_normed,
    selu_and_softplus,
    single_layers,
    smooth,
    with_heads,
)
from torch import nn

from fastgan import data, ops, optim
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine
from fastgan.problem import make_problem

PATHS = [str(Path(ops.__file__).resolve().parents[2]), str(Path(__file__).parent)]
"""For child processes: the fastgan under test, which need not be the checkout's, and this file."""


def eager_run(engine, n):
    torch.set_num_threads(1)
    try:
        return engine.run(n)
    finally:
        torch.set_num_threads(2)


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
    "shared fakes": (
        deep_normed,
        20,
        (3, 5, 5),
        {"count": 130, "batch_size": 40, "d_steps": 2, "g_steps": 2, "shared_fakes": True},
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
