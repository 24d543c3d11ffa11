"""What the engine compile keeps between runs, and when auto takes it for that."""

import json
import logging
import subprocess
import sys

import pytest
import torch
from compilers import counted, functional
from pairs import discriminator, generator, images, problem
from torch import nn

from fastgan import Trainer, engines, torch_graphs
from fastgan.engines import kept
from fastgan.engines.compile import CompileEngine
from fastgan.engines.compiled_step import CompiledStep


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastgan" / "compile"


class Code:
    """A trace that can be saved, in place of what TorchInductor makes."""

    made: dict = {}

    def __init__(self, graph):
        self.graph = graph

    def __call__(self, *inputs):
        return self.graph(*inputs)

    def save(self, path):
        with open(path, "w") as file:
            file.write("code")
        Code.made[path] = self.graph


@pytest.fixture
def saved(monkeypatch):
    calls = counted(monkeypatch, lambda graph, inputs: Code(graph))

    def load(path):
        with open(path) as file:
            assert file.read() == "code"
        return Code.made[path]

    monkeypatch.setattr(torch_graphs, "compiled_before", load)
    return calls


def made(**options):
    engine = CompileEngine(problem(source=images(24), **options))
    return engine, [function.kept for function in engine._once.functions.values()]


def test_code_is_kept_for_the_same_work_and_no_other(saved, cache):
    engine, known = made()
    assert known == [False, False] and len(saved) == 2
    assert "2 functions compiled" in engine.describe()
    again, known = made()
    assert known == [True, True] and len(saved) == 2
    assert "2 kept from an earlier run" in again.describe()
    assert torch.equal(engine.run(3), again.run(3))
    assert made(batch_size=6)[1] == [False, False], "other shapes"
    assert made(penalties="r1")[1] == [False, True], "another loss of D"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert made()[1] == [False, False], "other code for other threads"
    finally:
        torch.set_num_threads(before)


def test_what_is_damaged_or_cannot_be_written_is_made_anew_without_a_word(
    saved, cache, monkeypatch, caplog
):
    made()
    for path in cache.glob("*.code"):
        path.write_bytes(b"\0")
    for path in cache.glob("*.json"):
        path.write_text("{")
    assert made()[1] == [False, False]
    assert made()[1] == [True, True], "what was damaged has been replaced"
    file = cache.parent / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    engine, known = made()
    assert known == [False, False] and torch.isfinite(engine.run(2)).all()
    assert not [r for r in caplog.records if r.name == "fastgan"]


@pytest.mark.parametrize(
    ("measured", "options", "reason"),
    [
        (None, {"steps": 10**6}, "whether compiling pays here is not known"),
        ((2.0, 3.0, 5.0), {"steps": 10**6}, "a step took 3 ms compiled and 2 in eager"),
        ((3.0, 2.0, 5.0), {}, "the run's length (steps or epochs) is not known"),
        ((3.0, 2.0, 5.0), {"steps": 5000}, "which 5000 steps do not win back 5 s with"),
        ((3.0, 2.0, 5.0), {"steps": 5001}, None),
        ((3.0, 2.0, 5.0), {"epochs": 1667}, None),
        ((3.0, 2.0, 5.0), {"epochs": 1667, "steps": 100}, "which 100 steps do not win back"),
    ],
)
def test_auto_takes_what_was_measured_to_pay(measured, options, reason, saved):
    # Three steps an epoch, of networks that the fused engine does not take.
    d = discriminator(middle=(nn.RMSNorm(16),))
    p = problem(generator(nn.Mish()), d, source=images(24), **options)
    if measured:
        kept.remember(p, kept.Measured(*measured))
    engine, said = engines.choose(p)
    assert engine.name == ("eager" if reason else "compile")
    assert reason is None or f"not compile: {reason}" in said or reason in said
    if reason:
        names, behind = engines.order(p)
        assert names[-2:] == ("eager", "compile") and reason in behind["compile"]
        assert engines.choose(p, "compile")[0].name == "compile", "by name always"


@pytest.mark.parametrize("begun", ["eager", "compile"])
def test_a_continued_run_keeps_its_engine_whatever_was_measured(begun, saved, tmp_path):
    d = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.RMSNorm(8), nn.Linear(8, 1))
    g = nn.Sequential(nn.Linear(5, 36), nn.Mish(), nn.Unflatten(1, (1, 6, 6)))
    options = {"batch_size": 8, "latent_dim": 5, "device": "cpu", "console": "none", "steps": 5001}
    measured = kept.Measured(3.0, 2.0, 5.0), kept.Measured(2.0, 3.0, 5.0)
    before, since = measured[::-1] if begun == "eager" else measured
    t = Trainer(g, d, images(24), out=tmp_path / "run", **options)
    assert t.engine.name == "eager", "nothing was measured"
    kept.remember(t.problem, before)
    t = Trainer(g, d, images(24), out=tmp_path / "run", **options, if_exists="overwrite")
    assert t.engine.name == begun
    t.fit(steps=2)
    kept.remember(t.problem, since)
    again = Trainer.resume(tmp_path / "run", g, d, images(24))
    assert again.engine.name == begun


def test_a_run_measures_for_later_ones(saved, cache):
    p = problem(source=images(24))
    CompileEngine(p)
    found = kept.measured(p)
    assert found.eager_ms > 0 and found.compiled_ms > 0 and found.seconds > 0
    assert kept.measured(problem(source=images(24), batch_size=6)) is None
    (path,) = cache.glob("*.json")
    path.write_text(json.dumps({"eager_ms": -1.0, "compiled_ms": 1.0, "seconds": 1.0}))
    assert kept.measured(p) is None


def test_where_the_user_s_cache_is(monkeypatch, tmp_path):
    assert kept.folder() == tmp_path / "fastgan" / "compile"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert kept.folder() == tmp_path / "home" / ".cache" / "fastgan" / "compile"


class Scaled(nn.Module):
    """Multiplies by numbers that a trace finds by itself: no parameter, and no buffer."""

    def __init__(self):
        super().__init__()
        self.by = torch.linspace(0.5, 1.5, 36)

    def forward(self, x):
        return x * self.by


LOADED = """
import sys
import torch
from fastgan import torch_graphs, torch_private
code = torch_graphs.compiled_before(sys.argv[1])
inputs = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(code(*inputs), sys.argv[2])
assert not torch_private.compiler_loaded() and "torch._inductor" not in sys.modules
"""


def test_by_torchinductor_itself_and_kept(monkeypatch, cache):
    """The one test that generates C++, for an update of D with R1: check_compile.py has more."""
    inductor, seen = CompiledStep.compiler, []

    def either(graph, inputs):
        if "aten.pow" not in graph.code:
            return functional(graph, inputs)
        seen.extend(t.detach().clone() for t in inputs)
        return inductor(graph, inputs)

    counted(monkeypatch, either)

    def make():
        torch.manual_seed(2)
        d = nn.Sequential(
            nn.Flatten(), Scaled(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 1)
        )  # fmt: skip
        return problem(d=d, source=images(8), loss="wasserstein", penalties="r1")

    engine = CompileEngine(make())
    of_d, of_g = engine._once.functions.values()
    assert not of_d.kept and of_d.distance < 1e-5
    found = engine.run(5)
    expected = engines.choose(make(), "eager")[0].run(5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    again = CompileEngine(make())
    assert [f.kept for f in again._once.functions.values()] == [True, False]
    assert torch.equal(again.run(5), found), "the same bits"
    with torch.no_grad():
        results = of_d.code(*seen)
    (path,), tensors = cache.glob("*.code"), cache / "tensors.pt"
    torch.save(seen, tensors)
    subprocess.run([sys.executable, "-c", LOADED, path, tensors], check=True)
    assert all(map(torch.equal, torch.load(tensors), results)), "without torch's compiler"


def test_what_is_no_library_is_called_by_python(monkeypatch, caplog):
    def refuse(graph, inputs):
        raise NotImplementedError("of that kind there are no libraries\nand more")

    monkeypatch.setattr(torch_graphs, "compiled_ahead", refuse)
    monkeypatch.setattr(torch_graphs, "compiled", lambda graph, inputs: graph.forward)
    with caplog.at_level(logging.INFO, "fastgan"):
        engine, _ = made()
    assert torch.isfinite(engine.run(2)).all()
    told = [r.message for r in caplog.records if "called by Python" in r.message]
    assert len(told) == 2 and all(m.endswith("there are no libraries") for m in told)
