"""One description of a run: it comes back equal from every form, and refuses in one sentence."""

import dataclasses
import inspect
import json

import numpy
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fastgan import Config, config, engines, losses, models, optim, options, schedules
from fastgan.cli import _parser
from fastgan.config import ConfigError

# --- any config -----------------------------------------------------------------------------------

WORDS = st.text("abcXYZ019_. äé", min_size=1, max_size=9).map(lambda word: f"x{word}".strip())
POSITIVE = st.floats(1e-30, 1e30)
DECAY = st.floats(0, 1, exclude_max=True)
COUNT = st.integers(1, 10**9)
SIDES = st.lists(st.integers(1, 999), min_size=2, max_size=3).map(tuple)


def none_or(strategy):
    return st.none() | strategy


PENALTY = st.builds(
    lambda name, weight, every: f"{name}:{weight!r}:{every}",
    st.sampled_from([*losses.PENALTIES]),
    POSITIVE,
    COUNT,
)
SCHEDULE = st.builds(
    lambda name, start, more: schedules.Schedule(((name, start + more, start),)),
    st.sampled_from(["linear", "cosine"]),
    st.integers(0, 10**6),
    COUNT,
)
SCHEDULE |= st.builds(lambda n: schedules.read(f"warmup:{n}+cosine"), COUNT)
VALUES = {
    "model": st.sampled_from([*models.MODELS]),
    "width": none_or(COUNT),
    "latent_dim": none_or(COUNT | SIDES),
    "data": none_or(WORDS),
    "root": none_or(WORDS),
    "split": st.sampled_from(["train", "test"]),
    "image_size": none_or(COUNT | SIDES),
    "channels": none_or(st.integers(1, 3)),
    "layout": none_or(st.sampled_from(["NCHW", "NHWC"])),
    "kind": none_or(st.sampled_from(["image", "vector", "signal", "tensor"])),
    "pairs": none_or(st.sampled_from(["left", "right", "A:B"])),
    "discrete": none_or(st.lists(st.sampled_from(["age", "mean radius", "7"])).map(tuple)),
    "value_range": none_or(st.tuples(*[st.floats(-1e30, 1e30)] * 2)),
    "augmented": none_or(st.booleans()),
    "skip_damaged": st.booleans(),
    "download": st.booleans(),
    "budget_bytes": none_or(st.integers(0, 2**40)),
    "workers": none_or(st.integers(0, 99)),
    "drop_last": st.booleans(),
    "batch_size": COUNT,
    "accumulate": st.integers(1, 9),
    "augment": none_or(st.sampled_from(["diffaugment", "diffaugment:cutout", "ada:geom:0.4"])),
    "loss": st.sampled_from([*losses.LOSSES]),
    "label_smoothing": st.just(0.0),
    "penalties": st.lists(PENALTY, max_size=3),
    "by_category": st.booleans(),
    "method": none_or(st.just("ctgan")),
    "terms": st.just(()),
    "fake_condition": st.sampled_from(["auto", "drawn", "same"]),
    "d_steps": COUNT,
    "g_steps": COUNT,
    "shared_fakes": st.booleans(),
    "d_start": st.just(0),
    "g_start": st.integers(0, 10**9),
    "grad_clip": none_or(POSITIVE),
    "grad_clip_value": none_or(POSITIVE),
    "weight_clip": none_or(POSITIVE),
    "lr": POSITIVE | st.tuples(POSITIVE, POSITIVE),
    "betas": st.tuples(DECAY, DECAY),
    "optimizer": st.sampled_from([*optim.OPTIMIZERS]) | st.just(("adam", "sgd")),
    "weight_decay": POSITIVE,
    "eps": POSITIVE,
    "lr_schedule": none_or(SCHEDULE | st.tuples(SCHEDULE, none_or(SCHEDULE))),
    "ema": none_or(DECAY),
    "ema_half_life": none_or(POSITIVE),
    "ema_warmup": none_or(POSITIVE),
    "precision": st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
    "seed": none_or(st.integers(0, 2**64 - 1)),
    "epochs": none_or(COUNT),
    "steps": none_or(COUNT),
    "seconds": none_or(POSITIVE),
    "engine": st.sampled_from(["auto", *engines.ORDER]),
    "device": none_or(st.sampled_from(["cpu", "cuda", "cuda:1"])),
    "threads": none_or(st.integers(1, 4096)),
    "channels_last": none_or(st.booleans()),
    "operators": st.sampled_from(["auto", "torch"]),
    "out": none_or(WORDS),
    "if_exists": st.sampled_from(["fail", "overwrite", "count"]),
    "log_every": COUNT,
    "checkpoint_every": none_or(COUNT),
    "keep": COUNT,
    "console": st.sampled_from(["auto", "bar", "lines", "none"]),
}


def fitting(values):
    """Without what does not go together."""
    values = {"batch_size": 64, **values}
    values["accumulate"] = min(values.get("accumulate", 1), values["batch_size"])
    if values["accumulate"] > 1:
        values["shared_fakes"] = False
    if values.get("ema") is not None:
        values["ema_half_life"] = None
    if values.get("ema") is None and values.get("ema_half_life") is None:
        values["ema_warmup"] = None
    if values.get("loss", "hinge") not in ("non-saturating", "minimax", "hinge"):
        values["augment"] = None
    if values.get("method") is not None:
        for name in ("loss", "penalties", "label_smoothing", "shared_fakes"):
            values.pop(name, None)
    return values


CONFIGS = st.fixed_dictionaries({}, optional=VALUES).map(lambda v: Config(**fitting(v)))


def test_every_setting_is_drawn_here():
    assert VALUES.keys() == Config.__dataclass_fields__.keys()


@given(CONFIGS)
def test_a_config_comes_back_from_plain_values_and_json(c):
    assert Config.from_dict(c.to_dict()) == c
    assert Config.from_dict(json.loads(json.dumps(c.to_dict()))) == c
    assert hash(c.with_()) == hash(c)


def toml_of(values):
    """None has no word in TOML, and is written as the text none."""
    lines = [
        f"{k} = {json.dumps('none' if v is None else v, ensure_ascii=False)}"
        for k, v in values.items()
    ]
    return "\n".join(lines)


@given(CONFIGS)
def test_a_config_comes_back_from_yaml_and_toml(tmp_path_factory, c):
    folder = tmp_path_factory.mktemp("files")
    values = c.to_dict()
    for name, text in (("run.yaml", yaml.safe_dump(values)), ("run.toml", toml_of(values))):
        (folder / name).write_text(text, encoding="utf-8")
        assert config.load(folder / name) == c


@given(CONFIGS)
def test_a_config_comes_back_from_a_command_line(c):
    arguments = ["train", "--preset", "mnist-mlp"]
    for name, value in c.to_dict().items():
        kind = config.field_of(name).metadata["kind"]
        if name in config.LIMITS and value is None:
            continue
        if kind.flag and value is not None:
            arguments.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        elif kind.metavar and not kind.flag:
            parts = value if isinstance(value, list) else [value]
            words = ["none" if v is None else str(v) for v in parts] or ["none"]
            if kind.texts and value is not None:
                words = [",".join(value) or ","]
            arguments += [options.option(name), *words]
    chosen = _parser().parse_args(options.readable(arguments))
    found, _ = options.config_of(chosen, options.given(chosen))
    if all(getattr(c, name) is None for name in config.LIMITS):
        c = dataclasses.replace(c, steps=20_000)  # the preset's
    if c.augmented is None:
        found = found.with_(augmented=None)
    assert found == c


# --- what comes in --------------------------------------------------------------------------------

NUMBERS = [
    ("lr", numpy.float64(0.5), 0.5),
    ("lr", numpy.float32(0.5), 0.5),
    ("lr", torch.tensor(0.5), 0.5),
    ("lr", numpy.array([0.5, 0.25]), (0.5, 0.25)),
    ("lr", torch.tensor([0.5, 0.25]), (0.5, 0.25)),
    ("lr", [numpy.float64(0.5), torch.tensor(0.25)], (0.5, 0.25)),
    ("lr", 1, 1.0),
    ("betas", numpy.array([0, 0.5]), (0.0, 0.5)),
    ("batch_size", numpy.int64(3), 3),
    ("batch_size", torch.tensor(3), 3),
    ("d_steps", numpy.uint8(2), 2),
    ("latent_dim", numpy.array([4, 1, 1]), (4, 1, 1)),
    ("latent_dim", torch.Size([4, 1, 1]), (4, 1, 1)),
    ("latent_dim", torch.Size([4]), 4),
    ("image_size", torch.tensor([4, 8]), (4, 8)),
    ("seconds", numpy.float32(5), 5.0),
    ("seed", numpy.uint64(2**64 - 1), 2**64 - 1),
    ("drop_last", numpy.bool_(True), True),
    ("augmented", torch.tensor(False), False),
    ("device", torch.device("cpu"), "cpu"),
]


@pytest.mark.parametrize(("name", "value", "expected"), NUMBERS)
def test_numbers_of_any_library_become_pythons_own(name, value, expected):
    found = getattr(Config(**{name: value}), name)
    assert found == expected and type(found) is type(expected)
    if isinstance(found, tuple):
        assert all(type(a) is type(b) for a, b in zip(found, expected, strict=True))
    json.dumps(Config(**{name: value}).to_dict())


def test_a_penaltys_numbers_too():
    penalty = losses.Penalty("r1", losses.PENALTIES["r1"].of, "real", numpy.float64(0.5))
    other = losses.Penalty(
        "r1", losses.PENALTIES["r1"].of, weight=torch.tensor(0.5), every=numpy.int64(1)
    )
    assert penalty == other and type(other.weight) is float and type(other.every) is int
    assert Config(penalties=penalty).to_dict()["penalties"] == ["r1:0.5:1"]
    words = ["approximate-r1:0.5:2", "approximate-r1:0.5:2:0.1"]
    assert Config(penalties=words).to_dict()["penalties"] == words


def test_one_of_our_losses_is_kept_by_its_word():
    assert Config(loss=losses.LOSSES["hinge"]) == Config(loss="hinge")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; expected an integer"),
        ({"batch_size": True}, "batch_size is True"),
        ({"batch_size": "8"}, "batch_size is '8'"),
        ({"d_steps": torch.tensor([1, 2])}, r"d_steps is tensor\(\[1, 2\]\)"),
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"latent_dim": ()}, r"latent_dim is \(\)"),
        ({"lr": -1.0}, "lr is -1.0; expected a finite number of at least 0, or two: generator's"),
        ({"lr": (1e-3, float("nan"))}, "lr is .*nan"),
        ({"lr": (1.0, 1.0, 1.0)}, "lr is .*generator's and discriminator's"),
        ({"betas": (0.5, 1.0)}, "betas is .*two numbers, each a number in .0, 1"),
        ({"betas": 0.5}, "betas is 0.5"),
        ({"eps": 0.0}, "eps is 0.0; expected a finite number above 0"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"ema": 1.0}, "ema is 1.0; expected a number in .0, 1., or None"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"seed": -1}, "seed is -1; expected an integer from 0"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"value_range": (0, 1, 2)}, "value_range is .*each a finite number: lowest and highest"),
        ({"label_smoothing": 0.1, "loss": "hinge"}, "label_smoothing is 0.1.*hinge.*no labels"),
        ({"loss": losses.Loss}, "loss is <class .*make an instance of the class"),
        ({"loss": 3}, "loss is 3; it must be one of"),
        ({"penalties": "r1:-1"}, "penalties is 'r1:-1'; penalty 'r1': weight is -1.0; expected"),
        ({"penalties": ["r1", 4]}, "penalties is .*; 4 is none; expected one of r1"),
        ({"optimizer": 7}, "optimizer is 7; expected one of adam"),
        ({"optimizer": ("adam",)}, "optimizer is .'adam',.; expected one of"),
        ({"lr_schedule": 0.5}, "lr_schedule is 0.5; expected linear"),
        ({"lr_schedule": ["cosine"]}, "lr_schedule is .'cosine'.; expected linear"),
        ({"lr_schedule": "linear:10:20"}, "'linear:10:20' ends at step 10; expected a step after"),
        ({"lr_schedule": "warmup"}, "lr_schedule is 'warmup'; expected .*warmup:STEPS"),
        ({"augment": 3}, "augment is 3; expected diffaugment"),
        ({"augment": "ada:2.0"}, "augment is 'ada:2.0'; expected diffaugment"),
        ({"augment": "ada", "loss": "wasserstein"}, "augment is 'ada:.*sign.*says nothing"),
        ({"ema": 0.9, "ema_half_life": 10}, "ema and ema_half_life both say"),
        ({"ema_warmup": 0.05}, "ema_warmup is given, but no average is kept; give ema="),
        ({"accumulate": 9, "batch_size": 8}, "accumulate is 9, more parts than the 8 samples"),
        ({"d_start": 5}, "d_start is 5, and until then G minimises its terms alone.*give terms="),
        ({"out": 3}, "out is 3; expected a directory"),
        ({"drop_last": "yes"}, "drop_last is 'yes'; expected True or False"),
    ],
)
def test_a_wrong_value_is_one_sentence(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Config(**values)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"loss": "bce"}, "'bce' is 'non-saturating' here"),
        ({"loss": "lsgan"}, "'lsgan' is 'least-squares' here"),
        ({"loss": "LSGAN"}, "'LSGAN' is 'least-squares' here"),
        ({"loss": "wgan-gp"}, "'wgan-gp' is loss='wasserstein' with penalties='wgan-gp' here"),
        ({"loss": "hinge_loss"}, "did you mean 'hinge'"),
        ({"loss": "wassertein"}, "did you mean 'wasserstein'"),
        ({"loss": torch.nn.BCEWithLogitsLoss()}, "'BCEWithLogitsLoss' is 'non-saturating' here"),
        ({"loss": torch.nn.MSELoss}, "'MSELoss' is 'least-squares' here"),
        (
            {"loss": torch.nn.functional.binary_cross_entropy_with_logits},
            "'binary_cross_entropy_with_logits' is 'non-saturating' here",
        ),
        ({"loss": torch.nn.L1Loss()}, "losses.Loss('mine', d_loss, g_loss, 'logits')"),
        ({"loss": lambda real, fake: real}, "losses.Loss('mine', d_loss, g_loss, 'logits')"),
        ({"loss": "ragan"}, "'ragan' is 'relativistic-average' here"),
        ({"lr_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"augment": "diffaug"}, "'diffaug' is 'diffaugment' here"),
        ({"augment": "ada:colour"}, "did you mean 'color'"),
        ({"loss": "RpGAN"}, "'RpGAN' is 'relativistic' here"),
        ({"loss": "rsgan"}, "'rsgan' is 'relativistic' here"),
        ({"loss": "cross-entropy"}, "'cross-entropy' is 'non-saturating' here"),
        ({"loss": "r1"}, "'r1' is penalties='r1' here"),
        ({"penalties": "gp"}, "'gp' is 'wgan-gp' here"),
        ({"penalties": "R1:10"}, "did you mean 'r1'"),
        ({"optimizer": "AdamW"}, "did you mean 'adamw'"),
        ({"optimizer": ("adam", "rms")}, "did you mean 'rmsprop'"),
        ({"engine": "fussed"}, "did you mean 'fused'"),
        ({"threads": 10**9}, "threads is 1000000000; expected an integer from 1 to 4096"),
        ({"out": "runs/\0"}, r"out is 'runs/\x00'; expected a directory"),
        ({"engine": "torch"}, "'torch' is 'eager' here"),
        ({"precision": "bfloat16"}, "'bfloat16' is 'bf16' here"),
        ({"precision": "fp61"}, "did you mean 'fp16'"),
        ({"model": "dc-gan"}, "did you mean 'dcgan'"),
        ({"layout": "nchw"}, "did you mean 'NCHW'"),
        ({"device": "gpu"}, "'gpu' is 'cuda' here"),
        ({"if_exists": "overwite"}, "did you mean 'overwrite'"),
        ({"learning_rate": 1}, "no setting 'learning_rate'; 'learning_rate' is 'lr' here"),
        ({"n_critic": 5}, "no setting 'n_critic'; 'n_critic' is 'd_steps' here"),
        ({"lattent_dim": 5}, "no setting 'lattent_dim'; did you mean 'latent_dim'"),
        ({"penalty": "r1"}, "no setting 'penalty'; 'penalty' is 'penalties' here"),
        ({"batchsize": 5}, "did you mean 'batch_size'"),
        ({"qqqq": 5}, "no setting 'qqqq'; see `fastgan settings`"),
    ],
)
def test_the_nearest_right_word_is_named(values, hint):
    with pytest.raises(ConfigError) as caught:
        Config().with_(**values)
    assert hint in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Config(**values)
    assert hint in str(caught.value)
    assert inspect.signature(Config).parameters["lr"].default == 2e-4


def test_a_limit_replaces_the_limits_before_it():
    c = Config(steps=10, seconds=5.0)
    assert c.with_(epochs=2) == Config(epochs=2)
    assert c.with_(lr=0.5).steps == 10 and c.with_(steps=None).seconds == 5.0
    assert c.with_(epochs=2, steps=3) == Config(epochs=2, steps=3)


def test_a_seed_is_drawn_where_there_is_none():
    assert Config(seed=3).seeded() == Config(seed=3)
    a, b = Config(seed=None).seeded(), Config(seed=None).seeded()
    assert a.seed != b.seed and a.with_(seed=None) == Config(seed=None)


# --- files ----------------------------------------------------------------------------------------


def test_a_file_as_a_person_writes_it(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "preset: mnist-mlp\n"
        "lr: 1e-3        # a text in YAML 1.1\n"
        "betas: [5e-1, 0.9]\n"
        "seconds: 1e1\n"
        "penalties: [r1:10, r2]\n"
        "image_size: 16x24\n"
        "ema: none\n"
        "drop_last: yes\n"
        "out: ~/runs\n"
    )
    c = config.load(tmp_path / "run.yaml")
    assert c.lr == 1e-3 and c.betas == (0.5, 0.9) and c.seconds == 10.0 and c.steps is None
    assert c.ema is None and c.drop_last is True and c.image_size == (16, 24)
    assert [p.name for p in c.penalties] == ["r1", "r2"] and c.out.startswith("/")
    assert c.precision == "auto", "the preset's"
    (tmp_path / "run.toml").write_text('model = "dcgan"\nlr = [1e-3, 2e-3]\nsteps = 20_000\n')
    c = config.load(tmp_path / "run.toml", config.preset("dcgan-64"))
    assert c.lr == (1e-3, 2e-3) and c.steps == 20_000 and c.epochs is None and c.image_size == 64


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "lr: fast", "a.yaml: lr is 'fast'; expected a finite number"),
        ("a.yaml", "learning_rate: 1", "a.yaml: there is no setting 'learning_rate'; .*'lr' here"),
        (
            "a.yaml",
            "preset: mnist",
            "preset is 'mnist'; expected one of .*did you mean 'mnist-mlp'",
        ),
        ("a.yaml", "- 1", "a.yaml: expected names and values, one a line"),
        ("a.yaml", "a: [", "a.yaml: is no file of settings"),
        ("a.toml", "lr == 3", "a.toml: is no file of settings"),
        ("a.json", "{", "a.json: is no file of settings"),
        ("a.txt", "lr: 3", "a.txt: .*does not end in .yaml, .yml, .toml or .json"),
        (
            "a.json",
            '{"loss": {"own": "mine"}}',
            "loss was 'mine', an object of your own.*pass loss=",
        ),
    ],
)
def test_a_file_that_is_none_is_one_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="b.yaml: cannot be read"):
        config.load(tmp_path / "b.yaml")


def test_an_object_of_the_users_own_is_marked_and_asked_for():
    def schedule(step):
        return 1.0

    own = {
        "loss": losses.Loss("hinge", lambda r, f: f.mean() - r.mean(), lambda f: -f.mean()),
        "penalties": (losses.Penalty("r1", lambda slope: slope.sum()),),
        "optimizer": torch.optim.SGD,
        "lr_schedule": schedule,
    }
    plain = Config(**own).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["loss"] == {"own": "hinge"} and plain["lr_schedule"] == {"own": "schedule"}
    assert sorted(config.needs(plain)) == sorted(own)
    assert Config.from_dict(plain, **own) == Config(**own)
    for name in own:
        others = {key: value for key, value in own.items() if key != name}
        with pytest.raises(ConfigError, match=f"{name} was .*pass {name}="):
            Config.from_dict(plain, **others)


def test_differences_are_those_that_no_resume_may_change():
    c = Config(lr=0.5, engine="eager")
    assert c.differences(c.with_(engine="auto", threads=3, steps=4, drop_last=True)) == []
    other = c.with_(lr=(0.5, 0.25), penalties="r1")
    assert other.differences(c) == [
        'penalties is ["r1:10.0:1"], saved []',
        "lr is [0.5, 0.25], saved 0.5",
    ]


def test_a_value_of_many_lines_is_refused_in_one():
    made = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ConfigError, match="give two") as refused:
        Config(optimizer=made)
    assert "\n" not in str(refused.value)
