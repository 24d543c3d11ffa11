"""The choice of an engine, what is said about networks that do not fit, and falling back."""

import pytest
import torch
from compilers import counted, functional
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import SHAPE, by_hand, changed, discriminator, generator, images, problem, same, weights
from torch import nn

import fastgan
from fastgan import engines, ops
from fastgan.engines.base import Engine
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import support


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"penalties": "dragan"}, "penalty 'dragan'"), ({"precision": "fp16"}, "precision 'fp16'")],
)
def test_fused_tells_what_it_does_not_have(options, reason):
    assert reason in engines.load("fused").unsupported(problem(**options))
    engine, said = engines.choose(problem(**options))
    assert isinstance(engine, EagerEngine) and "not graph: " in said and reason in said


def test_spatial_latents_and_unusual_score_shapes():
    g = nn.Sequential(nn.ConvTranspose2d(4, 1, 6), nn.Tanh())
    d = nn.Sequential(nn.Conv2d(1, 1, 6))
    engine, said = engines.choose(problem(g, d, latent_dim=(4, 1, 1)), "eager")
    assert torch.isfinite(engine.run(2)).all()
    assert said.startswith("engine eager: ")


@given(
    batch=st.integers(1, 40),
    count=st.integers(1, 40),
    d_steps=st.integers(1, 3),
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(4, 8), st.integers(4, 8)),
)
@settings(max_examples=25, deadline=None)
def test_any_sizes_run(batch, count, d_steps, shape):
    p = problem(
        generator(shape=shape),
        discriminator(shape=shape),
        images(count, shape),
        batch_size=batch,
        d_steps=d_steps,
    )
    engine = EagerEngine(p)
    found = engine.run(3)
    assert found.shape == (3, 4) and torch.isfinite(found).all() and engine.step == 3


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ({"g": generator(shape=(1, 5, 5))}, r"generator makes \[1, 5, 5\], but .* \[1, 6, 6\]"),
        ({"g": generator(latent=9)}, r"generator failed on latents of shape \[8, 5\].*latent_dim"),
        (
            {"d": discriminator(shape=(1, 5, 5))},
            r"discriminator failed on samples of .*\[8, 1, 6, 6\]",
        ),
        ({"d": nn.Conv2d(1, 1, 3)}, r"discriminator returned \[8, 1, 4, 4\] for a batch of 8"),
        ({"d": nn.LSTM(6, 6)}, "discriminator failed"),
    ],
)
def test_networks_that_do_not_fit_are_told_apart(networks, message):
    with pytest.raises(ValueError, match=message):
        engines.choose(problem(**networks), "eager")


def test_looking_at_the_networks_leaves_no_trace():
    d = discriminator(middle=(nn.BatchNorm1d(16), nn.AlphaDropout(0.5)))
    p = problem(d=d)
    d.body[1].eval()
    modes = [m.training for m in d.modules()]
    before, state = weights(d), torch.get_rng_state()
    engines.choose(p, "eager")
    assert same(before, weights(d)) and torch.equal(state, torch.get_rng_state())
    assert [m.training for m in d.modules()] == modes


class Picky(Engine):
    name = "picky"
    reason: str | None = "discriminator.body: this one is too dull"

    @classmethod
    def unsupported(cls, problem):
        return cls.reason

    def run(self, n):
        return torch.zeros(n, 4)

    def describe(self):
        return "does nothing"


def test_auto_takes_the_first_that_can_and_says_why_not_the_others(monkeypatch):
    known = engines.load
    monkeypatch.setattr(engines, "ORDER", ("picky", "eager"))
    monkeypatch.setattr(engines, "load", lambda name: Picky if name == "picky" else known(name))
    engine, said = engines.choose(problem())
    assert isinstance(engine, EagerEngine)
    assert said.startswith("engine eager: ") and "not picky: discriminator.body: this one" in said
    with pytest.raises(ValueError, match="engine='picky' cannot run this .*too dull.*auto"):
        engines.choose(problem(), "picky")
    monkeypatch.setattr(Picky, "reason", None)
    engine, said = engines.choose(problem())
    assert isinstance(engine, Picky) and said == "engine picky: does nothing"
    engine.close()


needs_library = pytest.mark.skipif(
    not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
)


def deep(**options):
    """A pair that the fused engine takes."""
    g = nn.Sequential(
        nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 36),
        nn.Unflatten(1, (1, 6, 6)),
    )  # fmt: skip
    d = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    return problem(g, d, **options)


@needs_library
@pytest.mark.parametrize(
    ("work", "graph_can", "chosen"),
    [(0.99, True, "fused"), (1.0, True, "graph"), (30.0, False, "fused")],
)
def test_on_cuda_large_steps_go_to_the_library_s_products(monkeypatch, work, graph_can, chosen):
    p = deep()
    read = support.chains
    large = changed(p, device=torch.device("cuda"))
    monkeypatch.setattr(support, "chains", lambda _: read(p))
    own = support.operations(*read(p), p.batch_size, p.d_steps)
    monkeypatch.setattr(support, "LARGE_STEP", own / work)
    reasons = dict.fromkeys(engines.ORDER) | {"graph": None if graph_can else "a value is read"}

    def load(name):
        own = {"name": name, "reason": reasons[name], "__init__": lambda *_: None}
        return type(name, (Picky,), own)

    monkeypatch.setattr(engines, "load", load)
    monkeypatch.setattr(engines, "check", lambda _: None)
    engine, said = engines.choose(large)
    assert engine.name == chosen
    assert (f"not fused: a step of {own / 1e9:.3g} GFLOP is past" in said) == (chosen == "graph")
    assert ("not graph: a value is read" in said) == (work > 1 and not graph_can)
    facts = fastgan.info.__globals__["_facts"](large)
    assert facts["engine"] == chosen
    assert (facts["engines"]["fused"] is not None) == (chosen == "graph")
    assert engines.choose(large, "fused")[1] == "engine fused: does nothing"
    assert engines.choose(p)[0].name == "fused"  # and on the CPU as ever


@needs_library
def test_the_operations_of_a_step_are_those_of_its_phases():
    for options in ({}, {"d_steps": 3, "batch_size": 5}):
        p = deep(**options)
        engine = engines.load("fused")(p)
        phases = torch.ops.fastgan.fused_phases(*engine._plan[:2]).splitlines()
        each = {name: float(work) for work, name in (line.split(" ", 1) for line in phases)}
        both = {name: work for name, work in each.items() if name.startswith("both")}
        of_d = {name: work for name, work in each.items() if name.startswith("D's")}
        expected = sum(each.values()) + (p.d_steps - 1) * (
            sum(of_d.values()) + sum(both.values()) / 2
        )
        assert support.operations(*support.chains(p), p.batch_size, p.d_steps) == expected


def test_every_registered_engine_loads_and_an_unknown_one_is_named():
    for name in engines.ORDER:
        assert engines.load(name).name == name
    with pytest.raises(ValueError, match="engine 'warp' is unknown; choose one of auto, "):
        engines.choose(problem(), "warp")


@pytest.mark.parametrize("name", engines.ORDER)
def test_every_engine_is_the_step_by_hand(name, monkeypatch):
    """Whatever stands in ORDER; the tests of each go through what it has of its own."""
    counted(monkeypatch, functional)

    def make():
        torch.manual_seed(1)
        g = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 36), nn.Unflatten(1, SHAPE))
        d = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Dropout(0.3), nn.Linear(16, 1))
        return problem(g, d, d_steps=2)

    p, q = make(), make()
    if reason := engines.load(name).unsupported(p):
        pytest.skip(reason)
    found, expected = engines.choose(p, name)[0].run(5), by_hand(q, 5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for mine, theirs in ((p.generator, q.generator), (p.discriminator, q.discriminator)):
        torch.testing.assert_close(weights(mine), weights(theirs), rtol=1e-3, atol=1e-5)
