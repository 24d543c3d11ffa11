"""The graph engine on a GPU."""

import logging

import pairs
import pytest
import torch
from graph_changes import CHANGES
from pairs import discriminator, generator, images, problem
from recordings import PROBLEMS, Reads, convolutions, everything, twins, with_norms
from torch import nn

from fastgan import engines
from fastgan.engines.base import CannotRun
from fastgan.engines.eager import EagerEngine
from fastgan.engines.graph import GraphEngine

on_cuda = pytest.mark.gpu


@pytest.fixture
def gpu(monkeypatch):
    """The problems of this file lie on the GPU, and products are not rounded to tf32."""
    monkeypatch.setattr(pairs, "DEVICE", "cuda")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@on_cuda
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", PROBLEMS)
def test_cuda_replays_are_eagers_steps(name):
    p, q = twins(PROBLEMS[name])
    assert GraphEngine.unsupported(q) is None
    engine = GraphEngine(q)
    found = torch.cat([engine.run(1), engine.run(20), engine.run(29)])
    expected = EagerEngine(p).run(50)
    close = {"rtol": 1e-4, "atol": 1e-5} if q.precision == "fp32" else {"rtol": 0.03, "atol": 0.01}
    torch.testing.assert_close(found, expected, **close)
    assert found.is_cuda and engine.step == 50
    assert q.optimizer_d.state_dict()["state"][0]["step"].device.type == "cpu"


@on_cuda
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["norms and dropouts", "fp16", "r1, lazy"])
def test_on_cuda_making_the_engine_leaves_no_trace(name):
    p, _ = twins(PROBLEMS[name])
    EagerEngine(p).run(3)
    before, state = everything(p), torch.cuda.get_rng_state()
    lying = [t.data_ptr() for t in p.generator.state_dict().values()]
    GraphEngine(p)
    after = everything(p)
    assert all(torch.equal(before[key], value) for key, value in after.items())
    assert lying == [t.data_ptr() for t in p.generator.state_dict().values()]
    assert torch.equal(state, torch.cuda.get_rng_state())


@on_cuda
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_on_cuda_changes_between_runs_count(change):
    p, q = twins(lambda: with_norms(source=images(24)))
    eager, engine = EagerEngine(p), GraphEngine(q)
    eager.run(4), engine.run(4)
    for r in (p, q):
        change(r)
        r.data = r.data.to("cuda")
    torch.testing.assert_close(engine.run(20), eager.run(20), rtol=1e-3, atol=1e-5)


@on_cuda
@pytest.mark.usefixtures("gpu")
def test_on_cuda_torchs_generator_and_a_modules_own_go_on_as_they_would():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = generator()
            self.generator = torch.Generator("cuda").manual_seed(4)

        def forward(self, z):
            own = torch.empty_like(z).normal_(generator=self.generator)
            return self.body(z + 0.1 * torch.randn_like(z) + 0.1 * own)

    p, q = (problem(Own()) for _ in range(2))
    q.generator.body.load_state_dict(p.generator.body.state_dict())
    q.discriminator.load_state_dict(p.discriminator.state_dict())
    torch.cuda.manual_seed(8)
    expected = EagerEngine(p).run(30)
    torch.cuda.manual_seed(8)
    torch.testing.assert_close(GraphEngine(q).run(30), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(p.generator.generator.get_state(), q.generator.generator.get_state())


@on_cuda
@pytest.mark.usefixtures("gpu")
def test_on_cuda_what_cannot_be_captured_is_named_and_eager_goes_on(caplog):
    bad = discriminator(middle=(nn.GELU(), Reads(), nn.AlphaDropout(0.1)))
    p = problem(d=bad)
    with caplog.at_level(logging.WARNING, "fastgan"):
        engine, said = engines.choose(p)
    assert isinstance(engine, EagerEngine)
    assert "not graph: discriminator.body.4 cannot be captured, at or after aten::_local" in said
    assert torch.isfinite(engine.run(5)).all()


@on_cuda
@pytest.mark.usefixtures("gpu")
def test_on_cuda_a_capture_that_fails_leaves_a_working_device():
    """Waiting for the whole device is noticed by the capture alone, so that one is broken off."""

    class Waits(nn.Module):
        def forward(self, x):
            y = x + torch.randn_like(x)
            torch.cuda.synchronize()
            return y

    p = problem(d=discriminator(middle=(Waits(),)))
    with pytest.raises(CannotRun, match=r"discriminator\.body\.3 cannot .* after aten::add"):
        GraphEngine(p)
    assert torch.isfinite(EagerEngine(p).run(3)).all()
    assert torch.randn(4, device="cuda").isfinite().all(), "torch's generator is not stuck"
    q = problem()
    assert torch.isfinite(GraphEngine(q).run(30)).all(), "and captures still work"


@on_cuda
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_cuda_a_convolutional_pair_with_r1(precision):
    p, q = twins(lambda: convolutions(precision=precision))
    found, expected = GraphEngine(q).run(50), EagerEngine(p).run(50)
    # Weights whose gradients are nearly 0 move by the signs of rounding errors: what is left of an
    # agreement of 1e-6 in the first step does not last.
    torch.testing.assert_close(found[:3], expected[:3], rtol=0.02, atol=0.02)
    assert torch.isfinite(found).all()
