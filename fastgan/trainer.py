"""The loop around an engine: when to stop, whom to tell, and how a run is continued.

The trainer asks its engine for runs of steps ("chunks") and hands what they tell to callbacks. How
a run is cut into chunks changes nothing but how soon a signal is heard.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fastgan import callbacks as callback_room
from fastgan import conditions, engines, loop, problem, resuming, sampling, sharded, wrapped
from fastgan import config as config_room
from fastgan.callbacks import Callback
from fastgan.config import Config, ConfigError, takes_limits, takes_settings
from fastgan.config.kinds import integer
from fastgan.data import Data
from fastgan.run import directory, pictures, restore, torch_rng
from fastgan.run.log import RunLog
from fastgan.statistics import NAMES
from fastgan.until import Until

if TYPE_CHECKING:
    from fastgan.report import Report

logger = logging.getLogger("fastgan")


class Trainer:
    """Trains a pair of networks.

    Args:
        generator: latents ``[B, *latent_shape]`` to samples ``[B, *shape]``, images in [-1, 1];
            None for the pair of the setting `model`, its weights drawn from `seed`.
        discriminator: samples to one score each, ``[B]`` or ``[B, 1]``, or to one of n samples
            together, ``[B / n]`` or ``[B / n, 1]``; None likewise. With a
            `method`, whatever it takes; a dict of modules is one discriminator. Both are trained in
            place, on `device`. A network whose forward takes a second argument is given the
            condition (label, image, ...) that the data have beside each sample.
        data: what `fastgan.data.open` takes (a name, a path, a tensor, a Dataset) or what it
            returned. Default: the setting `data`.
        config: the settings, a `fastgan.Config`. Default: its defaults.
        callbacks: a `fastgan.Callback`, or several.
        out: directory of the run. Default: the setting `out`.
        **overrides: settings by name, laid over `config`; see below.

    Attributes:
        problem, config, generator, discriminator, optimizer_g, optimizer_d, ema, data: the live
            objects. Between two calls of `fit` you may change weights and learning rates.
        engine: the engine at work; `explanation` says why it was chosen.
        step: steps done. target: the step at which `fit` will end, or None.
        history: the log lines so far, as dicts.

    Raises:
        ValueError: an argument is out of range, or networks, data and loss do not fit each other.
        FileExistsError: `out` already holds a run.
    """

    @takes_settings()
    def __init__(
        self,
        generator: nn.Module | None,
        discriminator: nn.Module | None,
        data: Any = None,
        config: Config | None = None,
        *,
        callbacks: Callback | Sequence[Callback] = (),
        out: str | os.PathLike | None = None,
        **overrides: Any,
    ):
        """Check everything, move the networks to the device and choose the engine."""
        if out is not None:
            overrides["out"] = out
        config = config_room.settings_of(config, overrides)
        opened, config = problem.open_data(data, config)
        self._build(generator, discriminator, opened, config, callbacks)
        if config.out is not None and self.world.leads:
            self.out = directory.prepare(config.out, config.if_exists)

    def _build(
        self,
        generator: nn.Module | None,
        discriminator: nn.Module | None,
        data: Data,
        config: Config,
        callbacks: Callback | Sequence[Callback],
        continued: str | None = None,
    ) -> None:
        self.own_callbacks = callback_room.check(callbacks)
        made = problem.make_problem(generator, discriminator, data, config)
        self.problem = replace(made, continued=continued)
        self.modes = wrapped.Modes(self.generator, self.discriminator)
        self.engine, self.explanation = engines.choose(self.problem, config.engine)
        if self.world.leads:
            logger.info(self.explanation)
        self.fell_back = False
        self.log = RunLog(NAMES)
        self.guard = callback_room.NonFiniteGuard()
        console = config.console if self.world.leads else "none"
        self.callbacks = callback_room.of_a_run(self.own_callbacks, console)
        self.memory = resuming.memory_of(self.problem)
        # What a user's modules draw themselves must not be the same for every rank's rows.
        seed = (self.config.seed + self.world.rank) % 2**64
        self.random_states = torch_rng.OwnStates(seed, self.device)
        self.seconds, self.target, self.ms_per_step = 0.0, None, float("nan")
        self.logged = False
        self.saved: Path | None = None
        self.saved_step: int | None = None
        self.known: tuple[int, int] | None = None
        self.goal = self.limits
        self.stopped: str | None = None
        self.out: Path | None = None
        self.new, self.at_work = True, False
        for callback in self.own_callbacks:
            callback.check(self)

    config = property(lambda self: self.problem.config)
    generator = property(lambda self: self.problem.generator)
    discriminator = property(lambda self: self.problem.discriminator)
    optimizer_g = property(lambda self: self.problem.optimizer_g)
    optimizer_d = property(lambda self: self.problem.optimizer_d)
    ema = property(lambda self: self.problem.ema)
    data = property(lambda self: self.problem.data)
    device = property(lambda self: self.problem.device)
    world = property(lambda self: self.problem.world)
    steps_per_epoch = property(lambda self: self.problem.steps_per_epoch)
    step = property(lambda self: self.engine.step)
    saves = property(resuming.saves)
    history = property(lambda self: self.log.history)
    state = property(loop.state_of)

    @takes_limits("Trainer")
    def fit(
        self,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        until: str | Callable[[loop.State], bool] | None = None,
    ) -> dict[str, Any]:
        """Train until the first of the given limits holds.

        The limits are totals of the whole run, so a resumed run finishes the run it continues; with
        none of them given, those of the last call, of the checkpoint or of the settings hold.

        Args:
            epochs: passes over the data.
            steps: training steps.
            seconds: training time.
            until: called with the `State` after every log line; a true value stops the run. Or a
                text such as "jsd<0.05" or "plateau:fid:5"; see `fastgan.Until`, which as a
                callback goes on counting in a resumed run.

        Returns:
            a summary: steps (of the whole run), seconds, ms_per_step (both of this call), engine,
            device, precision, out, and the statistics and measures of the last step.

        Raises:
            NonFiniteLossError: losses or weights became infinite or NaN; the last good checkpoint
                is kept.
            KeyboardInterrupt: Ctrl-C, after the step was finished and the run saved.
            SystemExit: SIGTERM or SIGHUP (a closed terminal), likewise, with exit status 143 or
                129. A handler of your own is called instead.
            ValueError: no limit is given.
            Whatever a callback, the data or a network raises, after the last whole step was saved.
        """
        self.goal, self.target = loop.goal_of(
            self, {"epochs": epochs, "steps": steps, "seconds": seconds}, until
        )
        own = [] if until is None else [Until(until)]
        self.modes.restore()
        self._return_to_faster()
        return loop.Loop(self, [*self.callbacks, *own]).run()

    def _return_to_faster(self) -> None:
        """What an engine could not run may have been undone since."""
        if self.fell_back and (found := engines.faster(self.engine)):
            self.engine, self.explanation = found
            self.fell_back = False
            logger.info("from step %d on %s", self.step, self.explanation)

    def stop(self, why: str) -> None:
        """End `fit` after the chunk at hand; for callbacks."""
        self.stopped = why

    def sample(self, n: int = 64, condition: Any = None, truncation: float | None = None) -> Tensor:
        """Samples of the generator, or of its running average if one is kept.

        The latents are the same in every call, so pictures taken along a run show how it develops.
        Where networks are divided over the ranks, all of them call this.

        Args:
            n: how many. Default 64.
            condition: for a generator that takes one: a class for all of them, or n conditions, as
                the data have them. Default: the classes in turn, or what the data begin with.
            truncation: latents are drawn from a normal distribution cut off at this many standard
                deviations, for fewer outliers and less variety (A. Brock, J. Donahue and K.
                Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis",
                ICLR 2019). Default: not cut off.

        Returns:
            float32 [n, *shape] on the training device, made in eval mode; images in [-1, 1].

        Raises:
            ValueError: n is no number of at least 1, the condition does not fit, or there are no
                normal latents to truncate.
        """
        p = self.problem
        condition = conditions.to_sample_by(p, integer(1).take("n", n), condition)
        with sharded.divided(p.sampled):
            return sampling.sample(
                p.sampled, n, p.latent, p.seed, p.device, p.data.drawable, condition, truncation
            )

    def evaluate(
        self,
        metrics: str | Sequence[str] | None = None,
        n: int | None = None,
        *,
        features: Any = None,
        per_class: bool = False,
    ) -> dict[str, Any]:
        """How good samples are: FID, KID, Inception score, precision, recall and more.

        Args:
            metrics: names, of `fastgan.metrics.METRICS`. Default: all that can be computed here.
            n: samples, and as many of the data. Default: 10,000, or as many as the data have.
            features: what they are compared by: a module that takes samples and gives [n, d].
                Default: of 28x28 grey images a small classifier, trained once and kept in the
                user's cache directory; of other images Inception; else the values.
            per_class: also of each class by itself.

        Returns:
            each metric by its name, and "n", "features", "seconds"; see `fastgan.metrics.evaluate`.

        Raises:
            ValueError: a name that is none, or something that a metric needs is not here.
        """
        # Here, as most runs do without.
        from fastgan.metrics import evaluate

        return evaluate(self, metrics, n, features=features, per_class=per_class)

    def plot(self, path: str | os.PathLike) -> None:
        """Write a PNG with both losses over the steps."""
        pictures.loss_plot(self.history, Path(path).expanduser())

    def show(self) -> Report:
        """The run so far on one page, which a notebook shows and `.save(path)` writes to a file."""
        from fastgan import report  # as most runs do without

        return report.of_trainer(self)

    def save(self) -> Path:
        """Write `out`/checkpoint.pt and return its path.

        Where networks are divided over the ranks, all of them call this, and the first writes.

        Raises:
            ValueError: the trainer has no `out`.
            NonFiniteLossError: losses or weights are not finite; the earlier checkpoint stays.
            OSError: another run is at work in `out`, or has saved a later step there.
        """
        if not self.saves:
            raise ConfigError("there is nowhere to save: make the Trainer with out='runs/name'")
        self.guard.look_at_losses(self)
        self.guard.look_at_weights(self)
        self.saved, self.saved_step, self.new = resuming.save(self), self.step, False
        return self.saved

    def alone(self) -> AbstractContextManager[None]:
        """The right to write to `out` meanwhile; see `fastgan.run.directory.at_work`."""
        step = (self.target or self.step) if self.at_work else self.step
        return directory.at_work(self.out, new=self.new, known=self.known, step=step)

    def save_all(self) -> None:
        """`save`, `export` to the run's directory, and what callbacks lay beside."""
        self.save()
        self.export(self.out)
        with self.random_states.outside():
            for callback in self.callbacks:
                if self.out is not None or callback.on_all_ranks:
                    callback.save(self, self.out)

    def export(self, directory: str | os.PathLike | None) -> None:
        """Write generator.pth and discriminator.pth: state dicts on the CPU.

        generator.pth holds the weights that `sample` uses: the running average, if one is kept.
        Where networks are divided over the ranks, all of them call this, and the first writes.
        """
        resuming.export(self, directory)

    def close(self) -> None:
        """Give back what the engine holds besides the networks."""
        self.engine.close()

    @classmethod
    @takes_settings(resume=True)
    def resume(
        cls,
        path: str | os.PathLike,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        data: Any = None,
        *,
        callbacks: Callback | Sequence[Callback] = (),
        data_changed: bool = False,
        **overrides: Any,
    ) -> Trainer:
        """Continue a run exactly where its checkpoint was written.

        On the same device, with the same engine and number of threads, the continued run has the
        same bits as one that was never stopped. On another device it starts from the same bits
        (weights, moments, step, order of the samples, masks and uniforms) and then rounds
        differently: noise within 2e-6, sums in another order. Modules that draw from torch's own
        generator get another device's numbers, from the run's seed, where the checkpoint has no
        state of that generator. The log of the run is cut back to the checkpoint.

        Args:
            path: the directory of a run, or a checkpoint in it.
            generator: needed if the run did not train a pair that fastgan ships.
            discriminator: likewise.
            data: needed if the run was not given its data by a name or path. Of a table a share
                of which is held out: the rows that are learned.
            callbacks: as for `Trainer`; those of the run's names get their states back.
            data_changed: go on although the data is not what the run was trained on.
            **overrides: settings that a resume may change (see the signature), and the run's own
                loss, penalties, optimizer or lr_schedule, if it had such objects. What those
                remember (attributes that changed, a `state_dict`) is as it was.

        Raises:
            CheckpointError: the checkpoint is missing or damaged, something needed was not passed,
                or what was passed does not fit (the first differing names and shapes are given).
        """
        file, state = resuming.read(path)
        config = resuming.config_of(file, state, overrides)
        networks = resuming.networks_of(file, state, generator, discriminator)
        opened = resuming.data_of(file, state, config, data, data_changed)
        trainer = cls.__new__(cls)
        config = config.with_(data=opened.source, **opened.options)
        trainer._build(*networks, opened, config, callbacks, state["engine"])
        resuming.load(trainer, file, state)
        if overrides.keys() & set(config_room.LIMITS):
            trainer.goal = trainer.limits
        return trainer

    @classmethod
    @takes_settings(saved=True)
    def from_checkpoint(
        cls,
        path: str | os.PathLike,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        data: Any = None,
        *,
        average: str | None = None,
        callbacks: Callback | Sequence[Callback] = (),
        out: str | os.PathLike | None = None,
        **overrides: Any,
    ) -> Trainer:
        """Begin a new run with the weights of another, to fine-tune them.

        Step, optimisers, random streams, log and what a loss or method keeps begin anew. Settings
        are those of the other run where none are given, but for `out` and `if_exists`.

        Args:
            path: the directory of the run, or a checkpoint in it.
            generator: needed if the run did not train a pair that fastgan ships; its weights are
                replaced.
            discriminator: likewise.
            data: what to train on. Default: what the other run opened by a name or path, without
                rows that it held out.
            average: "keep": the new run's average of G's weights begins as the other's;
                "generator": G itself does. Default: the average begins as G.
            callbacks: as for `Trainer`.
            out: directory of the new run. Default: nothing is written.
            **overrides: settings by name; objects of a program's own (a loss, a method) must be
                given again, or replaced.

        Raises:
            CheckpointError: the checkpoint is missing or damaged, something needed was not passed,
                or the networks do not fit it.
            ConfigError: a setting is none.
        """
        file, state = resuming.read(path)
        networks, data, config = resuming.start_of(
            file, state, generator, discriminator, data, average, overrides
        )
        trainer = cls(*networks, data, config, callbacks=callbacks, out=out)
        if average == "keep":
            kept = restore.require_fit(file, "ema", trainer.ema, state["ema"])
            trainer.ema.load_state_dict(kept)
        return trainer

    def __repr__(self) -> str:
        """Networks, data, engine and where the run stands."""
        names = [type(n).__name__ for n in (self.generator, self.discriminator)]
        return (
            f"<fastgan.Trainer: {names[0]} against {names[1]} on {self.data.name}, engine "
            f"{self.engine.name}, {self.problem.precision}, {self.device}, step {self.step}"
            f"{f', out {self.out}' if self.out else ''}>"
        )

    def __reduce__(self) -> Any:
        """TypeError: a run has one engine, one directory and one place in the random streams."""
        raise TypeError(
            "a Trainer cannot be copied or pickled; copy its networks, or make another Trainer of "
            "its config"
        )

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1."""
        return max(1, -(-self.step // self.steps_per_epoch))

    @property
    def limits(self) -> dict[str, float | None]:
        """When the run ends, by its settings."""
        return {name: getattr(self.config, name) for name in config_room.LIMITS}

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        """What tells the data from others; see `fastgan.data.Data.identity`."""
        return self.data.identity()


Trainer.__doc__ += f"\n    Settings:\n{config_room.described('out')}\n    "
