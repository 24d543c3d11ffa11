"""Whether a plan computes what the network's own forward does.

torch.fx sees the operations on the one tensor that it follows. It does not see what stands in their
place or around them: a `torch.autograd.Function` with a backward of its own, a forward that was
replaced in a class, autocast or no_grad within a forward, a question to torch.is_grad_enabled().
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import random
from fastgan.engines.fused.activations import OPERATORS
from fastgan.engines.fused.chain import Chain, Layer
from fastgan.engines.fused.inputs import Condition
from fastgan.engines.fused.trace import NoPlan
from fastgan.engines.probe import copied, first_line, randomness_kept, undisturbed
from fastgan.nn import LinearLeakyReLU

_SAMPLES = 7
_CLOSE = 1e-4
"""Relative; what torch.fx has not seen makes other numbers, and not another rounding."""
_NOISE = 1e-5
"""Of the largest: gradients below that may be rounding, such as that of a bias before a norm."""


def prove(
    chain: Chain,
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    condition: Condition | None = None,
) -> None:
    """Run a copy of a network and its plan side by side: outputs and gradients must be the same.

    Args:
        chain: the plan.
        module: the network; it is left alone.
        name: what messages call it.
        shape: of one input.
        condition: what it is given beside it.

    Raises:
        NoPlan: they differ, or the network fails.
    """
    device = chain.layers[0].linear.weight.device
    with randomness_kept(device), undisturbed(device), torch.enable_grad():
        (copy,) = copied((module,))
        for m in copy.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
        of_copy = dict(zip(module.modules(), copy.modules(), strict=True))
        size = _SAMPLES * chain.pack, *shape
        samples = random.normal(0, random.Stream.SAMPLE, 0, size, device=device)
        given = _conditions(condition, chain, device)
        try:
            own = _results(lambda x: copy(x, *given), copy, samples)
        except Exception as error:
            raise NoPlan(f"{name} failed when it was tried ({first_line(error)})") from error
        planned = _results(lambda x: _computed(chain, of_copy, x, *given), copy, samples)
    largest = max((g.abs().max() for g in planned[1:] if g is not None), default=0.0)
    for a, b, noise in zip(own, planned, [0.0] + [_NOISE * largest] * len(own), strict=False):
        if not _same(a, b, noise):
            raise NoPlan(
                f"{name}: its forward computes something else than its layers say, or has other "
                "gradients"
            )


def _results(function, network: nn.Module, samples: Tensor) -> list[Tensor | None]:
    """Outputs, and their gradients with respect to the samples and all weights."""
    x = samples.clone().requires_grad_()
    torch.manual_seed(0)  # of the noise that classes are chosen by
    out = function(x).reshape(_SAMPLES, -1)
    weights = [x, *network.parameters()]
    if not out.requires_grad:
        return [out, *[None] * len(weights)]
    towards = torch.linspace(0.5, 1.5, out.numel(), device=out.device).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, weights, towards, allow_unused=True)]


def _conditions(condition: Condition | None, chain: Chain, device: torch.device) -> tuple:
    if condition is None:
        return ()
    shape = (_SAMPLES * chain.pack, *condition.shape)
    numbers = random.normal(0, random.Stream.SAMPLE, 1, shape, device=device)
    if not condition.is_label:
        return (numbers,)
    fewest = [part.classes for part in chain.inputs.parts] + [condition.classes or 2]
    return ((torch.special.ndtr(numbers) * min(fewest)).long(),)


def _computed(
    chain: Chain, of_copy: dict[nn.Module, nn.Module], x: Tensor, condition: Tensor | None = None
) -> Tensor:
    made = [chain.inputs.joined(x, condition, of_copy).reshape(_SAMPLES, -1)]
    joined: list[Tensor] = []

    def node(n: int) -> Tensor:
        return made[n] if n <= len(chain.layers) else joined[n - len(chain.layers) - 1]

    for i, layer in enumerate(chain.layers):
        for join in chain.joins[len(joined) :]:
            if join.before > i:
                break
            parts = [node(n) for n in join.nodes]
            joined.append(torch.cat(parts, 1) if join.kind == "concat" else sum(parts))
        made.append(_layer(layer, of_copy, node(layer.source)))
    return made[-1]


def _layer(layer: Layer, of_copy: dict[nn.Module, nn.Module], x: Tensor) -> Tensor:
    linear = of_copy[layer.linear]
    if isinstance(linear, LinearLeakyReLU):  # our own
        return linear(x)
    x = F.linear(x, linear.weight, linear.bias)
    norm = of_copy.get(layer.norm)
    if isinstance(norm, nn.LayerNorm):
        x = torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    elif norm is not None:
        x = torch.batch_norm(x, norm.weight, norm.bias, None, None, True, 0.0, norm.eps, False)
    x = OPERATORS[layer.activation](x, layer.slope)
    return x if layer.ends is None else layer.ends.computed(x)


def _same(a: Tensor | None, b: Tensor | None, noise: float | Tensor) -> bool:
    if a is None or b is None:
        # Where nothing flows, autograd may say None or zeros.
        return all(t is None or float(t.abs().max()) <= float(noise) for t in (a, b))
    if a.dtype != b.dtype or a.numel() != b.numel():
        return False
    a, b = a.reshape(b.shape), b
    if not (a.isfinite().all() and b.isfinite().all()):
        return torch.equal(a.isfinite(), b.isfinite())
    return bool(((a - b).abs() <= _CLOSE * b.abs().max() + noise).all())
