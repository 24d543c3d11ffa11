"""Heads: what their columns become, their gradients, and where their noise comes from."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgan
from fastgan import data, random
from fastgan.engines.eager import EagerEngine
from fastgan.heads import Head
from fastgan.nn import Heads
from fastgan.ops.reference_table import gumbel
from fastgan.problem import make_problem

MIXED = [
    *(("tanh", 2), ("softmax", 3), ("softmax", 3), ("sigmoid", 1), ("gumbel", 4, 0.5)),
    *(("none", 2), ("relu", 1), ("softmax", 3, 2.0), ("gumbel", 2)),
]


def test_columns_are_what_torch_makes_of_each_head():
    heads = Heads(MIXED)
    x = torch.randn(5, 21, dtype=torch.float64)
    normals = torch.randn(5, 6, dtype=torch.float64)
    noise = -(-torch.special.ndtr(normals).log()).log()
    parts = x.split([width for _, width, *_ in MIXED], 1)
    expected = [
        parts[0].tanh(),
        parts[1].softmax(1),
        parts[2].softmax(1),
        parts[3].sigmoid(),
        ((parts[4] + noise[:, :4]) / 0.5).softmax(1),
        parts[5],
        parts[6].relu(),
        (parts[7] / 2).softmax(1),
        (parts[8] + noise[:, 4:]).softmax(1),
    ]
    torch.testing.assert_close(heads(x, normals), torch.cat(expected, 1))
    assert (heads.columns, heads.choices) == (21, 6)
    assert heads.heads[4] == Head("gumbel", 4, 0.5, False)
    assert not list(heads.parameters()) and not heads.state_dict()


def test_a_hard_head_is_one_hot_with_the_gradient_of_its_shares():
    soft, hard = (
        Heads([("none", 1), ("gumbel", 5, 0.7)]),
        Heads([("none", 1), ("gumbel", 5, 0.7, True)]),
    )
    x = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    normals, towards = torch.randn(40, 5), torch.randn(40, 6, dtype=torch.float64)
    made = hard(x, normals)
    shares = soft(x, normals)
    torch.testing.assert_close(made[:, 1:].detach(), F.one_hot(shares[:, 1:].argmax(1), 5).double())
    found, expected = (torch.autograd.grad(y, x, towards)[0] for y in (made, shares))
    torch.testing.assert_close(found, expected)


def test_choices_have_the_probabilities_of_the_logits():
    heads, p = Heads([("gumbel", 4, 1.0, True)]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    normals = random.normal(3, 77, 0, (20000, 4))
    found = heads(p.log().expand(20000, 4), normals).mean(0)
    assert ((found - p).abs() < 4 * (p * (1 - p) / 20000).sqrt()).all()
    noise = gumbel(normals.double())
    assert abs(noise.mean() - 0.5772156649) < 4 * math.pi / math.sqrt(6 * noise.numel())


def test_half_precision_becomes_float32_and_noise_is_drawn_in_eval_too():
    heads = Heads([("tanh", 1), ("gumbel", 3, 0.2, True)]).eval()
    x = torch.zeros(50, 4, dtype=torch.bfloat16)
    torch.manual_seed(1)
    made = heads(x)
    assert made.dtype == torch.float32 and len(made.unique(dim=0)) == 3
    torch.manual_seed(1)
    assert torch.equal(heads(x), made)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "heads is empty"),
        ([("tanh",)], r"heads\[0\] is \('tanh',\); expected \(kind, width\)"),
        ([("tanh", 1), ("softplus", 2)], r"heads\[1\] is of kind 'softplus'; expected one of none"),
        ([("tanh", 0)], r"heads\[0\] has width 0"),
        ([("tanh", 2.0)], r"heads\[0\] has width 2.0"),
        ([("gumbel", 2, 0.0)], r"heads\[0\] has temperature 0.0; expected a finite number above 0"),
        ([("softmax", 2, "cold")], r"temperature 'cold'"),
        ([("tanh", 2, 0.5)], r"heads\[0\], 'tanh', takes no temperature"),
        ([("softmax", 2, 1.0, True)], r"heads\[0\] has hard=True; expected True or False, True of"),
    ],
)
def test_what_is_no_head_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        Heads(given)


def test_rows_of_another_width_are_told():
    with pytest.raises(ValueError, match=r"Heads has 3 columns and is given \[4, 2\]; expected"):
        Heads([("tanh", 3)])(torch.zeros(4, 2))


def problem(**options):
    torch.manual_seed(2)
    g = nn.Sequential(nn.Linear(4, 6), Heads([("tanh", 1), ("gumbel", 5, 0.3)]))
    d = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    rows = torch.rand(32, 6) * 2 - 1
    options = {"latent_dim": 4, "batch_size": 8, "device": "cpu", "d_steps": 2, **options}
    return make_problem(g, d, data.open(rows, kind="tensor"), **options)


def test_a_step_draws_by_seed_and_step():
    runs = []
    for torchs_seed, parts in ((1, (6,)), (2, (2, 1, 3))):
        engine = EagerEngine(problem())
        torch.manual_seed(torchs_seed)
        runs.append(torch.cat([engine.run(n) for n in parts]))
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], EagerEngine(problem(seed=5)).run(6))


def test_the_noise_of_a_pass_is_of_its_own_stream():
    p = problem()
    weights = [p.clone().detach() for p in p.generator.parameters()]
    seen = []
    p.generator.register_forward_hook(lambda m, x, y: seen.append((x[0], y.detach())))
    EagerEngine(p).run(1)
    heads = p.generator[1]
    # D's two updates, then G's.
    for (z, y), (use, number) in zip(seen[-3:], [(3, 0), (3, 1), (4, 0)], strict=True):
        normals = random.normal(p.seed, random.Stream.CHOICE + use, number, (8, 5))
        logits = F.linear(z, *weights)
        torch.testing.assert_close(y, heads(logits, normals))


def test_a_trainer_samples_after_training():
    g = nn.Sequential(nn.Linear(4, 6), Heads([("tanh", 1), ("gumbel", 5, 0.3, True)]))
    d = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    rows = data.open(torch.rand(32, 6) * 2 - 1, kind="tensor")
    trainer = fastgan.Trainer(g, d, rows, latent_dim=4, batch_size=8, device="cpu")
    trainer.fit(steps=3)
    made = trainer.sample(20)
    assert made.shape == (20, 6) and set(made[:, 1:].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(made, trainer.sample(20))
