"""What is attached to networks or changed in them between two runs is honoured, or told."""

import copy
import logging

import pytest
import torch
from fused_plans import problem
from torch import nn

from fastgan import Trainer, engines, ops
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine

pytestmark = [
    pytest.mark.skipif(
        not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
    ),
    pytest.mark.usefixtures("two_threads"),
]

CALLS = []


def note(*_):
    CALLS.append(1)


def first_weight(p):
    return p.discriminator.model[0].weight


def freeze(p):
    first_weight(p).requires_grad_(False)


def unlike_groups(p):
    group = p.optimizer_g.param_groups[0]
    weights, group["params"] = group["params"], group["params"][:1]
    p.optimizer_g.add_param_group({**group, "params": weights[1:], "lr": 1e-5})


HONOURED = {
    "forward hook": lambda p: p.discriminator.model[1].register_forward_hook(note),
    "forward pre-hook": lambda p: p.generator.register_forward_pre_hook(note),
    "backward hook": lambda p: p.discriminator.model[1].register_full_backward_hook(note),
    "gradient hook": lambda p: first_weight(p).register_hook(lambda g: g * 0),
    "accumulated gradient hook": lambda p: first_weight(p).register_post_accumulate_grad_hook(note),
    "own zero_grad": lambda p: setattr(p.optimizer_d, "zero_grad", p.optimizer_d.zero_grad),
    "step hook": lambda p: p.optimizer_d.register_step_post_hook(note),
    "step pre-hook": lambda p: p.optimizer_g.register_step_pre_hook(note),
    "replaced step": lambda p: setattr(p.optimizer_g, "step", lambda closure=None: note()),
    "hook for all modules": lambda p: nn.modules.module.register_module_forward_hook(note),
    "replaced forward": lambda p: setattr(
        p.discriminator.model[1], "forward", lambda x: nn.functional.leaky_relu(x, 0.7)
    ),
    "another activation": lambda p: p.discriminator.model.__setitem__(1, nn.Mish()),
    "frozen weight": freeze,
    "unlike groups": unlike_groups,
    "spectral norm": lambda p: nn.utils.parametrizations.spectral_norm(p.discriminator.model[0]),
    "another layer": lambda p: p.discriminator.model.insert(1, nn.RMSNorm(256)),
}


@pytest.mark.parametrize("name", HONOURED)
def test_auto_goes_on_with_an_engine_that_honours_it_and_says_so_once(name, caplog):
    p = problem()
    engine, _ = engines.choose(p)
    assert isinstance(engine, FusedEngine)
    engine.run(2)
    q = copy.deepcopy(p)
    torch.manual_seed(7)
    handles = [HONOURED[name](p)]
    CALLS.clear()
    try:
        with caplog.at_level(logging.WARNING, "fastgan"):
            engine, done = engines.advance(engine, 3)
            assert isinstance(engine, EagerEngine) and len(done) == 0 and engine.step == 2
            assert not CALLS
            engine, found = engines.advance(engine, 3)
        assert engine.step == 5
        if "hook" in name and name != "gradient hook":
            assert CALLS
        torch.manual_seed(7)
        handles.append(HONOURED[name](q))
        expected = EagerEngine(q)
        expected.step = 2
        torch.testing.assert_close(found, expected.run(3))
        assert caplog.text.count("cannot go on at step 2") == 1
    finally:
        for handle in handles:
            if hasattr(handle, "remove"):
                handle.remove()


REPLANNED = {
    "a layer of the same kind": lambda p: p.discriminator.model.__setitem__(0, nn.Linear(784, 256)),
    "a slope": lambda p: setattr(p.discriminator.model[1], "negative_slope", 0.5),
    "a layer that computes nothing": lambda p: p.discriminator.model.insert(1, nn.Identity()),
    "no dropout": lambda p: p.discriminator.model.__delitem__(2),
}


@pytest.mark.parametrize("name", REPLANNED)
def test_what_has_a_plan_gets_a_new_one(name):
    p = problem(lr=2e-4)
    engine = FusedEngine(p)
    engine.run(2)
    torch.manual_seed(7)
    REPLANNED[name](p)
    if name == "a layer of the same kind":
        p.optimizer_d.param_groups[0]["params"] = list(p.discriminator.parameters())
        for weight in p.discriminator.model[0].parameters():  # as new as all others
            p.optimizer_d.state[weight] = {
                "step": torch.tensor(2.0),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
    q = copy.deepcopy(p)
    expected = EagerEngine(q)
    expected.step = 2
    torch.testing.assert_close(engine.run(3)[:, :2], expected.run(3)[:, :2], rtol=1e-4, atol=1e-5)


class Branches(nn.Module):
    """A forward that goes by plain attributes."""

    width = 2

    def __init__(self):
        super().__init__()
        self.fc, self.options = nn.Linear(36, 1), {"squash": False, "scale": [1]}

    def forward(self, x):
        x = self.fc(x.flatten(1))
        return torch.tanh(x) if self.options["squash"] else x


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_a_plain_attribute_that_forward_branches_on_counts(engine):
    def make():
        torch.manual_seed(2)
        p = problem("hinge")
        g, source = p.generator, p.data
        from fastgan.problem import make_problem

        return make_problem(g, Branches(), source, latent_dim=7, loss="hinge", device="cpu")

    p, q = make(), make()
    chosen, _ = engines.choose(p, engine)
    chosen.run(2)
    other = EagerEngine(q)
    other.run(2)
    for r in (p, q):
        r.discriminator.options["squash"] = True
    torch.testing.assert_close(chosen.run(3)[:, :2], other.run(3)[:, :2], rtol=1e-4, atol=1e-5)


def test_an_engine_asked_for_by_name_says_that_it_cannot_go_on():
    p = problem()
    engine, _ = engines.choose(p, "fused")
    engine.run(1)
    handle = p.discriminator.register_forward_hook(note)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"engine='fused' cannot go on at step 1: .*hooks"):
            engines.advance(engine, 1, "fused")
    handle.remove()
    engine, found = engines.advance(engine, 1, "fused")
    assert len(found) == 1


def test_a_trainer_goes_on_by_itself(caplog):
    trainer = Trainer(None, None, "digits", batch_size=32, device="cpu", log_every=5)
    trainer.fit(steps=4)
    assert trainer.engine.name == "fused"
    CALLS.clear()
    trainer.discriminator.register_forward_hook(note)
    with caplog.at_level(logging.WARNING, "fastgan"):
        trainer.fit(steps=11)
    assert trainer.engine.name == "eager" and trainer.step == 11
    assert len(CALLS) == 7 * 3
    assert "engine eager" in trainer.explanation
    assert caplog.text.count("cannot go on") == 1


def test_a_trainer_returns_to_the_engine_it_fell_back_from(caplog, capsys):
    trainer = Trainer(
        None, None, "digits", batch_size=32, device="cpu", log_every=5, console="lines"
    )
    trainer.fit(steps=2)
    handle = trainer.discriminator.register_forward_hook(note)
    trainer.fit(steps=4)
    trainer.fit(steps=6)
    assert trainer.engine.name == "eager", "the hook is still there"
    handle.remove()
    capsys.readouterr()
    with caplog.at_level(logging.INFO, "fastgan"):
        trainer.fit(steps=9)
    assert trainer.engine.name == "fused" and trainer.step == 9
    assert trainer.explanation.startswith("engine fused: ")
    assert "engine fused: " in capsys.readouterr().out
    assert "from step 6 on engine fused" in caplog.text


def test_a_run_that_was_given_an_engine_stays_with_it():
    trainer = Trainer(
        None, None, "digits", batch_size=32, device="cpu", engine="eager", console="none"
    )
    trainer.fit(steps=1)
    trainer.fit(steps=2)
    assert trainer.engine.name == "eager"


def test_a_call_that_fails_reports_the_steps_that_it_did():
    p = problem(lr_schedule=lambda t: 1.0 if t < 3 else float("nan"))
    for kind in (FusedEngine, EagerEngine):
        engine = kind(problem(lr_schedule=lambda t: 1.0 if t < 3 else float("nan")))
        with pytest.raises(ValueError, match=r"lr_schedule\(3\)"):
            engine.run(5)
        assert engine.unreported is not None and len(engine.unreported) == engine.step
    engine = EagerEngine(p)
    p.generator.forward = lambda z: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.run(1)
    assert engine.unreported is None, "the step is half done"
