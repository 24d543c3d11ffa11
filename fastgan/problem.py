"""What a user says about a training problem, checked and made into a `Problem`; and back.

`settings` writes a problem down as numbers and names, which a checkpoint can hold, and `arguments`
makes a trainer's arguments of them again.
"""

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastgan import data as data_room
from fastgan import losses, models, optim
from fastgan.engines.base import PRECISIONS, RAW_SCORES, Problem
from fastgan.run import torch_rng

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adam": optim.Adam, "adamw": optim.AdamW}
"""The optimisers by name: weight_decay is an L2 penalty for the first, decoupled for the second."""


def make_problem(
    generator: nn.Module | None,
    discriminator: nn.Module | None,
    images: data_room.Images,
    *,
    batch_size: int = 64,
    latent_dim: int | tuple[int, ...] = 100,
    loss: str | losses.Game = "non-saturating",
    d_steps: int = 1,
    lr: float | tuple[float, float] = 2e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    label_smoothing: float = 0.0,
    lr_schedule: Callable[[int], float] | None = None,
    ema: float | None = None,
    precision: str = "fp32",
    device: torch.device | str | None = None,
    seed: int = 0,
    penalty: str | losses.Penalty | None = None,
    penalty_weight: float | None = None,
    penalty_every: int | None = None,
) -> Problem:
    """What an engine needs, from what a user says; see `Trainer` for the arguments.

    Moves the networks to the device and makes their optimisers.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    at_least(1, batch_size=batch_size, d_steps=d_steps)
    sizes = (latent_dim,) if isinstance(latent_dim, int) else tuple(latent_dim)
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(
            f"latent_dim is {latent_dim!r}; expected a length of at least 1, or a shape of such"
        )
    rates = tuple(lr) if isinstance(lr, (tuple, list)) else (lr, lr)
    if len(rates) != 2 or not all(0 <= rate < float("inf") for rate in rates):
        raise ValueError(
            f"lr is {lr!r}; expected a finite number of at least 0, or two: (generator's, "
            "discriminator's)"
        )
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas is {betas!r}; expected two numbers in [0, 1)")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {optimizer!r}; expected one of {', '.join(OPTIMIZERS)}")
    # With 0, a weight whose gradients have all been 0 would become 0 / 0.
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps is {eps}; expected a finite number above 0, such as 1e-8")
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay is {weight_decay}; expected a finite number of at least 0")
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"ema is {ema}; expected a decay in [0, 1), such as 0.999, or None")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed!r}; expected an integer in [0, 2**64)")
    device = choose_device(device)
    game = losses.game(loss, label_smoothing)
    penalty = losses.penalty(penalty, penalty_weight, penalty_every)
    if (generator is None) != (discriminator is None):
        raise ValueError(
            "pass both generator and discriminator, or None for both to get the reference pair"
        )
    if generator is None:
        sigmoid = game.name not in RAW_SCORES
        generator, discriminator = reference_pair(latent_dim, images.shape, seed, sigmoid)
    last = len(images) % batch_size
    if (last or min(batch_size, len(images))) == 1:
        for name, network in (("generator", generator), ("discriminator", discriminator)):
            if any(isinstance(m, nn.BatchNorm1d) for m in network.modules()):
                raise ValueError(
                    f"{len(images)} images in batches of {batch_size} leave a batch of one, which "
                    f"the {name}'s BatchNorm1d cannot normalise; choose another batch_size"
                )
    generator.to(device)
    discriminator.to(device)
    average = None
    if ema is not None:
        average = copy.deepcopy(generator).requires_grad_(False)
    kind = OPTIMIZERS[optimizer]
    options = {
        "betas": tuple(map(float, betas)),
        "eps": float(eps),
        "weight_decay": float(weight_decay),
    }
    return Problem(
        generator=generator,
        discriminator=discriminator,
        game=game,
        optimizer_g=kind(generator.parameters(), lr=float(rates[0]), **options),
        optimizer_d=kind(discriminator.parameters(), lr=float(rates[1]), **options),
        data=images,
        batch_size=batch_size,
        latent_dim=latent_dim if isinstance(latent_dim, int) else sizes,
        d_steps=d_steps,
        seed=seed,
        precision=precision,
        device=device,
        lr_schedule=lr_schedule,
        ema=average,
        ema_decay=0.0 if ema is None else float(ema),
        penalty=penalty,
    )


def reference_pair(
    latent_dim: int, image_shape: tuple[int, ...], seed: int, sigmoid: bool = True
) -> tuple[models.Generator, models.Discriminator]:
    """The reference generator and discriminator for such images, their weights drawn from a seed.

    Torch's own random state is left as it was. Without `sigmoid` the discriminator returns raw
    scores; its state dict is the same.
    """
    if not isinstance(latent_dim, int):
        raise ValueError(
            f"latent_dim is {latent_dim!r}; the reference generator takes vectors: give a length"
        )
    at_least(1, latent_dim=latent_dim)
    with torch_rng.seeded(seed, torch.device("cpu")):
        generator = models.Generator(latent_dim, tuple(image_shape))
        discriminator = models.Discriminator(tuple(image_shape))
    if not sigmoid:
        discriminator.model[-1] = nn.Identity()
    return generator, discriminator


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """The device asked for, or CUDA if there is one, else the CPU; ValueError if it is absent."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from error
    return chosen


def open_images(data: Any) -> tuple[data_room.Images, dict[str, Any] | None]:
    """The images of what `Trainer` takes as data, and how to open them again.

    The second is None if names and numbers do not say that: a tensor, a Dataset, opened images.
    """
    if isinstance(data, data_room.Images):
        return data, None
    arguments = dict(data) if isinstance(data, dict) else {"source": data}
    images = data_room.open(**arguments)
    source = arguments.get("source", "digits")
    if not isinstance(source, (str, os.PathLike)):
        return images, None
    # A folder must be found again from another working directory; a data set goes by its name.
    is_path = isinstance(source, os.PathLike) or os.sep in source
    if is_path or (images.name not in data_room.NAMES and os.path.exists(source)):
        arguments["source"] = os.path.abspath(source)
    return images, arguments


_AS_WRITTEN = (
    "batch_size",
    "d_steps",
    "optimizer",
    "weight_decay",
    "eps",
    "label_smoothing",
    "ema",
    "precision",
    "seed",
)


def settings(problem: Problem) -> dict[str, Any]:
    """The problem in plain values, all but its networks, data, functions and device.

    A game that is not one of `fastgan.losses` is marked by "own_loss", a schedule by
    "lr_schedule".
    """
    p = problem
    known = losses.GAMES.get(p.game.name)
    group = p.optimizer_g.param_groups[0]
    return {
        "batch_size": p.batch_size,
        "latent_dim": p.latent_dim if isinstance(p.latent_dim, int) else list(p.latent_dim),
        "loss": p.game.name,
        "own_loss": known is None or p.game != losses.game(p.game.name, p.game.label_smoothing),
        **_written_penalty(p.penalty),
        "d_steps": p.d_steps,
        "lr": [o.param_groups[0]["lr"] for o in (p.optimizer_g, p.optimizer_d)],
        "optimizer": next(n for n, kind in OPTIMIZERS.items() if type(p.optimizer_g) is kind),
        "betas": list(group["betas"]),
        "weight_decay": group["weight_decay"],
        "eps": group["eps"],
        "label_smoothing": float(p.game.label_smoothing),
        "lr_schedule": p.lr_schedule is not None,
        "ema": None if p.ema is None else p.ema_decay,
        "precision": p.precision,
        "seed": p.seed,
    }


def _written_penalty(penalty: losses.Penalty | None) -> dict[str, Any]:
    if penalty is None:
        return {"penalty": None, "own_penalty": False}
    known = losses.PENALTIES.get(penalty.name)
    own = known is None or penalty != losses.penalty(known, penalty.weight, penalty.every)
    return {
        "penalty": penalty.name,
        "own_penalty": own,
        "penalty_weight": penalty.weight,
        "penalty_every": penalty.every,
    }


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `make_problem` that `settings` wrote down, without loss and penalty."""
    latent_dim = settings["latent_dim"]
    return {
        "latent_dim": latent_dim if isinstance(latent_dim, int) else tuple(latent_dim),
        "lr": tuple(settings["lr"]),
        "betas": tuple(settings["betas"]),
        **{name: settings[name] for name in _AS_WRITTEN},
    }


def recipe(network: nn.Module) -> dict[str, Any] | None:
    """How to build a network of ours again, as plain values; None for a user's own."""
    if type(network) is models.Generator:
        return {
            "name": "Generator",
            "latent_dim": network.latent_dim,
            "img_shape": list(network.img_shape),
            "hidden": network.fc[0].out_features,
        }
    if type(network) is models.Discriminator:
        return {
            "name": "Discriminator",
            "img_shape": list(network.img_shape),
            "hidden": network.model[0].out_features,
            "sigmoid": isinstance(network.model[-1], nn.Sigmoid),
        }
    return None


def rebuild(config: dict[str, Any]) -> nn.Module:
    """The network that `recipe` described, with new weights."""
    arguments = {
        name: config[name] for name in ("latent_dim", "img_shape", "hidden") if name in config
    }
    network = getattr(models, config["name"])(**arguments)
    if not config.get("sigmoid", True):
        network.model[-1] = nn.Identity()
    return network


def at_least(least: int, **values: int) -> None:
    """Raise ValueError, naming the argument, for what is no integer or too small."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")
