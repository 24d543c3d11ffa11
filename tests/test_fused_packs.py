"""The fused engine with a discriminator that judges several samples together."""

import pytest
import torch
import torch.nn.functional as F
import written_plans as plans
from fused_plans import gradients_as_good_as_torchs, same_by_threads_calls_and_copies
from native import emulator, fused_cuda
from residual_plans import ACTIVATIONS, COURSES, drawn, drawn_gradients_as_good_as_torchs
from test_fused_ranks import run_in_parts
from torch import nn

from fastgan import data, ops, terms
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine, plan
from fastgan.engines.fused.plan import NoPlan
from fastgan.heads import Heads
from fastgan.models import CTGANDiscriminator
from fastgan.nn import Pack
from fastgan.problem import make_problem

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]


@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("number", range(6))
def test_gradients_are_as_good_as_torchs_in_float32(kind, number, penalised):
    drawn_gradients_as_good_as_torchs(kind, number, penalised, pack=(2, 3, 4, 2, 5, 7)[number])


@pytest.mark.parametrize(("kind", "number", "changes"), COURSES)
def test_threads_and_calls_change_no_bit_and_a_copy_goes_on(kind, number, changes):
    same_by_threads_calls_and_copies(lambda: drawn(kind, number, pack=4, **changes), (7, [2, 0, 5]))


# --- Rows of a table: heads, terms, and each row's condition beside it

ROW, CLASSES = 11, 5


class Judge(nn.Module):
    """Packs of rows, each with what belongs to it."""

    def __init__(self, *body, pack=4, made=None):
        super().__init__()
        self.pack, self.made, self.body = Pack(pack), made, nn.Sequential(*body)

    def forward(self, x, y):
        of = y if self.made is None else self.made(y)
        return self.body(self.pack(torch.cat([x, of], 1)))


class Hot(nn.Module):
    def forward(self, y):
        return F.one_hot(y, CLASSES).float()


class Beside(Judge):
    """A generator of rows."""

    def forward(self, x, y):
        of = y if self.made is None else self.made(y)
        return self.body(torch.cat([of, x], 1))


def table(dtype=torch.float32, *, labels=True, pack=4, norm=True, **changes):
    torch.manual_seed(3)
    width = CLASSES if labels else 3
    of = Hot if labels else lambda: None
    heads = Heads([("tanh", 2), ("softmax", 4), ("gumbel", 5)])
    layers = nn.Linear(6 + width, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, ROW)
    g = Beside(*layers, heads, made=of())
    middle = [nn.BatchNorm1d(24)] if norm else []
    layers = nn.Linear(pack * (ROW + width), 24), *middle, nn.LeakyReLU(0.2), nn.Dropout(0.3)
    d = Judge(*layers, nn.Linear(24, 1), pack=pack, made=of())
    condition = torch.arange(70) % CLASSES if labels else torch.randn(70, 3)
    samples = data.open((torch.rand(70, ROW) * 2 - 1, condition))
    options = {"batch_size": 20, "d_steps": 2, "betas": (0.5, 0.9), "drop_last": True}
    options |= {"ema": 0.9, **changes}
    return make_problem(g.to(dtype), d.to(dtype), samples, latent_dim=6, device="cpu", **options)


TABLES = {
    "one-hot": {},
    "numbers": {"labels": False},
    "penalised": {
        **{"norm": False, "loss": "wasserstein", "penalties": ["wgan-gp", "r2:1:2"]},
        "d_steps": 1,  # as Adam's first step is a sign, which rounding may flip
    },
    "moments": {"terms": {"moments": (2.0, terms.moments)}, "g_steps": 2},
    "shared fakes": {"shared_fakes": True},
}


@pytest.mark.parametrize("name", TABLES)
def test_each_rows_condition_stands_beside_it(name):
    gradients_as_good_as_torchs(lambda dtype: table(dtype, **TABLES[name]))


@pytest.mark.parametrize("name", TABLES)
def test_tables_in_calls_and_threads(name):
    same_by_threads_calls_and_copies(lambda: table(**TABLES[name]))


# --- Which networks are read


class Reshaped(nn.Module):
    """As a program writes it that knows of no Pack."""

    def __init__(self, change):
        super().__init__()
        self.change, self.body = change, nn.Sequential(nn.Linear(36, 7), nn.ReLU(), nn.Linear(7, 1))

    def forward(self, x):
        return self.body(self.change(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.view(-1, 36),
        lambda x: x.reshape(x.shape[0] // 3, -1),
        lambda x: x.flatten(1).view(x.size(0) // 3, 36),
        lambda x: x.view(x.size(0) // 3, 3, 12).flatten(1),
        lambda x: torch.reshape(x, (x.size(0) // 3, 3 * 12)),
        Pack(3),
        nn.Sequential(nn.Flatten(), Pack(3)),
        nn.Sequential(nn.Unflatten(0, (-1, 3)), nn.Flatten()),
    ],
)
def test_a_reshape_of_the_input_is_a_pack(change):
    chain = plan.read(Reshaped(change), "discriminator", (1, 3, 4), pack=3)
    assert (chain.pack, chain.width, len(chain.layers)) == (3, 36, 2)
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (1, 3, 4)))
    samples = data.open(torch.rand(24, 1, 3, 4))
    p = make_problem(g, Reshaped(change), samples, latent_dim=4, device="cpu", batch_size=12)
    assert FusedEngine.unsupported(p) is None
    assert "G 4-12, D 36-7-1" in FusedEngine(p).describe()


def test_ctgans_discriminator_is_read():
    d = CTGANDiscriminator(12, width=9, pack=3)
    chain = plan.read(d, "discriminator", (12,), pack=3)
    assert chain.pack == 3 and [layer.linear.out_features for layer in chain.layers] == [9, 9, 1]


def reason(*layers, row=12, **options):
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(4, row))
    samples = data.open(torch.rand(24, row))
    options = {"latent_dim": 4, "device": "cpu", "batch_size": 12, **options}
    return FusedEngine.unsupported(make_problem(g, nn.Sequential(*layers), samples, **options))


def test_what_has_no_fused_form_is_said():
    ends = nn.ReLU(), nn.Linear(7, 1)
    said = reason(nn.Linear(12, 4), Pack(3), nn.Linear(12, 7), *ends)
    assert said == "discriminator.0: a Linear before rows become packs has no fused form"
    norm = nn.Linear(72, 7), nn.BatchNorm1d(7), *ends
    assert "last batch of 1 pack of 6 samples" in reason(Pack(6), *norm, batch_size=18)
    assert reason(Pack(3), nn.Linear(36, 7), *ends, accumulate=2).startswith("accumulate=2 has no")
    embedding = Judge(nn.Linear(3 * (ROW + 4), 1), pack=3, made=nn.Embedding(CLASSES, 4))
    samples = data.open((torch.rand(24, ROW), torch.arange(24) % CLASSES))
    g = Beside(nn.Linear(4 + CLASSES, ROW), made=Hot())
    p = make_problem(g, embedding, samples, latent_dim=4, device="cpu", batch_size=12)
    said = "discriminator.made: an Embedding in packs of rows has no fused form; one_hot has"
    assert FusedEngine.unsupported(p) == said
    with pytest.raises(NoPlan, match=r"Pack\(3\) in a network of packs of 1 has no fused form"):
        plan.read(nn.Sequential(Pack(3), nn.Linear(36, 1)), "generator", (12,))


class Twice(nn.Module):
    """Packs beside others, or made of what is no input."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(72, 36), nn.Linear(36, 1), forward

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(m.a(torch.cat([x, x], 1).reshape(x.shape[0] // 3, 72))),
        lambda m, x: m.b(m.a(torch.cat([x.view(-1, 36), x.view(-1, 36)], 1))),
        lambda m, x: m.b(x.view(-1, 36) + m.a(torch.cat([x.view(-1, 36)] * 2, 1))),
        lambda m, x: m.b(m.a(torch.cat([x, x], 1).view(-1, 72)).view(-1, 36)),
    ],
)
def test_packs_that_are_not_the_first_thing_that_is_done_are_right_or_refused(forward):
    torch.manual_seed(0)
    g, samples = nn.Sequential(nn.Linear(4, 12)), data.open(torch.rand(24, 12))
    p = make_problem(g, Twice(forward), samples, latent_dim=4, device="cpu", batch_size=12)
    if FusedEngine.unsupported(p) is not None:
        return
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(4, 12))
    q = make_problem(g, Twice(forward), samples, latent_dim=4, device="cpu", batch_size=12)
    q.discriminator.load_state_dict(p.discriminator.state_dict())
    torch.testing.assert_close(FusedEngine(p).run(3), EagerEngine(q).run(3), rtol=1e-4, atol=1e-5)


# --- Plans written by hand

# Without a bias before the norm, whose gradient is rounding alone.
PACKED = (
    plans.PAIR[0],
    [plans.Layer(9, drop=0.3, norm=True, bias=False), plans.Layer(1, "none")],
)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"networks": PACKED, "d_steps": 2, "g_steps": 2},
        {"penalties": ((1, 0, 1, 10.0), (0, 1, 2, 2.0)), "loss": 4},
    ],
    ids=["norm", "penalised"],
)
def test_the_parts_of_several_ranks_are_the_step_of_one(options, ranks):
    whole, parts = (plans.Case(pack=3, batch=36, count=54, **options) for _ in range(2))
    expected = whole.run(4)
    torch.testing.assert_close(run_in_parts(parts, ranks, 4), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(parts.state, whole.state, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


def test_a_rank_without_whole_packs_is_an_error():
    with pytest.raises(RuntimeError, match="rank 0 has rows 0 to 4 of a batch, and plan pac"):
        run_in_parts(plans.Case(pack=3, batch=9, count=18), 2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pack": 3}, "packs of 3 rows in batches of 8 and 4"),
        ({"pack": 8}, "packs of 8 rows in batches of 8 and 4"),
        ({"networks": PACKED, "pack": 4}, "a BatchNorm and a batch of 1 image"),
    ],
)
def test_batches_that_are_no_packs_are_an_error(options, message):
    with pytest.raises(RuntimeError, match=message):
        plans.Case(**options).run(1)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (-10, 0, "rows of a pack, is 0; expected 1 to 8"),
        (-10, 9, "rows of a pack, is 9; expected 1 to 8"),
        (-10, 5, "12 columns of packs of 5 rows"),
        (-10, 2, "must end G in an image"),
        (-13, 2, "rows of a pack, is 2; expected 1 to 1"),
    ],
)
def test_a_bad_plan_is_an_error_that_names_it(place, value, message):
    case = plans.Case()
    assert case.integers[-13:-7] == [1, 0, 0, 1, 0, 0]
    arguments = case.arguments(1)
    arguments[0] = case.plan.clone()
    arguments[0][place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.fused_run(*arguments)


def test_the_phases_of_d_are_of_packs():
    work = {}
    for pack in (1, 4):
        case = plans.Case(pack=pack)
        lines = torch.ops.fastgan.fused_phases(case.plan, case.settings).splitlines()
        work[pack] = {name: float(n) for n, name in (line.split(" ", 1) for line in lines)}
    # A fourth of the rows, four times as wide in the first layer.
    assert work[4]["D's update: D forward 0"] == work[1]["D's update: D forward 0"]
    assert (
        4 * work[4]["D's update: D forward 1, loss and back"]
        == (work[1]["D's update: D forward 1, loss and back"])
    )
    assert work[4]["both: G forward 0"] == work[1]["both: G forward 0"]


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"no emulator: {emulator.why_not()}")
def test_a_plan_of_packs_is_refused_on_cuda():
    fused_cuda.load()
    case = plans.Case(pack=4)
    with pytest.raises(RuntimeError, match="packs of 4 rows, which the fused step on CUDA do"):
        torch.ops.fastgan.fused_cuda_length(case.plan, case.settings)
