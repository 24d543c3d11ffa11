"""A new run with the weights of another."""

import pytest
import torch
from methods import Conditional, D, G, labelled
from pairs import same, weights
from small_runs import QUICK, assert_same_bits, every_bit, own, own_pair, pixels, plain_pair, small

from fastgan import History, Trainer, data, schedules, spectral_norm, terms
from fastgan.cli import main
from fastgan.config import ConfigError
from fastgan.run.checkpoint import CheckpointError


@pytest.fixture
def run(tmp_path):
    options = {"loss": "hinge", "penalties": "r1:2:4", "lr": 0.01, "lr_schedule": "cosine:9"}
    t = own(tmp_path / "run", ema=0.5, **options)
    t.fit(steps=6)
    return t


def test_weights_come_with_and_all_else_begins_anew(run):
    t = Trainer.from_checkpoint(run.out, *own_pair(7), data.open(pixels(30, seed=5)), lr=1e-3)
    assert same(weights(t.generator), weights(run.generator))
    assert same(weights(t.discriminator), weights(run.discriminator))
    assert same(weights(t.ema), weights(run.generator))
    assert (t.step, t.history, t.out) == (0, [], None) and len(t.data) == 30
    assert not t.optimizer_g.state and not t.optimizer_d.state
    assert t.optimizer_g.param_groups[0]["lr"] == 1e-3
    changed = {"lr": 1e-3, "out": None}
    assert t.config == run.config.with_(**changed)
    assert t.config.lr_schedule == schedules.read("cosine:9")
    t.fit(steps=2)
    assert t.step == 2 and not same(weights(t.generator), weights(run.generator))


def test_the_average_is_kept_or_is_where_g_begins(run):
    given = own_pair(7), data.open(pixels())
    average = weights(run.ema)
    kept = Trainer.from_checkpoint(run.out, *given[0], given[1], average="keep")
    assert same(weights(kept.ema), average) and same(
        weights(kept.generator), weights(run.generator)
    )
    begun = Trainer.from_checkpoint(run.out, *own_pair(8), given[1], average="generator", ema=None)
    assert same(weights(begun.generator), average) and begun.ema is None
    with pytest.raises(ConfigError, match="the new run keeps none; give ema="):
        Trainer.from_checkpoint(run.out, *own_pair(8), given[1], average="keep", ema=None)
    with pytest.raises(ConfigError, match="average is 'both'; expected 'keep'"):
        Trainer.from_checkpoint(run.out, *own_pair(8), given[1], average="both")


def test_what_is_missing_or_does_not_fit_is_told(tmp_path, run):
    with pytest.raises(CheckpointError, match="pass generator="):
        Trainer.from_checkpoint(run.out)
    with pytest.raises(ConfigError, match="data that its program passed; pass data="):
        Trainer.from_checkpoint(run.out, *own_pair())
    with pytest.raises(CheckpointError, match="generator does not fit"):
        Trainer.from_checkpoint(run.out, *plain_pair(), data.open(pixels()))
    with pytest.raises(ConfigError, match="did you mean 'lr'|there is no setting 'lrs'"):
        Trainer.from_checkpoint(run.out, *own_pair(), data.open(pixels()), lrs=1)
    t = Trainer(G(), D(), labelled(), method=Conditional(), out=tmp_path / "m", **QUICK)
    t.fit(steps=1)
    with pytest.raises(CheckpointError, match="method was 'Conditional', an object of your own"):
        Trainer.from_checkpoint(tmp_path / "m", G(), D(), labelled())
    tuned = Trainer.from_checkpoint(tmp_path / "m", G(), D(), labelled(), method=None, loss="hinge")
    assert tuned.problem.loss.name == "hinge"
    with pytest.raises(CheckpointError, match="holds no average of G's weights"):
        Trainer.from_checkpoint(
            tmp_path / "m", G(), D(), labelled(), method=Conditional(), average="generator"
        )


class Other(Conditional):
    pass


def test_a_resume_with_another_method_is_refused_and_a_new_run_is_not(tmp_path):
    t = Trainer(G(), D(), labelled(), method=Conditional(), out=tmp_path / "m", **QUICK)
    t.fit(steps=1)
    with pytest.raises(
        ConfigError, match="method is 'Other', saved 'Conditional': a resume cannot"
    ):
        Trainer.resume(tmp_path / "m", G(), D(), labelled(), method=Other())
    Trainer.from_checkpoint(tmp_path / "m", G(), D(), labelled(), method=Other()).fit(steps=1)


def test_from_a_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    t = small("runs/a", data="digits", width=8, steps=3)
    t.fit()
    assert main(["train", "--start-from", "runs/a", "--lr", "0.5", "--steps", "1", "--quiet"]) == 0
    again = Trainer.resume("runs/a-tuned")
    assert again.step == 1 and again.config.lr == 0.5 and again.config.width == 8
    assert main(["train", "--start-from", "runs/a", "--preset", "dcgan-64"]) == 2
    assert "--preset is given beside --start-from" in capsys.readouterr().err
    assert main(["train", "--resume", "runs/a", "--start-from", "runs/a"]) == 2
    assert "--start-from begins a new run" in capsys.readouterr().err
    assert torch.isfinite(again.sample(2)).all()


ALL_TERMS = {"l1": (0.5, terms.l1), "l2": ("adaptive", terms.l2)}


class Everything(Conditional):
    """Holds earlier fakes and a number of its own, and uses what a step has."""

    def __init__(self):
        self.history, self.k = History(9), 1.0

    def d_loss(self, step):
        shown = self.history(step, step.fake)
        step.log("noise", step.normal(1).mean())
        real, fake = step.D(step.real, step.cond), step.D(shown, step.fake_cond)
        penalties = step.penalty("dragan") + step.penalty("r1:1:2")
        self.k = 0.9 * self.k + 0.1 * fake.detach().abs().mean().item()
        return (real - 1).square().mean() + self.k * fake.square().mean() + penalties


def test_a_run_with_every_setting_of_training_is_continued_to_the_bit(tmp_path):
    def networks():
        torch.manual_seed(3)
        d = D()
        spectral_norm(d)
        return G(), d

    def trainer(out):
        options = {
            **QUICK, "accumulate": 2, "augment": "ada:0.2", "d_steps": 2, "d_start": 3,
            "terms": ALL_TERMS, "grad_clip": 1.0, "grad_clip_value": 0.1,
            "weight_clip": 0.5, "lr_schedule": ("warmup:5+cosine", "linear:40:10"), "lr": 0.01,
            "ema_half_life": 100.0, "ema_warmup": 0.5, "drop_last": True, "steps": 30,
        }  # fmt: skip
        t = Trainer(*networks(), labelled(), method=Everything(), out=tmp_path / out, **options)
        t.problem.augmentation.state[0] = 0.5
        return t

    whole = trainer("whole")
    before = weights(whole.discriminator)
    whole.fit(steps=14)
    assert not same(weights(whole.discriminator), before)
    trainer("half").fit(steps=6)
    parts = {"method": Everything(), "terms": ALL_TERMS}
    half = Trainer.resume(tmp_path / "half", *networks(), labelled(), **parts)
    half.fit(steps=14)
    assert_same_bits(every_bit(half), every_bit(whole))
    assert torch.equal(half.problem.augmentation.state, whole.problem.augmentation.state)
    held = [t.problem.method.history.state_dict()["samples"] for t in (half, whole)]
    assert torch.equal(*held) and half.history == whole.history
    assert half.problem.method.k == whole.problem.method.k != 1.0
    assert {"augment_p", "noise", "l1", "l2"} <= half.history[-1].keys()
