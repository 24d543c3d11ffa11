"""The loop: when it stops, what it writes, how it resumes, how it fails."""

import json
import os
import signal
import threading
import time

import pytest
import torch
from torch import nn

from fastgan import data, losses, trainer
from fastgan.models import Discriminator, Generator
from fastgan.run import checkpoint
from fastgan.run.checkpoint import CheckpointError
from fastgan.trainer import NonFiniteLossError, Trainer

SHAPE = (1, 6, 6)


def pixels(n=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)


class OwnG(nn.Module):
    """A user's generator: BatchNorm, and noise from torch's own generator."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 36), nn.Tanh()
        )

    def forward(self, z):
        return self.body(z + 0.01 * torch.randn_like(z)).view(-1, *SHAPE)


def own_pair(seed=3):
    torch.manual_seed(seed)
    d = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1)
    )
    return OwnG(), d


def small(out=None, **options):
    """A trainer that is quick: the reference pair with short latents on random bytes."""
    source = options.pop("data", None)
    options = {"batch_size": 8, "latent_dim": 5, "log_every": 10, "device": "cpu", **options}
    source = data.open(pixels()) if source is None else source
    return Trainer(None, None, source, engine="eager", out=out, **options)


def every_bit(t):
    """All that must be the same after a resume."""
    tensors = {}
    for name in ("generator", "discriminator", "ema"):
        network = getattr(t, name)
        for key, value in ({} if network is None else network.state_dict()).items():
            tensors[f"{name}.{key}"] = value.clone()
    for name in ("optimizer_g", "optimizer_d"):
        for key, state in getattr(t, name).state_dict()["state"].items():
            for part, value in state.items():
                tensors[f"{name}.{key}.{part}"] = torch.as_tensor(value).clone()
    return tensors


def assert_same_bits(a, b):
    assert a.keys() == b.keys() and len(a) > 10
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert not differing


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
    assert 0.25 < time.perf_counter() - began < 30


def test_steps_per_epoch_with_several_d_updates():
    t = small(d_steps=3)
    assert t.steps_per_epoch == 3
    states = []
    t.fit(epochs=2, report=states.append)
    assert (states[-1].step, states[-1].epoch, states[-1].target) == (6, 2, 6)


def test_fit_needs_a_limit_and_a_sensible_one():
    with pytest.raises(ValueError, match="say when to stop"):
        small().fit()
    for name, value in (("epochs", 0), ("steps", -1), ("steps", 1.5), ("seconds", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
            small().fit(**{name: value})


def test_summary_and_states():
    t = small(ema=0.9)
    states = []
    summary = t.fit(steps=25, report=states.append)
    assert " ".join(summary) == (
        "steps seconds ms_per_step engine device precision d_loss g_loss out"
    )
    assert summary["engine"] == "eager" and summary["steps"] == 25 and summary["out"] is None
    assert summary["ms_per_step"] > 0 and json.loads(json.dumps(summary)) == summary
    assert [s.step for s in states if s.logged] == [10, 20]
    assert [s.step for s in states] == sorted(s.step for s in states)
    assert states[-1].step == 25 and not states[-1].logged
    assert [line["step"] for line in t.history] == [10, 20, 25]
    assert t.history[1]["d_loss"] == pytest.approx(states[-1].d_loss)


def test_logged_losses_are_those_of_the_engine():
    a, b = small(log_every=4), small()
    a.fit(steps=9)
    found = b.engine.run(9).double()
    for line, (first, last) in zip(a.history, [(0, 4), (4, 8), (8, 9)], strict=True):
        assert line["step"] == last and line["epoch"] == -(-last // 7)
        assert line["d_loss"] == pytest.approx(found[last - 1, 0].item(), rel=1e-6)
        assert line["g_loss_mean"] == pytest.approx(found[first:last, 1].mean().item(), rel=1e-6)


def test_chunks_grow_to_a_fifth_of_a_second():
    pace = trainer._Pace()
    assert pace.chunk(100, 7) == 1
    for _ in range(10):
        n = pace.chunk(10_000)
        pace.record(n, n * 1e-3)
    assert pace.chunk(10_000) == 200 and pace.chunk(10_000, 30) == 30
    assert pace.ms_per_step == pytest.approx(1.0)
    pace.record(1, 5.0)
    assert pace.chunk(100) == 1


# --- what it writes -------------------------------------------------------------------------------


def test_a_run_directory(tmp_path):
    out = tmp_path / "deep" / "run"
    t = small(out, ema=0.9, checkpoint_every=8, keep=2, data={"source": "digits"})
    t.fit(steps=20)
    names = {p.name for p in out.iterdir()}
    assert names == {
        "checkpoint.pt", "checkpoint-16.pt", "checkpoint-20.pt", "config.json", "log.jsonl",
        "timing.jsonl", "samples.png", "generator.pth", "discriminator.pth",
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config["ema"] == 0.9 and config["data"] == {"source": "digits"} and config["seed"] == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines == t.history and [line["step"] for line in lines] == [10, 20]
    assert [json.loads(x)["step"] for x in (out / "timing.jsonl").read_text().splitlines()] == [
        10,
        20,
    ]
    g, d = Generator(5), Discriminator()
    g.load_state_dict(torch.load(out / "generator.pth", weights_only=True), strict=True)
    d.load_state_dict(torch.load(out / "discriminator.pth", weights_only=True), strict=True)
    assert torch.equal(g.fc[0].weight, t.ema.fc[0].weight)
    assert not torch.equal(g.fc[0].weight, t.generator.fc[0].weight)
    with pytest.raises(FileExistsError, match="already holds a run"):
        small(out)


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


def test_reference_pair_comes_from_the_seed_and_torchs_generator_is_left_alone():
    state = torch.get_rng_state()
    a, b, c = small(), small(), small(seed=1)
    a.fit(steps=3)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(b.generator.fc[0].weight, c.generator.fc[0].weight)
    torch.randn(10)
    b.fit(steps=3)
    assert_same_bits(every_bit(a), every_bit(b))
    d = small(seed=None)
    assert d.config["seed"] == d._problem.seed != small(seed=None).config["seed"]


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "engine", "optimizer"),
    [
        (False, "eager", "adam"),
        (False, "auto", "adam"),
        (True, "eager", "adam"),
        (False, "eager", "adamw"),
        (False, "auto", "adamw"),
    ],
    ids=["reference pair", "fastest engine", "own networks", "adamw", "adamw fastest"],
)
def test_resume_has_the_same_bits(tmp_path, own, engine, optimizer):
    options = {
        "batch_size": 8, "latent_dim": 5, "d_steps": 2, "ema": 0.9, "log_every": 30, "keep": 1,
        "lr": (1e-3, 3e-4), "engine": engine, "device": "cpu", "checkpoint_every": 45, "seed": 5,
        "optimizer": optimizer, "weight_decay": 0.02, "eps": 1e-7,
    }  # fmt: skip
    schedule = {"lr_schedule": lambda step: 1.0 / (1 + step)} if own else {}
    source = data.open(pixels())
    pair = own_pair if own else lambda: (None, None)
    whole = Trainer(*pair(), source, out=tmp_path / "whole", **schedule, **options)
    whole.fit(steps=200)

    first = Trainer(*pair(), source, out=tmp_path / "cut", **schedule, **options)
    first.fit(steps=60)
    first.fit(steps=100)
    with open(tmp_path / "cut" / "log.jsonl", "a") as file:
        file.write('{"step": 120, "epoch": 9, "d_loss"')  # what a killed run had already written
    torch.randn(7)
    networks = own_pair(seed=99) if own else (None, None)
    second = Trainer.resume(tmp_path / "cut", *networks, source, **schedule)
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
        {"penalty": "r1", "penalty_weight": 2.0, "penalty_every": 3},
        {"penalty": "wgan-gp", "loss": "wasserstein"},
        {"precision": "fp16"},
    ],
    ids=["r1", "wgan-gp", "fp16"],
)
def test_penalties_and_scalers_resume_with_the_same_bits(tmp_path, options):
    options = {"data": {"source": "digits", "image_size": 6}, "log_every": 5, **options}
    whole = small(tmp_path / "whole", **options)
    cut = small(tmp_path / "cut", **options)
    if whole._problem.scalers:
        for t in (whole, cut):
            for scaler in t._problem.scalers:
                scaler.set_growth_interval(8)
                scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**20})
    whole.fit(steps=40)
    cut.fit(steps=20)
    again = Trainer.resume(tmp_path / "cut")
    again.fit(steps=40)
    assert_same_bits(every_bit(whole), every_bit(again))
    assert again.config == whole.config | {"engine": "eager"}
    states = [[s.state_dict() for s in t._problem.scalers or ()] for t in (whole, again)]
    assert states[0] == states[1]
    assert again._problem.penalty == whole._problem.penalty
    assert all(state["scale"] > 2.0**16 for state in states[0]), "not that of a new scaler"


def test_a_penalty_of_ones_own_must_be_given_again(tmp_path):
    own = losses.Penalty("mine", lambda slope: slope.abs().mean(), weight=2.0)
    small(tmp_path / "a", data="digits", penalty=own).fit(steps=2)
    with pytest.raises(CheckpointError, match="a penalty of your own.*pass penalty="):
        Trainer.resume(tmp_path / "a")
    assert Trainer.resume(tmp_path / "a", penalty=own).fit(steps=4)["steps"] == 4


@pytest.mark.gpu
@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu")], ids="to ".join)
def test_a_run_resumes_on_another_device(tmp_path, devices):
    options = {"batch_size": 8, "latent_dim": 5, "ema": 0.9, "log_every": 10, "seed": 5}
    source = data.open(pixels())
    there, here = devices
    g, d = own_pair()
    Trainer(g, d, source, device=there, out=tmp_path / "a", **options).fit(steps=20)
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


def test_resume_goes_on_to_the_goal_of_the_run(tmp_path):
    t = small(tmp_path / "a", data="digits")
    t.fit(steps=30, until=lambda state: state.step == 10)
    r = Trainer.resume(tmp_path / "a" / "checkpoint.pt")
    assert r.data.name == "digits" and r.config == t.config
    summary = r.fit()
    assert summary["steps"] == 30
    assert r.fit(steps=30)["d_loss"] == summary["d_loss"]
    again = Trainer.resume(tmp_path / "a").fit()
    assert again["d_loss"] == summary["d_loss"] and again["ms_per_step"] is None


def test_the_largest_seed(tmp_path):
    small(tmp_path / "a", data="digits", seed=2**64 - 1).fit(steps=2)
    assert Trainer.resume(tmp_path / "a").fit(steps=3)["steps"] == 3


def test_rates_changed_by_the_user_survive(tmp_path):
    t = small(tmp_path / "a", data="digits")
    t.optimizer_g.param_groups[0]["lr"] = 0.125
    t.fit(steps=3)
    assert Trainer.resume(tmp_path / "a").optimizer_g.param_groups[0]["lr"] == 0.125


def test_a_folder_is_found_from_elsewhere(tmp_path, monkeypatch):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for i, picture in enumerate(pixels(9)):
        Image.fromarray(picture[0].numpy()).save(tmp_path / "pictures" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    small("run", data={"source": "pictures", "image_size": 4}).fit(steps=2)
    monkeypatch.chdir("/")
    assert Trainer.resume(tmp_path / "run").data.shape == (1, 4, 4)


def test_what_resume_needs_is_asked_for(tmp_path):
    source = data.open(pixels())
    game = losses.Game("mine", lambda r, f: f.mean() - r.mean(), lambda f: -f.mean())
    options = {"batch_size": 8, "latent_dim": 5, "engine": "eager", "device": "cpu"}
    t = Trainer(
        *own_pair(), source, loss=game, lr_schedule=lambda step: 1.0, out=tmp_path, **options
    )
    t.fit(steps=2)
    given = dict(zip(("generator", "discriminator"), own_pair(), strict=True))
    given.update(data=source, loss=game, lr_schedule=lambda step: 1.0)
    for name in given:
        others = {key: value for key, value in given.items() if key != name}
        with pytest.raises(
            CheckpointError, match=f"trained with a {name} of your own.*pass {name}="
        ):
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
    with pytest.raises(CheckpointError, match="the data is not what .* was trained on"):
        Trainer.resume(tmp_path, **{**given, "data": data.open(pixels(seed=1))})
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Trainer.resume(tmp_path / "nowhere")


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "error", "word"),
    [(signal.SIGINT, KeyboardInterrupt, "Ctrl-C"), (signal.SIGTERM, SystemExit, "SIGTERM")],
)
def test_a_signal_finishes_the_step_and_saves(tmp_path, caplog, number, error, word):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    t = small(tmp_path / "a", data="digits")

    def interrupt(state):
        if state.logged and state.step == 20:
            os.kill(os.getpid(), number)

    with pytest.raises(error) as caught:
        t.fit(steps=10_000, report=interrupt)
    if error is SystemExit:
        assert caught.value.code == 143
    assert f"stopped by {word} after step {t.step}" in caplog.text
    assert f"fastgan train --resume {tmp_path / 'a'}" in caplog.text
    assert 20 <= t.step < 100
    assert checkpoint.load(tmp_path / "a")["step"] == t.step
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (tmp_path / "a" / "samples.png").exists()
    assert Trainer.resume(tmp_path / "a").fit(steps=t.step + 3)["steps"] == t.step + 3


def test_a_handler_of_the_users_own_is_called(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        t = small()
        t.fit(steps=1000, report=lambda state: os.kill(os.getpid(), signal.SIGTERM))
        assert heard == [signal.SIGTERM] and t.step < 1000
    finally:
        signal.signal(signal.SIGTERM, before)


def test_own_networks_are_resumed_by_code(tmp_path, caplog):
    t = Trainer(
        *own_pair(), data.open(pixels()), latent_dim=5, device="cpu", engine="eager",
        batch_size=8, out=tmp_path / "own",
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt, match="Trainer.resume"):
        t.fit(steps=100, report=lambda state: os.kill(os.getpid(), signal.SIGINT))


def test_fit_works_outside_the_main_thread():
    t, error = small(), []

    def work():
        try:
            t.fit(steps=5)
        except BaseException as e:
            error.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not error and t.step == 5


# --- failures -------------------------------------------------------------------------------------


def breaking_at(step, **options):
    """A game whose D loss is NaN from the given step on, counted from 1."""
    calls = []

    def d_loss(real, fake):
        calls.append(1)
        return (real.mean() - fake.mean()) * (float("nan") if len(calls) >= step else 1.0)

    return losses.Game("mine", d_loss, lambda fake: fake.mean(), **options)


def test_the_first_bad_step_is_named_and_the_good_checkpoint_kept(tmp_path):
    t = Trainer(
        *own_pair(), data.open(pixels()), loss=breaking_at(37), batch_size=8, latent_dim=5,
        log_every=20, checkpoint_every=10, engine="eager", device="cpu", out=tmp_path, lr=0.5,
    )  # fmt: skip
    with pytest.raises(NonFiniteLossError) as caught:
        t.fit(steps=100)
    assert caught.value.step == 37
    text = str(caught.value)
    assert "at step 37 D loss is nan" in text and "lr is 0.5" in text
    assert f"the last good checkpoint is {tmp_path / 'checkpoint.pt'} (step 30)" in text
    state = checkpoint.load(tmp_path)
    assert state["step"] == 30 and all(torch.isfinite(w).all() for w in state["generator"].values())
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20]


def test_bad_weights_never_replace_a_good_checkpoint(tmp_path):
    t = small(tmp_path / "a")
    t.fit(steps=5)
    before = (tmp_path / "a" / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        t.generator.fc[0].bias[3] = float("nan")
    with pytest.raises(NonFiniteLossError, match="weights of the generator are not finite"):
        t.save()
    assert (tmp_path / "a" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected an integer of at least 1"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; expected one of adam, adamw"),
        ({"device": "warp"}, "device 'warp' cannot be used"),
        ({"log_every": 0}, "log_every is 0"),
        ({"keep": 0}, "keep is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
    ],
)
def test_arguments_are_checked_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
