"""Heads at the end of G, and terms of its loss, in the fused engine: what fits, and numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F
import written_plans as plans
from fused_plans import eager_run, same, tensors
from native import emulator, fused_cuda
from test_fused_ranks import run_in_parts
from torch import nn

from fastgan import data, ops, terms
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine, plan
from fastgan.engines.fused.plan import NoPlan
from fastgan.nn import Heads
from fastgan.problem import make_problem

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]
WIDTH, CLASSES = 36, 6
HARD = [("tanh", 1), ("softmax", 4), ("gumbel", 5, 0.5, True), ("gumbel", 2), ("none", 24)]


class End(nn.Module):
    """A generator whose end is a function."""

    def __init__(self, end, *between):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(9, 40), nn.LeakyReLU(0.2), nn.Linear(40, WIDTH), *between
        )
        self.end = end

    def forward(self, z):
        return self.end(self.body(z))


class Given(nn.Module):
    """One that is given a label."""

    def __init__(self, end):
        super().__init__()
        self.first, self.last = nn.Linear(9 + CLASSES, 40), nn.Linear(40, WIDTH)
        self.end = end

    def forward(self, z, y):
        x = torch.cat([z, F.one_hot(y, CLASSES).float()], 1)
        return self.end(self.last(F.leaky_relu(self.first(x), 0.2)))


class Judge(nn.Module):
    """A discriminator that is given one, too."""

    def __init__(self):
        super().__init__()
        self.body = critic(WIDTH + CLASSES)

    def forward(self, x, y):
        return self.body(torch.cat([x, F.one_hot(y, CLASSES).float()], 1))


def critic(width=WIDTH, *layers):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(width, 50), *layers, nn.LeakyReLU(0.2), nn.Linear(50, 1)
    )


def problem(make, *, double=False, d=critic, labels=False, width=WIDTH, **options):
    torch.manual_seed(1)
    networks = make(), d()
    if double:
        networks = [network.double() for network in networks]
    rows = torch.rand(70, width) * 2 - 1
    source = (rows, torch.randint(0, CLASSES, (70,))) if labels else rows
    options = {"batch_size": 24, "d_steps": 2, "ema": 0.9, "betas": (0.5, 0.99), **options}
    return make_problem(
        *networks, data.open(source, kind="tensor"), latent_dim=9, device="cpu", **options
    )


def follows(make, steps=4, bound=2e-5, **options):
    """Fused steps end where those of eager in float64 do; the fused problem."""
    p, q = problem(make, **options), problem(make, double=True, **options)
    fused, eager = FusedEngine(p), EagerEngine(q)
    got, expected = fused.run(steps), eager_run(eager, steps)
    torch.testing.assert_close(got.double(), expected.double(), rtol=bound, atol=bound)
    for name, value in fused.logged.items():
        torch.testing.assert_close(value.double(), eager.logged[name], rtol=bound, atol=bound)
    exact = tensors(q)
    for key, value in tensors(p).items():
        if key.endswith("exp_avg"):
            off = (value - exact[key]).norm() / exact[key].norm().clamp(min=1e-12)
            assert off < 1e-3, (key, off)
    return p, fused


# --- What is read


def sliced(x):
    grouped = x[:, 20:].view(x.shape[0], 4, 4).softmax(-1).flatten(1)
    parts = [x[:, :3].tanh(), F.softmax(x[:, 3:10], 1), F.relu(x[:, 10:12]), x[:, 12:20], grouped]
    return torch.cat(parts, 1)


def split(x):
    functions = torch.tanh, torch.sigmoid, lambda t: t, lambda t: F.leaky_relu(t, 0.1)
    return torch.cat([f(t) for f, t in zip(functions, x.split([9, 10, 10, 7], 1), strict=True)], -1)


def chunked(x):
    a, b, c = torch.chunk(x, 3, dim=1)
    return torch.concat((a.tanh(), torch.cat([b.softmax(1), c], 1)), dim=1)


def sections(x):
    a, b = torch.tensor_split(x, [5], dim=1)
    return torch.hstack([torch.softmax(a, dim=1), b.narrow(1, 0, 31).sigmoid()])


C = "columns"
READ = {
    "slices": (
        sliced,
        [(C, 3, "tanh"), ("softmax", 7), (C, 2, "leaky_relu"), (C, 8), *[("softmax", 4)] * 4],
    ),
    "split": (split, [(C, 9, "tanh"), (C, 10, "sigmoid"), (C, 10), (C, 7, "leaky_relu")]),
    "chunk": (chunked, [(C, 12, "tanh"), ("softmax", 12), (C, 12)]),
    "tensor_split": (sections, [("softmax", 5), (C, 31, "sigmoid")]),
    "all": (nn.Softmax(dim=1), [("softmax", 36)]),
    "groups": (nn.Sequential(nn.Unflatten(1, (6, 6)), nn.Softmax(dim=-1), nn.Flatten()),
               [("softmax", 6)] * 6),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_cuts_are_heads(name):
    end, expected = READ[name]
    _, engine = follows(lambda: End(end))
    heads = engine._g.layers[-1].ends.heads
    assert [
        (h.kind, h.width, h.activation)[: 2 + (h.activation != "none")] for h in heads
    ] == expected


def gumbels(x):
    return torch.cat(
        [F.gumbel_softmax(x[:, :30], 0.5, True), F.gumbel_softmax(x[:, 30:], hard=False, dim=1)], 1
    )


def test_the_noise_of_gumbel_softmax_is_that_of_heads():
    p = problem(lambda: End(gumbels))
    q = problem(lambda: End(Heads([("gumbel", 30, 0.5, True), ("gumbel", 6)])))
    assert torch.equal(FusedEngine(p).run(5), FusedEngine(q).run(5))
    pairs = zip(tensors(p).values(), tensors(q).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


REFUSED = {
    "order": (
        lambda x: torch.cat([x[:, 5:].tanh(), x[:, :5]], 1),
        "does not return what the last of its layers makes",
    ),
    "a part": (lambda x: x[:, :36:2].tanh(), "columns that do not lie side by side"),
    "twice": (
        lambda x: torch.cat([x[:, :5].tanh().sigmoid(), x[:, 5:]], 1),
        "columns with more than one activation",
    ),
    "elu": (lambda x: torch.cat([F.elu(x[:, :5]), x[:, 5:]], 1), "elu of some columns"),
    "over rows": (lambda x: x.softmax(0), "softmax mixes the samples of a batch"),
    "log": (
        lambda x: torch.cat([F.log_softmax(x[:, :5], 1), x[:, 5:]], 1),
        "log_softmax of some columns has no fused form",
    ),
    "temperature": (lambda x: F.gumbel_softmax(x, 0.0), "a number above 0 as tau; it is 0.0"),
    "dtype": (lambda x: x.softmax(1, dtype=torch.float64), "another dtype than float32"),
    "something else": (
        lambda x: torch.cat([x[:, :35].tanh(), torch.ones_like(x[:, :1])], 1),
        "ones_like of some columns",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_ends_are_refused_by_name(name):
    end, reason = REFUSED[name]
    assert reason in FusedEngine.unsupported(problem(lambda: End(end)))


@pytest.mark.parametrize(
    ("make", "d", "reason"),
    [
        (
            lambda: End(nn.Sequential(nn.Softmax(dim=1), nn.Linear(WIDTH, WIDTH))),
            critic,
            "generator.end.1: a Linear behind columns with activations of their own",
        ),
        (
            lambda: End(Heads([("tanh", 36)]), nn.BatchNorm1d(WIDTH)),
            critic,
            "generator.end: Heads is fused only right after a Linear",
        ),
        (
            lambda: End(nn.Tanh()),
            lambda: critic(WIDTH, Heads([("tanh", 50)]), nn.Identity()),
            "discriminator.4: LeakyReLU is fused only after",
        ),
        (
            lambda: End(nn.Tanh()),
            lambda: nn.Sequential(nn.Linear(WIDTH, 1), Heads([("none", 1)])),
            "discriminator.0: columns with activations of their own have a fused form at the",
        ),
    ],
)
def test_heads_elsewhere_are_refused_by_name(make, d, reason):
    assert reason in FusedEngine.unsupported(problem(make, d=d, penalties=()))


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"no emulator: {emulator.why_not()}")
def test_heads_are_refused_on_cuda():
    case = plans.Case(plans.HEADED, heads=plans.HEADS)
    fused_cuda.load()
    with pytest.raises(RuntimeError, match="plan has heads, which the fused step on CUDA"):
        torch.ops.fastgan.fused_cuda_length(case.plan, case.settings)


# --- Numbers


def wide():
    return nn.Sequential(
        nn.Linear(9, 3001), Heads([("tanh", 1), ("gumbel", 2600, 0.7), ("softmax", 400)])
    )


CASES = {
    "hard": {},
    "several of G": {"g_steps": 3},
    "penalised": {"penalties": ("wgan-gp", "r1"), "loss": "wasserstein"},
    "clipped": {"grad_clip": 0.1},
    "shared fakes": {"shared_fakes": True, "g_steps": 2},
    "shared fakes, penalised": {
        "shared_fakes": True,
        "penalties": ("wgan-gp", "r2"),
        "loss": "wasserstein",
    },
    "one layer of D": {"d": lambda: nn.Linear(WIDTH, 1)},
}


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_eager(name):
    follows(lambda: End(Heads(HARD)), **CASES[name])


def test_groups_of_thousands_of_columns():
    follows(wide, steps=2, d=lambda: critic(3001), width=3001)


def test_heads_beside_conditions():
    follows(lambda: Given(Heads(HARD)), d=Judge, labels=True, g_steps=2)


def test_threads_and_a_resume_change_no_bit():
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        p = problem(lambda: End(Heads(HARD)), g_steps=2, terms={"m": (0.5, terms.moments)})
        results.append((FusedEngine(p).run(7), p))
    for rows, p in results[1:]:
        assert torch.equal(rows, results[0][0]) and same(results[0][1], p) == []
    p = problem(lambda: End(Heads(HARD)), g_steps=2, terms={"m": (0.5, terms.moments)})
    engine = FusedEngine(p)
    first = engine.run(3)
    q = copy.deepcopy(p)
    other = FusedEngine(q)
    other.step = 3
    assert torch.equal(torch.cat([first, other.run(4)]), results[0][0])


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_draw_the_noise_of_their_rows(ranks):
    whole, parts = (plans.Case(plans.HEADED, heads=plans.HEADS, g_steps=2) for _ in range(2))
    torch.testing.assert_close(run_in_parts(parts, ranks, 3), whole.run(3), rtol=1e-5, atol=1e-5)
    for a, b in zip(parts.state, whole.state, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


# --- Terms of G's loss


TERMS = {
    "moments": {"m": (0.7, terms.moments)},
    "a class": {"c": (0.5, terms.Conditional(1, 3))},
    "both": {"c": (0.5, terms.Conditional()), "m": (-2, terms.moments)},
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", TERMS)
def test_terms_are_those_of_eager(name, shared):
    _, engine = follows(
        lambda: Given(Heads(HARD)), d=Judge, labels=True, g_steps=2, terms=TERMS[name],
        shared_fakes=shared,
    )  # fmt: skip
    assert engine.logged.keys() == TERMS[name].keys()


@pytest.mark.parametrize("end", [nn.Tanh, nn.Identity, lambda: nn.LeakyReLU(0.3)])
def test_moments_of_an_output_without_heads(end):
    follows(lambda: End(end()), terms=TERMS["moments"])


@pytest.mark.parametrize(
    ("given", "end", "reason"),
    [
        (
            {"own": lambda step: step.fake.mean()},
            nn.Tanh,
            "the term 'own' of G's loss has no fused",
        ),
        ({"m": (lambda t: 1.0, terms.moments)}, nn.Tanh, "'m' of G's loss: a weight that is no"),
        ({"m": ("adaptive", terms.moments)}, nn.Tanh, "a weight that is no fixed number"),
        ({"m": terms.moments, "n": terms.moments}, nn.Tanh, "'n' of G's loss: two terms of one"),
        ({"m": terms.moments}, nn.ELU, "generator.last: the term 'm' of G's loss has a fused form"),
        ({"c": terms.Conditional()}, nn.Tanh, "where G ends in fastgan.nn.Heads"),
        ({"c": terms.Conditional(0)}, lambda: Heads(HARD), "G's Heads has no head 0 of kind"),
        ({"c": terms.Conditional(1)}, lambda: Heads(HARD), "heads have 4 classes, and G takes 6"),
    ],
)
def test_other_terms_are_refused_by_name(given, end, reason):
    p = problem(lambda: Given(end()), d=Judge, labels=True, terms=given)
    assert reason in FusedEngine.unsupported(p)


def test_a_class_without_a_label_is_refused():
    p = problem(lambda: End(Heads(HARD)), terms={"c": terms.Conditional()})
    assert "where G is given a label" in FusedEngine.unsupported(p)


# --- The plan


HEAD = plans.Head
BAD = [
    ((HEAD(C, 11),), (), "leave columns out"),
    ((HEAD(C, 7), HEAD(C, 6)), (), "more columns than G makes"),
    ((HEAD(C, 12, "elu"),), (), "do not go together"),
    ((HEAD("softmax", 12, "tanh", 1.0),), (), "do not go together"),
    ((HEAD(C, 12, hard=True),), (), "do not go together"),
    ((HEAD("gumbel", 12, by=0.0),), (), "temperature is 0 in settings"),
    ((HEAD("softmax", 12, by=1.0, asked=True),), (), "not all of these"),
    ((HEAD("softmax", 12, by=1.0, asked=True),), ((1, 1.0),), "not all of these"),
    ((), ((0, 1.0),), "terms without heads"),
    ((HEAD(C, 12),), ((0, 1.0), (0, 2.0)), "a kind of terms twice"),
]


@pytest.mark.parametrize(("heads", "given", "message"), BAD)
def test_a_bad_plan_is_an_error_that_names_it(heads, given, message):
    case = plans.Case(plans.HEADED, heads=heads, terms=given)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.fused_memory(case.plan, case.settings, 1)


def test_a_chain_without_heads_has_no_phase_of_them():
    plain, headed = plans.Case(plans.HEADED), plans.Case(plans.HEADED, heads=plans.HEADS)
    found = [
        torch.ops.fastgan.fused_phases(c.plan, c.settings).splitlines() for c in (plain, headed)
    ]
    more = [line.split(" ", 1)[1] for line in found[1] if line not in found[0]]
    assert more == ["both: G heads", "G's update: G heads backward"]


def test_a_walk_says_what_it_reads():
    g = End(Heads(HARD))
    ends = plan.read(g, "generator", (9,)).layers[-1].ends
    assert ends.module is g.end and ends.index == 0
    with pytest.raises(NoPlan, match="Softmax before the first Linear"):
        plan.read(nn.Sequential(nn.Softmax(1), nn.Linear(9, 3)), "generator", (9,))
