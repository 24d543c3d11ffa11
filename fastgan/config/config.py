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
import secrets
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from fastgan import augment as augment_room
from fastgan import data as data_room
from fastgan import engines, latents, losses, models
from fastgan.conditions import FAKE
from fastgan.config import kinds, objects, together
from fastgan.config.kinds import ConfigError, Kind, choice, flag, integer, number, optional, pair
from fastgan.config.objects import owned
from fastgan.latents import Latent
from fastgan.run import directory
from fastgan.terms import Term
from fastgan.words import nearest

GROUPS = ("networks", "data", "training", "length", "machine", "run")

HINTS = {
    other: ours
    for ours, others in {
        "batch_size": "bs batch",
        "accumulate": "accumulation_steps gradient_accumulation_steps accumulate_grad_batches",
        "augment": "diffaugment diffaug diff_aug ada aug",
        "betas": "beta1 b1",
        "callbacks": "callback hooks",
        "channels": "nc img_channels",
        "checkpoint_every": "save_every checkpoint_interval save_interval",
        "console": "verbose progress progress_bar",
        "d_steps": "critic_steps n_critic d_iters disc_steps",
        "data": "dataset dataroot data_dir",
        "g_steps": "gen_steps g_iters",
        "grad_clip": "clip_grad_norm gradient_clip_val max_grad_norm clip_grad max_norm",
        "device": "cuda gpu ngpu accelerator",
        "engine": "backend compile torch_compile",
        "ema": "ema_decay average",
        "ema_half_life": "ema_kimg ema_nimg",
        "ema_warmup": "ema_rampup",
        "epochs": "n_epochs num_epochs max_epochs",
        "if_exists": "overwrite exist_ok",
        "image_size": "img_size resolution",
        "latent_dim": "nz z_dim zdim latent_size noise_dim",
        "log_every": "log_interval sample_interval",
        "loss": "criterion gan_mode objective",
        "lr": "learning_rate lr_g lr_d g_lr d_lr generator_lr discriminator_lr gen_lr disc_lr",
        "lr_schedule": "scheduler lr_scheduler lr_decay",
        "model": "arch architecture network",
        "optimizer": "optim opt optimiser",
        "out": "output output_dir out_dir save_dir logdir",
        "penalties": "penalty gp gradient_penalty lambda_gp gp_weight r1_gamma",
        "precision": "amp dtype mixed_precision",
        "seed": "random_seed manual_seed",
        "shared_fakes": "share_fakes same_fakes reuse_fakes",
        "steps": "max_steps iterations n_iter iters",
        "threads": "num_threads",
        "weight_clip": "clip_value clip_weights clamp",
        "weight_decay": "wd",
        "width": "ngf ndf hidden hidden_dim",
        "workers": "num_workers",
    }.items()
    for other in others.split()
}
"""Names that others use for our settings."""


def _setting(default: Any, kind: Kind, group: str, help: str, *, resume: bool = False) -> Any:
    metadata = {"kind": kind, "group": group, "help": help, "resume": resume}
    return field(default=default, metadata=metadata)


def _networks(default: Any, kind: Kind, help: str) -> Any:
    return _setting(default, kind, "networks", help)


def _data(default: Any, kind: Kind, help: str, **options: Any) -> Any:
    return _setting(default, kind, "data", help, **options)


def _training(default: Any, kind: Kind, help: str) -> Any:
    return _setting(default, kind, "training", help)


def _length(default: Any, kind: Kind, help: str) -> Any:
    return _setting(default, optional(kind, "no such limit"), "length", help, resume=True)


def _machine(default: Any, kind: Kind, help: str) -> Any:
    return _setting(default, kind, "machine", help, resume=True)


def _run(default: Any, kind: Kind, help: str, *, resume: bool = True) -> Any:
    return _setting(default, kind, "run", help, resume=resume)


_COUNT = integer(1)
_DECAY = number(0, 1, below=True)
_PRECISIONS = choice(
    *("auto", "fp32", "bf16", "fp16"),
    hints={
        **{"float32": "fp32", "float": "fp32", "single": "fp32", "full": "fp32", "32": "fp32"},
        **{"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "mixed": "auto", "amp": "auto"},
    },
)
_ENGINES = choice(
    *("auto", *engines.ORDER),
    hints={"cuda-graph": "graph", "cudagraphs": "graph", "pytorch": "eager", "torch": "eager"},
)
_SIZE = kinds.sizes("a side, or (height, width), in pixels")
_RANGE = pair(number(float("-inf")), "lowest and highest", single=False)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a run, checked; made from keywords, a file, a preset or a checkpoint.

    A value that a setting cannot take raises `ConfigError`, which names it. What is here is plain
    but for what only the user's program may have: a Loss, penalties, optimisers and a schedule of
    its own.
    """

    # fmt: off
    model: str = _networks("mlp", choice(*models.MODELS),
        "which pair of networks is made where none is given")
    width: int | None = _networks(None, optional(_COUNT, "the model's own"),
        "features of that pair's hidden layers, or channels of its narrowest convolution")
    latent_dim: Any = _networks(100, objects.latent(),
        "length of a latent vector, the shape of one latent, named parts, or none")

    data: str | None = _data("digits",
        optional(kinds.text("a name or a path", "NAME|PATH"), "what the program passed"),
        "digits, mnist, fashion-mnist, cifar10, a density (ring8, grid25, moons, gaussian), a "
        "folder or zip of images, or a table in a .csv, .tsv, .parquet or .pq file", resume=True)
    root: str | None = _data(None,
        optional(kinds.path("a folder"), "FASTGAN_DATA, ~/.cache/fastgan/data, ./data"),
        "where named data sets lie, or are downloaded to", resume=True)
    split: str = _data("train", choice("train", "test"), "which part of a named data set")
    image_size: int | tuple[int, ...] | None = _data(None, optional(_SIZE, "as the images are"),
        "crop and resize images to this")
    channels: int | None = _data(None, optional(integer(1, 3), "as the images are"),
        "1: grey, 3: RGB")
    layout: str | None = _data(None, optional(choice("NCHW", "NHWC"), "seen from the shape"),
        "where the channels of image tensors are")
    kind: str | None = _data(None,
        optional(choice("image", "vector", "signal", "tensor"), "seen from the shape"),
        "what a sample is")
    pairs: str | None = _data(None,
        optional(kinds.text("'left', 'right' or 'A:B'", "left|right|A:B"), "samples are single"),
        "pictures of which one is made from the other: which half of each is the input, or the "
        "folders of inputs and of targets")
    discrete: tuple[str, ...] | None = _data(None,
        optional(kinds.names("names of columns"), "what is neither number nor date, or has few"),
        "columns of a table that are categories")
    by_category: bool = _data(False, flag(),
        "draw a table's rows by the categories of its discrete columns, rare ones more often than "
        "they are, each with that category as its condition (training by sampling, Xu et al. 2019)")
    value_range: tuple[float, float] | None = _data(None, optional(_RANGE, "as the values are"),
        "lowest and highest value of float data, mapped to [-1, 1]")
    augmented: bool | None = _data(None, optional(flag(), "found by reading some items twice"),
        "whether a Dataset gives other samples at each reading")
    skip_damaged: bool = _data(False, flag(), "leave damaged image files out, and count them")
    download: bool = _data(True, flag(), "whether a named data set may be downloaded", resume=True)
    budget_bytes: int | None = _data(None,
        optional(integer(0), "a quarter of the memory that is free"),
        "bytes that the data may take in memory; more is read batch by batch", resume=True)
    workers: int | None = _data(None,
        optional(integer(0), "half the processors for image files, else none"),
        "processes that read ahead what is not in memory", resume=True)
    drop_last: bool = _data(False, flag(),
        "leave out an epoch's last batch where it is smaller than the others", resume=True)

    batch_size: int = _training(64, _COUNT, "samples in a batch, of all parts and ranks together")
    accumulate: int = _training(1, _COUNT,
        "parts in which a batch passes through the networks, to save memory: their gradients are "
        "added up, so that 4 parts of 16 are one batch of 64 for losses that are means over "
        "samples; BatchNorm, averages within a loss and what a method keeps see each part by "
        "itself")
    augment: augment_room.Augment | None = _training(None,
        optional(objects.augmentation(), "nothing"),
        "what images go through before D sees them, real and fake alike, with gradients: "
        "diffaugment (Zhao et al. 2020) always; ada (Karras et al. 2020) with a probability that "
        "rises while D's scores of real images have the sign of real ones in more than TARGET")
    loss: str | losses.Loss = _training("non-saturating", objects.loss(), "what D and G minimise")
    label_smoothing: float = _training(0.0, _DECAY,
        "s: real samples are labelled 1 - s (one-sided smoothing, Salimans et al. 2016)")
    penalties: tuple[losses.Penalty, ...] = _training((), objects.penalties(),
        "on D's slope, added to its loss: r1, r2 (Mescheder et al. 2018), wgan-gp (Gulrajani et "
        "al. 2017), dragan (Kodali et al. 2017), approximate-r1 (Lin et al. 2025: by differences, "
        "without second derivatives); weight 10 and every update unless said otherwise")
    method: Any = _training(None, optional(objects.method(), "the game of loss and penalties"),
        "what D and G minimise: ctgan (Xu et al. 2019), for that model on a table, or an object "
        "with d_loss(step) and g_loss(step)")
    terms: tuple[Term, ...] = _training((), objects.terms(),
        "what G's loss has besides the game")
    fake_condition: str = _training("auto", choice(*FAKE),
        "conditions of fake samples: drawn anew from the data's own, or the same as the real "
        "batch's; auto: labels are drawn")
    d_steps: int = _training(1, _COUNT, "updates of D in a step")
    g_steps: int = _training(1, _COUNT, "updates of G in a step, after those of D")
    shared_fakes: bool = _training(False, flag(),
        "G's update, of several the first, takes the samples that D's last one took, as the public "
        "DCGAN example does, and spares a pass of G; else samples of latents of its own")
    d_start: int = _training(0, integer(0),
        "the step that begins to train D; before it G minimises its terms alone, as to begin with "
        "in Ledig et al. 2017")
    g_start: int = _training(0, integer(0), "the step that begins to train G")
    grad_clip: float | None = _training(None,
        optional(number(0, above=True), "they stay as they are"),
        "longest gradient of each network: the norm over all its weights is scaled down to this")
    grad_clip_value: float | None = _training(None,
        optional(number(0, above=True), "they stay as they are"),
        "largest size of each number of a gradient, before grad_clip")
    weight_clip: float | None = _training(None,
        optional(number(0, above=True), "they stay as they are"),
        "largest size of each of D's weights, after each of its updates (Arjovsky et al. 2017)")
    lr: float | tuple[float, float] = _training(2e-4,
        pair(number(0), "generator's and discriminator's"), "learning rate")
    betas: tuple[float, float] = _training((0.5, 0.999),
        pair(_DECAY, "of the first and second moment", single=False), "Adam's decay rates")
    optimizer: Any = _training("adam", objects.optimizer(), "of each network")
    weight_decay: float = _training(0.0, number(0),
        "an L2 penalty, but with adamw decoupled from the gradient")
    # With 0, a weight whose gradients have all been 0 would become 0 / 0.
    eps: float = _training(1e-8, number(0, above=True), "what Adam adds to its denominator")
    lr_schedule: Any = _training(None,
        optional(objects.schedule(), "1 at every step"),
        "factor on both learning rates, or on each, at each step: 1 up to START, then falling to "
        "0 at END (else: where steps or epochs ends the run)")
    ema: float | None = _training(None, optional(_DECAY, "no average is kept"),
        "decay of a running average of G's weights, such as 0.999, which samples then come from")
    ema_half_life: float | None = _training(None,
        optional(number(0, above=True), "as ema says"),
        "the same average's decay as the images (steps times batch_size) after which it is half "
        "(Karras et al. 2020)")
    ema_warmup: float | None = _training(None,
        optional(number(0, above=True), "none"),
        "the average's half-life is at most this many times the images so far, such as 0.05")
    precision: str = _training("fp32", _PRECISIONS,
        "of the products; weights and sums are float32. auto: bf16 where the processor has the "
        "instructions and the engine was measured faster with them, else fp32")
    seed: int | None = _training(0, optional(integer(0, 2**64 - 1), "one is drawn and recorded"),
        "source of all randomness")

    epochs: int | None = _length(None, _COUNT, "stop after this many passes over the data")
    steps: int | None = _length(None, _COUNT, "stop after this many steps")
    seconds: float | None = _length(None, number(0, above=True),
        "stop after this much training time")

    engine: str = _machine("auto", _ENGINES, "how steps are run")
    device: str | None = _machine(None,
        optional(objects.device(), "CUDA if there is a GPU, else the CPU"), "where to train")
    # OpenMP ends the process when it is asked for more threads than it can start.
    threads: int | None = _machine(None,
        optional(integer(1, 4096), "torch's choice"), "CPU threads")
    channels_last: bool | None = _machine(None,
        optional(flag(), "on the CPU images inside a step where that is faster, else neither"),
        "keep convolutions' weights and images channels last, often faster for convolutions")
    operators: str = _machine("auto", choice("auto", "torch"),
        "of convolutions in any networks on the CPU; auto: fastgan's where they were measured "
        "faster; torch: PyTorch's only")

    out: str | None = _run(None, optional(kinds.path("a directory"), "nothing is written"),
        "directory of the run, for log, checkpoints and pictures", resume=False)
    if_exists: str = _run("fail", choice(*directory.IF_EXISTS),
        "what to do where out holds a run: fail, overwrite it, or count up to a free name",
        resume=False)
    log_every: int = _run(100, _COUNT, "steps from one log line to the next", resume=False)
    checkpoint_every: int | None = _run(None, optional(_COUNT, "one a minute"),
        "steps from one checkpoint to the next; there is always one at the end")
    keep: int = _run(2, _COUNT, "how many of the last checkpoints stay")
    console: str = _run("auto", choice("auto", "bar", "lines", "none"),
        "progress on the screen; auto: a bar on a terminal, else a line now and then")
    # fmt: on

    def __post_init__(self):
        """Read every value by its kind."""
        for f in fields(self):
            value = f.metadata["kind"].take(f.name, getattr(self, f.name))
            object.__setattr__(self, f.name, value)
        defaults = {name: f.default for name, f in self.__dataclass_fields__.items()}
        together.check(self, defaults)

    # --- what others ask of it --------------------------------------------------------------------

    @property
    def averages(self) -> bool:
        """Whether an average of G's weights is kept."""
        return self.ema is not None or self.ema_half_life is not None

    @property
    def latent(self) -> Latent:
        """What the generator is fed."""
        return latents.latent(self.latent_dim)

    @property
    def rates(self) -> tuple[float, float]:
        """The generator's and the discriminator's learning rate."""
        return self.lr if isinstance(self.lr, tuple) else (self.lr, self.lr)

    def data_options(self) -> dict[str, Any]:
        """What was said of the data, as keywords of `fastgan.data.open`; defaults are left out."""
        accepted = inspect.signature(data_room.open).parameters
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.metadata["group"] == "data"
            and f.name in accepted
            and getattr(self, f.name) != f.default
        }

    def seeded(self) -> Config:
        """With a seed: its own, or one that is drawn now, so that the run can be had again."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(63))

    def with_(self, **changes: Any) -> Config:
        """A copy with other values; ConfigError for names and values that are none.

        A limit (epochs, steps, seconds) stands in the place of all limits that were there before.
        """
        _known(changes)
        if any(changes.get(name) is not None for name in LIMITS):
            changes = {**dict.fromkeys(LIMITS), **changes}
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
            base: as for `with_`. Default: `Config()`.
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
                if found := owned(value):
                    raise ConfigError(
                        f"{name} was {found!r}, an object of your own, which a file cannot hold; "
                        f"pass {name}="
                    )
                changes[name] = field_of(name).metadata["kind"].take_from_file(name, value)
            return (base or cls()).with_(**changes)
        except ConfigError as error:
            raise ConfigError(f"{prefix}{error}") from None

    def differences(self, other: Config) -> list[str]:
        """Each setting that no resume may change and that `other` has otherwise, in words."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{f.name} is {json.dumps(mine[f.name])}, saved {json.dumps(theirs[f.name])}"
            for f in fields(self)
            if not f.metadata["resume"] and mine[f.name] != theirs[f.name]
        ]


def _refusing(init: Callable) -> Callable:
    """A constructor that names the nearest setting where a name is none."""

    @functools.wraps(init)
    def __init__(self, **settings: Any) -> None:
        _known(settings)
        init(self, **settings)

    return __init__


Config.__init__ = _refusing(Config.__init__)

LIMITS = tuple(f.name for f in fields(Config) if f.metadata["group"] == "length")
"""The settings that say when a run ends."""


def field_of(name: str) -> Field:
    """The field of a setting."""
    return Config.__dataclass_fields__[name]


def _known(names: Mapping[str, Any]) -> None:
    for name in names:
        if name not in Config.__dataclass_fields__:
            near = nearest(name, Config.__dataclass_fields__, HINTS)
            raise ConfigError(f"there is no setting {name!r}{near or '; see `fastgan settings`'}")


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
