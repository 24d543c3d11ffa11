"""The compile engine: its step held against `eager`, and the rules of compiling."""

import logging

import pytest
import torch
from compilers import counted, functional, traced_only, uses
from graph_changes import CHANGES
from methods import CASES, case
from pairs import changed, discriminator, generator, images, problem
from recordings import PROBLEMS, TIGHT, assert_same, everything, smooth, twins, with_norms
from small_runs import assert_same_bits, every_bit, own, own_pair
from torch import nn

from fastgan import Trainer, data, engines, terms
from fastgan.distributed import World
from fastgan.engines.agree import distance
from fastgan.engines.base import CannotRun
from fastgan.engines.compile import CompileEngine
from fastgan.engines.eager import EagerEngine
from fastgan.problem import make_problem

NETWORKS = (
    "hinge", "two updates of D, all at once", "layers with their dropout", "dropout called twice",
    "spectral norm", "r1, lazy", "convolutions with r1", "r1 and r2", "wgan-gp", "packs", "bf16",
    "shared fakes", "shared fakes, two scores", "shared fakes, wgan-gp",
    "shared fakes, convolutions with r1", "shared fakes, bf16",
)  # fmt: skip


@pytest.fixture
def compiler(monkeypatch):
    return counted(monkeypatch, traced_only)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_compiled_step_is_eagers(name, monkeypatch):
    calls = counted(monkeypatch, functional)
    p, q = twins(PROBLEMS[name])
    engine = CompileEngine(q)
    made = len(calls)
    expected = EagerEngine(p).run(9)
    found = torch.cat([engine.run(1), engine.run(0), engine.run(8)])
    tolerance = TIGHT if q.precision == "fp32" else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(found, expected, **tolerance)
    assert_same(p, q, **tolerance)
    # Ragged batches and lazy penalties are functions of their own, made before the first step.
    assert len(calls) == made == uses(engine._once.functions)
    most = 1e-5 if q.precision == "fp32" else 1e-2
    assert all(f.distance <= most for f in engine._once.functions.values())
    assert all(w.grad is None for w in q.discriminator.parameters())


def test_memory_formats_that_the_compiler_does_not_expect(monkeypatch):
    counted(monkeypatch, functional)
    torch.manual_seed(0)
    d = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1),
        nn.GroupNorm(4, 32), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 4),
    )  # fmt: skip
    g = nn.Sequential(nn.Linear(4, 256), nn.Tanh(), nn.Unflatten(1, (1, 16, 16)))
    samples = data.open(torch.rand(64, 1, 16, 16) * 2 - 1)
    options = {"batch_size": 64, "latent_dim": 4, "device": "cpu", "penalties": "r1"}
    engine = CompileEngine(make_problem(g, d, samples, **options))
    assert all(f.distance <= 1e-5 for f in engine._once.functions.values())
    assert engine.run(1).isfinite().all()


@pytest.mark.parametrize("name", ["conditional", "auxiliary", "information", "slope", "noisy"])
def test_methods_are_compiled(name, compiler):
    p, q = case(name), case(name)
    eager, engine = EagerEngine(p), CompileEngine(q)
    torch.testing.assert_close(engine.run(9), eager.run(9), **TIGHT, equal_nan=True)
    assert_same(p, q, **TIGHT)
    logged = ({k: float(v) for k, v in e.logged.items()} for e in (eager, engine))
    assert next(logged) == pytest.approx(next(logged))
    assert name in CASES and (name != "information" or "joint_loss" in engine.logged)


class Noisy(nn.Module):
    """Randomness of torch's own, an own generator or none, and a parameter that no pass uses."""

    def __init__(self, own=None):
        super().__init__()
        self.body, self.own = generator(), own
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, z):
        noise = torch.randn(z.shape, generator=self.own)
        return self.body(torch.nn.functional.alpha_dropout(z, 0.1, True) + 0.1 * noise)


def test_torchs_own_generator_goes_on_as_it_would(monkeypatch):
    counted(monkeypatch, functional)
    p, q = twins(lambda: problem(Noisy()))
    torch.manual_seed(8)
    expected = EagerEngine(p).run(4)
    torch.manual_seed(8)
    found = CompileEngine(q).run(4)
    torch.testing.assert_close(found, expected, **TIGHT)
    assert_same(p, q, **TIGHT)
    assert q.generator.unused not in q.optimizer_g.state


def test_making_the_engine_leaves_no_trace(compiler):
    p = with_norms(ema=0.9, penalties="wgan-gp")
    EagerEngine(p).run(3)
    before, state = everything(p), torch.get_rng_state()
    forwards = [vars(m).get("forward") for m in p.discriminator.modules()]
    CompileEngine(p)
    after = everything(p)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(state, torch.get_rng_state())
    assert forwards == [vars(m).get("forward") for m in p.discriminator.modules()]
    assert all(w.grad is None for w in (*p.generator.parameters(), *p.discriminator.parameters()))


@pytest.mark.parametrize("name", ["set_rate", "fill", "replace_storage", "load_moments", "freeze"])
def test_changes_between_runs_count(name, compiler):
    change = next(one for one in CHANGES if one.__name__ == name)
    p, q = twins(lambda: with_norms(source=images(24)))
    eager, engine = EagerEngine(p), CompileEngine(q)
    eager.run(2), engine.run(2)
    compiler.clear()
    change(p), change(q)
    torch.testing.assert_close(engine.run(3), eager.run(3), **TIGHT)
    assert_same(p, q, **TIGHT)
    # Moments and rates are the optimiser's, which is not compiled.
    assert (len(compiler) > 0) == (name in ("replace_storage", "freeze"))


def test_a_run_is_continued_to_the_bit(compiler, tmp_path):
    options = {"engine": "compile", "penalties": "r1:1:2", "ema": 0.9}
    whole = own(**options)
    whole.fit(steps=9)
    first = own(tmp_path / "run", **options)
    first.fit(steps=5)
    resumed = Trainer.resume(tmp_path / "run", *own_pair(), first.problem.data)
    resumed.fit(steps=9)
    assert resumed.engine.name == "compile"
    assert_same_bits(every_bit(whole), every_bit(resumed))


def test_updates_that_come_late_are_compiled_when_they_come(compiler, monkeypatch):
    monkeypatch.setattr("fastgan.engines.compiled_step._MOST", 1)
    p, q = twins(lambda: smooth(penalties="r1:10:5"))
    engine = CompileEngine(q)
    assert len(compiler) == 2, "an update of D with the penalty, and one of G"
    torch.testing.assert_close(engine.run(9), EagerEngine(p).run(9), **TIGHT)
    # D's without it, and both of the epoch's last samples; G's of these.
    assert len(compiler) == 6


# --- what is refused ------------------------------------------------------------------------------


class Reads(nn.Module):
    def forward(self, x):
        return x * (x.abs().max().item() / x.abs().max())


class Counts(nn.Module):
    seen = 0

    def forward(self, x):
        self.seen += 1
        return x


class Chooses(nn.Module):
    def forward(self, x):
        import random

        return x * random.choice([1.0, 2.0])


REFUSED = {
    r"D's update of 8 samples: discriminator\.body\.4 cannot be traced, at .*_local_scalar_dense": (
        lambda: problem(d=discriminator(middle=(nn.Tanh(), Reads())))
    ),
    "discriminator.body.3: its attribute seen was changed by a pass": (
        lambda: problem(d=discriminator(middle=(Counts(),)))
    ),
    "drawn from Python's or NumPy's generator": (
        lambda: problem(d=discriminator(middle=(Chooses(),)))
    ),
    r"D's update of 8 samples draws from a torch.Generator of its own \(aten\.randn": (
        lambda: problem(Noisy(torch.Generator().manual_seed(3)))
    ),
    "G's update of 8 samples .* asks for the number of the step": lambda: case("counting"),
    "attribute k of method was changed by a pass": lambda: case("boundary"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_trace_cannot_repeat_is_told(message, compiler):
    p = REFUSED[message]()
    before = everything(p)
    with pytest.raises(CannotRun, match=message):
        CompileEngine(p)
    assert all(torch.equal(value, before[key]) for key, value in everything(p).items())


def hooked():
    p = problem()
    p.generator.body[1].register_forward_hook(lambda *_: None)
    return p


def compiled_already():
    p = problem()
    p.discriminator.body[1].compile()
    return p


UNSUPPORTED = {
    "generator: hooks would be called while tracing only": hooked,
    "discriminator: a part of it is compiled already": compiled_already,
    "precision 'fp16' scales losses": lambda: problem(precision="fp16"),
    "BatchNorm layers sum over the ranks": lambda: changed(with_norms(), world=World(0, 2)),
    "an adaptive weight sums over the ranks": lambda: changed(
        problem(terms={"l2": ("adaptive", terms.l2)}), world=World(0, 2)
    ),
}


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_what_shows_without_trying_is_told(message):
    assert message in CompileEngine.unsupported(UNSUPPORTED[message]())


def test_a_machine_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    p = problem()
    assert "no-such-compiler is not to be found; set CXX" in CompileEngine.unsupported(p)
    with pytest.raises(ValueError, match="engine='compile' cannot run this .*C\\+\\+ compiler"):
        engines.choose(p, "compile")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    on_cuda = changed(p, device=torch.device("cuda"))
    assert "needs triton" in CompileEngine.unsupported(on_cuda)


def wrong(how):
    """A compiler that makes a mistake."""

    def compiler(graph, inputs):
        def code(*given):
            found = list(graph(*given))
            return how(found)

        return code

    return compiler


def halved(found):
    return [found[0] / 2, *found[1:]]


def nothing(found):
    return [torch.zeros_like(t) for t in found]


def losses_of_another(found):
    return [t + 1 if t.dim() == 0 else t for t in found]


MISTAKES = {halved: "gradients .* off by 0.5", nothing: "gradients", losses_of_another: "losses"}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda how: how.__name__)
def test_code_that_computes_something_else_is_not_used(mistake, monkeypatch, caplog):
    counted(monkeypatch, wrong(mistake))
    with pytest.raises(CannotRun, match=f"D's update of 8 samples: the {MISTAKES[mistake]}"):
        CompileEngine(smooth(penalties="r1"))
    monkeypatch.setattr("fastgan.engines.kept.why_not", lambda problem: None)
    with caplog.at_level(logging.WARNING, "fastgan"):
        engine, said = engines.choose(smooth(penalties="r1"))
    assert isinstance(engine, EagerEngine) and "not compile: D's update" in said
    assert "engine compile was tried and cannot run this" in caplog.text


def test_writes_and_draws_that_differ_are_not_used_either(monkeypatch):
    def without_writes(graph, inputs):
        return lambda *given: graph(*(t.clone() for t in given))

    def with_a_draw(graph, inputs):
        return lambda *given: [*graph(*given), torch.rand(1)][:-1]

    counted(monkeypatch, without_writes)
    with pytest.raises(CannotRun, match="the statistics of layers of the compiled function"):
        CompileEngine(with_norms())
    counted(monkeypatch, with_a_draw)
    with pytest.raises(CannotRun, match="draws other random numbers"):
        CompileEngine(with_norms())


def test_distances_are_relative_and_rounding_is_none():
    one, small = torch.ones(100), torch.full((4,), 1e-7)
    assert distance([one, small], [one, -small], 1e-2) < 1e-5
    assert distance([one], [one * 0.5], 1e-2) == 0.5
    assert distance([one], [one * float("nan")], 1e-2) == float("inf")
    assert distance([one * 0], [one], 1e-2) == float("inf")
    assert distance([one * 0], [one * 0], 1e-2) == 0


class Idle(torch.optim.SGD):
    def step(self, closure=None):
        pass


@pytest.mark.parametrize("kind", [EagerEngine, CompileEngine])
def test_a_run_that_trains_nothing_is_told_once(kind, compiler, caplog):
    p = problem(optimizer=("adam", lambda weights: Idle(weights, lr=0.1)))
    with caplog.at_level(logging.WARNING, "fastgan"):
        kind(p).run(3)
    assert caplog.text.count("optimizer_d: the first step of Idle has moved none") == 1
    assert "optimizer_g" not in caplog.text
    with caplog.at_level(logging.WARNING, "fastgan"):
        kind(problem(lr_schedule=lambda step: 0.0)).run(2)
    assert caplog.text.count("has moved none") == 1, "nor should it move at a rate of 0"


# --- between steps --------------------------------------------------------------------------------


def test_a_hook_in_a_run_is_honoured_by_another_engine(compiler, caplog):
    p = problem()
    engine = CompileEngine(p)
    engine.run(2)
    calls = []
    handle = p.discriminator.register_forward_hook(lambda *_: calls.append(1))
    engine, done = engines.advance(engine, 3)
    assert isinstance(engine, EagerEngine) and engine.step == 2 and len(done) == 0
    engine, done = engines.advance(engine, 3)
    assert len(done) == 3 and len(calls) == 9
    handle.remove()


def test_a_closed_engine_runs_again_and_a_bad_argument_is_told(compiler):
    p, q = twins(problem)
    engine = CompileEngine(q)
    with pytest.raises(ValueError, match="n is -1"):
        engine.run(-1)
    engine.close()
    torch.testing.assert_close(engine.run(3), EagerEngine(p).run(3), **TIGHT)


def test_an_error_in_a_step_leaves_whole_steps(compiler):
    p = problem(lr_schedule=lambda step: float("nan") if step == 2 else 1.0)
    engine = CompileEngine(p)
    with pytest.raises(ValueError, match=r"lr_schedule\(2\) returned nan"):
        engine.run(5)
    assert engine.step == 2 and len(engine.unreported) == 2
