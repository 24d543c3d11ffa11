"""What to tell a user whose training has broken down."""

import torch

from fastgan import sharded
from fastgan.problem import Problem


def bad_weights(problem: Problem) -> str | None:
    """Which network has a weight that is infinite or NaN; None if neither has."""
    for name in ("generator", "discriminator"):
        weights = getattr(problem, name).parameters()
        finite = [sharded.whole(torch.isfinite(w).all()) for w in weights]
        if finite and not torch.stack(finite).all():
            return name
    return None


def likely_cause(problem: Problem, step: int) -> str:
    """Why losses or weights may have become infinite or NaN at a step, counted from 1."""
    p = problem
    update = (step - 1) * p.d_steps
    real, condition = p.data.batch(p.seed, update, p.batch_size, p.drop_last)
    if not _finite(real):
        return "the real images of that step hold values that are not finite"
    if condition is not None and not _finite(condition):
        return "the conditions of that step's real images hold values that are not finite"
    if half := [n for n in ("generator", "discriminator") if _in_half(getattr(p, n))]:
        # Adam's eps is 0 in float16, and so is the square of a small gradient: its first step
        # divides by 0, whatever the rate.
        return (
            f"weights of the {' and the '.join(half)} are float16, in which small gradients and "
            "Adam's eps are 0; keep the weights in float32 (network.float()) and let "
            "precision='fp16' or 'bf16' do the products in half precision"
        )
    causes = []
    wasserstein = p.loss is not None and p.loss.name == "wasserstein"
    if wasserstein and not p.penalties and p.config.weight_clip is None:
        causes.append("a Wasserstein critic that nothing keeps Lipschitz (try penalties='wgan-gp')")
    if p.precision != "fp32":
        causes.append(f"precision {p.precision!r} (try 'fp32')")
    rates = sorted({float(g["lr"]) for o in (p.optimizer_g, p.optimizer_d) for g in o.param_groups})
    rates = " and ".join(f"{rate:g}" for rate in rates)
    causes.append(f"a learning rate that is too high (lr is {rates}; try a third of it)")
    return ", or ".join(causes)


def _finite(values: torch.Tensor) -> bool:
    return bool(torch.isfinite(values).all())


def _in_half(network: torch.nn.Module) -> bool:
    return any(w.dtype == torch.float16 for w in network.parameters())
