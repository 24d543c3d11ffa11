"""Networks of the fused engine whose layers take sums and concatenations of others."""

import pytest
import torch
import torch.nn.functional as F
import written_plans as plans
from fused_networks import Concat
from fused_plans import (
    gradients_as_good_as_torchs,
    same_by_threads_calls_and_copies,
)
from fused_plans import problem as plain_problem
from native import emulator, fused_cuda
from residual_plans import ACTIVATIONS, COURSES, drawn, drawn_gradients_as_good_as_torchs
from torch import nn

from fastgan import data, ops
from fastgan.engines.fused import FusedEngine, plan
from fastgan.engines.fused.nodes import KINDS, MOST_JOINED, MOST_JOINS
from fastgan.problem import make_problem

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]


@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("number", range(10))
def test_gradients_are_as_good_as_torchs_in_float32(kind, number, penalised):
    drawn_gradients_as_good_as_torchs(kind, number, penalised)


@pytest.mark.parametrize(("kind", "number", "changes"), COURSES)
def test_threads_and_calls_change_no_bit_and_a_copy_goes_on(kind, number, changes):
    same_by_threads_calls_and_copies(lambda: drawn(kind, number, **changes), (7, [2, 0, 5]))


# --- With conditions


class Beside(nn.Module):
    """A body that takes its input with a label as one-hot or by a table, whole or past layers."""

    def __init__(self, features, body, embedding=False):
        super().__init__()
        self.body, self.embed = body, nn.Embedding(5, 5) if embedding else None
        self.features = features

    def forward(self, x, y):
        of = F.one_hot(y, 5).float() if self.embed is None else self.embed(y)
        return self.body(torch.cat([x.flatten(1), of], 1))


def with_labels(dtype=torch.float32, embedding=False, **changes):
    torch.manual_seed(3)
    block = Concat(nn.Linear(11, 20), nn.BatchNorm1d(20), nn.ReLU())
    g = Beside(6, nn.Sequential(block, nn.Linear(31, 35), nn.Tanh(), nn.Unflatten(1, (1, 5, 7))))
    block = Concat(nn.Linear(40, 20), nn.LeakyReLU(0.2), nn.Dropout(0.3))
    d = Beside(35, nn.Sequential(block, nn.Linear(60, 1)), embedding)
    samples = data.open((torch.rand(70, 1, 5, 7) * 2 - 1, torch.arange(70) % 5))
    options = {"batch_size": 20, "d_steps": 2, "betas": (0.5, 0.9), "drop_last": True, **changes}
    return make_problem(g.to(dtype), d.to(dtype), samples, latent_dim=6, device="cpu", **options)


@pytest.mark.parametrize("changes", [{}, {"penalties": "wgan-gp", "loss": "wasserstein"}])
def test_conditions_reach_past_layers(changes):
    gradients_as_good_as_torchs(lambda dtype: with_labels(dtype, **changes))


def test_an_embedding_that_goes_past_a_layer_is_refused_by_name():
    said = FusedEngine.unsupported(with_labels(embedding=True))
    assert said.startswith("discriminator.embed: an Embedding in an input that others than the fir")


# --- The plan


class Skips(nn.Module):
    """Layers for them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(12, 12) for _ in range(4))
        self.last = nn.Linear(60, 5)


def test_sums_and_concatenations_are_joins_of_nodes():
    class Ctgan(Skips):
        def forward(self, x):
            y = torch.cat([torch.relu(self.a(x)), x], 1)
            return self.last(torch.cat([y, torch.cat((self.b(x), x), dim=-1), x], axis=1))

    class Sums(Skips):
        def forward(self, x):
            y = torch.relu(self.a(x)) + x
            z = torch.add(self.b(y), y)
            y + x  # which nothing takes
            z = z.view(-1, 3, 4).add(self.c(z).view(-1, 3, 4)).flatten(1)
            w = self.d(x)
            w += z
            return self.last(torch.concat([w, y, z, x, x], 1))

    net = Ctgan()
    del net.c, net.d
    found = plan.read(net, "generator", (12,))
    assert [(j.kind, j.before, j.nodes) for j in found.joins] == [
        ("concat", 1, [1, 0]), ("concat", 2, [2, 0]), ("concat", 2, [4, 5, 0])
    ]  # fmt: skip
    assert [layer.source for layer in found.layers] == [0, 0, 6] and found.width == 12
    found = plan.read(Sums(), "generator", (12,))
    assert [(j.kind, j.before, j.nodes) for j in found.joins] == [
        ("add", 1, [1, 0]), ("add", 2, [2, 6]), ("add", 3, [7, 3]), ("add", 4, [4, 8]),
        ("concat", 4, [9, 6, 8, 0, 0]),
    ]  # fmt: skip
    assert [layer.source for layer in found.layers] == [0, 6, 7, 0, 10]


def test_the_engine_tells_its_joins_and_their_phases():
    engine = FusedEngine(plain_problem("concatenated"))
    assert "G 9-40-40-36 with 2 joins, D 36-50-33-1 with 1 join, " in engine.describe()
    names = [name for name, *_ in engine.profile(2)]
    assert len(set(names)) == len(names)
    for part in ("both: G join 0", "D's update: D join 0", "G's update: G node 4, gradients"):
        assert part in names


def test_a_chain_has_no_phase_for_nodes():
    names = [name for name, *_ in FusedEngine(plain_problem("deep")).profile(1)]
    assert not any("join" in name or "node" in name for name in names)


def test_kinds_are_those_of_python():
    lines = torch.ops.fastgan.fused_enums().splitlines()
    found = {name: rest for name, *rest in map(str.split, lines)}
    assert [e.split("=")[0] for e in found["JoinOf"]] == list(KINDS)


def branched(**changes):
    return plans.Case(plans.BRANCHED, joins=plans.JOINS, **changes)


def test_a_plan_written_by_hand_runs_alike_in_one_call_and_several():
    one, many = branched(), branched()
    expected = one.run(3)
    assert torch.equal(torch.cat([many.run(1, first_step=i) for i in range(3)]), expected)
    assert expected.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(one.state, many.state, strict=True))


START = branched().integers.index(3, 14)
"""Where the plan has the layers of G, 3 of them, before its joins and those that take others."""


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (1, MOST_JOINS + 1, f"joins, is {MOST_JOINS + 1}; expected 0 to {MOST_JOINS}"),
        (2, 3, "layers before a join, is 3; expected 0 to 2"),
        (3, 2, "kind of a join, is 2; expected 0 to 1"),
        (4, 1, f"nodes of a join, is 1; expected 2 to {MOST_JOINED}"),
        (5, 6, "node of a join, is 6; expected 0 to 5"),
        (5, 2, "plan takes node 2 of a network before it is made"),
        (5, 5, "plan takes node 5 of a network before it is made"),
        (5, 0, "plan adds a node of 6 values to 5"),
        (7, 0, "layers before a join, is 0; expected 1 to 2"),
        (11, 3, "plan takes node 3 of a network before it is made"),
        (13, 4, "layers that take another node, is 4; expected 0 to 3"),
        (14, 3, "layer that takes another node, is 3; expected 0 to 2"),
        (15, 3, "plan takes node 3 of a network before it is made"),
        (15, 4, "state"),
        (15, 0, "state"),
    ],
)
def test_a_bad_plan_is_an_error_that_names_it(place, value, message):
    case = branched()
    assert case.integers[START : START + 16] == [3, 2, 1, 0, 2, 1, 1, 2, 1, 3, 2, 4, 0, 1, 2, 5]
    arguments = case.arguments(1)
    arguments[0] = case.plan.clone()
    arguments[0][START + place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.fused_run(*arguments)


def test_a_node_that_nothing_takes_is_an_error():
    layers = [plans.Layer(6), plans.Layer(12, source=0)], plans.PAIR[1]
    with pytest.raises(RuntimeError, match="node 1 is taken by nothing"):
        plans.Case(layers).run(1)
    layers = [plans.Layer(6), plans.Layer(6, source=3), plans.Layer(12, source=4)], plans.PAIR[1]
    with pytest.raises(RuntimeError, match="plan takes node 3 of a network before it is made"):
        plans.Case(layers, joins=([(1, 0, 1, 1), (2, 0, 2, 1)], ())).run(1)


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"no emulator: {emulator.why_not()}")
def test_a_plan_with_joins_is_refused_on_cuda():
    fused_cuda.load()
    case = branched()
    with pytest.raises(RuntimeError, match="is no chain, which the fused step on CUDA does not"):
        torch.ops.fastgan.fused_cuda_length(case.plan, case.settings)
