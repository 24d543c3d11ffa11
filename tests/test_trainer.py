"""The trainer: limits, what it returns and draws, what it is asked."""

import copy
import inspect
import json
import pickle
import time

import numpy
import pytest
import torch
from small_runs import (
    QUICK,
    SHAPE,
    SUMMARY,
    OwnG,
    Seen,
    assert_same_bits,
    every_bit,
    own,
    pixels,
    plain_pair,
    small,
)
from torch import nn
from torch.utils.data import DataLoader

import fastgan
from fastgan import Loss, Penalty, Trainer, random
from fastgan.config import Config
from fastgan.losses import PENALTIES
from fastgan.models import Discriminator, Generator

# --- when it stops --------------------------------------------------------------------------------


def test_the_limits_are_totals_and_the_first_counts():
    t = small()
    assert t.steps_per_epoch == 7  # 50 images in batches of 8
    assert t.fit(epochs=2)["steps"] == 14
    assert t.fit(epochs=2)["steps"] == 14 and t.fit(epochs=2)["ms_per_step"] is None
    assert t.fit(steps=20, epochs=100)["steps"] == 20
    assert t.fit(until=lambda state: state.step >= 35)["steps"] == 40  # asked every 10 steps
    began = time.perf_counter()
    t.fit(seconds=t.seconds + 0.3)
    assert time.perf_counter() - began > 0.25


def test_the_limits_of_the_settings_hold_where_fit_is_given_none():
    assert small(steps=3).fit()["steps"] == 3
    assert small(steps=3).fit(steps=5)["steps"] == 5, "what fit is given stands in their place"
    assert small(config=Config(steps=4), epochs=1).fit()["steps"] == 7


def test_steps_per_epoch_with_several_d_updates():
    seen = Seen()
    t = small(d_steps=3, callbacks=seen)
    assert t.steps_per_epoch == 3
    t.fit(epochs=2)
    last = seen.states[-1]
    assert (last.step, last.epoch, last.target) == (6, 2, 6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t.fit(epoch=3), r"fit\(\) has no argument 'epoch'; did you mean 'epochs'"),
        (lambda t: t.fit(n_epochs=3), "'n_epochs' is 'epochs' here"),
        (lambda t: t.fit(max_steps=3), "'max_steps' is 'steps' here"),
        (lambda t: t.fit(lr=3), r"'lr'; it is a setting: Trainer\(..., lr=...\)"),
        (lambda t: t.fit(learning_rate=3), "'learning_rate'; it has epochs, steps, seconds and"),
        (lambda t: t.fit(3), r"takes its arguments by name: fit\(epochs=3\)"),
    ],
)
def test_fit_names_the_nearest_right_argument(call, words):
    t = small()
    with pytest.raises(TypeError, match=words):
        call(t)
    assert t.step == 0
    assert [*inspect.signature(t.fit).parameters] == ["epochs", "steps", "seconds", "until"]


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lr", "x", "a number such as 2e-4"),
        ("lr", None, "a number"),
        ("lr", [1e-3], "a number"),
        ("eps", "1e-8", "a number"),
        ("betas", (0.5, "x"), "two numbers"),
    ],
)
def test_what_is_no_number_in_an_optimiser_is_named(engine, key, value, expected):
    t = small(engine=engine)
    t.optimizer_d.param_groups[0][key] = value
    with pytest.raises(ValueError) as caught:
        t.fit(steps=2)
    said = str(caught.value)
    assert said.startswith(
        f"optimizer_d.param_groups[0]['{key}'] is {value!r}; expected {expected}"
    )


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_learning_rates_of_any_library_are_numbers(engine):
    t = small(engine=engine)
    for lr in (numpy.float32(1e-3), 1, torch.tensor(1e-3)):
        t.optimizer_d.param_groups[0]["lr"] = lr
        t.fit(steps=t.step + 1)


def test_fit_needs_a_limit_and_a_sensible_one():
    with pytest.raises(ValueError, match="say when to stop"):
        small().fit()
    for name, value in (("epochs", 0), ("steps", -1), ("steps", 1.5), ("seconds", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
            small().fit(**{name: value})


def test_summary_and_states():
    seen = Seen()
    t = small(ema=0.9, callbacks=seen)
    summary = t.fit(steps=25)
    assert list(summary) == [*SUMMARY, "out"]
    assert summary["engine"] == "eager" and summary["steps"] == 25 and summary["out"] is None
    assert summary["ms_per_step"] > 0 and json.loads(json.dumps(summary)) == summary
    states = seen.states
    assert seen.logged == [10, 20]
    assert [s.step for s in states] == sorted(s.step for s in states) and states[-1].step == 25
    assert [line["step"] for line in t.history] == [10, 20, 25]
    assert t.history[1]["d_loss"] == pytest.approx(states[-1].d_loss)


def test_d_of_x_and_d_of_g_of_z_are_in_the_log():
    t = own(pair=plain_pair, log_every=1, lr=0.0, d_steps=2)
    p = t.problem
    t.fit(steps=1)
    # D's scores at its last update are those that its loss was made of.
    real = p.data.batch(p.seed, 1, p.batch_size).images
    latents = random.normal(p.seed, random.Stream.LATENT_D, 1, (8, 5))
    with torch.no_grad():
        means = [p.discriminator(x).mean().item() for x in (real, p.generator(latents))]
    line = t.history[0]
    assert [line["d_real"], line["d_fake"]] == pytest.approx(means, rel=1e-5)
    assert abs(means[0] - means[1]) > 0.01 and {"d_real_mean", "d_fake_mean"} <= line.keys()


def test_logged_losses_are_those_of_the_engine():
    a, b = small(log_every=4), small()
    a.fit(steps=9)
    found = b.engine.run(9).double()
    for line, (first, last) in zip(a.history, [(0, 4), (4, 8), (8, 9)], strict=True):
        assert line["step"] == last and line["epoch"] == -(-last // 7)
        assert line["d_loss"] == pytest.approx(found[last - 1, 0].item(), rel=1e-6)
        assert line["g_loss_mean"] == pytest.approx(found[first:last, 1].mean().item(), rel=1e-6)


# --- what it writes -------------------------------------------------------------------------------


def test_a_run_directory(tmp_path):
    out = tmp_path / "deep" / "run"
    t = small(out, ema=0.9, checkpoint_every=8, keep=2, data="digits")
    t.fit(steps=20)
    names = {p.name for p in out.iterdir()}
    assert names == {
        "checkpoint.pt", "checkpoint-16.pt", "checkpoint-20.pt", "config.json", "log.jsonl",
        "timing.jsonl", "samples.png", "samples", "generator.pth", "discriminator.pth",
    }  # fmt: skip
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert settings["ema"] == 0.9 and settings["data"] == "digits" and settings["seed"] == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines == t.history and [line["step"] for line in lines] == [10, 20]
    timing = [json.loads(x)["step"] for x in (out / "timing.jsonl").read_text().splitlines()]
    assert timing == [10, 20]
    g, d = Generator(5), Discriminator()
    g.load_state_dict(torch.load(out / "generator.pth", weights_only=True), strict=True)
    d.load_state_dict(torch.load(out / "discriminator.pth", weights_only=True), strict=True)
    assert torch.equal(g.fc[0].weight, t.ema.fc[0].weight)
    assert not torch.equal(g.fc[0].weight, t.generator.fc[0].weight)


def test_a_cell_that_is_run_again_says_what_can_be_done(tmp_path):
    small(tmp_path / "a").fit(steps=2)
    with pytest.raises(FileExistsError, match="already holds a run.*overwrite.*count"):
        small(tmp_path / "a")
    t = small(tmp_path / "a", if_exists="count")
    t.fit(steps=3)
    assert t.out == tmp_path / "a-2"
    small(tmp_path / "a", if_exists="overwrite").fit(steps=4)
    assert not list(tmp_path.glob("a/samples/*2.png")), "no picture of the run before is left"
    assert Trainer.resume(tmp_path / "a", data=small().data).step == 4


def test_pictures_along_the_run_and_a_plot(tmp_path):
    t = small(tmp_path / "a", checkpoint_every=5, keep=1)
    t.fit(steps=12)
    names = sorted(p.name for p in (tmp_path / "a" / "samples").iterdir())
    assert names == ["00000005.png", "00000010.png", "00000012.png"]
    t.plot(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_out_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = small()
    t.fit(steps=3)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="nowhere to save.*out="):
        t.save()


def test_samples_are_fixed_and_leave_the_networks_as_they_are():
    t = small()
    t.fit(steps=3)
    t.generator.fc[0].eval()
    modes = [m.training for m in t.generator.modules()]
    a, b = t.sample(10), t.sample(4)
    assert a.shape == (10, *SHAPE) and a.abs().max() <= 1 and a.dtype == torch.float32
    torch.testing.assert_close(a[:4], b)
    assert [m.training for m in t.generator.modules()] == modes
    t.fit(steps=6)
    assert not torch.equal(t.sample(4), b)
    averaged = small(ema=0.5)
    averaged.fit(steps=3)
    assert not torch.equal(averaged.sample(4), b)


def test_an_average_of_a_network_with_a_length_of_0_is_what_is_sampled_and_exported(tmp_path):
    class Grown(nn.Sequential):
        def __len__(self):
            return 0  # of the blocks that were added so far, say

    g, d = plain_pair()
    t = own(tmp_path, pair=lambda: (Grown(g), d), ema=0.5)
    t.fit(steps=2)
    z = random.normal(t.config.seed, random.Stream.SAMPLE, 0, (3, 5))
    with torch.no_grad():
        torch.testing.assert_close(t.sample(3), t.ema(z))
    kept, average = torch.load(tmp_path / "generator.pth"), t.ema.state_dict()
    assert all(torch.equal(kept[name], average[name]) for name in average)
    assert not any(map(torch.equal, g.parameters(), t.ema.parameters()))


def test_reference_pair_comes_from_the_seed_and_torchs_generator_is_left_alone():
    state = torch.get_rng_state()
    a, b, c = small(), small(), small(seed=1)
    a.fit(steps=3)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(b.generator.fc[0].weight, c.generator.fc[0].weight)
    torch.randn(10)
    b.fit(steps=3)
    assert_same_bits(every_bit(a), every_bit(b))


def test_without_a_seed_one_is_drawn_that_repeats_the_run():
    a = small(seed=None)
    assert a.config.seed == a.problem.seed != small(seed=None).config.seed
    a.fit(steps=3)
    b = small(seed=a.config.seed)
    b.fit(steps=3)
    assert_same_bits(every_bit(a), every_bit(b))


# --- what it is asked -----------------------------------------------------------------------------


def test_the_signature_and_the_docstring_have_every_setting():
    for function in (Trainer, Trainer.__init__, fastgan.problem.make_problem, fastgan.train_gan):
        parameters = inspect.signature(function).parameters
        assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        assert parameters["lr"].default == 2e-4 and parameters["d_steps"].default == 1
        missing = Config.__dataclass_fields__.keys() - parameters.keys()
        assert missing <= {"data", "epochs", "steps", "seconds"}, "what it takes itself"
    for name in Config.__dataclass_fields__:
        assert f"\n        {name}: " in Trainer.__doc__
    parameters = inspect.signature(Trainer.resume).parameters
    assert {"device", "drop_last", "steps", "loss", "optimizer"} <= parameters.keys()
    assert not {"lr", "batch_size", "seed", "out"} & parameters.keys()
    assert repr(parameters["device"].default) == "as saved"


def test_a_trainer_says_what_it_is():
    t = own(pair=plain_pair)
    assert repr(t) == (
        "<fastgan.Trainer: Sequential against Sequential on tensor, engine eager, fp32, cpu, "
        "step 0>"
    )


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps])
def test_a_trainer_is_not_copied(copied):
    with pytest.raises(TypeError, match="a Trainer cannot be copied or pickled; copy its networks"):
        copied(small())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected an integer of at least 1"),
        ({"optimizer": "sdg"}, "optimizer is 'sdg'; expected one of adam, .*mean 'sgd'"),
        ({"device": "warp"}, "device is 'warp'; expected a device"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"log_every": 0}, "log_every is 0"),
        ({"keep": 0}, "keep is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"nz": 3}, "there is no setting 'nz'; 'nz' is 'latent_dim' here"),
        ({"image_size": 8}, "image_size was given, but the data are already open"),
    ],
)
def test_arguments_are_checked_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


NO_REDUCTION = Loss("mine", lambda real, fake: fake - real, lambda fake: -fake, "raw")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, d, x: (d, g, x), "generator and discriminator are swapped"),
        (lambda g, d, x: (OwnG, d, x), r"OwnG is a class; pass OwnG\(...\)"),
        (lambda g, d, x: (g, d, DataLoader(x)), "a DataLoader.*pass its data set"),
        (
            lambda g, d, x: (g, nn.Sequential(*d, nn.Linear(1, 2)), x),
            "expected one score per image",
        ),
        (lambda g, d, x: (g, d, x[:, :, :5]), "generator makes .1, 6, 6., but the samples"),
    ],
    ids=["swapped", "a class", "a DataLoader", "two scores", "other images"],
)
def test_a_puzzle_names_its_cause(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        Trainer(*change(*plain_pair(), pixels()), **QUICK)
    assert "\n" not in str(caught.value)


def test_a_loss_without_a_mean_names_its_cause():
    with pytest.raises(ValueError, match="'mine': d_loss returned a tensor .8.; expected one num"):
        own(loss=NO_REDUCTION)


def test_numbers_of_numpy_train_and_are_saved(tmp_path):
    t = own(
        tmp_path / "a", pair=plain_pair, lr=numpy.float64(1e-3), d_steps=numpy.int64(2),
        penalties=Penalty("r1", PENALTIES["r1"].of, weight=numpy.float32(0.5)),
    )  # fmt: skip
    t.optimizer_g.param_groups[0]["lr"] = numpy.float64(0.25)
    t.fit(steps=numpy.int64(3), seconds=numpy.float64(500))
    again = Trainer.resume(tmp_path / "a", *plain_pair(), data=t.data)
    assert again.step == 3 and again.optimizer_g.param_groups[0]["lr"] == 0.25
    assert again.goal == {"epochs": None, "steps": 3, "seconds": 500.0}


def test_what_is_no_callback_is_refused():
    for wrong in (Seen, [Seen], lambda trainer: None, [3]):
        with pytest.raises(TypeError, match="callbacks holds .*expected instances"):
            small(callbacks=wrong)
    with pytest.raises(TypeError, match="config is a dict; expected a fastgan.Config"):
        small(config={})
