"""Rows of generators that learned a table, and of runs on one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan import problem, resuming, sampling
from fastgan.config.kinds import integer
from fastgan.data import DataError
from fastgan.data.rows import frequent
from fastgan.data.table import Table, conditions, read
from fastgan.latents import Latent, latent
from fastgan.models import CTGANGenerator
from fastgan.run import log

if TYPE_CHECKING:
    import pandas

_AT_ONCE = 1 << 16


def made(
    generator: CTGANGenerator,
    table: Table,
    n: int,
    seed: int,
    given: dict[Any, Any] | None = None,
) -> Tensor:
    """n encoded rows of a generator, by the latents of a seed.

    Args:
        generator: wherever it lies.
        table: what its rows mean.
        n: how many.
        seed: of the latents.
        given: values of discrete columns that are asked for. Default: they are as frequent as in
            the table.
    """
    n = integer(1).take("n", n)
    device = next(generator.parameters()).device
    asked = None
    if given:
        asked = conditions(table, given)[None]
    elif table.discrete:
        asked = frequent(table, n, seed)
    found = []
    for at in range(0, n, _AT_ONCE):
        count = min(_AT_ONCE, n - at)
        condition = None
        if asked is not None:
            condition = (asked.expand(count, -1) if given else asked[at : at + count]).to(device)
        found.append(
            sampling.sample(
                generator, count, latent(generator.latent_dim), (seed + at) % 2**64, device, False,
                condition,
            ).cpu()
        )  # fmt: skip
    return torch.cat(found)


def sample_run(
    path: str | os.PathLike,
    n: int,
    *,
    seed: int | None = None,
    device: str | None = None,
    conditions: dict[Any, Any] | None = None,
) -> pandas.DataFrame:
    """Rows of the generator of a run on a table.

    Args:
        path: the directory of the run, or a checkpoint in it.
        n: how many.
        seed: of the rows. Default: the run's.
        device: where they are made.
        conditions: values of discrete columns that are asked for.

    Raises:
        CheckpointError: missing, damaged or not fitting, as for `Trainer.resume`.
        DataError: the run is not one on a table.
    """
    table, generator, state, _ = run_of(path)
    generator.to(problem.choose_device(device))
    fed, own = sampling.latents_of(state["config"])
    return rows(generator, table, n, fed, own if seed is None else seed, conditions)


def rows(
    generator: nn.Module,
    table: Table,
    n: int,
    latent: Latent,
    seed: int,
    given: dict[Any, Any] | None = None,
) -> pandas.DataFrame:
    """n rows of a generator of any kind, by the latents of a seed; `given` as for `made`."""
    if isinstance(generator, CTGANGenerator):
        return table.decoded(made(generator, table, n, seed, given))
    where = next(generator.parameters()).device
    return table.decoded(sampling.sample(generator, n, latent, seed, where, False))


def evaluate_run(
    path: str | os.PathLike,
    data: pandas.DataFrame | str | os.PathLike | None = None,
    metrics: str | Sequence[str] | None = None,
    *,
    n: int | None = None,
    device: str | None = None,
) -> dict[str, float]:
    """How good the rows of a run on a table are; see `fastgan.metrics.evaluate_table`.

    Args:
        path: the directory of the run, or a checkpoint in it.
        data: real rows, best such as it has not seen. Default: those it was trained on.
        metrics: names, of `fastgan.metrics.TABLE_METRICS`. Default: all that can be computed here.
        n: rows to make. Default: as many as the real ones.
        device: where they are made.

    Raises:
        CheckpointError: as for `sample_run`.
        DataError: the run is not one on a table; the rows have other columns or categories; or the
            run was given its rows by a program and data is None.
    """
    # Here, as most programs do without.
    from fastgan.metrics import evaluate_table

    table, _, state, place = run_of(path)
    values, name = state["config"], "other rows"
    if data is None:
        data, name = values["data"], state["data"]["name"]
    if data is None:
        raise DataError(f"{path}: its program passed the rows; give some to compare with: data=")
    real = read(data)
    seed = (values["seed"] + 1) % 2**64
    fake = sample_run(path, len(real) if n is None else n, seed=seed, device=device)
    found = evaluate_table(real, fake, table, metrics, seed=values["seed"])
    line = {"step": state["step"], "data": name, **found, "n": len(fake), "features": "columns"}
    log.keep_quality(place, line)
    return found


def run_of(path: str | os.PathLike) -> tuple[Table, nn.Module, dict[str, Any], Path]:
    """The table, generator, checkpoint and directory of a run."""
    file, state = resuming.read(path)
    table = Table.found(file.parent)
    if table is None:
        raise DataError(f"{path}: its data were no table; use fastgan.Trainer.sample")
    return table, sampling.generator_of(file, state), state, file.parent
