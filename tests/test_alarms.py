"""Alarms: the right one of runs that go wrong, none of runs that do not."""

import json
import logging

import pytest
import torch
from operator_cases import needs_library
from small_runs import own
from torch import nn

from fastgan import Alarms, Trainer, alarms, cli, data
from fastgan.alarms import COLLAPSE, DIVERGING, SATURATED, STARVED
from fastgan.models import DCGANDiscriminator, DCGANGenerator

SEEDS = (0, 1, 2)
QUICK = {
    "batch_size": 16, "latent_dim": 4, "log_every": 20, "device": "cpu", "engine": "eager",
    "console": "none",
}  # fmt: skip


def points(seed, n=256):
    """Four heaps in the corners of a square."""
    drawn = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 2, (n, 2), generator=drawn) * 1.4 - 0.7
    return data.open(corners + 0.05 * torch.randn(n, 2, generator=drawn))


def pair(seed, width=24, g=None):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(4, width), nn.LeakyReLU(0.2), nn.Linear(width, 2))
    d = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))
    return g or made, d


def run(seed, steps=300, nets=None, **options):
    watch = Alarms(warmup=60, **options.pop("alarms", {}))
    t = Trainer(*(nets or pair(seed)), points(seed), callbacks=watch, seed=seed,
                **{**QUICK, **options})  # fmt: skip
    t.fit(steps=steps)
    return watch, t


class Deaf(nn.Module):
    """Hears nothing of its latents."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 24), nn.LeakyReLU(0.2), nn.Linear(24, 2))

    def forward(self, z):
        return self.body(0 * z)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_collapsed_run(seed, caplog):
    watch, t = run(seed, 140, pair(seed, g=Deaf()))
    (alarm,) = [a for a in watch.raised if a.name == COLLAPSE]
    assert alarm.step == 100, "the third line from the end of the warm-up on"
    assert "0 times as far" in alarm.evidence and alarm.suggestion
    assert str(alarm) in caplog.text
    assert t.history[-1]["diversity"] < 1e-3 and COLLAPSE in t.history[-1]["alarms"]
    assert "alarms" not in t.history[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_whose_generator_stands(seed):
    watch, _ = run(seed, 300, lr=(0.0, 1e-2))
    assert STARVED in {a.name for a in watch.raised}


def far(seed):
    """A pair whose generator begins far from the data."""
    torch.manual_seed(seed)
    g = nn.Linear(4, 2)
    nn.init.constant_(g.bias, 9.0)
    return pair(seed, g=g)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_whose_minimax_loss_has_no_slope(seed):
    watch, _ = run(seed, 300, far(seed), loss="minimax", lr=(1e-5, 1e-2))
    (alarm,) = [a for a in watch.raised if a.name == STARVED]
    assert "non-saturating" in alarm.suggestion


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_whose_discriminator_knows_all(seed):
    watch, _ = run(seed, 300, far(seed), lr=(1e-4, 1e-2))
    assert SATURATED in {a.name for a in watch.raised}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_that_runs_away(seed):
    watch, _ = run(seed, 60, lr=3.0)
    (alarm,) = watch.raised
    assert alarm.name == DIVERGING and alarm.step == 20


def test_losses_that_keep_growing_are_a_run_that_runs_away():
    def found(*sizes):
        watch, t = Alarms(), own()
        watch.start(t)
        for size in sizes:
            line = dict.fromkeys(["d_loss_mean", "g_loss_mean", "d_real_mean", "d_fake_mean"], 0.5)
            watch.line(t, {**line, "d_real_mean": -size})
        return [a.name for a in watch.raised]

    assert found(20.0, 30.0, 40.0, 50.0) == [DIVERGING]
    assert found(20.0, 30.0, 25.0, 50.0) == found(31.0, 33.0, 35.0, 37.0) == []
    assert found(2.0, 4.0, 8.0, 16.0) == [], "it is small still"
    assert found(1001.0) == found(float("nan")) == [DIVERGING]


def test_scores_that_grow_because_d_is_sure_are_no_run_that_runs_away(monkeypatch):
    monkeypatch.setattr(Alarms, "_look", lambda *_: (0.5, None))
    watch, t = Alarms(), own()
    watch.start(t)
    for size in (10.0, 20.0, 30.0, 40.0):
        line = {"d_loss_mean": 0.01, "g_loss_mean": 5.0, "d_fake_mean": -5.0}
        watch.line(t, {**line, "d_real_mean": size})
    assert [a.name for a in watch.raised] == [SATURATED]


def test_a_diversity_that_moves_about_its_bound_is_taken_in_the_mean(monkeypatch):
    seen = iter([0.12, 0.11, 0.05, 0.11, 0.06, 0.11, 0.06])
    monkeypatch.setattr(Alarms, "_look", lambda *_: (next(seen), None))
    watch, t = Alarms(warmup=0), own()
    watch.start(t)
    for _ in range(7):
        line = dict.fromkeys(["d_loss_mean", "g_loss_mean", "d_real_mean", "d_fake_mean"], 0.5)
        watch.line(t, line)
    assert [a.name for a in watch.raised] == [COLLAPSE]
    assert line["diversity"] == 0.06 and "are 0.073 times as far" in watch.raised[0].evidence


@pytest.mark.parametrize("seed", SEEDS)
def test_a_healthy_run_raises_none(seed):
    watch, t = run(seed, 500, lr=2e-3)
    assert not watch.raised and t.history[-1]["diversity"] > 0.3


def test_measures_are_evidence():
    watch, t = Alarms(patience=1), own()
    watch.start(t)
    line = {"d_loss_mean": 0.01, "g_loss_mean": 5.0, "d_real_mean": 5.0, "d_fake_mean": -5.0}
    watch.line(t, {**line, "d_real_accuracy": 1.0, "d_fake_accuracy": 0.98})
    (alarm,) = watch.raised
    told = "(D takes 100% of the real samples for real, 98% of the fake ones for fake)"
    assert alarm.name == SATURATED and told in str(alarm)
    watch.line(t, {**line, "d_loss_mean": 1.0, "nonfinite": 3.0, "d_grad_norm": None})
    assert watch.raised[-1].name == DIVERGING
    told = "gradients or weights are not finite (numbers that are not finite: 3)"
    assert told in watch.raised[-1].evidence
    watch.line(t, {**line, "d_loss_mean": 1.0, "nonfinite": 0.0, "g_grad_norm": 0.0})
    assert watch.raised[-1].name == STARVED and "no gradient reaches G (" in str(watch.raised[-1])


def convolutions(seed, steps, width=4, **options):
    """A run of a small DCGAN on the digits."""
    torch.manual_seed(seed)
    nets = DCGANGenerator(4, 16, 1, width), DCGANDiscriminator(16, 1, width, False)
    watch = Alarms(warmup=60)
    t = Trainer(*nets, "digits", callbacks=watch, seed=seed, image_size=16, **{**QUICK, **options})
    t.fit(steps=steps)
    return watch, t


def test_a_generator_with_batchnorm_that_stands_is_starved_and_not_collapsed():
    # Its samples move with the running statistics, and are nearly one, as it has learned nothing.
    watch, t = convolutions(0, 160, lr=(0.0, 2e-3))
    assert t.history[-1]["diversity"] < alarms.LOW_DIVERSITY
    raised = {a.name: a for a in watch.raised}
    assert STARVED in raised and COLLAPSE not in raised
    assert "G's weights changed by 0 of their size" in raised[STARVED].evidence


def test_a_convolutional_run_that_runs_away():
    watch, _ = convolutions(0, 60, lr=2.0)
    assert {a.name for a in watch.raised} == {DIVERGING}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_healthy_convolutional_run_raises_none(seed):
    watch, t = convolutions(seed, 200)
    assert not watch.raised and t.history[-1]["diversity"] > alarms.LOW_DIVERSITY


@needs_library
@pytest.mark.parametrize(
    ("name", "options"),
    [(None, {"lr": 2e-3}), (DIVERGING, {"lr": 3.0}), (STARVED, {"lr": (0.0, 1e-2)})],
)
def test_what_the_fused_engine_tells_is_looked_at_as_well(name, options):
    watch, t = run(0, 300, engine="fused", **options)
    assert t.engine.name == "fused"
    assert {a.name for a in watch.raised} == ({name} if name else set())


def test_label_smoothing_does_not_hide_a_saturated_discriminator():
    line = {"d_loss_mean": 0.36, "d_real_mean": 2.2, "d_fake_mean": -9.0}
    t = own(label_smoothing=0.1)  # whose least loss is 0.325
    assert alarms._saturated(t, line) and not alarms._saturated(own(), line)
    assert not alarms._saturated(own(loss="hinge"), {**line, "d_loss_mean": 0.0})


def test_what_holds_is_said_once_and_again_when_it_comes_back(caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    watch, t = Alarms(patience=2), own()
    found = iter([None, ("a", "b"), ("a", "b"), ("a", "b"), None, ("a", "b"), ("a", "b")])
    monkeypatch.setattr(alarms, "_saturated", lambda *_: next(found))
    watch.start(t)
    lines = [dict.fromkeys(["d_loss_mean", "g_loss_mean", "d_real_mean", "d_fake_mean"], 0.5)
             for _ in range(7)]  # fmt: skip
    for line in lines:
        watch.line(t, line)
    assert [a.name for a in watch.raised] == [SATURATED] * 2
    assert [SATURATED in line.get("alarms", ()) for line in lines] == [
        False, False, True, True, False, False, True,
    ]  # fmt: skip
    assert caplog.text.count(SATURATED) == 2


def test_a_run_may_end_by_an_alarm():
    watch, t = run(0, 10_000, lr=3.0, alarms={"stop": DIVERGING})
    assert t.step < 400 and "diverging" in t.stopped and len(watch.raised) == 1
    with pytest.raises(ValueError, match="stop: 'divergin'; expected of 'mode collapse"):
        Alarms(stop="divergin")
    with pytest.raises(ValueError, match="patience is 0"):
        Alarms(patience=0)


def test_a_resumed_run_goes_on_watching(tmp_path):
    def made(out):
        return own(out, callbacks=Alarms(warmup=0, patience=4), lr=(0.0, 1e-2))

    whole, cut = made(tmp_path / "a"), made(tmp_path / "b")
    whole.fit(steps=60)
    cut.fit(steps=30)
    g, d = own().generator, own().discriminator
    again = Trainer.resume(
        tmp_path / "b", g, d, whole.data, callbacks=Alarms(warmup=0, patience=4), console="none"
    )
    again.fit(steps=60)
    assert (tmp_path / "a/log.jsonl").read_text() == (tmp_path / "b/log.jsonl").read_text()
    assert again.own_callbacks[0].raised == whole.own_callbacks[0].raised


def test_the_option(here, caplog):
    arguments = ["train", "--data", "ring8", "--lr", "3", "--steps", "20", "--log-every", "10"]
    assert cli.main([*arguments, "--device", "cpu", "--width", "4", "--quiet", "--alarms"]) == 0
    assert DIVERGING in caplog.text
    line = json.loads((here / "runs/ring8/log.jsonl").read_text().splitlines()[0])
    assert line["alarms"] == [DIVERGING] and "diversity" in line


def test_looking_moves_nothing():
    t, twin = own(callbacks=Alarms()), own()
    t.fit(steps=40)
    twin.fit(steps=40)
    for mine, other in zip(t.generator.parameters(), twin.generator.parameters(), strict=True):
        assert torch.equal(mine, other)
