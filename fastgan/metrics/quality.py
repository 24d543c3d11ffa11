"""The quality of a run's samples, by names."""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan import random, sampling
from fastgan.config import ConfigError
from fastgan.config.kinds import integer
from fastgan.data.batch import tensors_of
from fastgan.distributed import World
from fastgan.metrics.features import (
    ALONE,
    Features,
    batches,
    features_of,
    is_label,
    real_features,
)
from fastgan.metrics.sets import manifold, nearest, sliced_wasserstein
from fastgan.metrics.tables import asked_for, evaluate_table
from fastgan.random import Stream
from fastgan.run import log, pictures, torch_rng

if TYPE_CHECKING:
    from fastgan.trainer import Trainer

_BATCH = 256


@dataclass(frozen=True)
class _Sets:
    """What metrics compare."""

    features: Features
    real: Tensor
    fake: Tensor
    labels: Tensor | None
    asked: Tensor | None


@dataclass(frozen=True)
class Metric:
    """One measure.

    Attributes:
        help: what it is, and its source.
        of: of two sets of features.
        needs: "" or "torchmetrics".
    """

    help: str
    of: Callable[[_Sets], float]
    needs: str = ""


class _Given(nn.Module):
    """Stands for an extractor where features are there already."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x


def _torchmetrics(name: str) -> Any:
    try:
        import torchmetrics.image
    except ImportError as error:
        raise ConfigError(
            f"FID, KID and the Inception score are computed by torchmetrics, which is not here "
            f"({error}): pip install 'fastgan[metrics]', or ask for metrics without it: "
            f"{', '.join(n for n, m in METRICS.items() if not m.needs)}"
        ) from error
    return getattr(torchmetrics.image, name)


def _fid(sets: _Sets) -> float:
    metric = _torchmetrics("FrechetInceptionDistance")(_Given(sets.real.shape[1]))
    return _compared(metric.set_dtype(torch.float64), sets)


def _kid(sets: _Sets) -> float:
    size = min(1000, len(sets.real), len(sets.fake))
    metric = _torchmetrics("KernelInceptionDistance")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features, which are here anyhow
        made = metric(_Given(sets.real.shape[1]), subset_size=size)
    return _compared(made, sets)


def _compared(metric: Any, sets: _Sets) -> float:
    metric = metric.to(sets.real.device)
    metric.update(sets.real, real=True)
    metric.update(sets.fake, real=False)
    value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)


def _inception_score(sets: _Sets) -> float:
    if sets.features.logits is None:
        raise ConfigError(
            f"the Inception score needs classes, and {sets.features.name} has none; pass "
            "fastgan.metrics.Features with logits="
        )
    metric = _torchmetrics("InceptionScore")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = metric(_Given(0), splits=min(10, len(sets.fake))).to(sets.fake.device)
    with torch.no_grad():
        made.update(sets.features.logits(sets.fake))
    return float(made.compute()[0])


def _of_manifold(name: str) -> Callable[[_Sets], float]:
    return lambda sets: manifold(sets.real, sets.fake)[name]


def _agreement(sets: _Sets) -> float:
    if sets.asked is None or not sets.features.classes:
        raise ConfigError(
            "label agreement needs a generator that takes classes, and features of a classifier of "
            "the same classes (28x28 grey images with labels have one, or pass "
            "fastgan.metrics.Features with logits= and classes=True)"
        )
    with torch.no_grad():
        found = sets.features.logits(sets.fake).argmax(1)
    return float((found == sets.asked).double().mean())


METRICS: dict[str, Metric] = {
    "fid": Metric("Frechet distance of features (Heusel et al. 2017)", _fid, "torchmetrics"),
    "kid": Metric("kernel distance of features (Binkowski et al. 2018)", _kid, "torchmetrics"),
    "is": Metric("Inception score (Salimans et al. 2016)", _inception_score, "torchmetrics"),
    "precision": Metric(
        "share of samples among the data (Kynkaanniemi et al. 2019)", _of_manifold("precision")
    ),
    "recall": Metric(
        "share of the data among samples (Kynkaanniemi et al. 2019)", _of_manifold("recall")
    ),
    "density": Metric(
        "data around each sample, over what is usual (Naeem et al. 2020)", _of_manifold("density")
    ),
    "coverage": Metric(
        "share of the data with a sample nearby (Naeem et al. 2020)", _of_manifold("coverage")
    ),
    "swd": Metric(
        "sliced Wasserstein distance of features (Rabin et al. 2011)",
        lambda sets: sliced_wasserstein(sets.real, sets.fake),
    ),
    "agreement": Metric("share of samples that a classifier takes for the class asked", _agreement),
}
"""What can be asked for."""


def _possible(features: Features, asks: bool) -> list[str]:
    """The metrics that there is everything for."""
    have = importlib.util.find_spec("torchmetrics") is not None
    out = {"is"} if features.logits is None else set()
    out |= set() if asks and features.classes else {"agreement"}
    return [n for n, m in METRICS.items() if n not in out and (have or not m.needs)]


def evaluate(
    trainer: Trainer,
    metrics: str | Sequence[str] | None = None,
    n: int | None = None,
    *,
    features: Any = None,
    per_class: bool = False,
    batch_size: int = _BATCH,
) -> dict[str, Any]:
    """Compare n samples of a run with n of its data.

    Samples are made and compared batch by batch, on the device; only features are kept. Those of
    the data are kept in the user's cache directory as well. The run is left as it is; what was
    found is added to the quality.jsonl of its directory, if it has one. Of several ranks all call
    it: each makes a part of the features, and all are told the same numbers.

    Args:
        trainer: the run.
        metrics: names, of `METRICS`, of a run on a table of `TABLE_METRICS`. Default: all that
            there is everything for.
        n: how many of each. Default: 10,000, or as many as the data have.
        features: a module that takes samples and gives [n, d], or `Features`; see `features_of`.
        per_class: also of each class by itself, where samples are made for classes.
        batch_size: samples at a time.

    Returns:
        each metric by its name, "n", "features" (what they are), "seconds", and with `per_class`
        "per_class": the same metrics by the class's name.

    Raises:
        ConfigError: a name that is none, or something that a metric needs is not here.
    """
    began = time.perf_counter()
    p = trainer.problem
    if p.divided:  # each rank makes samples of its own, and G's passes are of all together
        raise ConfigError(
            "features of samples are not made where networks are divided over the ranks; save the "
            "run, and evaluate it in one process with networks that are not"
        )
    if p.data.table is not None:
        return _of_rows(trainer, metrics, n, began)
    wanted = asked_for(metrics, METRICS, "expected of")
    n = min(10_000, len(p.data)) if n is None else min(integer(2).take("n", n), len(p.data))
    labelled = p.conditioned[1] and is_label(p.data.blank(1).condition)
    if per_class and not labelled:
        raise ConfigError("per_class: the generator of this run takes no classes")
    made_by = _of_first(trainer, features)
    names = wanted or _possible(made_by, labelled)
    for name in names:
        if METRICS[name].needs:
            _torchmetrics("FrechetInceptionDistance")
    with torch_rng.seeded(p.seed, p.device):
        real, labels = real_features(made_by, p.data, n, batch_size, p.world)
        made = [
            (made_by.of(samples).cpu(), condition.cpu() if labelled else None)
            for samples, condition in fakes(trainer, n, batch_size, p.world)
        ]
        fake, asked = zip(*p.world.joined(made), strict=True)
        asked = torch.cat(asked).to(real.device) if labelled else None
        sets = _Sets(made_by, real, torch.cat(fake).to(real.device), labels, asked)
        found = _all(names, sets)
        if per_class:
            found["per_class"] = dict(_by_class(names, sets, p.data.classes))
    seconds = time.perf_counter() - began
    found |= {"n": n, "features": made_by.name, "seconds": round(seconds, 3)}
    return _kept(trainer, found)


def _of_first(trainer: Trainer, features: Any) -> Features:
    """What makes features; where a classifier has to be trained first, the first rank does."""
    made, world, data = None, trainer.world, trainer.data
    if world.leads:
        with suppress(ConfigError):  # which every rank meets below
            made = features_of(data, features)
    world.meet()
    return features_of(data, features) if made is None else made


def _of_rows(trainer: Trainer, metrics: Any, n: int | None, began: float) -> dict[str, Any]:
    """The metrics of `TABLE_METRICS` of a run on a table, beside its own rows."""
    data, table = trainer.data, trainer.data.table
    n = min(10_000, len(data)) if n is None else min(integer(2).take("n", n), len(data))
    rows = random.uniform(trainer.problem.seed, Stream.ESTIMATE, 0, len(data)).argsort()[:n]
    real = table.decoded(data.rows_at(rows))
    found = evaluate_table(real, table.decoded(trainer.sample(n)), table, metrics)
    seconds = time.perf_counter() - began
    found |= {"n": n, "features": "columns", "seconds": round(seconds, 3)}
    return _kept(trainer, found)


def _kept(trainer: Trainer, found: dict[str, Any]) -> dict[str, Any]:
    if trainer.out is not None:
        log.keep_quality(trainer.out, {"step": trainer.step, "data": trainer.data.name, **found})
    return found


def fakes(
    trainer: Trainer, n: int, batch_size: int, world: World = ALONE
) -> Iterator[tuple[Tensor, Any]]:
    """n samples of a run, made for the conditions of as many of its data; see `batches`."""
    p = trainer.problem
    given = batches(p.data, n, batch_size, world) if p.conditioned[1] else None
    for at in range(world.rank * batch_size, n, world.size * batch_size):
        size = min(batch_size, n - at)
        condition = None if given is None else next(given)[1]
        size = size if given is None else len(next(tensors_of(condition)))
        # Each batch has latents of a seed of its own, apart from those of `Trainer.sample`.
        seed = (p.seed + 1 + at) % 2**64
        network = trainer.problem.sampled
        yield (
            sampling.sample(network, size, p.latent, seed, p.device, p.data.drawable, condition),
            condition,
        )


def _all(names: Sequence[str], sets: _Sets) -> dict[str, float]:
    # One look at the distances tells all four.
    found: dict[str, float] = {}
    four = ("precision", "recall", "density", "coverage")
    if any(name in four for name in names):
        found = manifold(sets.real, sets.fake)
    return {name: found[name] if name in four else METRICS[name].of(sets) for name in names}


def _by_class(
    names: Sequence[str], sets: _Sets, classes: tuple[str, ...] | None
) -> Iterator[tuple[str, dict[str, float]]]:
    for label in sets.labels.unique().tolist():
        real, fake = sets.labels == label, sets.asked == label
        name = classes[label] if classes else str(label)
        one = _Sets(
            sets.features, sets.real[real], sets.fake[fake], sets.labels[real], sets.asked[fake]
        )
        yield name, _all(names, one)


def draw_neighbours(trainer: Trainer, path: str | os.PathLike, n: int = 8, k: int = 7) -> None:
    """Write a PNG: a sample a row, and beside it the k nearest of the data, the nearest first.

    What a generator has learned by heart has itself beside it.

    Args:
        trainer: the run.
        path: the file.
        n: samples.
        k: neighbours of each.

    Raises:
        ConfigError: samples are no images.
    """
    p = trainer.problem
    if not p.data.drawable:
        raise ConfigError(
            f"neighbours are drawn of images, and a sample of {p.data.name} is {list(p.data.shape)}"
        )
    samples = trainer.sample(n)
    found = samples.new_empty((len(samples), 0, *p.data.shape))
    for real, _ in batches(p.data, len(p.data), _BATCH):
        # The nearest so far compete with each batch, so that data need not lie in memory.
        rows = []
        for sample, before in zip(samples, found, strict=True):
            candidates = torch.cat((before, real))
            where, _ = nearest(sample[None], candidates, k)
            rows.append(candidates[where[0]])
        found = torch.stack(rows)
    pictures.grid(torch.cat((samples[:, None], found), 1).flatten(0, 1), path, 1 + found.shape[1])
