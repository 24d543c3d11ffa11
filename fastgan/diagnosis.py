"""What to tell a user whose training has broken down."""

import torch

from fastgan.problem import Problem


def bad_weights(problem: Problem) -> str | None:
    """Which network has a weight that is infinite or NaN; None if neither has."""
    for name in ("generator", "discriminator"):
        finite = [torch.isfinite(w).all() for w in getattr(problem, name).parameters()]
        if finite and not torch.stack(finite).all():
            return name
    return None


def likely_cause(problem: Problem, step: int) -> str:
    """Why losses or weights may have become infinite or NaN at a step, counted from 1."""
    p = problem
    update = (step - 1) * p.d_steps
    if not torch.isfinite(p.data.batch(p.seed, update, p.batch_size, p.drop_last).images).all():
        return "the real images of that step hold values that are not finite"
    causes = []
    if p.loss.name == "wasserstein" and not p.penalties:
        causes.append("a Wasserstein critic that nothing keeps Lipschitz (try penalty='wgan-gp')")
    if p.precision != "fp32":
        causes.append(f"precision {p.precision!r} (try 'fp32')")
    rates = sorted({g["lr"] for o in (p.optimizer_g, p.optimizer_d) for g in o.param_groups})
    rates = " and ".join(f"{float(rate):g}" for rate in rates)
    causes.append(f"a learning rate that is too high (lr is {rates}; try a third of it)")
    return ", or ".join(causes)
