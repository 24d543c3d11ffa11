"""Which problems the fused engine takes, what it says of itself, and why it refuses others."""

import pytest
import torch
from fused_plans import problem
from pairs import changed
from torch import nn

from fastgan import losses, ops
from fastgan.engines import CannotRun, choose
from fastgan.engines.fused import FusedEngine, support
from fastgan.problem import Problem

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]


def test_choice_and_description():
    engine, said = choose(problem("reference"))
    assert isinstance(engine, FusedEngine)
    assert "G 100-256-784, D 784-256-1" in said
    assert engine.memory_bytes() > 2**20
    engine.run(1)
    engine.close()
    assert engine.run(1).isfinite().all()


def test_profile_covers_the_step():
    p = problem("deep", d_steps=1)
    engine = FusedEngine(p)
    phases = engine.profile(3)
    assert engine.step == 3
    assert len({name for name, *_ in phases}) == len(phases)
    assert all(work > 0 and wait >= 0 for _, _, work, wait in phases)
    weights = [
        sum(m.weight.numel() for m in n.modules() if isinstance(m, nn.Linear))
        for n in (p.generator, p.discriminator)
    ]
    # forward, backward and update of D on two batches and of G on one, and all else the plan needs
    assert sum(flops for _, flops, *_ in phases) > 2 * p.batch_size * (
        3 * weights[0] + 5 * weights[1]
    )
    assert torch.equal(
        FusedEngine(problem("deep", d_steps=1)).run(3)[-1], torch.stack([*problem_losses(3)])[-1]
    )


def problem_losses(n):
    return FusedEngine(problem("deep", d_steps=1)).run(n)


def without_the_first(parameters):
    return torch.optim.Adam([*parameters][1:], lr=1e-3)


def nesterov(parameters):
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True)


def rolling(parameters):
    return torch.optim.RMSprop(parameters, momentum=0.5)


def with_step_hook(parameters):
    made = torch.optim.Adam(parameters)
    made.register_step_post_hook(lambda *_: None)
    return made


OWN = losses.Loss("hinge", lambda real, fake: real.mean(), lambda fake: fake.mean(), scores="raw")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"loss": "relativistic"}, "loss 'relativistic' has no fused form"),
        ({"loss": OWN}, "functions of its own"),
        (
            {"kind": torch.optim.NAdam, "betas": (0.5, 0.999)},
            "NAdam has no fused form; Adam, AdamW, RMSprop and SGD have",
        ),
        ({"kind": nesterov, "betas": (0.5, 0.999)}, "nesterov=True has no fused form"),
        ({"kind": rolling, "betas": (0.5, 0.999)}, "momentum=0.5 has no fused form"),
        ({"kind": with_step_hook, "betas": (0.5, 0.999)}, "step hooks"),
        ({"kind": without_the_first, "betas": (0.5, 0.999)}, "does not train all"),
        ({"batch_size": 127}, "last batch of 1 sample"),
        ({"penalties": "r1"}, "penalty 'r1'"),
        ({"precision": "fp16"}, "precision 'fp16'"),
        ({"g_steps": 5000}, "more than 4096 g_steps have no fused form"),
        ({"accumulate": 2}, "accumulate=2 has no fused form"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reasons_in_the_settings(changes, reason):
    p = problem("norms", **{"label_smoothing": 0.0, **changes})
    assert reason in FusedEngine.unsupported(p)
    with pytest.raises(CannotRun):
        FusedEngine(p)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda p: changed(p, generator=nn.Sequential(nn.Conv2d(3, 3, 1))),
            "generator.0: Conv2d has no fused form",
        ),
        (lambda p: changed(p, device=torch.device("meta")), "device is meta"),
        (lambda p: p.optimizer_d.param_groups[0].update(amsgrad=True), "amsgrad=True"),
        (lambda p: changed(p, ema=nn.Linear(2, 2)), "ema: is not a"),
        (lambda p: p.discriminator.append(nn.Dropout(0.5)), "Dropout on the logits"),
        (lambda p: p.discriminator.append(nn.LayerNorm(1)), "LayerNorm on the logits"),
        (lambda p: setattr(p.optimizer_d, "step", lambda: None), "its step was replaced"),
    ],
)
def test_reasons_in_the_parts(change, reason):
    p = problem("norms")
    assert FusedEngine.unsupported(p) is None
    q = change(p)
    p = q if isinstance(q, Problem) else p
    assert reason in FusedEngine.unsupported(p)
    with pytest.raises(CannotRun):
        FusedEngine(p)


def test_a_layer_norm_is_refused_on_a_gpu():
    p = problem("rows normed")
    g, d = support.chains(p)
    with pytest.raises(
        CannotRun, match=r"generator\.1: LayerNorm has a fused form on the CPU only"
    ):
        support._check_pair(changed(p, device=torch.device("cuda")), g, d)


def test_shared_fakes_are_refused_on_a_gpu():
    p = changed(problem("shared fakes"), device=torch.device("cuda"))
    with pytest.raises(CannotRun, match="shared_fakes has a fused form on the CPU only"):
        support._check_loss(p)


def test_sgd_is_refused_on_a_gpu():
    p = problem("norms", kind=torch.optim.SGD, betas=(0.5, 0.999))
    with pytest.raises(CannotRun, match="SGD has no fused form; Adam and AdamW have on CUDA"):
        support._check_kind(p.optimizer_d, "optimizer_d", torch.device("cuda"))


def test_a_penalty_through_gelu_is_refused_on_a_gpu():
    p = problem("smooth", penalties="r1")
    g, d = support.chains(p)
    with pytest.raises(CannotRun, match=r"discriminator\.1: penalty 'r1' of a slope through GELU"):
        support._check_pair(changed(p, device=torch.device("cuda")), g, d)


def test_a_scheduler_of_torchs_may_count_the_steps():
    p = problem("norms")
    torch.optim.lr_scheduler.ExponentialLR(p.optimizer_g, 0.9)
    assert FusedEngine.unsupported(p) is None
