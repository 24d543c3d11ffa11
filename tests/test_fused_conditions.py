"""Conditions concatenated to latents and samples in the fused engine: what fits, and numbers."""

import pytest
import torch
import torch.nn.functional as F
import written_plans as plans
from fused_plans import Read, eager_run, same, same_by_threads_calls_and_copies, tensors
from native import emulator, fused_cuda
from torch import nn

from fastgan import data, ops
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine, plan
from fastgan.engines.fused.inputs import Condition
from fastgan.engines.fused.plan import NoPlan
from fastgan.problem import make_problem

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]
SHAPE, CLASSES = (1, 5, 5), 6


class Embedded(nn.Module):
    """As in most programs that teach conditional GANs: the embedding stands first."""

    def __init__(self, body, width=CLASSES):
        super().__init__()
        self.embed, self.body = nn.Embedding(CLASSES, width), body

    def forward(self, x, labels):
        joined = torch.cat((self.embed(labels), x.view(x.size(0), -1)), -1)
        return self.body(joined)


class Hot(nn.Module):
    """One-hot, behind."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x, y):
        hot = F.one_hot(y.view(-1), CLASSES).to(x.dtype)
        return self.body(torch.cat([torch.flatten(x, 1), hot], dim=1))


class Both(Embedded):
    """One-hot and an embedding, joined before they are joined to the samples."""

    def forward(self, x, y):
        of_label = torch.cat([F.one_hot(y, CLASSES).float(), self.embed(y)], 1)
        return self.body(torch.cat([x.flatten(1), of_label], 1))


class Numbers(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x, cond):
        return self.body(torch.cat([cond, x.flatten(start_dim=1)], 1))


def g_body(more, *, norm=False):
    layers = [nn.Linear(7 + more, 30), *([nn.BatchNorm1d(30)] if norm else []), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(30, 25), nn.Tanh(), nn.Unflatten(1, SHAPE))


def d_body(more, *, curved=False, dropout=0.0, bias=True):
    return nn.Sequential(
        nn.Linear(25 + more, 40), nn.Tanh() if curved else nn.LeakyReLU(0.2),
        nn.Dropout(dropout), nn.Linear(40, 20), nn.LeakyReLU(0.2), nn.Linear(20, 1, bias=bias),
    )  # fmt: skip


def single(more):
    g = nn.Sequential(nn.Linear(7 + more, 25), nn.BatchNorm1d(25), nn.Tanh())
    return nn.Sequential(g, nn.Unflatten(1, SHAPE)), nn.Linear(25 + more, 1)


# name: the two networks, whether conditions are labels, and settings
CASES = {
    "embedded": (lambda: (Embedded(g_body(6)), Embedded(d_body(6, dropout=0.3))), True, {}),
    "one-hot": (lambda: (Hot(g_body(6, norm=True)), Hot(d_body(6))), True, {"d_steps": 2}),
    "both, several of each": (
        lambda: (Both(g_body(9), 3), Both(d_body(46), 40)),
        True,
        {"d_steps": 2, "g_steps": 2, "grad_clip": 0.1},
    ),
    "shared fakes": (
        lambda: (Both(g_body(9), 3), Both(d_body(46), 40)),
        True,
        {"d_steps": 2, "g_steps": 2, "shared_fakes": True},
    ),
    "numbers": (lambda: (Numbers(g_body(3)), Numbers(d_body(3))), False, {}),
    "numbers, drawn": (
        lambda: (Numbers(g_body(3)), Numbers(d_body(3))),
        False,
        {"fake_condition": "drawn"},
    ),
    "labels of the real batch": (
        lambda: (Embedded(g_body(6)), Hot(d_body(6))),
        True,
        {"fake_condition": "same", "drop_last": True},
    ),
    "one of the networks": (lambda: (Embedded(g_body(6)), flat(d_body(0))), True, {}),
    "the other": (lambda: (g_body(0), Embedded(d_body(6))), True, {}),
    "one layer": (
        lambda: tuple(map(Embedded, single(6))),
        True,
        {"loss": "least-squares"},
    ),
    "wgan-gp": (
        # The last bias of a critic has no gradient but rounding.
        lambda: (Embedded(g_body(6)), Embedded(d_body(6, bias=False))),
        True,
        {"loss": "wasserstein", "penalties": "wgan-gp", "d_steps": 3},
    ),
    "r1 and r2, curved": (
        lambda: (Hot(g_body(6)), Embedded(d_body(4, curved=True, dropout=0.2), 4)),
        True,
        {"penalties": ["r1:3:2", "r2:1"]},
    ),
}


def flat(body):
    return nn.Sequential(nn.Flatten(), body)


def problem(name, *, double=False, draw=1, fed=False, count=50, **changes):
    make, labels, options = CASES[name]
    torch.manual_seed(draw)
    g, d = make()
    if double:
        g, d = g.double(), d.double()
    samples = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8)
    conditions = torch.randint(0, CLASSES, (count,)) if labels else torch.randn(count, 3)
    if fed:
        source = data.open(Read(list(zip(samples, conditions, strict=True))), budget_bytes=0)
    else:
        source = data.open((samples, conditions))
    return make_problem(
        g, d, source, latent_dim=7, device="cpu", **{
            "batch_size": 16, "optimizer": torch.optim.Adam, "betas": (0.5, 0.99), "ema": 0.9,
            "seed": 2**63 + 5, "lr": 1e-3, **options, **changes,
        },
    )  # fmt: skip


def close(got, expected, to):
    assert ((got - expected).abs() / expected.abs().clamp(min=0.1)).max() < to


@pytest.mark.parametrize("name", CASES)
def test_losses_follow_eager_through_ragged_epochs(name):
    fused, eager = FusedEngine(problem(name)), EagerEngine(problem(name))
    close(fused.run(20), eager_run(eager, 20), 1e-3)


@pytest.mark.parametrize("name", CASES)
def test_updates_are_as_good_as_torch_in_float32(name):
    errors = []
    for draw in (1, 2, 3):
        exact = problem(name, draw=draw, double=True)
        fused, eager = problem(name, draw=draw), problem(name, draw=draw)
        FusedEngine(fused).run(2)
        for p in (exact, eager):
            eager_run(EagerEngine(p), 2)
        wanted = moments(exact)
        errors.append((moments(fused) - wanted).norm() / (moments(eager) - wanted).norm())
    assert sorted(errors)[1] <= 3


def moments(p):
    # Before a BatchNorm a bias has no gradient but rounding.
    skip = "g.body.0.bias" if isinstance(p.generator, Hot) else "g.body.0.0.bias"
    return torch.cat(
        [
            t.double().flatten()
            for key, t in tensors(p).items()
            if key.endswith("exp_avg") and not key.startswith(skip)
        ]
    )


@pytest.mark.parametrize("name", ["embedded", "both, several of each", "wgan-gp", "one layer"])
def test_threads_and_calls_change_no_bit_and_a_copy_goes_on(name):
    same_by_threads_calls_and_copies(lambda: problem(name))


@pytest.mark.parametrize("name", ["embedded", "numbers", "numbers, drawn"])
def test_data_that_are_read_as_needed(name):
    p, q = problem(name, fed=True), problem(name, fed=True)
    assert not p.data.resident
    try:
        close(FusedEngine(p).run(8), eager_run(EagerEngine(q), 8), 1e-4)
    finally:
        p.data.close()
        q.data.close()


def test_many_steps_of_one_call_are_drawn_in_pieces(monkeypatch):
    p, q = problem("embedded"), problem("embedded")
    expected = FusedEngine(p).run(9)
    monkeypatch.setattr("fastgan.engines.fused.cpu.KEPT_ORDER", 100)
    assert torch.equal(FusedEngine(q).run(9), expected) and same(p, q) == []


@pytest.mark.parametrize("name", ["embedded", "one layer"])
def test_bf16_rounds_the_operands_of_products(name):
    p, q = problem(name, precision="bf16"), problem(name, precision="bf16")
    close(FusedEngine(p).run(3), eager_run(EagerEngine(q), 3), 0.05)
    fused, eager = (tensors(of)["d.embed.weight.exp_avg"] for of in (p, q))
    assert (fused - eager).norm() < 0.1 * eager.norm()


class Twice(Embedded):
    def forward(self, x, y):
        return self.body(torch.cat([x.flatten(1), self.embed(y) * self.embed(y)], 1))


class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.embed, self.last = nn.Linear(25, 8), nn.Embedding(CLASSES, 6), d_body(-11)

    def forward(self, x, y):
        return self.last(torch.cat([self.first(x.flatten(1)), self.embed(y)], 1))


class Scaled(Embedded):
    def forward(self, x, y):
        return self.body(torch.cat([x.flatten(1), 2 * self.embed(y)], 1))


class AsNumber(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x, y):
        return self.body(torch.cat([x.flatten(1), y.view(-1, 1)], 1))


def normed_embedding():
    d = Embedded(d_body(6))
    d.embed = nn.Embedding(CLASSES, 6, max_norm=1.0)
    return d


def padded():
    d = Embedded(d_body(6))
    d.embed = nn.Embedding(CLASSES, 6, padding_idx=0)
    return d


@pytest.mark.parametrize(
    ("d", "reason"),
    [
        (lambda: Scaled(d_body(6)), "discriminator: mul on a condition has no fused form"),
        (lambda: Twice(d_body(6)), "an Embedding that is used twice has no fused form"),
        (lambda: AsNumber(d_body(1)), "a label as a number has no fused form"),
        (Late, "joined behind a layer has no fused form"),
        (normed_embedding, "discriminator.embed: Embedding with max_norm has no fused form"),
        (padded, "discriminator.embed: Embedding with padding_idx has no fused form"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(d, reason):
    p = problem("embedded")
    q = make_problem(
        Embedded(g_body(6)), d(), p.data, latent_dim=7, device="cpu", batch_size=16,
    )  # fmt: skip
    assert reason in FusedEngine.unsupported(q)
    assert EagerEngine(q).run(1).isfinite().all()


def test_labels_that_a_table_does_not_have_are_refused():
    g = Embedded(g_body(6))
    g.embed = nn.Embedding(4, 6)
    with pytest.raises(NoPlan, match="generator.embed: has 4 classes, and the data labels up to 5"):
        plan.read(g, "generator", (7,), condition=Condition((), True, 6))


def arguments(name="embedded"):
    """Those of fused_run for one step."""
    p = problem(name)
    engine = FusedEngine(p)
    order = torch.arange(len(p.data))
    memory = engine._memory_for(2)
    rates, statistics = torch.tensor([1e-3, 1e-3], dtype=torch.float64), torch.zeros(1, 4)
    condition, drawn = engine._conditions.of_steps(0, 1)
    fixed = [*engine._plan[:3], memory, p.data.samples, order, rates, statistics, None, 0, 2]
    return [*fixed, condition, drawn]


def with_entry(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[3] = value
    return tensor


BAD = [
    (11, lambda t: None, "condition is None, and plan has parts that are made of it"),
    (11, lambda t: t[:-1], r"condition has shape \[49\]; expected one for each of 50 samples"),
    (11, lambda t: t.int(), "condition must be a contiguous tensor of float32"),
    (11, lambda t: torch.zeros(50, 6), "condition is not of the kind or the width"),
    (11, lambda t: with_entry(t, CLASSES), r"condition\[3\] is 6; expected a label of 0 to 5"),
    (11, lambda t: with_entry(t, -1), r"condition\[3\] is -1; expected a label of 0 to 5"),
    (12, lambda t: t[..., :-1].contiguous(), "drawn has 30 elements; expected 32"),
    (12, lambda t: with_entry(t, 50), r"drawn\[3\] is 50; expected the place of a condition"),
    (12, lambda t: with_entry(t, -1), r"drawn\[3\] is -1; expected the place"),
    (12, lambda t: t.float(), "drawn must be a contiguous tensor of int64"),
    (0, lambda t: with_entry(t, -1 << 40), r"plan\[3\], d_steps"),
    (0, lambda t: torch.cat([t[:-1], t[-1:] + 1]), "plan|state"),
    (0, lambda t: t[:-9], "plan is too short"),
]


@pytest.mark.parametrize(("at", "change", "told"), BAD)
def test_a_bad_argument_is_an_error_that_names_it(at, change, told):
    given = arguments()
    given[at] = change(given[at])
    before = [t.clone() for t in given[2]]
    with pytest.raises(RuntimeError, match=told):
        torch.ops.fastgan.fused_run(*given)
    torch.testing.assert_close(given[2], before, rtol=0, atol=0)


def test_conditions_of_a_plan_without_parts_are_an_error():
    case = plans.Case()
    with pytest.raises(RuntimeError, match="plan has no use for it"):
        torch.ops.fastgan.fused_run(*case.arguments(1), torch.zeros(20, dtype=torch.int64))


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"no emulator: {emulator.why_not()}")
def test_a_plan_with_conditions_is_refused_on_cuda():
    fused_cuda.load()
    with pytest.raises(RuntimeError, match="which the fused step on CUDA does not know"):
        torch.ops.fastgan.fused_cuda_length(*arguments()[:2])
