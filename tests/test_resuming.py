"""A run that was stopped and goes on is the run that never stopped, or a sentence says why not."""

import os
import shutil

import pytest
import torch
from small_runs import (
    SHAPE,
    OwnG,
    assert_same_bits,
    every_bit,
    own,
    own_pair,
    pixels,
    plain_pair,
    small,
)
from torch import nn

from fastgan import Callback, Loss, Penalty, data
from fastgan.run import checkpoint
from fastgan.run.checkpoint import CheckpointError
from fastgan.trainer import Trainer


@pytest.mark.parametrize(
    ("mine", "engine", "optimizer"),
    [
        (False, "eager", "adam"),
        (False, "auto", "adam"),
        (True, "eager", "adam"),
        (False, "eager", "adamw"),
        (False, "auto", "adamw"),
        (True, "eager", "rmsprop"),
    ],
    ids=["reference pair", "fastest engine", "own networks", "adamw", "adamw fastest", "rmsprop"],
)
def test_resume_has_the_same_bits(tmp_path, mine, engine, optimizer):
    options = {
        "d_steps": 2, "ema": 0.9, "log_every": 30, "keep": 1, "lr": (1e-3, 3e-4),
        "engine": engine, "checkpoint_every": 45, "seed": 5, "optimizer": optimizer,
        "weight_decay": 0.02, "eps": 1e-7, "data": data.open(pixels()),
    }  # fmt: skip
    schedule = {"lr_schedule": lambda step: 1.0 / (1 + step)} if mine else {}
    make = own if mine else small
    whole = make(tmp_path / "whole", **schedule, **options)
    whole.fit(steps=200)

    first = make(tmp_path / "cut", **schedule, **options)
    first.fit(steps=60)
    first.fit(steps=100)
    with open(tmp_path / "cut" / "log.jsonl", "a") as file:
        file.write('{"step": 120, "epoch": 9, "d_loss"')  # what a killed run had already written
    torch.randn(7)
    networks = own_pair(seed=99) if mine else (None, None)
    second = Trainer.resume(tmp_path / "cut", *networks, options["data"], **schedule)
    assert second.step == 100 and second.out == tmp_path / "cut"
    group = second.optimizer_d.param_groups[0]
    assert (group["weight_decay"], group["eps"]) == (0.02, 1e-7)
    assert type(second.optimizer_d) is type(whole.optimizer_d)
    second.fit(steps=200)

    assert_same_bits(every_bit(whole), every_bit(second))
    log = (tmp_path / "whole" / "log.jsonl").read_bytes()
    assert log == (tmp_path / "cut" / "log.jsonl").read_bytes()
    assert [line["step"] for line in second.history] == [30, 60, 90, 120, 150, 180, 200]
    assert second.history == whole.history
    saved = [checkpoint.load(tmp_path / name)["random"]["cpu"] for name in ("whole", "cut")]
    assert torch.equal(*saved)


@pytest.mark.parametrize(
    "options",
    [
        {"penalties": "r1:2:3"},
        {"penalties": ["r1:2:3", "r2:0.5"]},
        {"penalties": "wgan-gp", "loss": "wasserstein"},
        {"loss": "relativistic"},
        {"precision": "fp16"},
    ],
    ids=["r1", "r1 and r2", "wgan-gp", "relativistic", "fp16"],
)
def test_penalties_and_scalers_resume_with_the_same_bits(tmp_path, options):
    options = {"data": "digits", "image_size": 6, "log_every": 5, **options}
    whole = small(tmp_path / "whole", **options)
    cut = small(tmp_path / "cut", **options)
    if whole.problem.scalers:
        for t in (whole, cut):
            for scaler in t.problem.scalers:
                scaler.set_growth_interval(8)
                scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**20})
    whole.fit(steps=40)
    cut.fit(steps=20)
    again = Trainer.resume(tmp_path / "cut")
    again.fit(steps=40)
    assert_same_bits(every_bit(whole), every_bit(again))
    assert not again.config.differences(whole.config.with_(out=tmp_path / "cut"))
    states = [[s.state_dict() for s in t.problem.scalers or ()] for t in (whole, again)]
    assert states[0] == states[1]
    assert again.problem.penalties == whole.problem.penalties
    assert all(state["scale"] > 2.0**16 for state in states[0]), "not that of a new scaler"


@pytest.mark.gpu
@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu")], ids="to ".join)
def test_a_run_resumes_on_another_device(tmp_path, devices):
    options = {"ema": 0.9, "seed": 5, "engine": "auto"}
    source = data.open(pixels())
    there, here = devices
    own(tmp_path / "a", data=source, device=there, **options).fit(steps=20)
    saved = checkpoint.load(tmp_path / "a")
    t = Trainer.resume(tmp_path / "a", *own_pair(seed=9), source, device=here)
    assert t.device.type == here and t.step == 20
    for name in ("generator", "discriminator", "ema"):
        for key, value in getattr(t, name).state_dict().items():
            assert value.device.type == here and torch.equal(value.cpu(), saved[name][key])
    for name in ("optimizer_g", "optimizer_d"):
        for i, entry in getattr(t, name).state_dict()["state"].items():
            for key, value in entry.items():
                assert torch.equal(value.cpu(), saved[name]["state"][i][key])
    assert t.fit(steps=40)["steps"] == 40 and t.sample(3).device.type == here
    # And home again.
    back = Trainer.resume(tmp_path / "a", *own_pair(), source, device=there)
    assert back.step == 40 and back.fit(steps=50)["steps"] == 50


# --- when it ends ---------------------------------------------------------------------------------


def test_resume_goes_on_to_the_goal_of_the_run(tmp_path):
    t = small(tmp_path / "a", data="digits")
    t.fit(steps=30, until=lambda state: state.step == 10)
    r = Trainer.resume(tmp_path / "a" / "checkpoint.pt")
    assert r.data.name == "digits" and r.config == t.config.with_(threads=r.config.threads)
    summary = r.fit()
    assert summary["steps"] == 30
    assert r.fit(steps=30)["d_loss"] == summary["d_loss"]
    again = Trainer.resume(tmp_path / "a").fit()
    assert again["d_loss"] == summary["d_loss"] and again["ms_per_step"] is None


def test_a_limit_given_to_resume_stands_in_the_place_of_the_runs(tmp_path):
    small(tmp_path / "a", data="digits", epochs=1, batch_size=1000).fit()
    assert Trainer.resume(tmp_path / "a", steps=7).fit()["steps"] == 7
    assert Trainer.resume(tmp_path / "a", epochs=2).fit()["steps"] == 10


def test_the_largest_seed(tmp_path):
    small(tmp_path / "a", data="digits", seed=2**64 - 1).fit(steps=2)
    assert Trainer.resume(tmp_path / "a").fit(steps=3)["steps"] == 3


def test_rates_changed_by_the_user_survive(tmp_path):
    t = small(tmp_path / "a", data="digits")
    t.optimizer_g.param_groups[0]["lr"] = 0.125
    t.fit(steps=3)
    assert Trainer.resume(tmp_path / "a").optimizer_g.param_groups[0]["lr"] == 0.125


# --- what is found again, and where ---------------------------------------------------------------


def pictures(folder, n=9):
    from PIL import Image

    folder.mkdir()
    for i, picture in enumerate(pixels(n)):
        Image.fromarray(picture[0].numpy()).save(folder / f"{i}.png")


def test_a_folder_is_found_from_elsewhere(tmp_path, monkeypatch):
    pictures(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    t = small("run", data="pictures", image_size=4)
    monkeypatch.chdir("/")
    t.fit(steps=2)
    assert Trainer.resume(tmp_path / "run").data.shape == (1, 4, 4)


def test_home_means_home_for_data_and_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "pictures")
    small("~/run", data="~/pictures").fit(steps=2)
    assert (tmp_path / "run" / "checkpoint.pt").exists() and not (tmp_path / "~").exists()
    monkeypatch.setenv("HOME", "/")
    assert Trainer.resume(tmp_path / "run").config.data == str(tmp_path / "pictures")


def test_a_run_that_was_moved_goes_on_where_it_is(tmp_path):
    small(tmp_path / "a", data="digits").fit(steps=2)
    os.rename(tmp_path / "a", tmp_path / "b")
    t = Trainer.resume(tmp_path / "b", steps=4)
    assert t.out == tmp_path / "b" and t.config.out == str(tmp_path / "b")
    t.fit()
    assert not (tmp_path / "a").exists() and checkpoint.load(tmp_path / "b")["step"] == 4


def test_data_that_was_renamed_or_is_an_array_now_is_the_same(tmp_path):
    pictures(tmp_path / "pictures")
    small(tmp_path / "a", data=tmp_path / "pictures").fit(steps=2)
    os.rename(tmp_path / "pictures", tmp_path / "renamed")
    assert Trainer.resume(tmp_path / "a", data=tmp_path / "renamed").fit(steps=3)["steps"] == 3
    small(tmp_path / "b", data=pixels()).fit(steps=2)
    assert Trainer.resume(tmp_path / "b", data=pixels().numpy()).fit(steps=3)["steps"] == 3


def test_other_data_are_refused_unless_the_user_says_that_he_knows(tmp_path):
    small(tmp_path / "a", data=pixels()).fit(steps=2)
    for other in (pixels(seed=1), pixels(n=49)):
        with pytest.raises(CheckpointError, match=r"resume\(..., data_changed=True\)"):
            Trainer.resume(tmp_path / "a", data=other)
        t = Trainer.resume(tmp_path / "a", data=other, data_changed=True)
        assert t.step == 2
    assert t.fit(steps=4)["steps"] == 4
    assert Trainer.resume(tmp_path / "a", data=pixels(n=49)).step == 4, "these are the run's now"


class Augmented(torch.utils.data.Dataset):
    """Flips, with a generator of its own, as augmentation libraries have."""

    def __init__(self):
        self.items, self.generator = pixels(), torch.Generator().manual_seed(0)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        flip = torch.rand((), generator=self.generator) < 0.5
        return self.items[i].flip(-1) if flip else self.items[i]


def test_a_dataset_that_draws_from_a_generator_of_its_own_resumes(tmp_path):
    small(tmp_path / "a", data=Augmented()).fit(steps=2)
    changed = Augmented()
    changed.generator.manual_seed(9)
    assert Trainer.resume(tmp_path / "a", data=changed).fit(steps=4)["steps"] == 4


# --- what must be given again, and what may be changed --------------------------------------------


def test_what_resume_needs_is_asked_for(tmp_path):
    source = data.open(pixels())
    loss = Loss("mine", lambda r, f: f.mean() - r.mean(), lambda f: -f.mean())
    penalty = Penalty("mine", lambda slope: slope.abs().mean(), weight=2.0)
    functions = {"loss": loss, "lr_schedule": lambda step: 1.0, "penalties": penalty}
    own(tmp_path, data=source, optimizer=torch.optim.SGD, **functions).fit(steps=2)
    given = dict(zip(("generator", "discriminator"), own_pair(), strict=True))
    given.update(data=source, optimizer=torch.optim.SGD, **functions)
    for name in given:
        others = {key: value for key, value in given.items() if key != name}
        with pytest.raises(CheckpointError, match=f"{name} .*of your own.*pass {name}="):
            Trainer.resume(tmp_path, **others)
    assert Trainer.resume(tmp_path, **given).fit(steps=4)["steps"] == 4

    other = nn.Sequential(*own_pair()[1][:3], nn.Linear(16, 1))
    with pytest.raises(
        CheckpointError, match=r"discriminator does not fit .*: missing .*3\.weight"
    ):
        Trainer.resume(tmp_path, **{**given, "discriminator": other})
    wide = own_pair()[0]
    wide.body[0] = nn.Linear(6, 16)
    with pytest.raises(CheckpointError, match=r"body.0.weight is \[16, 6\], saved \[16, 5\]"):
        Trainer.resume(tmp_path, **{**given, "generator": wide})
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Trainer.resume(tmp_path / "nowhere")


def test_only_what_a_resume_may_change_is_changed(tmp_path):
    small(tmp_path / "a", data="digits", lr=0.5).fit(steps=2)
    with pytest.raises(ValueError, match="lr is 0.1, saved 0.5: a resume cannot change that"):
        Trainer.resume(tmp_path / "a", lr=0.1)
    with pytest.raises(ValueError, match="out is .*elsewhere.*: a resume cannot change that"):
        Trainer.resume(tmp_path / "a", out=tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="no setting 'devise'; did you mean 'device'"):
        Trainer.resume(tmp_path / "a", devise="cpu")
    t = Trainer.resume(tmp_path / "a", lr=0.5, keep=1, drop_last=True, checkpoint_every=1)
    assert t.config.keep == 1 and t.config.lr == 0.5 and t.steps_per_epoch == 5000 // 8
    t.fit(steps=4)
    assert checkpoint.load(tmp_path / "a")["config"]["drop_last"] is True


def test_a_run_killed_before_its_first_minute_goes_on_from_its_beginning(tmp_path):
    class Killed(BaseException):
        pass

    class Kill(Callback):
        def chunk(self, trainer, statistics):
            if trainer.step >= 3:
                shutil.copytree(tmp_path / "a", tmp_path / "killed")  # as kill -9 would leave it
                raise Killed

    with pytest.raises(Killed):
        own(tmp_path / "a", callbacks=Kill(), log_every=1).fit(steps=20)
    again = Trainer.resume(tmp_path / "killed", *own_pair(8), data.open(pixels()))
    assert again.step == 0
    again.fit(steps=20)
    whole = own(tmp_path / "whole", log_every=1)
    whole.fit(steps=20)
    assert_same_bits(every_bit(whole), every_bit(again))
    log = (tmp_path / "killed" / "log.jsonl").read_bytes()
    assert log == (tmp_path / "whole" / "log.jsonl").read_bytes()


# --- what a user's functions remember -------------------------------------------------------------


class Began:
    """The control variable k of BEGAN as an attribute, as most programs have it."""

    def __init__(self):
        self.k, self.gamma = 0.0, 0.5

    def d_loss(self, real, fake):
        loss = real.abs().mean() - self.k * fake.abs().mean()
        self.k += 0.1 * (self.gamma * real.abs().mean() - fake.abs().mean()).item()
        return loss

    def g_loss(self, fake):
        return fake.abs().mean()


class WithStateDict(nn.Module):
    """A module whose running average is a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(()))

    def forward(self, real, fake):
        with torch.no_grad():
            self.average.lerp_(real.mean(), 0.5)
        return (fake - self.average).mean() - real.mean()


def inner_function():
    count, average = 0, torch.zeros(())

    def d_loss(real, fake):
        nonlocal count
        count += 1
        average.mul_(0.9).add_(0.1 * real.detach().mean())
        return fake.mean() * (1 + 0.1 * count) - (real - average).mean()

    return d_loss


def losses_with_a_state():
    began = Began()
    return {
        "attribute": Loss("began", began.d_loss, began.g_loss, "raw"),
        "state_dict": Loss("module", WithStateDict(), lambda fake: -fake.mean(), "raw"),
        "closure": Loss("inner", inner_function(), lambda fake: -fake.mean(), "raw"),
    }


@pytest.mark.parametrize("kind", ["attribute", "state_dict", "closure"])
def test_what_a_loss_remembers_is_in_the_checkpoint(tmp_path, kind):
    def loss():
        return losses_with_a_state()[kind]

    whole = own(tmp_path / "whole", pair=plain_pair, loss=loss(), lr=1e-2)
    whole.fit(steps=40)
    own(tmp_path / "cut", pair=plain_pair, loss=loss(), lr=1e-2).fit(steps=20)
    again = Trainer.resume(tmp_path / "cut", *plain_pair(9), data.open(pixels()), loss=loss())
    again.fit(steps=40)
    assert_same_bits(every_bit(whole), every_bit(again))
    saved = [checkpoint.load(tmp_path / name)["loss"] for name in ("whole", "cut")]
    assert saved[0]["d_loss"] == saved[1]["d_loss"] and saved[0]["d_loss"]
    if kind == "attribute":
        assert saved[0]["d_loss"].keys() == {"k"}, "what does not change is not remembered"


def test_a_schedule_that_is_made_for_more_steps_is_the_new_one(tmp_path):
    def decay(total):
        return lambda step: max(0.0, 1 - step / total)

    own(tmp_path / "a", pair=plain_pair, lr_schedule=decay(4)).fit(steps=4)
    t = Trainer.resume(tmp_path / "a", *plain_pair(), data.open(pixels()), lr_schedule=decay(8))
    before = every_bit(t)
    t.fit(steps=6)
    after = every_bit(t)
    assert not torch.equal(before["generator.0.weight"], after["generator.0.weight"])


# --- networks in wrappers -------------------------------------------------------------------------

WRAPPERS = {"DataParallel": nn.DataParallel, "compiled": torch.compile, "bare": lambda m: m}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("DataParallel", "bare"),
        ("bare", "DataParallel"),
        ("compiled", "bare"),
        ("bare", "compiled"),
    ],
)
def test_runs_of_wrapped_networks_load_into_bare_ones_and_back(tmp_path, first, then):
    with torch.compiler.set_stance("force_eager"):
        pair = [WRAPPERS[first](m) for m in plain_pair()]
        t = own(tmp_path / "a", pair=lambda: pair, ema=0.9)
        t.fit(steps=4)
        for name in ("generator", "discriminator"):
            weights = torch.load(tmp_path / "a" / f"{name}.pth", weights_only=True)
            bare = plain_pair(7)[name == "discriminator"]
            bare.load_state_dict(weights, strict=True)
        again = Trainer.resume(
            tmp_path / "a", *(WRAPPERS[then](m) for m in plain_pair(9)), data.open(pixels())
        )
        again.fit(steps=8)
        whole = own(pair=plain_pair, ema=0.9)
        whole.fit(steps=8)

    def bare(bits):
        parts = ("_orig_mod", "module")
        return {".".join(p for p in k.split(".") if p not in parts): v for k, v in bits.items()}

    assert_same_bits(bare(every_bit(whole)), bare(every_bit(again)))


def test_a_layer_inside_that_is_compiled_saves_as_a_bare_one(tmp_path):
    with torch.compiler.set_stance("force_eager"):
        g, d = OwnG(), own_pair()[1]
        g.body[0] = torch.compile(g.body[0])
        t = own(tmp_path / "a", pair=lambda: (g, d))
        t.fit(steps=2)
        OwnG().load_state_dict(torch.load(tmp_path / "a" / "generator.pth", weights_only=True))
        again = Trainer.resume(tmp_path / "a", OwnG(), d, data.open(pixels()))
    assert again.fit(steps=3)["steps"] == 3 and again.sample(2).shape == (2, *SHAPE)
