"""A table in, tables like it out: what `ctgan.CTGAN` is to its users, on fastgan's Trainer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastgan import data as data_room
from fastgan import models, resuming
from fastgan.callbacks import Callback
from fastgan.config import ConfigError
from fastgan.config.kinds import integer
from fastgan.config.presets import PRESETS
from fastgan.data import DataError
from fastgan.data.table import Table, read
from fastgan.models import CTGANDiscriminator, CTGANGenerator
from fastgan.run import checkpoint, files, torch_rng
from fastgan.tabular.held_out import HeldOut
from fastgan.tabular.runs import made, run_of
from fastgan.trainer import Trainer

if TYPE_CHECKING:
    import pandas

_FORMAT = "fastgan-table"


class Synthesizer:
    """Learns a table and makes rows like its own.

    The networks, losses and settings are CTGAN's (L. Xu et al., NeurIPS 2019): mode-specific
    normalisation, conditional vectors, training by sampling, Wasserstein's loss with a penalty on
    packs of rows.

    Args:
        epochs: passes over the table, of at least one batch each. Default 300.
        batch_size: rows in a batch, a multiple of `pac`. Default 500.
        pac: rows that D judges together. Default 10.
        embedding_dim: length of the noise. Default 128.
        width: units of the hidden layers, two in each network. Default 256.
        seed: of everything random. Default 0.
        out: directory of the run, for log and checkpoints; a run that was stopped there is
            continued by `fit(resume=True)`. Default None: nothing is written.
        callbacks: a `fastgan.Callback`, or several.
        held_out: rows that are not learned, for `until` to compare with: a DataFrame, a path, or
            the share of the rows given to `fit`, in (0, 1), that are kept apart, by the seed.
            Default None: none.
        until: a rule as `fastgan.Until` reads it, by which a run ends before its epochs do, such as
            "plateau:shapes:5". It is measured at every tenth log line (see log_every).
            Default None: "plateau:shapes:5" where rows are held out, else none.
        **settings: of `fastgan.Trainer`, such as lr, betas, device, engine, d_steps, seconds.

    Attributes:
        table: what its columns are, after `fit`.
        trainer: that of the last `fit`; None after `load`.
    """

    def __init__(
        self,
        epochs: int = 300,
        *,
        batch_size: int = 500,
        pac: int = 10,
        embedding_dim: int = 128,
        width: int = 256,
        seed: int = 0,
        out: str | os.PathLike | None = None,
        callbacks: Callback | Sequence[Callback] = (),
        held_out: pandas.DataFrame | str | os.PathLike | float | None = None,
        until: str | None = None,
        **settings: Any,
    ):
        """Nothing is done before `fit`."""
        self._pac = integer(1).take("pac", pac)
        self._noise = integer(1).take("embedding_dim", embedding_dim)
        self._width = integer(1).take("width", width)
        if integer(1).take("batch_size", batch_size) % self._pac:
            raise ConfigError(f"batch_size is {batch_size}; expected a multiple of pac, {pac}")
        self._settings = {
            **PRESETS["ctgan"].values,
            "epochs": epochs,
            "batch_size": batch_size,
            "latent_dim": self._noise,
            "seed": seed,
            "console": "none",
            **settings,
        }
        self._out = out
        self._callbacks = (callbacks,) if isinstance(callbacks, Callback) else tuple(callbacks)
        self._given = held_out, until
        self._held_out = HeldOut(held_out, until)
        self.table: Table | None = None
        self.trainer: Trainer | None = None
        self._generator: nn.Module | None = None
        self._calls = 0

    def fit(
        self,
        data: pandas.DataFrame | str | os.PathLike,
        discrete_columns: Sequence[Any] | None = None,
        *,
        resume: bool = False,
    ) -> Synthesizer:
        """Learn a table.

        Args:
            data: a DataFrame, or the path of a CSV or Parquet file.
            discrete_columns: names of the columns that are categories. Default: found; see
                `fastgan.data.table.Table.learned`.
            resume: continue the run in `out`, on the same table; a share that it holds out is
                held out still, and another one is an error.

        Raises:
            DataError: the table cannot be read or learned; the message names column and row.
            Whatever `Trainer.fit` raises.
        """
        seed = self._settings["seed"]
        if resume:
            self._held_out, seed = self._kept_out(seed)
        learned, held_out = self._held_out.parted(data, seed)
        with self._held_out.counting(data, seed):
            self.trainer = (
                self._resumed(learned, held_out)
                if resume
                else self._begun(learned, discrete_columns, held_out)
            )
        self.trainer.data.held_out = self._held_out.kept(seed)
        self.table = self.trainer.data.table
        self.trainer.fit()
        self.trainer.close()
        self._generator = self.trainer.problem.sampled
        self._calls = 0
        return self

    def _rule(self, table: Table, learned: Any, held_out: Any) -> tuple[Callback, ...]:
        """The callbacks of a run, with its rule among them."""
        return (*self._callbacks, *self._held_out.callbacks(table, learned, held_out))

    def _begun(
        self, data: Any, discrete: Sequence[Any] | None = None, held_out: Any = None
    ) -> Trainer:
        rows = data_room.open(data, discrete=discrete, by_category=True)
        layout = rows.table.layout
        with torch_rng.seeded(self._settings["seed"], torch.device("cpu")):
            g = CTGANGenerator(layout.heads, self._noise, self._width, layout.conditions)
            d = CTGANDiscriminator(layout.width, self._width, layout.conditions, self._pac)
        return Trainer(
            g,
            d,
            rows,
            out=self._out,
            callbacks=self._rule(rows.table, data, held_out),
            **self._settings,
        )

    def _place(self) -> Path:
        """The directory of a run that goes on."""
        if self._out is None:
            raise ConfigError("resume=True continues the run in out, and out is None; name it")
        place = Path(self._out).expanduser()
        if Table.found(place) is None:
            raise ConfigError(f"out: {place} holds no run of a table; begin one without resume")
        return place

    def _kept_out(self, seed: int) -> tuple[HeldOut, int]:
        """What a run that goes on holds out, and the seed by which it was chosen."""
        kept = resuming.read(self._place())[1]["data"].get("held_out")
        given, until = self._given
        return HeldOut.of_run(kept, given, until), seed if kept is None else kept["seed"]

    def _resumed(self, data: Any, held_out: Any = None) -> Trainer:
        place = self._place()
        # What a resume may change; all else is as the run began.
        kept = ("epochs", "steps", "seconds", "device", "engine", "threads", "console")
        changes = {k: v for k, v in self._settings.items() if k in kept}
        callbacks = self._rule(Table.found(place), data, held_out)
        return Trainer.resume(place, data=data, callbacks=callbacks, **changes)

    def sample(
        self,
        n: int,
        condition_column: Any = None,
        condition_value: Any = None,
        *,
        conditions: dict[Any, Any] | None = None,
        seed: int | None = None,
    ) -> pandas.DataFrame:
        """New rows.

        Args:
            n: how many.
            condition_column: a discrete column, whose `condition_value` is asked of the generator;
                it is more frequent then, and need not be in every row.
            condition_value: see `condition_column`.
            conditions: the same for several columns, by name.
            seed: of the rows. Default: another one in each call, the same after each `fit`.

        Raises:
            ConfigError: nothing was learned yet.
            DataError: no discrete column has that name, or it has no such value.
        """
        if self._generator is None:
            raise ConfigError("there is nothing to sample from; call fit first, or load")
        if condition_column is not None:
            conditions = {condition_column: condition_value, **(conditions or {})}
        if seed is None:
            self._calls += 1
            seed = (self._settings["seed"] + (self._calls << 32)) % 2**64
        return self.table.decoded(made(self._generator, self.table, n, seed, conditions))

    def evaluate(
        self,
        data: pandas.DataFrame | str | os.PathLike,
        metrics: str | Sequence[str] | None = None,
        *,
        n: int | None = None,
        target: Any = None,
        seed: int = 0,
    ) -> dict[str, float]:
        """How good the rows are that `sample` makes, beside real ones.

        Args:
            data: real rows, best such as `fit` has not seen: a DataFrame or a path.
            metrics: names, of `fastgan.metrics.TABLE_METRICS`. Default: all that can be computed
                here.
            n: rows to make. Default: as many as the real ones.
            target: the column of categories that classifiers are to know. Default: the last one.
            seed: of the rows.

        Returns:
            numbers by name; see `fastgan.metrics.evaluate_table`.

        Raises:
            ConfigError: nothing was learned yet, or a name is none.
            DataError: the rows have other columns or categories.
        """
        # Here, as most programs do without.
        from fastgan.metrics import evaluate_table

        if self._generator is None:
            raise ConfigError("there is nothing to evaluate; call fit first, or load")
        real = read(data)
        fake = self.sample(len(real) if n is None else n, seed=seed)
        return evaluate_table(real, fake, self.table, metrics, target=target, seed=seed)

    def save(self, path: str | os.PathLike) -> None:
        """Write what `sample` needs into one file."""
        if self._generator is None:
            raise ConfigError("there is nothing to save; call fit first")
        state = {
            "format": _FORMAT,
            "table": self.table.to_dict(),
            "generator": models.describe(self._generator),
            "weights": {k: checkpoint.compact(v) for k, v in self._generator.state_dict().items()},
            "seed": self._settings["seed"],
        }
        files.write(Path(path).expanduser(), lambda file: torch.save(state, file))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Synthesizer:
        """One that `save` has written, or of a run's directory; it can sample, and fit anew.

        Raises:
            DataError: the file is missing, damaged or something else.
            CheckpointError: the run's checkpoint is.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            return cls._of_run(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["format"] != _FORMAT:
                raise ValueError(f"its format is {state['format']!r}")
            generator = models.rebuild(state["generator"])
            generator.load_state_dict(state["weights"])
            table = Table.from_dict(state["table"])
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        except Exception as error:  # unpicklers raise errors of many kinds on damaged files
            why = checkpoint.first_line(error)
            raise DataError(
                f"{path}: damaged, or not written by Synthesizer.save ({why}); fit again"
            ) from error
        return cls._with(table, generator, state["seed"])

    @classmethod
    def _with(cls, table: Table, generator: CTGANGenerator, seed: int) -> Synthesizer:
        loaded = cls(seed=seed)
        loaded.table, loaded._generator = table, generator
        return loaded

    @classmethod
    def _of_run(cls, path: Path) -> Synthesizer:
        table, generator, state, _ = run_of(path)
        if not isinstance(generator, CTGANGenerator):
            name = type(generator).__name__
            raise DataError(f"{path}: its generator is a {name}; sample it by sample_run")
        return cls._with(table, generator, state["config"]["seed"])
