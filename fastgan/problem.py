"""A training problem: the description of a run together with what is alive in it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fastgan import conditions, engines, games, losses, models, ops, optim, schedules, sharded
from fastgan import config as config_room
from fastgan import data as data_room
from fastgan.augment import Augmentation
from fastgan.config import Config, ConfigError, takes_settings
from fastgan.distributed import World
from fastgan.engines import probe
from fastgan.latents import Latent
from fastgan.method import LossMethod, Method
from fastgan.run import torch_rng

logger = logging.getLogger("fastgan")


@dataclass(frozen=True)
class Problem:
    """Everything that a training step needs.

    Frozen, because its parts decide the bits of a run. What may change between two calls of
    `Engine.run` lives inside them: the tensors of the modules, and the optimisers' numbers and
    state.
    """

    config: Config
    generator: nn.Module
    """Latents [b, *latent_shape] to samples [b, *data.shape]; images in [-1, 1]."""
    discriminator: nn.Module
    """Samples to one score each, [b], [b, 1] or any shape of b elements; to one of each n samples
    together, [b / n] or [b / n, 1]; or to what the method takes."""
    method: Method
    """What both minimise."""
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    data: data_room.Data
    device: torch.device
    ema: nn.Module | None = None
    """A copy of the generator that receives the running average of its weights."""
    precision: str = "fp32"
    """fp32; bf16: products in bfloat16, weights and sums in float32; fp16: likewise, with each
    network's loss scaled by a torch.amp.GradScaler."""
    scalers: tuple[torch.amp.GradScaler, torch.amp.GradScaler] | None = None
    """The discriminator's and the generator's, with precision fp16."""
    world: World = World()
    latent: Latent = Latent((100,))
    conditioned: tuple[bool, bool] = (False, False)
    """Whether D and G are given the condition beside the sample or latent."""
    augmentation: Augmentation | None = None
    """What images go through before D sees them."""
    continued: str | None = None
    """The engine of the run that is continued; None for a new run."""

    batch_size = property(lambda self: self.config.batch_size)
    d_steps = property(lambda self: self.config.d_steps)
    g_steps = property(lambda self: self.config.g_steps)
    seed = property(lambda self: self.config.seed)
    drop_last = property(lambda self: self.config.drop_last)
    terms = property(lambda self: self.config.terms)
    lr_schedule = property(lambda self: self.config.lr_schedule)

    @property
    def sampled(self) -> nn.Module:
        """What samples are drawn from: the average of G, or G itself if none is kept."""
        # By None: a network may have a length, and that may be 0.
        return self.generator if self.ema is None else self.ema

    @property
    def ema_decay(self) -> float:
        """The decay of G's average, once it is warm."""
        half_life = self.config.ema_half_life
        return self.config.ema or 0.0 if half_life is None else 0.5 ** (self.batch_size / half_life)

    def ema_new(self, step: int) -> float:
        """The share of G's weights in their average after a step.

        While it is warming up, the average's half-life grows with the images so far; in the first
        step it is the weights.
        """
        decay, warmup = self.ema_decay, self.config.ema_warmup
        if warmup is not None and decay > 0.0:
            decay = min(decay, 0.5 ** (1.0 / (warmup * step))) if step else 0.0
        return 1.0 - decay

    @cached_property
    def divided(self) -> bool:
        """Whether weights of a network are divided over the ranks."""
        return any(map(sharded.is_divided, (self.generator, self.discriminator)))

    @property
    def loss(self) -> losses.Loss | None:
        """The loss of a plain game; None if the method is another."""
        return self.method.loss if isinstance(self.method, LossMethod) else None

    @property
    def penalties(self) -> tuple[losses.Penalty, ...]:
        """The penalties of a plain game."""
        return self.method.penalties if isinstance(self.method, LossMethod) else ()

    @property
    def uses_conditions(self) -> bool:
        """Whether a step needs what came with the samples."""
        asks = not isinstance(self.method, LossMethod) or bool(self.terms) or any(self.conditioned)
        return asks and self.data.conditional

    @property
    def batches_per_epoch(self) -> int:
        """Updates of D in a pass over the data."""
        return self.data.batches_per_epoch(self.batch_size, self.drop_last)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every batch of an epoch has been seen."""
        return -(-self.batches_per_epoch // self.d_steps)


@takes_settings("data")
@torch.inference_mode(False)  # around everything, it would make weights that nothing can train
def make_problem(
    generator: nn.Module | None,
    discriminator: nn.Module | None,
    data: data_room.Data,
    config: Config | None = None,
    **overrides: Any,
) -> Problem:
    """What an engine needs, from what a user says.

    Moves the networks to the device and makes their optimisers; sets torch's threads, if `threads`
    is given.

    Args:
        generator: latents to samples; None for that of the setting `model`.
        discriminator: samples to one score each; None likewise.
        data: the samples, opened.
        config: the settings; `**overrides` are laid over it.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    world = World.here()
    config = config_room.settings_of(config, overrides)
    if config.seed is None:
        config = config.with_(seed=world.first(config.seeded().seed))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device, world)
    data = data.to(device, config.budget_bytes)
    method = games.method(config.method) or LossMethod(
        losses.loss(config.loss, config.label_smoothing), config.penalties
    )
    if isinstance(discriminator, Mapping):
        discriminator = nn.ModuleDict(discriminator)
    if (generator is None) != (discriminator is None):
        raise ConfigError(
            "pass both generator and discriminator, or None for both to get the pair of `model`"
        )
    if generator is None:
        generator, discriminator = make_pair(config, data, method)
    both = {"generator": generator, "discriminator": discriminator}
    for name, network in both.items():
        _check_network(name, network)
    _check_apart(config, generator, discriminator)
    if unsuited := sharded.unsuited(both, config, len(data), world, device):
        raise ConfigError(unsuited)
    for network in both.values():
        network.to(device, memory_format=torch.channels_last if config.channels_last else None)
    if isinstance(config.method, str):
        unsuited = method.unsuited(generator, discriminator, config.batch_size)
        if unsuited is not None:
            raise ConfigError(f"method {config.method!r} {unsuited}")
    conditioned = _conditioned(generator, discriminator, data, config)
    world.spread_(
        t for m in (generator, discriminator) for t in (*m.state_dict(keep_vars=True).values(),)
        if isinstance(t, torch.Tensor) and not sharded.is_part(t)
        and not isinstance(t, nn.parameter.UninitializedTensorMixin)
    )  # fmt: skip
    if schedules.needs_end(config.lr_schedule):
        config = config.with_(lr_schedule=_ending(config, data))
    average = None
    if config.averages:
        average = copy_of(generator, "generator", "ema")
        for weight in average.parameters():  # TorchScript's modules have no requires_grad_
            weight.requires_grad_(False)
    kinds = config.optimizer if isinstance(config.optimizer, tuple) else (config.optimizer,) * 2
    networks = (("generator", generator), ("discriminator", discriminator))
    optimizer_g, optimizer_d = (
        _make_optimizer(kind, name, network, lr, config)
        for kind, (name, network), lr in zip(kinds, networks, config.rates, strict=True)
    )
    augmentation = _augmentation(config, data, device, method)
    scalers = None
    if config.precision == "fp16":
        scalers = tuple(torch.amp.GradScaler(device.type) for _ in range(2))

    def problem(precision: str) -> Problem:
        return Problem(
            config=config,
            generator=generator,
            discriminator=discriminator,
            method=method,
            optimizer_g=optimizer_g,
            optimizer_d=optimizer_d,
            data=data,
            device=device,
            ema=average,
            precision=precision,
            scalers=scalers,
            world=world,
            latent=config.latent,
            conditioned=conditioned,
            augmentation=augmentation,
        )

    if config.precision != "auto":
        return problem(config.precision)
    # Where it was measured faster: whole steps in C++, on some of the processors.
    if ops.has_fast_bf16(device) and config.engine in ("auto", "fused"):
        in_bf16 = problem("bf16")
        if engines.load("fused").unsupported(in_bf16) is None:
            return in_bf16
    return problem("fp32")


def _conditioned(
    generator: nn.Module, discriminator: nn.Module, data: data_room.Data, config: Config
) -> tuple[bool, bool]:
    """Whether D and G are given conditions; ConfigError if they need some and there are none."""
    asked = (
        conditions.asked_for(discriminator),
        conditions.asked_for(generator, first=config.latent.shape is not None),
    )
    # What a method gives D as a second argument may be something else.
    needs = config.method is None and asked[0][1], asked[1][1]
    for needing, name in zip(needs, ("discriminator", "generator"), strict=True):
        if needing and not data.conditional:
            raise ConfigError(
                f"the {name}'s forward takes a condition beside its input, and data {data.name!r} "
                "have none; give data with labels (pairs, a folder for each class, "
                "data.open((samples, labels))), or give the argument a default"
            )
    takes = tuple(given and data.conditional for given, _ in asked)
    networks = ((discriminator, True), (generator, config.latent.shape is not None))
    names = ("discriminator", "generator")
    for given, name, (network, first) in zip(takes, names, networks, strict=True):
        hidden = None if given or not data.conditional else conditions.hidden_from(network, first)
        if hidden is not None and (name == "generator" or config.method is None):
            logger.warning(
                "the %s's forward takes %s and is not given the condition that data %r have; name "
                "it as the second argument, such as forward(self, x, y), to have it given",
                name, hidden, data.name,
            )  # fmt: skip
    if config.latent.shape is None and not takes[1]:
        raise ConfigError(
            "latent_dim is None, so the generator must take a condition, and its forward takes no "
            "argument"
        )
    return takes


def make_pair(config: Config, data: data_room.Data, method: Method) -> tuple[nn.Module, nn.Module]:
    """The generator and discriminator of `config.model`, their weights drawn from the seed.

    Torch's own random state is left as it was. Where a D may end in a Sigmoid, it does unless the
    loss wants raw scores; its state dict is the same.
    """
    heads, classes = None, conditions.class_count(data)
    if data.table is not None:
        heads = data.table.layout.heads
        classes = data.table.layout.conditions if data.conditional else None
    form = models.Form(tuple(data.shape), classes, heads)
    sigmoid = isinstance(method, LossMethod) and method.loss.scores != "raw"
    with torch_rng.seeded(config.seed, torch.device("cpu")):
        return models.make(config.model, form, config.latent_dim, config.width, sigmoid=sigmoid)


def choose_device(
    device: torch.device | str | None = None, world: World | None = None
) -> torch.device:
    """The device asked for, or CUDA if there is one, else the CPU; ValueError if it is absent.

    A rank among several takes a GPU of its own, unless one is named by its number.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device) == "cuda" and world is not None and world.size > 1:
        device = world.device
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"device {str(device)!r} cannot be used: {reason}") from error
    if chosen.type == "meta":
        raise ConfigError("device 'meta' cannot be used: its tensors have no values")
    return torch.device("cpu") if chosen.type == "cpu" else chosen  # "cpu:0" is no other


def open_data(data: Any, config: Config) -> tuple[data_room.Data, Config]:
    """The data of a run, and the config with what reopens it.

    Args:
        data: what `fastgan.data.open` takes, or what it returned; None for `config.data`.
        config: its settings of the data are given to `fastgan.data.open`.
    """
    data = config.data if data is None else data
    if data is None:
        raise ConfigError("data is None; pass a name, a path, a tensor or a Dataset")
    options = config.data_options()
    if isinstance(data, data_room.Data):
        for name in options.keys() - {"budget_bytes"}:
            if config.to_dict()[name] != data.options.get(name):
                raise ConfigError(
                    f"{name} was given, but the data are already open; give it to fastgan.data.open"
                )
        opened = data
    else:
        opened = data_room.open(data, **options)
    return opened, config.with_(data=opened.source, **opened.options)


def copy_of(network: nn.Module, name: str, why: str) -> nn.Module:
    """A deep copy of a network, in whatever state it is, with its hooks.

    Raises:
        ValueError: the network cannot be copied; the message has `name` and `why` it was to be.
    """
    try:
        with torch.no_grad():  # copies of TorchScript's weights would depend on them
            return probe.copied((network,), hooks=True)[0]
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{name} cannot be copied, which {why} needs: {reason}. If it has lazy layers, call it "
            "once on a batch before; if a layer keeps something that cannot be copied, give the "
            "layer a __deepcopy__"
        ) from error


def _ending(config: Config, data: data_room.Data) -> Any:
    """The schedule, to the end that the limits set: as saved, so that a resume keeps to it."""
    per_epoch = -(-data.batches_per_epoch(config.batch_size, config.drop_last) // config.d_steps)
    ends = [] if config.steps is None else [config.steps]
    ends += [] if config.epochs is None else [config.epochs * per_epoch]
    if not ends:
        raise ConfigError(
            f"lr_schedule is {config.to_dict()['lr_schedule']!r}, and nothing says where it ends; "
            "give the step, as in 'cosine:10000', or the setting steps= or epochs= of the run"
        )
    return schedules.with_end(config.lr_schedule, min(ends))


def _augmentation(
    config: Config, data: data_room.Data, device: torch.device, method: Method
) -> Augmentation | None:
    if config.augment is None:
        return None
    if data.kind != "image" or len(data.shape) != 3:
        raise ConfigError(
            f"augment is {str(config.augment)!r}, which is for images, and the samples of data "
            f"{data.name!r} are {list(data.shape)} ({data.kind}); leave it out"
        )
    # Where scores of real samples are to be 1 and of fake ones 0, D is undecided between.
    loss = method.loss if isinstance(method, LossMethod) else None
    halfway = loss is not None and (loss.scores == "probabilities" or loss.name == "least-squares")
    return Augmentation(config.augment, device, config.batch_size, 0.5 if halfway else 0.0)


def _check_network(name: str, network: Any) -> None:
    if not isinstance(network, nn.Module):
        of_class = isinstance(network, type) and issubclass(network, nn.Module)
        hint = f": {network.__name__} is a class; pass {network.__name__}(...)" if of_class else ""
        raise ConfigError(f"{name} is a {type(network).__name__}; expected an nn.Module{hint}")
    for path, p in network.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ConfigError(
                f"{name}.{path} has no shape yet (a lazy layer); call the {name} once on a batch"
            )
        if p.is_inference():
            raise ConfigError(
                f"{name}.{path} was made within torch.inference_mode(), and such a tensor is never "
                f"trained; make the {name} outside of it"
            )
    trained = [p for p in network.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError(
            f"{name} has no weight to train"
            + (": requires_grad is False for all" if list(network.parameters()) else "")
        )


def _check_apart(config: Config, generator: nn.Module, discriminator: nn.Module) -> None:
    of_d = {id(w): name for name, w in discriminator.named_parameters() if w.requires_grad}
    for name, w in generator.named_parameters() if config.shared_fakes else ():
        if id(w) in of_d:
            raise ConfigError(
                f"shared_fakes keeps a pass of G during D's update, which moves generator.{name}: "
                f"it is discriminator.{of_d[id(w)]}, too; leave shared_fakes out"
            )


def _make_optimizer(
    kind: Any, name: str, network: nn.Module, lr: float, config: Config
) -> torch.optim.Optimizer:
    """The optimiser of a network, of a word, a class, a factory, or made by the user."""
    setting = f"optimizer of the {name}"
    given = {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    maker = optim.OPTIMIZERS[kind] if isinstance(kind, str) else kind
    taken: dict[str, Any] = {}
    if isinstance(maker, type) and issubclass(maker, torch.optim.Optimizer):
        accepted = inspect.signature(maker).parameters
        taken = {"lr": lr, **{k: v for k, v in given.items() if k in accepted}}
    for k in ("lr", *given):
        if k not in taken and getattr(config, k) != config_room.field_of(k).default:
            raise ConfigError(
                f"{k} was given, but the {setting} does not take it from the settings; set it "
                "where the optimiser is made"
            )
    made = maker
    if not isinstance(maker, torch.optim.Optimizer):
        try:
            made = maker(network.parameters(), **taken)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"{setting}: {kind!r} failed: {reason}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(
            f"{setting}: {kind!r} gave a {type(made).__name__}; expected a torch.optim.Optimizer"
        )
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"{setting}: {type(made).__name__} does not suit, as its step needs a closure; use one "
            "that steps by gradients alone"
        )
    held = {id(p) for group in made.param_groups for p in group["params"]}
    if not any(id(p) in held for p in network.parameters() if p.requires_grad):
        raise ConfigError(f"{setting} holds none of the {name}'s weights; make it of them")
    return made
