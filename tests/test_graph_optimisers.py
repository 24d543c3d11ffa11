"""Optimisers and gradient scalers whose updates are replayed."""

import pytest
import torch
from pairs import changed, discriminator, generator, problem
from recordings import TIGHT, Again, assert_same, twins

from fastgan.engines.base import CannotRun
from fastgan.engines.eager import EagerEngine
from fastgan.engines.graph import GraphEngine


@pytest.fixture
def capturable_on_cpu(monkeypatch):
    """torch's capturable steps are plain tensor operations, but refuse the CPU."""
    for kind in ("adam", "rmsprop", "nadam"):
        module = __import__(f"torch.optim.{kind}", fromlist=["optim"])
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5, "foreach": True}),
        (torch.optim.NAdam, {"lr": 1e-3, "foreach": True}),
        (torch.optim.Adam, {"lr": 1e-3, "amsgrad": True, "foreach": True}),
    ],
)
@pytest.mark.usefixtures("capturable_on_cpu")
def test_other_optimisers_take_their_own_capturable_step(kind, options):
    def make():
        return problem(
            generator().double(),
            discriminator().double(),
            lr_schedule=lambda t: 1 / (1 + t),
            optimizer=lambda parameters: kind(parameters, **options),
        )

    p, q = twins(make)
    recorder = Again()
    engine = GraphEngine(q, recorder)
    assert not q.optimizer_g.state, "nothing is left of trying it"
    expected = EagerEngine(p).run(30)
    torch.testing.assert_close(torch.cat([engine.run(4), engine.run(26)]), expected, **TIGHT)
    assert recorder.replayed > 2
    assert_same(p, q, rtol=1e-5, atol=1e-6)
    assert q.optimizer_g.param_groups[0]["lr"] == 1e-3
    assert q.optimizer_g.param_groups[0]["capturable"] is False


class Wrapped:
    """A step put on an optimiser by a user, who wants it called."""

    def __init__(self, optimizer):
        self.step = optimizer.step

    def __call__(self, *arguments):
        return self.step(*arguments)


def test_optimisers_that_cannot_be_replayed_are_told():
    def reason(*networks, **options):
        return GraphEngine.unsupported(
            changed(problem(*networks, **options), device=torch.device("cuda"))
        )

    def hooked(parameters):
        made = torch.optim.Adam(parameters)
        made.register_step_post_hook(lambda *_: None)
        return made

    def wrapped(parameters):
        made = torch.optim.Adam(parameters)
        made.step = Wrapped(made)
        return made

    assert reason() is None
    assert "optimizer_d: SGD has no capturable=True" in reason(optimizer=("adam", torch.optim.SGD))
    assert "step hooks" in reason(optimizer=("adam", hooked))
    assert "optimizer_g: the step of Adam was replaced" in reason(optimizer=(wrapped, "adam"))
    fp16 = {"optimizer": (torch.optim.RMSprop, "adam"), "precision": "fp16"}
    assert "'fp16' takes Adam or AdamW" in reason(**fp16)
    halves = generator().bfloat16(), discriminator()
    expected = "optimizer_g: precision 'fp16' takes Adam or AdamW of float32"
    assert expected in reason(*halves, precision="fp16")
    assert "the device is cpu" in GraphEngine.unsupported(problem())


def test_a_step_hook_that_comes_later_is_told():
    p = problem()
    engine = GraphEngine(p, Again())
    p.optimizer_d.register_step_pre_hook(lambda *_: None)
    with pytest.raises(CannotRun, match="optimizer_d: Adam has step hooks"):
        engine.run(1)


def test_a_step_with_infinite_gradients_is_skipped_as_gradscaler_does():
    def make():
        scaler = lambda: torch.amp.GradScaler("cpu", init_scale=2.0**25, growth_interval=4)  # noqa: E731
        return changed(problem(precision="fp16"), scalers=(scaler(), scaler()))

    p, q = twins(make)
    engine = GraphEngine(q, Again())
    torch.testing.assert_close(engine.run(20), EagerEngine(p).run(20), rtol=1e-3, atol=1e-4)
    assert [s.get_scale() for s in p.scalers] == [s.get_scale() for s in q.scalers]
    done = [o.state_dict()["state"][0]["step"].item() for o in (p.optimizer_d, q.optimizer_d)]
    assert done[0] == done[1] < 20, "some steps were skipped, and their number agrees"
    assert_same(p, q, rtol=1e-2, atol=1e-3)
