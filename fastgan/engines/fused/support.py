"""Which problems have a fused form, and the reason where one has none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgan import ops, torch_private
from fastgan.engines import probe
from fastgan.engines.fused import modules, plan, rules, terms
from fastgan.engines.fused.activations import BENDS_KEPT
from fastgan.engines.fused.chain import Chain, Layer, absorb_sigmoid
from fastgan.engines.fused.inputs import Condition, condition_of
from fastgan.engines.fused.proof import prove
from fastgan.engines.packs import as_logits
from fastgan.engines.scores import batch_sizes
from fastgan.latents import OneHot
from fastgan.losses import LOSSES, PENALTIES, Penalty, loss
from fastgan.method import name_of
from fastgan.packs import rows_of

if TYPE_CHECKING:
    from fastgan.problem import Problem

LOSS_NUMBERS = {
    name: i
    for i, name in enumerate(("non-saturating", "minimax", "hinge", "least-squares", "wasserstein"))
}
"""The losses by their numbers in csrc/step/loss.h."""

PENALTY_FORMS = (PENALTIES["r1"].of, PENALTIES["wgan-gp"].of)
"""What penalties are of the slope, by their numbers in csrc/step/enums.h."""
PENALTY_PLACES = ("between", "real", "fake")
"""Likewise where it is taken."""
MOST_PENALTIES, MOST_G_STEPS = 64, 1 << 12
"""In csrc/step/plan.h and csrc/step/decode.h."""

_DEFAULTS = {"d_start": 0, "g_start": 0, "accumulate": 1, "augment": None}
"""Settings that only eager and graph can take otherwise."""


def chains(problem: Problem) -> tuple[Chain, Chain]:
    """The generator and the discriminator of a problem that the engine can run, as layers.

    Raises:
        NoPlan: it cannot; the message has the reason in a user's words.
    """
    p = problem
    _check_machine(p)
    _check_loss(p)
    for name in ("optimizer_g", "optimizer_d"):
        _check_kind(getattr(p, name), name, p.device)
    of_d, of_g = (condition_of(p, which) for which in (0, 1))
    shape = tuple(p.data.shape)
    g = plan.read(p.generator, "generator", p.latent.shape, p.device, of_g)
    d = _read_d(p, shape, of_d)
    prove(g, p.generator, "generator", p.latent.shape, of_g)
    prove(d, p.discriminator, "discriminator", shape, of_d)
    if p.loss.scores == "logits":
        absorb_sigmoid(d)
    terms.join(p, g)
    _check_pair(p, g, d)
    _check_optimizer(p.optimizer_g, g, "optimizer_g")
    _check_optimizer(p.optimizer_d, d, "optimizer_d")
    _check_average(p)
    return g, d


def _read_d(problem: Problem, shape: tuple[int, ...], condition: Condition | None) -> Chain:
    """The discriminator, perhaps of packs of samples."""
    p = problem
    try:
        return plan.read(p.discriminator, "discriminator", shape, p.device, condition)
    except plan.NoPlan:
        if (pack := _pack(p)) == 1:
            raise
    return plan.read(p.discriminator, "discriminator", shape, p.device, condition, pack)


def _pack(problem: Problem) -> int:
    """How many samples D judges together; 1 if it cannot be tried, of which another look tells."""
    p, size = problem, batch_sizes(problem)[0]
    try:
        with probe.tried(p) as (_, d):
            scores = as_logits(d(*probe.given_d(p, d, probe.samples(p, size))), size)
    except Exception:
        return 1
    return rows_of(scores, size)


LARGE_STEP = 9e9
"""Operations of a step from which on `auto` prefers `graph` on CUDA, where cuBLAS multiplies.

A guess until a GPU is asked: at 8 to 10 GFLOP its larger tiles are expected to be worth more than
the launches that `fused` saves. What tells: benchmarks/bench.py --device cuda --sweep --peers
graph,fused,auto.
"""


def outgrown(problem: Problem) -> str | None:
    """Why `graph` is the better engine for a problem that this one could run too; None if not."""
    p = problem
    if p.device.type != "cuda":
        return None
    try:
        work = operations(*chains(p), p.batch_size, p.d_steps)
    except plan.NoPlan:
        return None
    if work < LARGE_STEP:
        return None
    return (
        f"a step of {work / 1e9:.3g} GFLOP is past the {LARGE_STEP / 1e9:.3g} from which on the "
        "library's products are expected to be faster; engine='fused' takes it all the same"
    )


def operations(g: Chain, d: Chain, batch: int, d_steps: int) -> float:
    """Floating-point operations of the products of a step."""
    of_g, of_d = (
        [layer.linear.in_features * layer.linear.out_features for layer in chain.layers]
        for chain in (g, d)
    )
    # Forward, the gradients of the weights, and those of all layers' inputs but the first's.
    through_d = 3 * sum(of_d) - of_d[0]
    update_d = sum(of_g) + 2 * through_d
    update_g = 3 * sum(of_g) - of_g[0] + 2 * sum(of_d)
    return 2.0 * batch * (d_steps * update_d + update_g)


def averages(problem: Problem) -> dict[Tensor, Tensor]:
    """The averaged copy of each of G's parameters and buffers."""
    if problem.ema is None:
        return {}
    g, ema = problem.generator, problem.ema
    return dict(
        zip([*g.parameters(), *g.buffers()], [*ema.parameters(), *ema.buffers()], strict=True)
    )


def rate(optimizer: torch.optim.Optimizer, name: str) -> float:
    """The learning rate of all of an optimiser's groups."""
    if len(optimizer.param_groups) > 1:
        _alike(optimizer, name, "lr")
    return float(optimizer.param_groups[0]["lr"])


def _check_machine(problem: Problem) -> None:
    p = problem
    if p.divided:
        raise plan.NoPlan("networks are divided by fully_shard, and it wants whole weights")
    if p.device.type not in ("cpu", "cuda"):
        raise plan.NoPlan(f"it runs on the CPU and on CUDA, and the device is {p.device}")
    if p.device.type == "cuda" and not torch.cuda.is_available():
        raise plan.NoPlan(f"the device is {p.device}, and torch finds no GPU")
    if not ops.has_kernels(p.device):
        raise plan.NoPlan(
            f"the device is {p.device}, and the compiled {p.device.type.upper()} library is not "
            "available (see `fastgan info`)"
        )
    if p.device.type == "cuda" and torch.cuda.get_device_capability(p.device) < (8, 0):
        raise plan.NoPlan("it needs a GPU of compute capability 8.0 or newer")
    if p.world.size > 1 and p.device.type == "cuda":
        raise plan.NoPlan(f"on CUDA it trains in one process, and there are {p.world.size}")
    if p.precision == "fp16":
        raise plan.NoPlan("precision 'fp16' has no fused form; 'fp32' and 'bf16' have")


def _check_loss(problem: Problem) -> None:
    p = problem
    if p.loss is None:
        raise plan.NoPlan(f"{name_of(p.method)} is a method of its own, which has no fused form")
    terms.check(p)
    for name, default in _DEFAULTS.items():
        if (value := getattr(p.config, name)) != default:
            raise plan.NoPlan(f"{name}={value} has no fused form")
    if p.g_steps > MOST_G_STEPS:
        raise plan.NoPlan(f"more than {MOST_G_STEPS} g_steps have no fused form")
    if p.latent.shape is None or any(isinstance(part, OneHot) for _, part in p.latent.parts):
        raise plan.NoPlan("latents that are not normal or uniform throughout have no fused form")
    if p.device.type != "cpu":
        if not p.latent.is_noise:
            raise plan.NoPlan("uniform latents have a fused form on the CPU only")
        if p.config.ema_warmup is not None:
            raise plan.NoPlan("ema_warmup has a fused form on the CPU only")
        if p.config.shared_fakes:
            raise plan.NoPlan("shared_fakes has a fused form on the CPU only")
    _check_penalties(p)
    name = p.loss.name
    if name not in LOSSES or name not in LOSS_NUMBERS:
        raise plan.NoPlan(f"the loss {name!r} has no fused form")
    smoothing = p.loss.label_smoothing
    if smoothing and LOSSES[name].scores != "logits" or loss(name, smoothing) != p.loss:
        raise plan.NoPlan(f"the loss {name!r} has functions of its own, which have no fused form")


def penalty_form(penalty: Penalty) -> int | None:
    """The number of what a penalty is of the slope, if there is one."""
    return next((i for i, form in enumerate(PENALTY_FORMS) if penalty.of is form), None)


def _check_penalties(problem: Problem) -> None:
    p = problem
    for penalty in p.penalties:
        what = f"penalty {penalty.name!r}"
        if penalty.sigma:
            raise plan.NoPlan(f"{what} is of differences, which have no fused form")
        if penalty_form(penalty) is None:
            raise plan.NoPlan(f"{what} is a function of its own, which has no fused form")
        if penalty.at not in PENALTY_PLACES:
            raise plan.NoPlan(f"{what}: points {penalty.at} real samples have no fused form")
        if p.precision != "fp32":
            raise plan.NoPlan(f"{what} has no fused form in precision {p.precision!r}, but in fp32")
    if len(p.penalties) > MOST_PENALTIES:
        raise plan.NoPlan(f"more than {MOST_PENALTIES} penalties have no fused form")


def _check_pair(problem: Problem, g: Chain, d: Chain) -> None:
    p, last = problem, d.layers[-1]
    if last.linear.out_features != 1:
        raise plan.NoPlan(
            f"{last.name}: the last layer has {last.linear.out_features} outputs, not 1"
        )
    if last.norm is not None or last.dropout is not None:
        what = "Dropout" if last.norm is None else type(last.norm).__name__
        raise plan.NoPlan(f"{last.name}: {what} on the logits has no fused form")
    _check_ends(p, g, d)
    image = math.prod(p.data.shape)
    if g.layers[-1].linear.out_features != image:
        raise plan.NoPlan(
            f"generator makes {g.layers[-1].linear.out_features} values, "
            f"and the samples have {image}"
        )
    shared = {id(x) for x in g.parameters}
    if any(id(x) in shared for x in d.inputs.tables):
        raise plan.NoPlan("discriminator shares an Embedding with the generator")
    shared |= {id(x) for x in p.generator.buffers()}
    for layer in d.layers:
        if p.penalties and layer.batch_norm is not None:
            raise plan.NoPlan(
                f"{layer.name}: penalty {p.penalties[0].name!r} of a slope through BatchNorm1d has "
                "no fused form"
            )
        if p.penalties and layer.activation in BENDS_KEPT and p.device.type != "cpu":
            raise plan.NoPlan(
                f"{layer.name}: penalty {p.penalties[0].name!r} of a slope through GELU, SiLU "
                "or Softplus has a fused form on the CPU only"
            )
        if any(id(x) in shared for x in (*layer.parameters, *_buffers(layer))):
            raise plan.NoPlan(f"{layer.name}: shares a parameter or a buffer with the generator")
        if layer.dropout is not None and layer.dropout in set(p.generator.modules()):
            raise plan.NoPlan(f"{layer.name}: shares its Dropout with the generator")
    for chain, which in ((g, "generator"), (d, "discriminator")):
        if chain.joins and p.device.type != "cpu":
            raise plan.NoPlan(
                f"{which}: a sum or a concatenation of layers has a fused form on the CPU only"
            )
    if d.pack > 1 and p.device.type != "cpu":
        raise plan.NoPlan(
            f"discriminator judges {d.pack} samples together, which has a fused form on the CPU "
            "only"
        )
    for chain in (g, d):
        for layer in chain.layers:
            if isinstance(layer.norm, nn.LayerNorm) and p.device.type != "cpu":
                raise plan.NoPlan(f"{layer.name}: LayerNorm has a fused form on the CPU only")
        normed = any(layer.batch_norm is not None for layer in chain.layers)
        if normed and chain.pack in batch_sizes(p):
            what = "1 sample" if chain.pack == 1 else f"1 pack of {chain.pack} samples"
            raise plan.NoPlan(f"BatchNorm1d cannot train on an epoch's last batch of {what}")


MOST_HEADS = 1 << 13
"""Modules of heads of a network; in csrc/step/decode.h."""


def _check_ends(problem: Problem, g: Chain, d: Chain) -> None:
    for layer in d.layers:
        if layer.ends is not None:
            raise plan.NoPlan(
                f"{layer.name}: columns with activations of their own have a fused form at the "
                "generator's end only"
            )
    last = g.layers[-1]
    if last.ends is None:
        return
    if problem.device.type != "cpu":
        raise plan.NoPlan(
            f"{last.name}: columns with activations of their own have a fused form on the CPU only"
        )
    if last.ends.index > MOST_HEADS:
        raise plan.NoPlan(f"more than {MOST_HEADS} modules of heads have no fused form")


def _buffers(layer: Layer) -> Iterable[Tensor]:
    return () if layer.norm is None else layer.norm.buffers()


def _check_kind(optimizer: torch.optim.Optimizer, name: str, device: torch.device) -> None:
    known = rules.RULES if device.type == "cpu" else rules.RULES[: rules.OF_CUDA]
    if rules.rule_of(optimizer) not in known:
        *most, last = (rule.kind.__name__ for rule in known)
        raise plan.NoPlan(
            f"{name}: {type(optimizer).__name__} has no fused form; {', '.join(most)} and {last} "
            f"have{'' if device.type == 'cpu' else ' on CUDA'}"
        )
    if torch_private.step_hooks(optimizer):
        raise plan.NoPlan(f"{name}: its step hooks would not be called")
    if torch_private.replaced_step(optimizer) is not None:
        raise plan.NoPlan(f"{name}: its step was replaced, which would not be called")


def _check_optimizer(optimizer: torch.optim.Optimizer, chain: Chain, name: str) -> None:
    rule = rules.rule_of(optimizer)
    for group in optimizer.param_groups:
        for option in rule.refused:
            # On a GPU capturable only says where the counter of steps is.
            on_gpu = chain.layers[0].linear.weight.is_cuda
            if group.get(option) and not (on_gpu and option == "capturable"):
                raise plan.NoPlan(f"{name}: {option}={group[option]} has no fused form")
        if any(isinstance(number, Tensor) for number in rule.numbers(group)):
            raise plan.NoPlan(f"{name}: a tensor as a setting has no fused form")
    _alike(optimizer, name, "lr", "weight_decay", *rule.settings)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    counts = set()
    named = [(layer.name, p) for layer in chain.layers for p in layer.parameters if p is not None]
    named += [(part.where, part.embedding.weight) for part in chain.inputs.parts if part.embedding]
    for where, p in named:
        if id(p) not in held:
            raise plan.NoPlan(f"{where}: {name} does not train all of its parameters")
        state = rules.found(rule, optimizer, p)
        counts.add(float(state[0]) if state and rule.step else 0.0)
        if any(t.dtype != torch.float32 or not t.is_contiguous() for t in state):
            raise plan.NoPlan(f"{name}: the state of {where} is not contiguous float32")
    if len(counts) > 1:
        raise plan.NoPlan(f"{name}: its parameters have taken different numbers of steps")
    others = held - {id(p) for p in chain.parameters}
    if any(
        id(p) in others and p.requires_grad for g in optimizer.param_groups for p in g["params"]
    ):
        raise plan.NoPlan(f"{name}: it trains parameters that are not its network's")


def _alike(optimizer: torch.optim.Optimizer, name: str, *options: str) -> None:
    first, *others = optimizer.param_groups
    for option in options:
        if any(group[option] != first[option] for group in others):
            raise plan.NoPlan(
                f"{name}: parameter groups that differ in {option} have no fused form"
            )


def _check_average(problem: Problem) -> None:
    if problem.ema is None:
        return
    try:
        pairs = averages(problem).items()
    except ValueError:
        raise plan.NoPlan("ema: is not a copy of the generator") from None
    for own, average in pairs:
        if own.shape != average.shape or own.dtype != average.dtype or not average.is_contiguous():
            raise plan.NoPlan("ema: is not a contiguous copy of the generator")
        if not modules.on(average, problem.device):
            raise plan.NoPlan(f"ema: is on {average.device}")
