"""Networks whose layers take sums and concatenations of those before them, drawn by numbers."""

import random

import torch
from fused_plans import first_step, gradients_as_good_as_torchs
from torch import nn

from fastgan import data
from fastgan.engines.eager import EagerEngine
from fastgan.nn import Pack
from fastgan.problem import make_problem

LATENT, IMAGE = 6, (1, 5, 7)
PENALTIES = ("wgan-gp", "r1", "r2:3", ["wgan-gp:4", "r1:1"], ["r1", "r2", "wgan-gp:2:2"])
ACTIVATIONS = {
    "straight": lambda: (nn.LeakyReLU(0.2), nn.ReLU(), nn.Identity()),
    "curved": lambda: (nn.Tanh(), nn.ELU(0.8), nn.Sigmoid(), nn.SiLU(), nn.GELU()),
}


class Drawn(nn.Module):
    """Layers, sums and concatenations in a drawn order; the last Linear takes all that is left."""

    def __init__(self, rng, features, out, kind, batch_norm):
        super().__init__()
        self.layers, self.steps = nn.ModuleList(), []
        widths, left = [features], {0}

        def step(what, of, width):
            self.steps.append((what, of))
            left.difference_update(of)
            left.add(len(widths))
            widths.append(width)

        def layer(of):
            n, m = widths[of], rng.choice([5, 17, 33, 40, *widths[1:]])
            parts = [nn.Linear(n, m, bias=rng.random() < 0.8)]
            norms = [None, None, nn.LayerNorm(m, 1e-3)]
            if batch_norm and parts[0].bias is not None:
                parts[0] = nn.Linear(n, m, bias=False)
                norms.append(nn.BatchNorm1d(m))
            parts += [norm] if (norm := rng.choice(norms)) is not None else []
            parts.append(rng.choice(ACTIVATIONS[kind]()))
            parts += [nn.Dropout(0.3)] if rng.random() < 0.3 else []
            self.layers.append(nn.Sequential(*parts))
            step(len(self.layers) - 1, (of,), m)

        layer(0)
        for _ in range(rng.randrange(3, 8)):
            of = rng.randrange(len(widths))
            alike = [n for n, width in enumerate(widths) if width == widths[of]]
            if rng.random() < 0.45:
                layer(of)
            elif len(alike) > 1 and rng.random() < 0.7:
                step("add", (of, rng.choice(alike)), widths[of])
            else:
                of = tuple(rng.randrange(len(widths)) for _ in range(rng.choice((2, 2, 3))))
                step("concat", of, sum(widths[n] for n in of))
        if len(left) > 1:
            of = tuple(sorted(left))
            step("concat", of, sum(widths[n] for n in of))
        self.last = nn.Linear(widths[-1], out)

    def forward(self, x):
        values = [x.flatten(1)]
        for what, of in self.steps:
            taken = [values[n] for n in of]
            if what == "add":
                made = taken[0] + taken[1]
            elif what == "concat":
                made = torch.cat(taken, 1)
            else:
                made = self.layers[what](*taken)
            values.append(made)
        return self.last(values[-1])


def drawn(kind, number, dtype=torch.float32, penalised=False, pack=1, **changes):
    """The problem of a pair that a number draws; D judges `pack` images together."""
    rng = random.Random(f"{kind} {number}")
    torch.manual_seed(number)
    values = IMAGE[1] * IMAGE[2]
    g = nn.Sequential(
        Drawn(rng, LATENT, values, kind, batch_norm=True), nn.Tanh(), nn.Unflatten(1, IMAGE)
    )
    d = Drawn(rng, values * pack, 1, kind, batch_norm=not penalised)
    if pack > 1:
        d = nn.Sequential(Pack(pack), d)
    options = {
        "loss": rng.choice(("wasserstein", "hinge", "least-squares", "non-saturating")),
        # A BatchNorm of two packs has the sign of a difference, which rounding decides.
        "batch_size": max((6 if pack > 1 else 2) * pack, rng.choice((7, 32, 40)) // pack * pack),
        "penalties": PENALTIES[number % len(PENALTIES)] if penalised else None,
        "seed": rng.randrange(1 << 64),
        "betas": (0.5, 0.9),
        "ema": 0.9,
        "drop_last": True,
        **changes,
    }
    samples = data.open(torch.rand(80, *IMAGE) * 2 - 1)
    return make_problem(
        g.to(dtype), d.to(dtype), samples, latent_dim=LATENT, device="cpu", **options
    )


COURSES = [
    ("straight", 1, {"penalised": True, "d_steps": 2}),
    ("curved", 3, {"penalised": True, "grad_clip": 0.05}),
    ("curved", 4, {"d_steps": 2, "g_steps": 2}),
    ("straight", 5, {"precision": "bf16"}),
    ("curved", 6, {"penalised": True, "shared_fakes": True}),
]
"""Of `drawn`: the kind, the number and what changes, for tests of several steps."""


def drawn_gradients_as_good_as_torchs(kind, number, penalised, pack=1):
    """What `gradients_as_good_as_torchs` says of one that a number draws, whose penalty counts."""

    def made(dtype, **changes):
        return drawn(kind, number, dtype, penalised, pack, **changes)

    exact, ours = gradients_as_good_as_torchs(made)
    if penalised:  # and the penalty is not lost
        without = first_step(EagerEngine, made(torch.float64, penalties=None))
        assert (exact[0] - without[0]).norm() > 1e3 * (ours[0] - exact[0]).norm()
