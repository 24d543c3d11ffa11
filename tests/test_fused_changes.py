"""What a user changes in networks and optimisers between two runs of the fused engine."""

import copy
import sys

import pytest
import torch
from fused_plans import Read, eager_run, problem, same
from torch import nn

from fastgan import data, ops
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine
from fastgan.models import Generator
from fastgan.problem import make_problem

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]


def test_the_user_may_change_weights_rates_and_options_between_runs():
    p, q = problem("deep"), problem("deep")
    fused, eager = FusedEngine(p), EagerEngine(q)
    for engine in (fused, eager):
        r = engine.problem
        eager_run(engine, 2)
        with torch.no_grad():
            r.generator[1].weight.mul_(0.5)
            r.discriminator[1].weight.data = r.discriminator[1].weight.data * 1.5
        r.optimizer_g.param_groups[0]["lr"] = 1e-2
        r.optimizer_d.param_groups[0]["betas"] = (0.9, 0.999)
        r.discriminator[3].p = 0.1
        r.optimizer_d.load_state_dict(copy.deepcopy(r.optimizer_d.state_dict()))
    got, expected = fused.run(3), eager_run(eager, 3)
    assert (got - expected).abs().max() < 1e-4
    p.discriminator[3].eval()
    q.discriminator[3].eval()
    assert (fused.run(2) - eager_run(eager, 2)).abs().max() < 1e-4
    p.discriminator.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks"):
        FusedEngine(p)


def first_moment(p):
    return p.optimizer_d.state[p.discriminator.model[0].weight]


def first_weight(p):
    return p.generator.fc[0].weight


def swap_storage(t):
    t.data = t.data.clone()


CHANGES = {
    "a weight's memory": lambda p: swap_storage(p.generator.fc[0].weight),
    "a moment's memory": lambda p: swap_storage(
        p.optimizer_d.state[p.discriminator.model[0].weight]["exp_avg"]
    ),
    "a moment moved to shared memory": lambda p: p.optimizer_g.state[p.generator.fc[0].weight][
        "exp_avg_sq"
    ].share_memory_(),
    "a step counter's memory": lambda p: swap_storage(
        p.optimizer_d.state[p.discriminator.model[0].bias]["step"]
    ),
    "a moment": lambda p: p.optimizer_d.state[p.discriminator.model[0].weight].update(
        exp_avg=torch.full((256, 784), 1e-3)
    ),
    "an optimiser's whole state": lambda p: p.optimizer_g.load_state_dict(
        copy.deepcopy(p.optimizer_g.state_dict())
    ),
    "a parameter's state": lambda p: p.optimizer_g.state.update(
        {p.generator.fc[0].bias: copy.deepcopy(p.optimizer_g.state[p.generator.fc[0].bias])}
    ),
    "a weight": lambda p: p.discriminator.model[0].weight.data.mul_(0.5),
    "a parameter": lambda p: setattr(
        p.ema.fc[0], "bias", nn.Parameter(torch.ones(256), requires_grad=False)
    ),
    "betas": lambda p: p.optimizer_g.param_groups[0].update(betas=(0.8, 0.9)),
    "the learning rate": lambda p: p.optimizer_g.param_groups[0].update(lr=1e-2),
    "dropout": lambda p: setattr(p.discriminator.model[2], "p", 0.6),
    "evaluation": lambda p: p.discriminator.eval(),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_change_between_two_runs_is_noticed(what, steps):
    p, q = problem("reference"), problem("reference")
    engine, other = FusedEngine(p), FusedEngine(q)
    engine.run(steps)
    other.run(steps)
    CHANGES[what](p)
    CHANGES[what](q)
    fresh = FusedEngine(q)
    fresh.step = other.step
    assert torch.equal(engine.run(steps), fresh.run(steps))
    assert same(p, q) == []


@pytest.mark.parametrize(
    ("change", "back", "reason"),
    [
        (
            lambda p: p.generator.fc[0].weight.requires_grad_(False),
            lambda p, *_: p.generator.fc[0].weight.requires_grad_(True),
            "requires_grad",
        ),
        (
            lambda p: p.optimizer_g.param_groups[0].update(amsgrad=True),
            lambda p, *_: p.optimizer_g.param_groups[0].update(amsgrad=False),
            "amsgrad=True",
        ),
        (
            lambda p: p.discriminator.model.append(nn.GELU()),
            lambda p, *_: p.discriminator.model.pop(-1),
            "GELU",
        ),
        (
            lambda p: setattr(p.generator.fc[0].weight, "data", torch.zeros(100, 256).t()),
            lambda p, q, _: setattr(
                p.generator.fc[0].weight, "data", q.generator.fc[0].weight.data
            ),
            "contiguous",
        ),
        (
            lambda p: first_moment(p).update(exp_avg=torch.zeros(784, 256).t()),
            lambda p, q, _: first_moment(p).update(exp_avg=first_moment(q)["exp_avg"]),
            "contiguous",
        ),
    ],
)
def test_a_change_that_has_no_plan_is_an_error_each_time(change, back, reason):
    p = problem("reference")
    engine = FusedEngine(p)
    engine.run(1)
    q, d = copy.deepcopy(p), p.discriminator
    change(p)
    for _ in range(2):
        with pytest.raises((ValueError, RuntimeError), match=reason):
            engine.run(1)
    back(p, q, d)
    expected = copy.deepcopy(p)
    other = FusedEngine(expected)
    other.step = 1
    assert torch.equal(engine.run(2), other.run(2))
    assert same(p, expected) == []


SLOPE = 0.2
calls = 0


class Branching(nn.Module):
    """What its forward does hangs on a global."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(784, 24), nn.Linear(24, 1)

    def forward(self, x):
        return self.b(nn.functional.leaky_relu(self.a(x.flatten(1)), SLOPE))


class Counting(Branching):
    def forward(self, x):
        global calls
        calls += 1
        return super().forward(x)


def branching(kind):
    torch.manual_seed(0)
    samples = data.open(torch.rand(64, 1, 28, 28) * 2 - 1)
    return make_problem(Generator(), kind(), samples, latent_dim=100, batch_size=32, device="cpu")


def test_a_global_that_forward_reads_may_change_between_runs(monkeypatch):
    p = branching(Branching)
    q = copy.deepcopy(p)
    engine, eager = FusedEngine(p), EagerEngine(q)
    engine.run(1)
    eager_run(eager, 1)
    monkeypatch.setattr(sys.modules[__name__], "SLOPE", 0.9)
    assert (engine.run(3) - eager_run(eager, 3)).abs().max() < 1e-5
    fresh = FusedEngine(q)
    assert fresh.describe() == engine.describe()


def test_a_global_that_forward_changes_has_no_plan():
    p = branching(Counting)
    assert "calls was changed by its forward" in FusedEngine.unsupported(p)
    assert EagerEngine(p).run(2).isfinite().all()


def test_a_schedule_or_a_dataset_may_change_a_weight():
    class Changing(Read):
        def __getitem__(self, i):
            for w in swapped:
                swap_storage(w)
            return super().__getitem__(i)

    def schedule(t):
        swap_storage(p.discriminator.model[0].weight)
        return 1.0

    swapped = []

    q = problem("reference")
    source = data.open(Changing(q.data.samples), budget_bytes=0)
    p = problem("reference", source=source, lr_schedule=schedule)
    swapped.append(p.generator.fc[0].weight)
    try:
        got = FusedEngine(p).run(3)
    finally:
        p.data.close()
    assert (got - FusedEngine(q).run(3)).abs().max() < 1e-5
    assert all(w.isfinite().all() for w in p.generator.parameters())
    assert (p.generator.fc[0].weight - q.generator.fc[0].weight).abs().max() < 1e-4


def test_gradients_that_a_program_left_are_gone_after_a_run_as_on_eager():
    for engine in (EagerEngine, FusedEngine):
        p = problem("reference")
        networks = (p.generator, p.discriminator)
        for m in networks:
            m(
                torch.zeros(2, *(p.latent.shape if m is p.generator else p.data.shape))
            ).sum().backward()
        assert any(w.grad is not None for m in networks for w in m.parameters())
        engine(p).run(1)
        assert all(w.grad is None for m in networks for w in m.parameters()), engine.name


def test_parameter_groups_must_stay_alike():
    def grouped(parameters):
        parameters, biases = list(parameters), []
        weights = [w for w in parameters if w.dim() > 1 or biases.append(w)]
        groups = [{"params": weights}, {"params": biases}]
        return torch.optim.Adam(groups, lr=2e-4, betas=(0.5, 0.99))

    p = problem("reference", kind=(grouped, grouped), betas=(0.5, 0.999))
    q = problem("reference")
    engine = FusedEngine(p)
    assert torch.equal(engine.run(2), FusedEngine(q).run(2))
    for option, value in (("lr", 1e-3), ("eps", 1e-6)):
        before = p.optimizer_g.param_groups[1][option]
        p.optimizer_g.param_groups[1][option] = value
        with pytest.raises(
            ValueError, match=f"optimizer_g: parameter groups that differ in {option}"
        ):
            engine.run(1)
        p.optimizer_g.param_groups[1][option] = before
    assert engine.run(1).isfinite().all() and engine.step == 3
