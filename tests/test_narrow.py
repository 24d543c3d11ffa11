"""Casts of weights in a step that is to be recorded: one an update, and no number changes."""

from collections import Counter

import pytest
import torch
from pairs import discriminator, generator, problem
from recordings import (
    Again,
    assert_same,
    convolutions,
    smooth,
    twins,
    with_fused_layers,
    with_norms,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.engines.device_step import DeviceStep
from fastgan.engines.graph import GraphEngine
from fastgan.engines.shapes import shape_of


class Casts(TorchDispatchMode):
    """Counts the casts of some weights out of float32, and the launches that cast many."""

    def __init__(self, weights):
        super().__init__()
        self.each, self.launches, self.weights = Counter(), 0, {id(w) for w in weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == "aten::_to_copy" and id(args[0]) in self.weights:
            self.each[id(args[0])] += 1
        if func.name() == "aten::_foreach_copy_":
            self.launches += 1
            self.each.update(id(w) for w in args[1] if id(w) in self.weights)
        return func(*args, **(kwargs or {}))


def prepared(p, sharing=True):
    body = DeviceStep(p)
    body.step.narrow.allowed = sharing
    for update in body.updates:
        update.begin()
    return body


def steps(p, body, numbers):
    for t in numbers:
        shapes = (shape_of(p, t),)
        body.prepare(t, 1)
        body.do(shapes)


MAKERS = {
    "mlp": lambda: problem(precision="bf16"),
    "relativistic, two updates": lambda: problem(precision="bf16", loss="relativistic", d_steps=2),
    "norms": lambda: with_norms(precision="bf16", ema=0.9),
    "fused layers": lambda: with_fused_layers(precision="bf16"),
    "convolutions with r1": lambda: convolutions(precision="bf16"),
    "fp16": lambda: smooth(precision="fp16", penalties="r1"),
    "spectral norm": lambda: problem(
        d=discriminator(middle=(nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)),)),
        precision="bf16",
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_no_number_changes(name):
    p, q = twins(MAKERS[name])
    steps(p, shared := prepared(p), range(4))
    steps(q, prepared(q, sharing=False), range(4))
    assert shared.step.narrow.allowed
    assert_same(p, q, rtol=0, atol=0)


@pytest.mark.parametrize(("d_steps", "sharing"), [(1, True), (3, True), (1, False)])
def test_a_weight_is_cast_once_an_update(d_steps, sharing):
    p = problem(precision="bf16", d_steps=d_steps)
    body = prepared(p, sharing)
    steps(p, body, range(1))  # has met every weight
    weights = [*p.generator.parameters(), *p.discriminator.parameters()]
    with Casts(weights) as seen:
        steps(p, body, range(1, 2))
    updates = d_steps + 1
    if sharing:
        assert set(seen.each.values()) == {updates} and len(seen.each) == len(weights)
        assert seen.launches == updates
    else:  # as autocast does it, D's for real and for fake images
        own = [seen.each[id(w)] for w in p.discriminator.parameters()]
        assert set(own) == {2 * d_steps + 1} and seen.launches == 0


class Doubled(nn.Linear):
    """Works with twice its weight, and makes it where it should not."""

    def __init__(self, inside):
        super().__init__(36, 16)
        self.inside = inside

    def forward(self, x):
        weight = self.weight.to(torch.bfloat16)
        weight = weight.mul_(2) if self.inside else weight * 2
        return nn.functional.linear(x.flatten(1), weight.float(), self.bias)


def test_a_pass_that_writes_into_the_cast_gets_its_own():
    p, q = (
        problem(d=nn.Sequential(Doubled(inside), nn.ReLU(), nn.Linear(16, 1)), precision="bf16")
        for inside in (True, False)
    )
    for name in ("generator", "discriminator"):
        getattr(q, name).load_state_dict(getattr(p, name).state_dict())
    for r in (p, q):
        engine = GraphEngine(r, Again())
        assert engine._body.step.narrow.allowed == (r is q)
        engine.run(4)
    assert_same(p, q, rtol=0, atol=0)


def test_what_is_compiled_keeps_its_casts():
    d = discriminator()
    d.compile()
    assert not DeviceStep(problem(d=d, precision="bf16")).step.narrow.allowed
    assert DeviceStep(problem(generator(), precision="fp32")).step.narrow is None
