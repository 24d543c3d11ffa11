"""The command line: what it prints, writes and returns; wrong input."""

import itertools
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from small_runs import SUMMARY, own

import fastgan
from fastgan import Config, config, options
from fastgan.cli import _parser, main
from fastgan.config import ConfigError
from fastgan.run import checkpoint

pytestmark = pytest.mark.usefixtures("here")
QUICK = ["--engine", "eager", "--device", "cpu", "--batch-size", "16", "--latent-dim", "8"]


def run(*arguments):
    return main([str(a) for a in arguments])


def test_train_sample_resume(here, capsys):
    assert run("train", "--steps", 40, "--log-every", 20, "--ema", 0.9, *QUICK) == 0
    out, err = capsys.readouterr()
    assert not err and "digits" in out and "engine eager" in out and "runs/digits" in out
    names = {p.name for p in (here / "runs/digits").iterdir()}
    assert names == {
        "samples.png", "samples", "loss.png", "log.jsonl", "timing.jsonl", "config.json",
        "checkpoint.pt", "checkpoint-0.pt", "checkpoint-40.pt", "generator.pth",
        "discriminator.pth",
    }  # fmt: skip

    assert run("sample", "runs/digits", "--n", 6, "--columns", 3) == 0
    assert capsys.readouterr().out.strip().endswith("runs/digits/grid.png")
    assert Image.open("runs/digits/grid.png").size == (3 * 58 + 2, 2 * 58 + 2)
    assert run("sample", "runs/digits/checkpoint-40.pt", "--n", 6, "--out", "a.png") == 0
    assert run("sample", "runs/digits", "--n", 6, "--seed", 1, "--out", "b.png") == 0
    names = ("runs/digits/grid.png", "a.png", "b.png")
    grid, same, other = ((here / name).read_bytes() for name in names)
    assert grid == same != other

    capsys.readouterr()
    assert run("train", "--resume", "runs/digits") == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert run("train", "--resume", "runs/digits", "--steps", 60) == 0
    assert checkpoint.load("runs/digits")["step"] == 60
    assert len((here / "runs/digits/log.jsonl").read_text().splitlines()) == 3

    assert run("train", "--steps", 1, *QUICK) == 0
    assert (here / "runs/digits-2/checkpoint.pt").exists(), "a run is never overwritten"


def test_a_density_trains_and_is_drawn_as_points(here, capsys):
    assert run("train", "--data", "Ring8", "--steps", 3, "--device", "cpu", "--width", 4) == 0
    assert "preset points: " in capsys.readouterr().out
    settings = json.loads((here / "runs/Ring8/config.json").read_text())["settings"]
    assert settings["model"] == "points" and settings["data"] == "ring8"
    drawn = Image.open("runs/Ring8/samples.png")
    assert drawn.size == (640, 640) and (here / "runs/Ring8/samples/00000003.png").exists()
    grey = (170, 170, 170)
    assert grey in {colour for _, colour in drawn.getcolors(1 << 20)}, "the data are underneath"
    assert run("sample", "runs/Ring8", "--n", 50) == 0
    assert capsys.readouterr().out.strip().endswith("runs/Ring8/scatter.png")
    drawn = Image.open("runs/Ring8/scatter.png")
    assert grey in {colour for _, colour in drawn.getcolors(1 << 20)}
    assert run("train", "--resume", "runs/Ring8", "--steps", 4, "--quiet") == 0

    def preset_of(*arguments):
        chosen = _parser().parse_args(["train", *arguments])
        return options.config_of(chosen, options.given(chosen))[1]

    assert preset_of("--data", "grid25", "--model", "mlp") == "mnist-mlp"
    assert preset_of("--data", "./grid25") == "mnist-mlp", "a folder"
    (here / "run.yaml").write_text("data: moons\n")
    assert preset_of("--config", "run.yaml") == "points"


def test_json_is_one_line_on_stdout(here, capsys):
    arguments = ("--steps", 25, "--out", "deep/run", "--d-steps", 2, "--threads", 1)
    assert run("train", "--json", *arguments, *QUICK) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "digits" in err
    summary = json.loads(out)
    assert list(summary) == [*SUMMARY, "out", "wall_seconds", "step_seconds"]
    assert summary["steps"] == 25 and summary["engine"] == "eager" and summary["device"] == "cpu"
    assert summary["out"] == str(here / "deep/run")
    assert summary["ms_per_step"] > 0 < summary["g_loss"]
    assert checkpoint.load("deep/run")["threads"] == 1


def test_a_run_says_what_it_trains_with(here, capsys):
    assert run("train", "--steps", 1, *QUICK) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == ('preset mnist-mlp: lr=[0.001, 0.0005], ema=0.9995, steps=1, precision="auto"')
    assert run("train", "--steps", 1, "--lr", 3e-4, "--ema", "none", *QUICK) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == 'preset mnist-mlp: lr=0.0003, ema=null, steps=1, precision="auto"'
    saved = checkpoint.load("runs/digits-2")
    assert saved["config"]["lr"] == 3e-4 and saved["ema"] is None
    c = fastgan.Trainer(None, None, "digits", device="cpu", engine="eager").config
    assert c.lr == 2e-4 and c.ema is None, "a Trainer in a program has no preset"


def test_the_wall_time_and_what_of_it_went_into_steps(here, capsys):
    began = time.perf_counter()
    assert run("train", "--steps", 20, "--json", "--out", "a", *QUICK) == 0
    outside = time.perf_counter() - began
    out, err = capsys.readouterr()
    summary = json.loads(out)
    times = [0, *(summary[name] for name in ("step_seconds", "seconds", "wall_seconds")), outside]
    assert all(a < b + 2e-3 for a, b in itertools.pairwise(times)), "each is a part of the next"
    wall = summary["wall_seconds"]
    said = f"wall time {wall:.1f} s, {summary['step_seconds'] / wall:.1%} of it in steps"
    assert said in err.splitlines()
    # Resumed, the steps of this call count, not those of the run.
    assert run("train", "--resume", "a", "--steps", 22, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["step_seconds"] == pytest.approx(2 * again["ms_per_step"] / 1e3, abs=2e-3)


def test_training_imports_nothing_that_it_does_not_need(here):
    code = (
        "import sys, torch; before = set(sys.modules); from fastgan import cli; "
        f"status = cli.main(['train', '--steps', '3', '--quiet', *{QUICK}]); "
        "new = set(sys.modules) - before; "
        "unneeded = {'matplotlib', 'torchvision', 'torch._dynamo', 'yaml', 'torch.distributed'}; "
        "print(status, sorted((unneeded - set(before)) & new))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Some take half a second or more: as much as 500 steps.
    assert done.stdout == "0 []\n", done.stderr


def test_quiet_says_nothing(capsys):
    assert run("train", "--quiet", "--steps", 3, *QUICK) == 0
    assert capsys.readouterr() == ("", "")


# --- settings -------------------------------------------------------------------------------------


def test_every_setting_arrives(here):
    assert run(
        "train", "--epochs", 1, "--name", "x", "--batch-size", 500, "--latent-dim", 7, "--loss",
        "minimax", "--d-steps", 2, "--lr", 1e-3, 3e-3, "--betas", 0.1, 0.9, "--precision", "bf16",
        "--engine", "eager", "--device", "cpu", "--seed", 9, "--ema", "none",
        "--label-smoothing", 0.1, "--optimizer", "adamw", "--weight-decay", 0.01, "--eps", 1e-7,
        "--penalties", "r1:2:4", "r2", "--width", 16, "--drop-last",
        "--log-every", 3, "--image-size", 14, "--checkpoint-every", 4, "--keep", 1, "--quiet",
    ) == 0  # fmt: skip
    settings = json.loads((here / "runs/x/config.json").read_text())["settings"]
    expected = {
        "batch_size": 500, "latent_dim": 7, "loss": "minimax", "d_steps": 2, "lr": [1e-3, 3e-3],
        "betas": [0.1, 0.9], "precision": "bf16", "engine": "eager", "device": "cpu", "seed": 9,
        "ema": None, "label_smoothing": 0.1, "log_every": 3, "image_size": 14,
        "optimizer": "adamw", "weight_decay": 0.01, "eps": 1e-7,
        "penalties": ["r1:2.0:4", "r2:10.0:1"],
        "checkpoint_every": 4, "keep": 1, "data": "digits", "epochs": 1, "steps": None,
        "width": 16, "drop_last": True, "out": str(here / "runs/x"),
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected
    assert checkpoint.load("runs/x")["step"] == 5  # 10 batches, two to a step
    assert run("train", "--resume", "runs/x", "--epochs", 2, "--quiet") == 0
    assert checkpoint.load("runs/x")["step"] == 10
    group = checkpoint.load("runs/x")["optimizer_d"]["param_groups"][0]
    assert (group["weight_decay"], group["eps"]) == (0.01, 1e-7)


def test_a_file_a_preset_and_options_over_both(here):
    (here / "run.yaml").write_text("lr: 1e-3\nbatch_size: 32\nseconds: 9\n")
    arguments = ["--config", "run.yaml", "--preset", "mnist-mlp", "--batch-size", 16]
    chosen = _parser().parse_args(["train", *map(str, arguments), "--steps", "7"])
    c, preset = options.config_of(chosen, options.given(chosen))
    assert c == Config(lr=1e-3, batch_size=16, steps=7, ema=0.9995, precision="auto")
    assert preset == "mnist-mlp"


def test_a_model_brings_its_preset_from_a_file_as_from_an_option(here):
    def found(*arguments):
        chosen = _parser().parse_args(["train", *arguments])
        return options.config_of(chosen, options.given(chosen))

    (here / "run.yaml").write_text("model: dcgan\n")
    (here / "lr.toml").write_text("lr = 1e-3\n")
    (here / "other.yaml").write_text("preset: dcgan-32\n")
    assert found("--config", "run.yaml") == found("--model", "dcgan")
    assert found("--config", "run.yaml")[0].batch_size == 128
    assert found("--config", "lr.toml") == found("--lr", "1e-3")
    assert found("--config", "lr.toml", "--model", "dcgan")[1] == "dcgan-64"
    assert found("--config", "other.yaml")[1] == "dcgan-32"
    assert found("--config", "other.yaml", "--preset", "dcgan-32")[1] == "dcgan-32"
    with pytest.raises(ConfigError, match="--preset is 'dcgan-64', and other.yaml names preset"):
        found("--config", "other.yaml", "--preset", "dcgan-64")
    (here / "wrong.yaml").write_text("model: dc-gan\n")
    with pytest.raises(ConfigError, match="wrong.yaml: model is 'dc-gan'.*did you mean 'dcgan'"):
        found("--config", "wrong.yaml")


def test_config_json_is_read_back(here):
    assert run("train", "--steps", 5, "--seed", "none", "--quiet", *QUICK) == 0
    first = json.loads((here / "runs/digits/config.json").read_text())["settings"]
    assert isinstance(first["seed"], int), "drawn, and written down"
    assert run("train", "--config", "runs/digits/config.json", "--quiet") == 0
    second = json.loads((here / "runs/digits-2/config.json").read_text())["settings"]
    assert {**first, "out": None} == {**second, "out": None}
    names = ("runs/digits", "runs/digits-2")
    weights = [checkpoint.load(name)["generator"]["fc.0.weight"] for name in names]
    assert torch.equal(*weights)


def test_the_models_that_we_ship_are_made_and_made_again(here, capsys):
    arguments = ["--model", "dcgan", "--image-size", 16, "--width", 2, "--batch-size", 8]
    assert run("train", *arguments, "--steps", 2, "--engine", "eager", "--device", "cpu") == 0
    assert "preset dcgan-64: " in capsys.readouterr().out
    settings = json.loads((here / "runs/digits/config.json").read_text())["settings"]
    assert settings["image_size"] == 16 and settings["batch_size"] == 8
    assert run("train", "--resume", "runs/digits", "--steps", 3, "--quiet") == 0
    assert run("sample", "runs/digits", "--n", 4, "--out", "a.png") == 0
    assert Image.open("a.png").size == (2 * 66 + 2, 2 * 66 + 2)
    assert checkpoint.load("runs/digits")["models"]["generator"]["network"] == "DCGANGenerator"


@pytest.mark.parametrize("loss", ["hinge", "least-squares", "wasserstein", "relativistic"])
def test_losses_on_raw_scores_get_a_discriminator_without_sigmoid(loss):
    assert run("train", "--loss", loss, "--steps", 4, "--quiet", *QUICK) == 0
    assert run("train", "--resume", "runs/digits", "--steps", 6, "--quiet") == 0
    assert run("sample", "runs/digits") == 0


def test_a_folder_of_images(here):
    (here / "my pictures").mkdir()
    for i in range(5):
        Image.new("RGB", (9, 7), (i * 40, 0, 0)).save(here / "my pictures" / f"{i}.png")
    arguments = ("--data", "my pictures", "--image-size", 8, "--steps", 2, "--quiet")
    assert run("train", *arguments, *QUICK) == 0
    assert Image.open("runs/my pictures/samples.png").mode == "RGB"
    assert run("train", "--resume", "runs/my pictures", "--steps", 3, "--quiet") == 0
    os.rename("my pictures", "mine")
    resume = ("train", "--resume", "runs/my pictures", "--quiet")
    assert run(*resume, "--steps", 4) == 2, "they are not where they were"
    assert run(*resume, "--steps", 4, "--data", "mine") == 0
    Image.new("RGB", (9, 7)).save("mine/new.png")
    assert run(*resume, "--steps", 5, "--data", "mine") == 2
    assert run(*resume, "--steps", 5, "--data", "mine", "--data-changed") == 0


def test_a_walk_is_a_gif(here, capsys):
    assert run("train", "--steps", 2, *QUICK) == 0
    assert run("sample", "--walk") == 0
    assert capsys.readouterr().out.strip().endswith("runs/digits/walk.gif")
    with Image.open("runs/digits/walk.gif") as gif:
        assert gif.n_frames == 64 and gif.size == (4 * 58 + 2, 4 * 58 + 2)
        assert gif.info["loop"] == 0 and gif.info["duration"] == 60
    assert run("sample", "--n", 16, "--out", "grid.png") == 0
    # Its first picture has the run's first samples.
    with Image.open("runs/digits/walk.gif") as gif, Image.open("grid.png") as grid:
        assert gif.convert("L").tobytes() == grid.tobytes()
    assert run("sample", "--walk", "--n", 2, "--seed", 3, "--out", "b.gif") == 0
    with Image.open("b.gif") as gif:
        assert gif.size == (2 * 58 + 2, 58 + 2)
    capsys.readouterr()
    assert run("sample", "--walk", "--truncation", 1) == 2
    assert "--truncation does not go with --walk" in capsys.readouterr().err
    assert run("sample", "--walk", "--n", 0) == 2
    ring = ("--data", "ring8", "--steps", 1, "--device", "cpu", "--width", 4, "--quiet")
    assert run("train", *ring) == 0
    assert run("sample", "runs/ring8", "--walk") == 2
    assert "Samples are no images" in capsys.readouterr().err


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--data", "nothing"], "nothing"),
        (["train", "--steps", "0"], "--steps is 0; expected an integer of at least 1"),
        (["train", "--epochs", "-1"], "--epochs is -1"),
        (["train", "--epochs", "many"], "--epochs is 'many'"),
        (["train", "--batch-size", "0"], "--batch-size is 0"),
        (["train", "--lr", "1", "2", "3"], "generator's and discriminator's"),
        (["train", "--value-range", "-1e-3"], "--value-range is -0.001; expected two numbers"),
        (["train", "--threads", "0"], "--threads is 0"),
        (["train", "--eps", "0"], "--eps is 0.0"),
        (["train", "--weight-decay", "-1"], "--weight-decay is -1.0"),
        (["train", "--penalties", "r1:2:0"], "every is 0"),
        (["train", "--penalties", "gp"], "'gp' is 'wgan-gp' here"),
        (["train", "--device", "warp"], "--device is 'warp'; expected a device"),
        (["train", "--loss", "nice"], "--loss is 'nice'; it must be one of minimax"),
        (["train", "--loss", "bce"], "'bce' is 'non-saturating' here"),
        (["train", "--optimizer", "sdg"], "did you mean 'sgd'"),
        (["train", "--engine", "fusd"], "did you mean 'fused'"),
        (["train", "--model", "dc-gan"], "did you mean 'dcgan'"),
        (["train", "--preset", "dcgan"], "did you mean 'dcgan-"),
        (["train", "--loss", "hinge", "--label-smoothing", "0.1"], "label_smoothing"),
        (["train", "--learning-rate", "1"], "'--learning-rate' is '--lr' here"),
        (["train", "--penalty=r1"], "'--penalty' is '--penalties' here"),
        (["train", "--latent-dims", "1"], "did you mean '--latent-dim'"),
        (["train", "stray"], "'stray' belongs to no option"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["train", "--name", "a", "--out", "b"], "give one of them"),
        (["train", "--name", "taken"], "replace it with --if-exists overwrite, keep both with"),
        (["train", "--out", "/dev/null/x"], "out: /dev/null is a file"),
        (["train", "--steps", "1", "--out", "/proc/x"], "out: /proc/x cannot be written"),
        (["train", "--lr"], "--lr: expected at least one argument: a finite number of at least 0"),
        (["train", "--lr"], "see `fastgan train --help`"),
        (["train", "--batch-size"], "--batch-size: expected one argument: an integer of at least"),
        (["train", "--drop-last=3"], "--drop-last/--no-drop-last takes no value; see `fastgan"),
        (["train", "--zzz"], "there is no option '--zzz'; see `fastgan train --help`"),
        (["dance"], "there is no command 'dance'; expected train, sweep, sample, "),
        (["trian"], "did you mean 'train'?; see `fastgan --help`"),
        ([], "the following arguments are required: COMMAND; see `fastgan --help`"),
        (["sample"], "there is no run in"),
        (["sample", "x", "--n", "3.5"], "--n: invalid int value: '3.5'; see `fastgan sample"),
        (["sample", "runs/taken", "--out", "/proc/x.png"], "/proc/x.png cannot be written"),
        (["train", "--data-changed"], "--data-changed goes with --resume"),
        (["train", "--resume", "nowhere"], "there is no checkpoint"),
        (["train", "--resume", "nowhere", "--name", "a"], "--name begins a new run"),
        (["train", "--resume", "nowhere", "--out", "a"], "--out begins a new run"),
        (["train", "--resume", "nowhere", "--preset", "mnist-mlp"], "--preset begins a new run"),
        (["train", "--resume", "runs/taken", "--lr", "1"], "a resume cannot change that"),
        (["train", "--resume", "damaged"], "damaged or not a checkpoint"),
        (["sample", "nowhere"], "there is no checkpoint"),
        (["sample", "runs/taken", "--out", "no/where.png"], "there is no directory"),
        (["sample", "runs/taken", "--n", "0"], "n is 0"),
        (["sample", "runs/taken", "--colums", "2"], "did you mean '--columns'"),
        (["sample", "runs/taken", "--out", "a.csv"], "a.csv is to be a picture; expected a name"),
        (["sample", "runs/taken", "--columns", "0"], "columns is 0; expected at least 1"),
        (["sample", "runs/taken", "--condition", "a=1"], "--condition is of the rows of a table"),
        (["sample", "runs/taken", "--walk", "--out", "a.png"], "a.png is to be a film"),
        (["demo", "--resume", "runs/taken"], "`fastgan train --resume RUN` goes on with a run"),
        (["demo", "--model", "dcgan"], "leave it out, or the model or preset that brings it"),
        (["demo", "--model", "ctgan"], "leave it out, or pass a CSV"),
        (["report", "damaged/checkpoint.pt"], "checkpoint.pt is no checkpoint, and"),
        (["report", "runs/taken", "--out", "damaged"], "give the name of a file"),
        (["evaluate", "runs/taken", "--per-class"], "the generator of this run takes no classes"),
        (["evaluate", "runs/taken", "--neighbours", "no/where.png"], "there is no directory no"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(here, capsys, arguments, words):
    if any("taken" in word for word in arguments):
        fastgan.Trainer(
            None, None, "digits", latent_dim=3, batch_size=4, engine="eager", device="cpu",
            console="none", out=here / "runs/taken",
        ).fit(steps=1)  # fmt: skip
    (here / "damaged").mkdir()
    (here / "damaged/checkpoint.pt").write_bytes(b"PK\3\4")
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("fastgan: ") and err.count("\n") == 1 and words in err
    assert not out, "nothing is said of a run that will not be"


def test_messages_have_options_where_the_library_has_keywords():
    for message, expected in (
        ("pass augmented=True, or drop_last=False", "pass --augmented, or --no-drop-last"),
        ("image_size=... and channels=... do it", "--image-size ... and --channels ... do it"),
        ("use penalties='wgan-gp'.", "use --penalties wgan-gp."),
        ("try lr=1e-4, please", "try --lr 1e-4, please"),
        ("generator= and scores='raw' stay", "generator= and scores='raw' stay"),
    ):
        assert options.in_options(message) == expected


def test_a_run_of_own_networks_says_what_it_needs(here, capsys):
    own(here / "a").fit(steps=1)
    assert run("train", "--resume", "a") == 2
    assert "a generator of your own" in capsys.readouterr().err
    assert run("sample", "a") == 2
    assert "pass generator=" in capsys.readouterr().err


def test_losses_that_break_down_are_status_1(capsys):
    arguments = ("--lr", 1e30, "--steps", 50, "--log-every", 5, *QUICK)
    assert run("train", *arguments) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "training stopped: at step" in err and "lr is 1e+30" in err


# --- help -----------------------------------------------------------------------------------------


def test_every_option_is_explained():
    commands = next(a for a in _parser()._actions if a.choices).choices
    known = "train sweep table sample evaluate report export demo settings info bench"
    assert set(commands) == set(known.split())
    for command in commands.values():
        assert all(action.help for action in command._actions)
        command.format_help()
    given = {action.dest for action in commands["train"]._actions}
    assert Config.__dataclass_fields__.keys() - given == {"terms"}


def test_settings_prints_the_table(capsys):
    assert run("settings") == 0
    assert capsys.readouterr().out == config.table()


def test_info(capsys):
    assert run("info") == 0
    assert "fastgan" in capsys.readouterr().out
    assert run("info", "--json") == 0
    assert "engine" in json.loads(capsys.readouterr().out)
