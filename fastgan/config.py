"""One description of a run: every setting once.

From the fields of `Config` come the keywords of `Trainer` and `make_problem`, the options of the
command line, YAML and TOML files, config.json, what a checkpoint keeps, what a resume compares, and
the table of settings in the documentation. A new setting is one field here, the place that does
what it says, and the refusal of the engines that cannot.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from fastgan import engines, losses, models, optim, settings
from fastgan.settings import ConfigError, Kind, Refused
from fastgan.words import nearest

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OWN = "own"
"""The key of what stands in a file for an object that only the user's program has."""


def _setting(kind: Kind, default: Any, group: str, help: str, *, resume: bool = False) -> Any:
    metadata = {"kind": kind, "group": group, "help": help, "resume": resume}
    return field(default=default, metadata=metadata)


def _optional(kind: Kind, none: str) -> Kind:
    return settings.optional(kind, none)


# --- kinds whose values may be objects of the user's program --------------------------------------


def _own(value: Any) -> dict[str, str]:
    name = getattr(value, "name", None) or getattr(value, "__name__", type(value).__name__)
    return {OWN: str(name)}


def _loss() -> Kind:
    def read(value: Any) -> Any:
        try:
            losses.loss(value)
        except ValueError as error:
            raise Refused(str(error).split("; ", 1)[1]) from None
        return value

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return value
        return value.name if losses.LOSSES.get(value.name) == value else _own(value)

    return Kind(
        f"one of {', '.join(losses.LOSSES)}, or a losses.Loss",
        read,
        plain=plain,
        annotation="str | Loss",
        metavar="NAME",
        names=tuple(losses.LOSSES),
    )


def _penalties() -> Kind:
    def read(value: Any) -> tuple[losses.Penalty, ...]:
        try:
            return losses.penalties(value)
        except ValueError as error:
            raise Refused(str(error).split("; ", 1)[1]) from None

    def plain(value: Any) -> list:
        return [_plain_penalty(penalty) for penalty in value]

    return Kind(
        f"one of {', '.join(losses.PENALTIES)} as name[:weight[:every]], a losses.Penalty, or a "
        "list of these",
        read,
        lambda words: words.replace(",", " ").split() if words.lower() != "none" else None,
        plain,
        "str | Penalty | Sequence[str | Penalty]",
        "NAME[:WEIGHT[:EVERY]]",
        several=True,
    )


def _plain_penalty(penalty: losses.Penalty) -> Any:
    known = losses.PENALTIES.get(penalty.name)
    if known is None or replace(known, weight=penalty.weight, every=penalty.every) != penalty:
        return _own(penalty)
    return f"{penalty.name}:{penalty.weight!r}:{penalty.every}"


def _optimizer() -> Kind:
    """An optimiser's word, class, factory or object; or two: the generator's, the other's."""

    def read_one(value: Any) -> Any:
        if isinstance(value, str):
            if value not in optim.OPTIMIZERS:
                raise ValueError
            return value
        if isinstance(value, torch.optim.Optimizer) or callable(value):
            return value
        raise TypeError

    def read(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            if len(value) != 2:
                raise ValueError
            return tuple(map(read_one, value))
        if isinstance(value, torch.optim.Optimizer):
            raise Refused(
                "one optimiser serves one network: give two, (generator's, discriminator's)"
            )
        return read_one(value)

    def plain_one(value: Any) -> Any:
        return value if isinstance(value, str) else _own(value)

    def plain(value: Any) -> Any:
        return list(map(plain_one, value)) if isinstance(value, tuple) else plain_one(value)

    return Kind(
        f"one of {', '.join(optim.OPTIMIZERS)}, a class of torch.optim, a function of parameters "
        "that makes one, a made one for each network, or two of these (generator's, "
        "discriminator's)",
        read,
        lambda words: words.replace(",", " ").split() if " " in words or "," in words else words,
        plain,
        "str | type[Optimizer] | Callable | tuple",
        "NAME",
        names=tuple(optim.OPTIMIZERS),
    )


def _schedule() -> Kind:
    def read(value: Any) -> Any:
        if value is not None and not callable(value):
            raise TypeError
        return value

    return Kind(
        "a function of the step (counted from 0) that gives a factor, or None",
        read,
        plain=lambda value: None if value is None else _own(value),
        annotation="Callable[[int], float] | None",
        metavar="",
    )


def _device() -> Kind:
    def read(value: Any) -> str | None:
        return None if value is None else str(torch.device(value))

    return Kind(
        "a device such as cpu, cuda or cuda:1, or None (CUDA if there is a GPU, else the CPU)",
        read,
        annotation="torch.device | str | None",
        metavar="DEVICE",
    )


def _value_range() -> Kind:
    inner = settings.pair(settings.number(float("-inf")), "lowest and highest", single=False)
    return settings.optional(inner, "as the values are")


# --- the settings ---------------------------------------------------------------------------------

_count = settings.integer(1)


@dataclass(frozen=True)
class Config:
    """Every setting of a run, checked; made from keywords, a file, a preset or a checkpoint.

    A value that a setting cannot take raises `ConfigError`, which names it. What is here is plain
    but for five objects that only the user's program may have: a Loss, penalties, optimisers and a
    schedule of its own.
    """

    # networks
    model: str = _setting(
        settings.choice(*models.MODELS),
        "mlp",
        "networks",
        "which pair of networks is made where none is given",
    )
    width: int | None = _setting(
        _optional(_count, "the model's own"),
        None,
        "networks",
        "features of that pair's hidden layers, or channels of its narrowest convolution",
    )
    latent_dim: int | tuple[int, ...] = _setting(
        settings.sizes("a length of at least 1, or a shape such as (100, 1, 1)"),
        100,
        "networks",
        "length of a latent vector, or the shape of one latent",
    )

    # data
    data: str | None = _setting(
        _optional(settings.text("a name or a path", "NAME|PATH"), "what the program passed"),
        "digits",
        "data",
        "digits, mnist, fashion-mnist, cifar10, or a folder or zip of images",
        resume=True,
    )
    root: str | None = _setting(
        _optional(settings.path("a folder"), "FASTGAN_DATA, ~/.cache/fastgan/data, ./data"),
        None,
        "data",
        "where named data sets lie, or are downloaded to",
        resume=True,
    )
    split: str = _setting(
        settings.choice("train", "test"), "train", "data", "which part of a named data set"
    )
    image_size: int | tuple[int, ...] | None = _setting(
        _optional(settings.sizes("a side, or (height, width), in pixels"), "as the images are"),
        None,
        "data",
        "crop and resize images to this",
    )
    channels: int | None = _setting(
        _optional(settings.integer(1, 3), "as the images are"),
        None,
        "data",
        "1: grey, 3: RGB",
    )
    layout: str | None = _setting(
        _optional(settings.choice("NCHW", "NHWC"), "seen from the shape"),
        None,
        "data",
        "where the channels of image tensors are",
    )
    kind: str | None = _setting(
        _optional(settings.choice("image", "vector", "signal", "tensor"), "seen from the shape"),
        None,
        "data",
        "what a sample is",
    )
    value_range: tuple[float, float] | None = _setting(
        _value_range(), None, "data", "lowest and highest value of float data, mapped to [-1, 1]"
    )
    augmented: bool | None = _setting(
        _optional(settings.flag(), "found by reading some items twice"),
        None,
        "data",
        "whether a Dataset gives other samples at each reading",
    )
    skip_damaged: bool = _setting(
        settings.flag(), False, "data", "leave damaged image files out, and count them"
    )
    download: bool = _setting(
        settings.flag(), True, "data", "whether a named data set may be downloaded", resume=True
    )
    budget_bytes: int | None = _setting(
        _optional(settings.integer(0), "a quarter of the memory that is free"),
        None,
        "data",
        "bytes that the data may take in memory; more is read batch by batch",
        resume=True,
    )
    workers: int | None = _setting(
        _optional(settings.integer(0), "half the processors for image files, else none"),
        None,
        "data",
        "processes that read ahead what is not in memory",
        resume=True,
    )
    drop_last: bool = _setting(
        settings.flag(),
        False,
        "data",
        "leave out an epoch's last batch where it is smaller than the others",
        resume=True,
    )

    # training
    batch_size: int = _setting(_count, 64, "training", "samples in a batch")
    loss: str | losses.Loss = _setting(
        _loss(), "non-saturating", "training", "what D and G minimise"
    )
    label_smoothing: float = _setting(
        settings.number(0, 1, below=True),
        0.0,
        "training",
        "s: real samples are labelled 1 - s (one-sided smoothing, Salimans et al. 2016)",
    )
    penalties: tuple[losses.Penalty, ...] = _setting(
        _penalties(),
        (),
        "training",
        "on D's slope, added to its loss: r1, r2 (Mescheder et al. 2018), wgan-gp (Gulrajani et "
        "al. 2017); weight 10 and every update unless said otherwise",
    )
    d_steps: int = _setting(_count, 1, "training", "updates of D in a step")
    lr: float | tuple[float, float] = _setting(
        settings.pair(settings.number(0), "generator's and discriminator's"),
        2e-4,
        "training",
        "learning rate",
    )
    betas: tuple[float, float] = _setting(
        settings.pair(
            settings.number(0, 1, below=True), "of the first and second moment", single=False
        ),
        (0.5, 0.999),
        "training",
        "Adam's decay rates",
    )
    optimizer: Any = _setting(_optimizer(), "adam", "training", "of each network")
    weight_decay: float = _setting(
        settings.number(0),
        0.0,
        "training",
        "an L2 penalty, but with adamw decoupled from the gradient",
    )
    eps: float = _setting(
        # With 0, a weight whose gradients have all been 0 would become 0 / 0.
        settings.number(0, above=True),
        1e-8,
        "training",
        "what Adam adds to its denominator",
    )
    lr_schedule: Callable[[int], float] | None = _setting(
        _schedule(), None, "training", "factor on both learning rates at each step"
    )
    ema: float | None = _setting(
        _optional(settings.number(0, 1, below=True), "no average is kept"),
        None,
        "training",
        "decay of a running average of G's weights, such as 0.999, which samples then come from",
    )
    precision: str = _setting(
        settings.choice(
            *PRECISIONS, hints={"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
        ),
        "fp32",
        "training",
        "of the products; weights and sums are float32. auto: bf16 where the processor has the "
        "instructions, else fp32",
    )
    seed: int | None = _setting(
        _optional(settings.integer(0, 2**64 - 1), "one is drawn and recorded"),
        0,
        "training",
        "source of all randomness",
    )

    # length
    epochs: int | None = _setting(
        _optional(_count, "no such limit"),
        None,
        "length",
        "stop after this many passes over the data",
        resume=True,
    )
    steps: int | None = _setting(
        _optional(_count, "no such limit"),
        None,
        "length",
        "stop after this many steps",
        resume=True,
    )
    seconds: float | None = _setting(
        _optional(settings.number(0, above=True), "no such limit"),
        None,
        "length",
        "stop after this much training time",
        resume=True,
    )

    # machine
    engine: str = _setting(
        settings.choice("auto", *engines.ORDER),
        "auto",
        "machine",
        "how steps are run",
        resume=True,
    )
    device: str | None = _setting(_device(), None, "machine", "where to train", resume=True)
    threads: int | None = _setting(
        _optional(_count, "torch's choice"), None, "machine", "CPU threads", resume=True
    )
    channels_last: bool = _setting(
        settings.flag(),
        False,
        "machine",
        "keep convolutions' weights and images channels last, often faster for convolutions",
        resume=True,
    )

    # run
    out: str | None = _setting(
        _optional(settings.path("a directory"), "nothing is written"),
        None,
        "run",
        "directory of the run, for log, checkpoints and pictures",
        resume=True,
    )
    if_exists: str = _setting(
        settings.choice("fail", "overwrite", "count"),
        "fail",
        "run",
        "what to do where out holds a run: fail, overwrite it, or count up to a free name",
        resume=True,
    )
    log_every: int = _setting(_count, 100, "run", "steps from one log line to the next")
    checkpoint_every: int | None = _setting(
        _optional(_count, "one a minute"),
        None,
        "run",
        "steps from one checkpoint to the next; there is always one at the end",
        resume=True,
    )
    keep: int = _setting(_count, 2, "run", "how many of the last checkpoints stay", resume=True)
    console: str = _setting(
        settings.choice("auto", "bar", "lines", "none"),
        "auto",
        "run",
        "progress on the screen; auto: a bar on a terminal, else a line now and then",
        resume=True,
    )

    def __post_init__(self):
        """Read every value by its kind."""
        for f in fields(self):
            value = f.metadata["kind"].take(f.name, getattr(self, f.name))
            object.__setattr__(self, f.name, value)
        losses.loss(self.loss, self.label_smoothing)

    # --- what others ask of it --------------------------------------------------------------------

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, without the batch dimension."""
        return (self.latent_dim,) if isinstance(self.latent_dim, int) else self.latent_dim

    @property
    def rates(self) -> tuple[float, float]:
        """The generator's and the discriminator's learning rate."""
        return self.lr if isinstance(self.lr, tuple) else (self.lr, self.lr)

    def data_options(self) -> dict[str, Any]:
        """What was said of the data, as keywords of `fastgan.data.open`; defaults are left out."""
        accepted = inspect.signature(_opener()).parameters
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.metadata["group"] == "data"
            and f.name in accepted
            and getattr(self, f.name) != f.default
        }

    def with_(self, **changes: Any) -> Config:
        """A copy with other values; ConfigError for names and values that are none."""
        _known(changes)
        return replace(self, **changes)

    # --- as plain values, and back ----------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Numbers, words, lists and None; ``{"own": name}`` for an object of the user's program."""
        return {f.name: f.metadata["kind"].plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, where: str = "", base: Config | None = None, **own: Any
    ) -> Config:
        """The settings that `to_dict` or a file wrote down.

        Args:
            values: names and plain values; what is left out is as in `base`.
            where: what messages begin with, such as a file's name.
            base: default: `Config()`.
            **own: the objects that stand for the values marked as the user's own.

        Raises:
            ConfigError: an unknown name, a value that is none, or an object of the user's program
                that was not passed.
        """
        prefix = f"{where}: " if where else ""
        try:
            _known(values)
            changes = {name: own.get(name, value) for name, value in values.items()}
            for name, value in changes.items():
                if found := _owns(value):
                    raise ConfigError(
                        f"{name} was {found!r}, an object of your own, which a file cannot hold; "
                        f"pass {name}="
                    )
                if isinstance(value, str):
                    changes[name] = field_of(name).metadata["kind"].take_text(name, value)
            return replace(base or cls(), **changes)
        except ConfigError as error:
            raise ConfigError(f"{prefix}{error}") from None

    @classmethod
    def from_file(cls, path: str | os.PathLike, base: Config | None = None) -> Config:
        """The settings of a YAML, TOML or JSON file, such as a run's config.json.

        A key `preset` names a preset that the file's own values are laid over.

        Raises:
            ConfigError: the file cannot be read, or holds something else.
        """
        values = dict(read_file(path))
        if "preset" in values:
            base = preset(values.pop("preset"))
        return cls.from_dict(values, where=str(path), base=base)

    def differences(self, other: Config) -> list[str]:
        """Each setting that a resume keeps and that `other` has otherwise, in words."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{f.name} is {mine[f.name]!r}, saved {theirs[f.name]!r}"
            for f in fields(self)
            if not f.metadata["resume"] and mine[f.name] != theirs[f.name]
        ]


def field_of(name: str) -> Field:
    """The field of a setting."""
    return Config.__dataclass_fields__[name]


def _known(names: Mapping[str, Any]) -> None:
    for name in names:
        if name not in Config.__dataclass_fields__:
            near = nearest(name, Config.__dataclass_fields__, HINTS)
            raise ConfigError(f"there is no setting {name!r}{near or '; see `fastgan settings`'}")


HINTS = {
    "penalty": "penalties",
    "critic_steps": "d_steps",
    "n_critic": "d_steps",
    "learning_rate": "lr",
    "nz": "latent_dim",
    "z_dim": "latent_dim",
    "bs": "batch_size",
    "output": "out",
    "amp": "precision",
}
"""Names that others use for our settings."""


def _owns(value: Any) -> str | None:
    """The name of the user's own object that a plain value stands for, if it does."""
    if isinstance(value, Mapping):
        return str(value.get(OWN)) if set(value) == {OWN} else None
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_owns, value)), None)
    return None


def needs(values: Mapping[str, Any]) -> list[str]:
    """The settings, of plain ones, that stand for objects of the user's program."""
    return [name for name, value in values.items() if _owns(value)]


@functools.cache
def _opener() -> Callable:
    from fastgan import data

    return data.open


def read_file(path: str | os.PathLike) -> Mapping[str, Any]:
    """The settings in a file, by the ending of its name; ConfigError if it cannot be read."""
    path = Path(path).expanduser()
    try:
        content = path.read_text()
        if path.suffix.lower() in (".yaml", ".yml"):
            import yaml

            values = yaml.safe_load(content)
        elif path.suffix.lower() == ".toml":
            if sys.version_info >= (3, 11):
                import tomllib
            else:
                import tomli as tomllib
            values = tomllib.loads(content)
        elif path.suffix.lower() == ".json":
            values = json.loads(content)
        else:
            raise ValueError("its name does not end in .yaml, .yml, .toml or .json")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # of each format's own reader
        line = " ".join(str(error).split())
        raise ConfigError(f"{path}: is no file of settings ({line})") from None
    if isinstance(values, Mapping) and isinstance(values.get("settings"), Mapping):
        values = values["settings"]  # a run's config.json
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{path}: expected names and values, one a line, such as `lr: 2e-4`")
    return values


# --- presets --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """Settings that suit a pair of networks, and where they come from."""

    help: str
    values: Mapping[str, Any]


PRESETS: dict[str, Preset] = {
    # The learning rates, the average and the number of steps are those that gave the best digits of
    # half a dozen tried on the bundled set, within about a minute of the eager engine. After 10
    # epochs of Fashion-MNIST the Frechet distance (as in benchmarks/agreement.py) of these is 11;
    # that of Config's own is 37.
    "mnist-mlp": Preset(
        "the reference pair on small grey images",
        {"lr": (1e-3, 5e-4), "ema": 0.9995, "steps": 20_000, "precision": "auto"},
    ),
    # A. Radford, L. Metz and S. Chintala, "Unsupervised Representation Learning with Deep
    # Convolutional Generative Adversarial Networks", ICLR 2016.
    "dcgan-32": Preset(
        "DCGAN on 32x32 images",
        {
            "model": "dcgan",
            "image_size": 32,
            "batch_size": 128,
            "epochs": 25,
            "precision": "auto",
            "channels_last": True,
        },
    ),
    "dcgan-64": Preset(
        "DCGAN on 64x64 images, as in its paper",
        {
            "model": "dcgan",
            "image_size": 64,
            "batch_size": 128,
            "epochs": 25,
            "precision": "auto",
            "channels_last": True,
        },
    ),
}


def preset(name: Any) -> Config:
    """The settings of that preset; ConfigError for a name that is none."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(
            f"preset is {name!r}; expected one of {', '.join(PRESETS)}{nearest(name, PRESETS)}"
        )
    return Config(**PRESETS[name].values)


# --- in other forms -------------------------------------------------------------------------------


def settings_of(config: Config | None, overrides: Mapping[str, Any]) -> Config:
    """A config, default `Config()`, with some settings otherwise.

    Raises:
        TypeError: `config` is none.
        ConfigError: an unknown name or a value that is none.
    """
    if config is not None and not isinstance(config, Config):
        raise TypeError(
            f"config is a {type(config).__name__}; expected a fastgan.Config, or settings by name"
        )
    return (config or Config()).with_(**overrides)


def takes_settings(*without: str) -> Callable:
    """Gives a function with ``**overrides`` the signature and the docstring that it truly has."""

    def give(function: Callable) -> Callable:
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {p.name for p in parameters} | set(without)
        chosen = [f for f in fields(Config) if f.name not in taken]
        parameters += [
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=f.default,
                annotation=f.metadata["kind"].annotation,
            )
            for f in chosen
        ]
        function.__signature__ = signature.replace(parameters=parameters)
        return function

    return give


def described(*without: str) -> str:
    """The settings as the lines of a docstring."""
    lines = []
    for f in fields(Config):
        if f.name not in without:
            kind = f.metadata["kind"]
            lines.append(
                f"    {f.name}: {f.metadata['help']}; {kind.expected}. Default {_shown_default(f)}."
            )
    return "\n".join(lines)


def _shown_default(f: Field) -> str:
    return json.dumps(f.metadata["kind"].plain(f.default))


def table() -> str:
    """All settings as a Markdown table."""
    rows = [
        "| setting | default | what it is | values | a resume may change it |",
        "|---" * 5 + "|",
    ]
    for f in fields(Config):
        kind = f.metadata["kind"]
        cells = (
            f"`{f.name}`",
            f"`{_shown_default(f)}`",
            f.metadata["help"],
            kind.expected,
            "yes" if f.metadata["resume"] else "no",
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
