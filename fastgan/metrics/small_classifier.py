"""A small classifier of 28x28 grey images, trained once and kept, for features and class labels."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import data as data_room
from fastgan import random
from fastgan.data import Data
from fastgan.random import Stream
from fastgan.run import checkpoint, torch_rng

logger = logging.getLogger("fastgan")

SHAPE = (1, 28, 28)
_VERSION = 1
"""Of what is below: another one trains anew."""
_STEPS, _BATCH = 1500, 64


class Classifier(nn.Module):
    """Images [n, 1, 28, 28] in [-1, 1] to `num_features` numbers; `logits` gives those of classes.

    Args:
        classes: how many.
    """

    num_features = 64

    def __init__(self, classes: int):
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 49, self.num_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.num_features, classes)
        self.register_buffer("accuracy", torch.zeros(()))
        """Of the classes of images that it has not seen."""

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        return self.body(images)

    def logits(self, features: Tensor) -> Tensor:
        """The classes' logits, from features."""
        return self.head(features)


def cache() -> Path:
    """Where fastgan keeps what it can make again: XDG_CACHE_HOME, else ~/.cache, and /fastgan."""
    base = os.environ.get("XDG_CACHE_HOME")
    # The standard has relative paths ignored.
    usable = base is not None and os.path.isabs(base)
    return (Path(base) if usable else Path("~/.cache").expanduser()) / "fastgan"


def classifier(data: Data | None = None) -> Classifier:
    """The classifier for some data, on the CPU, in eval mode.

    It is trained on their own labels where they have classes, else on the bundled digits: the first
    time only, from a seed and for a fixed number of steps; then it lies in the user's cache
    directory.

    Args:
        data: 28x28 grey images.

    Raises:
        ValueError: the data are something else.
    """
    if data is not None and tuple(data.shape) != SHAPE:
        raise ValueError(
            f"the classifier is of samples {list(SHAPE)}, and these are {list(data.shape)}; pass a "
            "module of your own as features="
        )
    of = data if data is not None and of_itself(data) else data_room.open("digits")
    identity = of.identity()
    sums = "-".join(map(str, identity["whole"] or (identity["checksum"],)))
    file = cache() / "classifiers" / f"{of.name}-{len(of)}-{sums}-v{_VERSION}.pt"
    with torch.device("cpu"):
        made = Classifier(len(of.classes)).eval()
    if file.is_file():
        try:
            made.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            return made
        except Exception:
            logger.warning("%s is damaged; the classifier is trained again", file)
    logger.warning("training a small classifier of %s once, to be kept as %s", of.name, file)
    _train(made, of)
    logger.warning("of images that it has not seen it knows %.1f %%", 100 * float(made.accuracy))
    file.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_weights(file, made.state_dict())
    return made


def of_itself(data: Data) -> bool:
    """Whether data have what their own classifier is trained on: samples in memory with classes."""
    return data.samples is not None and bool(data.classes) and data.conditional


def _train(made: Classifier, data: Data) -> None:
    n = len(data)
    order = random.permutation(0, 0, n)
    held, kept = order[: n // 10], order[n // 10 :]
    with torch_rng.seeded(0, torch.device("cpu")), torch.device("cpu"):
        fresh = Classifier(len(data.classes))
    made.load_state_dict(fresh.state_dict())
    samples, labels = data.samples, data.condition

    def taken(rows: Tensor) -> tuple[Tensor, Tensor]:
        part = samples[rows.to(samples.device)].cpu().float()
        part = part * (2 / 255) - 1 if samples.dtype == torch.uint8 else part
        return part, labels[rows.to(labels.device)].cpu()

    adam = torch.optim.Adam(made.parameters(), lr=1e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, _STEPS)
    with torch.enable_grad():
        for step in range(_STEPS):
            rows = kept[random.words(0, Stream.ESTIMATE, step, _BATCH) % len(kept)]
            images, wanted = taken(rows)
            adam.zero_grad()
            F.cross_entropy(made.logits(made(images)), wanted).backward()
            adam.step()
            falling.step()
    with torch.no_grad():
        right = 0
        for rows in held.split(500):
            images, wanted = taken(rows)
            right += int((made.logits(made(images)).argmax(1) == wanted).sum())
        made.accuracy.fill_(right / len(held))
