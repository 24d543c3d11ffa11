"""Penalties on D's slope in the fused engine: against eager, against float64, against itself."""

import random
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import written_plans as plans
from fused_plans import PATHS, child_environment, eager_run, problem, same, tensors
from fused_plans import PLANS as PAIRS
from torch import nn

from fastgan import data, losses, ops
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine
from fastgan.engines.fused.support import MOST_PENALTIES, PENALTY_PLACES
from fastgan.problem import make_problem

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]

GP = losses.PENALTIES["wgan-gp"]
ACTIVATIONS = {
    "straight": lambda: (nn.LeakyReLU(0.2), nn.ReLU(), nn.Identity()),
    "curved": lambda: (nn.Tanh(), nn.ELU(0.8), nn.Sigmoid(), nn.LeakyReLU(0.1)),
    "rows normed": lambda: (nn.LeakyReLU(0.2), nn.Identity(), nn.Tanh(), nn.SiLU()),
    "falling and rising": lambda: (nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.LeakyReLU(0.1)),
}
SETS = (
    "wgan-gp", "r1", "r2:3", ["r1:2", "r2:5"], ["wgan-gp:4", "r1:1"], ["r2:2", "wgan-gp"],
    ["r1", "r2", "wgan-gp"], replace(GP, at="real"), [replace(GP, at="fake", weight=2.0), "r2"],
)  # fmt: skip


def drawn_plan(kind, number):
    """Networks, data and settings of a plan that a number draws."""
    rng = random.Random(f"{kind} {number}")
    image = (1, rng.randrange(5, 9), rng.randrange(5, 9))
    width = image[1] * image[2]

    def critic():
        parts, last = [nn.Flatten()], width
        for _ in range(rng.choice((0, 1, 1, 2, 2, 3))):
            out = rng.choice((5, 17, 32, 40, 70))
            parts += [nn.Linear(last, out, bias=rng.random() < 0.8)]
            if kind == "rows normed" and rng.random() < 0.7:
                affine, shift = rng.choice(((True, True), (True, False), (False, False)))
                parts.append(nn.LayerNorm(out, 1e-3, elementwise_affine=affine, bias=shift))
            parts += [rng.choice(ACTIVATIONS[kind]())]
            if rng.random() < 0.4:
                parts.append(nn.Dropout(rng.choice((0.2, 0.5))))
            last = out
        parts.append(nn.Linear(last, 1, bias=rng.random() < 0.5))
        if kind != "straight" and rng.random() < 0.3:
            parts.append(nn.Tanh() if kind == "curved" else nn.SiLU())
        return nn.Sequential(*parts)

    torch.manual_seed(number)
    d = critic()
    g = nn.Sequential(nn.Linear(6, 20), nn.ELU(), nn.Linear(20, width), nn.Unflatten(1, image))
    options = {
        "loss": rng.choice(("wasserstein", "hinge", "least-squares", "non-saturating")),
        "batch_size": rng.choice((7, 32, 40)),
        "penalties": SETS[number % len(SETS)],
        "seed": rng.randrange(1 << 64),
        "betas": (0.5, 0.9),
        "ema": 0.9,
    }
    samples = torch.rand(80, *image) * 2 - 1
    return g, d, samples, options


def drawn(kind, number, dtype=torch.float32, **changes):
    """The problem of such a plan."""
    g, d, samples, options = drawn_plan(kind, number)
    options |= changes
    return make_problem(
        g.to(dtype), d.to(dtype), data.open(samples), latent_dim=6, device="cpu", **options
    )


def gradients_of_d(p):
    """Of the first step's update of D, from Adam's first moments: one vector, in float64."""
    states = (p.optimizer_d.state[w] for w in p.discriminator.parameters())
    return torch.cat([2 * s["exp_avg"].detach().double().flatten() for s in states])


def first_update(engine, p):
    eager_run(engine(p), 1)
    return gradients_of_d(p)


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("number", range(10))
def test_gradients_are_as_good_as_torchs_in_float32(kind, number):
    exact = first_update(EagerEngine, drawn(kind, number, torch.float64))
    torchs = (first_update(EagerEngine, drawn(kind, number)) - exact).norm()
    ours = (first_update(FusedEngine, drawn(kind, number)) - exact).norm()
    assert ours <= 3 * torchs + 1e-7 * exact.norm()
    # and the penalty is not lost in the loss
    without = first_update(EagerEngine, drawn(kind, number, torch.float64, penalties=None))
    assert (exact - without).norm() > 1e3 * ours


LONG = {
    "reference": {"loss": "wasserstein", "penalties": "wgan-gp", "d_steps": 2, "lr": 1e-4},
    "reference, ragged": {"penalties": ["r1:1:3", "r2:0.5:2"]},
    "wasserstein": {"penalties": "wgan-gp", "d_steps": 5, "count": 230},
    "hinge": {"penalties": "r1:5:4"},
    "floats": {"penalties": ["r2:2", "wgan-gp:1:2"]},
    "single layers": {"penalties": "r1"},
}


@pytest.mark.parametrize("name", LONG)
def test_losses_follow_eager_for_50_steps(name):
    fused, eager = (make(problem(name, **LONG[name])) for make in (FusedEngine, EagerEngine))
    got, expected = fused.run(50), eager_run(eager, 50)
    assert ((got - expected).abs() / expected.abs().clamp(min=0.1)).max() < 1e-3
    without = FusedEngine(problem(name, **LONG[name] | {"penalties": None})).run(50)
    assert ((without - expected).abs() / expected.abs().clamp(min=0.1)).max() > 0.01


def runs_of(p, parts):
    engine = FusedEngine(p)
    return torch.cat([engine.run(n) for n in parts])


@pytest.mark.parametrize("number", [3, 6])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_threads_and_calls_change_no_bit(kind, number):
    found = []
    for threads, parts in ((1, [9]), (2, [9]), (3, [1, 2, 0, 6]), (7, [4, 5])):
        torch.set_num_threads(threads)
        p = drawn(kind, number, d_steps=2, penalties=["wgan-gp:3:2", "r1:2:3", "r2:1:5"])
        found.append((runs_of(p, parts), p))
    for statistics, p in found[1:]:
        assert torch.equal(statistics, found[0][0])
        assert same(p, found[0][1]) == []


def test_a_lazy_penalty_leaves_the_other_updates_alone():
    lazy, never = (drawn("straight", 1, penalties=p) for p in ("r1:10:7", None))
    a, b = FusedEngine(lazy), FusedEngine(never)
    a.step = b.step = 1
    assert torch.equal(a.run(6), b.run(6)) and same(lazy, never) == []
    assert torch.equal(a.run(1)[:, 0], b.run(1)[:, 0])  # D's loss is reported without it
    assert any(name.startswith("d.") for name in same(lazy, never))


def test_two_penalties_at_one_place_are_their_sum():
    both = drawn("curved", 2, penalties=["r1:2", "r1:3"])
    one = drawn("curved", 2, penalties=["r1:5"])
    assert torch.equal(FusedEngine(both).run(4), FusedEngine(one).run(4)) and same(both, one) == []


def test_phases_are_told_and_timed():
    p = drawn("curved", 4, penalties=["wgan-gp", "r1:1:3"])
    told = FusedEngine(p).profile(4)
    names = [name for name, *_ in told]
    assert len(set(names)) == len(names)
    for part in ("points between", "direction", "tangent 0"):
        assert sum(part in name for name in names) == 1
    assert all(work > 0 for name, _, work, _ in told if "tangent" in name)


PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
import torch, test_fused_penalties as tests
for kind, number in (("straight", 4), ("curved", 6), ("curved", 5)):
    gradients = tests.first_update(tests.FusedEngine, tests.drawn(kind, number))
    print(*gradients.tolist())
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_other_instruction_sets_have_the_same_gradients(isa):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *PATHS],
        env=child_environment(FASTGAN_ISA=isa),
        capture_output=True,
        text=True,
    )
    if "FASTGAN_ISA is" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stderr
    cases = (("straight", 4), ("curved", 6), ("curved", 5))
    for line, case in zip(done.stdout.splitlines(), cases, strict=True):
        exact = first_update(EagerEngine, drawn(*case, torch.float64))
        found = torch.tensor([float(x) for x in line.split()], dtype=torch.float64)
        assert (found - exact).norm() < 1e-5 * exact.norm()


# --- What is refused


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("norms", {"penalties": "r1"}, "slope through BatchNorm1d"),
        ("plain", {"penalties": "r1", "precision": "bf16"}, "precision 'bf16', but in fp32"),
        ("plain", {"penalties": "dragan"}, "points around real samples"),
        (
            "plain",
            {"penalties": losses.Penalty("own", lambda slope: slope.square().sum())},
            "penalty 'own' is a function of its own",
        ),
        ("plain", {"penalties": ["r1"] * (MOST_PENALTIES + 1)}, "more than 64 penalties"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_fused_form_says_why(name, changes, reason):
    p = problem({"plain": "hinge"}.get(name, name), **changes)
    assert reason in FusedEngine.unsupported(p)


def test_batch_norm_in_the_generator_alone_is_no_reason():
    g, d = PAIRS["norms"][0]()
    d = nn.Sequential(*(part for part in d if not isinstance(part, nn.BatchNorm1d)))
    options = {"latent_dim": 16, "device": "cpu", "penalties": "r1", "batch_size": 16}
    samples = torch.randint(0, 256, (64, 1, 7, 7), dtype=torch.uint8)
    assert FusedEngine.unsupported(make_problem(g, d, data.open(samples), **options)) is None


# --- The plan


def test_places_and_forms_are_those_of_python():
    lines = torch.ops.fastgan.fused_enums().splitlines()
    found = {name: rest for name, *rest in map(str.split, lines)}
    assert [e.split("=")[0] for e in found["Place"]] == list(PENALTY_PLACES)
    assert [e.split("=")[0] for e in found["Penalty"]] == ["half_square", "distance_from_one"]


CASE = {"penalties": ((1, 0, 1, 10.0), (0, 1, 2, 5.0))}


@pytest.mark.parametrize(
    ("back", "value", "message"),
    [
        (8, 65, "penalties, is 65; expected 0 to 64"),
        (8, -1, "penalties, is -1"),
        (8, 1, "longer than the networks"),
        (8, 3, "plan is too short: it ends before penalty's place"),
        (7, 2, "penalty's form, is 2; expected 0 to 1"),
        (6, 3, "penalty's place, is 3; expected 0 to 2"),
        (5, 0, "penalty's interval, is 0; expected 1 to"),
    ],
)
def test_a_bad_plan_is_an_error_that_names_it(back, value, message):
    case = plans.Case(**CASE)
    assert case.plan[-8:].tolist() == [2, 1, 0, 1, 0, 1, 2, 0]
    arguments = case.arguments(1)
    arguments[0] = case.plan.clone()
    arguments[0][-back] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.fused_run(*arguments)


@pytest.mark.parametrize("weight", [float("nan"), -1.0, float("inf")])
def test_a_bad_weight_is_an_error(weight):
    case = plans.Case(penalties=((1, 0, 1, weight),))
    with pytest.raises(RuntimeError, match="penalty's weight is"):
        case.run(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"networks": plans.NORMED}, "BatchNorm in D"), ({"precision": 1}, "another precision")],
)
def test_a_plan_with_what_has_no_second_derivative_is_an_error(changes, message):
    with pytest.raises(RuntimeError, match=message):
        plans.Case(**CASE, **changes).run(1)


def test_a_slope_of_zero_has_no_direction():
    # D is constant: torch's norm has derivative 0 there.
    p = problem("wasserstein", penalties="wgan-gp", lr=1e-3)
    with torch.no_grad():
        for w in p.discriminator.parameters():
            w.zero_()
    assert FusedEngine(p).run(2).isfinite().all()
    assert all(t.isfinite().all() for name, t in tensors(p).items() if name.startswith("d."))
