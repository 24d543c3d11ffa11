"""What samples are compared by: numbers that a network makes of each, kept of the real ones."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.config import ConfigError
from fastgan.data import Data
from fastgan.data.batch import map_condition
from fastgan.distributed import World
from fastgan.metrics.small_classifier import SHAPE, cache, classifier, of_itself
from fastgan.run import checkpoint

logger = logging.getLogger("fastgan")

ALONE = World()

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""The weights that Inception scores and distances of the literature are of, as torch-fidelity has
them."""


@dataclass(frozen=True)
class Features:
    """What makes features.

    Attributes:
        name: for people.
        network: samples [n, *shape] to [n, d].
        logits: features to the logits of classes, which the Inception score needs; or None.
        classes: whether those classes are those of the data.
        prepare: from samples in [-1, 1] to what the network takes.
    """

    name: str
    network: nn.Module
    logits: Callable[[Tensor], Tensor] | None = None
    classes: bool = False
    prepare: Callable[[Tensor], Tensor] = lambda x: x

    @torch.no_grad()
    def of(self, samples: Tensor) -> Tensor:
        """float32 [n, d], in eval mode."""
        modes = [(m, m.training) for m in self.network.modules()]
        self.network.eval()
        try:
            made = self.network(self.prepare(samples))
        finally:
            for m, training in modes:
                m.training = training
        if not isinstance(made, Tensor) or len(made) != len(samples):
            got = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ConfigError(
                f"features: {self.name} gave {got} for {len(samples)} samples; expected a tensor "
                "[n, d]"
            )
        return made.flatten(1).float()

    def fingerprint(self) -> str:
        """What tells this from others: what the network is, and its weights."""
        sums = hashlib.sha256(f"{type(self.network).__qualname__}\n{self.network!r}".encode())
        for name, value in self.network.state_dict().items():
            sums.update(name.encode())
            sums.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return sums.hexdigest()[:16]


def features_of(data: Data, given: Any = None) -> Features:
    """The features that samples of some data are compared by.

    Args:
        data: what the samples are like.
        given: a module or a `Features` of the user's own. Default: of 28x28 grey images a small
            classifier (see `classifier`), of other images Inception, of all else the values.

    Raises:
        ConfigError: it is none, or Inception's weights are not here.
    """
    if isinstance(given, Features):
        made = given
    elif isinstance(given, nn.Module):
        made = Features(type(given).__name__, given)
    elif given is not None:
        raise ConfigError(
            f"features is a {type(given).__name__}; expected an nn.Module that takes samples in "
            "[-1, 1] and gives [n, d], or a fastgan.metrics.Features"
        )
    elif tuple(data.shape) == SHAPE:
        network = classifier(data)
        made = Features("a classifier of 28x28 images", network, network.logits, of_itself(data))
    elif data.drawable:
        made = _inception()
    else:
        made = Features("the values", nn.Flatten())
    made.network.to(data.device)
    return made


def _inception() -> Features:
    places = [Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION, cache() / INCEPTION]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ConfigError(
            f"features of images are Inception's, whose weights are not on this machine: put "
            f"{INCEPTION} (of torch-fidelity's release v0.2.0) at {places[0]}, or pass a module of "
            "your own as features="
        )
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
    except ImportError as error:
        raise ConfigError(
            f"Inception needs torchmetrics and torch-fidelity ({error}): pip install "
            "'fastgan[metrics]' torch-fidelity, or pass a module of your own as features="
        ) from error

    def bytes_of(samples: Tensor) -> Tensor:
        pixels = ((samples.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels

    return Features("Inception v3", network, _logits_of(network), False, bytes_of)


def _logits_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
    # Without the last layer's bias, as the Inception score has been from the first.
    return lambda features: features @ network.fc.weight.T


def real_features(
    features: Features, data: Data, n: int, batch_size: int, world: World = ALONE
) -> tuple[Tensor, Tensor | None]:
    """Features of n of the data, float32 [n, d], and their labels if they have such.

    They are kept in the first rank's cache directory under what tells the data and the network from
    others; where they are not there yet, every rank makes its part.
    """
    file = _place(features, data, n) if world.leads else None
    held = None if file is None else _held(file, data.device)
    if not world.first(held is not None):
        made = [
            (features.of(samples).cpu(), condition.cpu() if is_label(condition) else None)
            for samples, condition in batches(data, n, batch_size, world)
        ]
        found, labels = zip(*world.joined(made), strict=True)
        held = {"features": torch.cat(found)}
        if labels[0] is not None:
            held["labels"] = torch.cat(labels)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.save_weights(file, held)
    elif world.size > 1:
        # The first item is the first rank's.
        held = world.joined([{k: v.cpu() for k, v in held.items()} if held else None])[0]
    held = {name: value.to(data.device) for name, value in held.items()}
    return held["features"], held.get("labels")


def _place(features: Features, data: Data, n: int) -> Path | None:
    """Where the features of some data are kept; None for data that cannot be told from others."""
    identity = data.identity()
    if identity["checksum"] is None:
        return None
    # A name is no difference, and nor is where the data are from.
    about = {k: v for k, v in identity.items() if k != "name"}
    key = json.dumps([about, features.fingerprint(), n], sort_keys=True)
    return cache() / "features" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.pt"


def _held(file: Path, device: torch.device) -> dict[str, Tensor] | None:
    try:
        held = torch.load(file, map_location=device, weights_only=True)
        return {"features": held["features"], **held}
    except FileNotFoundError:
        return None
    except Exception:
        logger.warning("%s is damaged; the features are made again", file)
        return None


def is_label(condition: Any) -> bool:
    """Whether a condition is a class for each sample."""
    return (
        isinstance(condition, Tensor) and condition.dim() == 1 and not condition.is_floating_point()
    )


def batches(
    data: Data, n: int, batch_size: int, world: World = ALONE
) -> Iterator[tuple[Tensor, Any]]:
    """n of the data in an order of their own, each once, and what belongs to them.

    Args:
        data: the data.
        n: at most as many as they are.
        batch_size: of each batch but the last.
        world: of several ranks each has its batches, in turn.
    """
    batch_size = min(batch_size, len(data))
    for update in range(world.rank, -(-n // batch_size), world.size):
        samples, condition = data.batch(0, update, batch_size)
        left = n - update * batch_size
        if len(samples) > left:
            samples = samples[:left]
            condition = map_condition(lambda part: part[:left], condition)  # noqa: B023
        yield samples, condition
