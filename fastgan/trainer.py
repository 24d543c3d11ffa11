"""The loop around an engine: when to stop, whom to tell, and how a run is continued.

The trainer asks its engine for runs of steps ("chunks") and hands what they tell to callbacks. How
a run is cut into chunks changes nothing but how soon a signal is heard.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastgan import callbacks as callback_room
from fastgan import conditions, engines, loop, problem, resuming, sampling, wrapped
from fastgan import config as config_room
from fastgan.callbacks import Callback
from fastgan.config import Config, ConfigError, takes_settings
from fastgan.config.config import HINTS
from fastgan.config.kinds import integer
from fastgan.data import Data
from fastgan.run import checkpoint, directory, pictures, torch_rng
from fastgan.run.log import RunLog
from fastgan.statistics import NAMES
from fastgan.words import by_name

logger = logging.getLogger("fastgan")


class Trainer:
    """Trains a pair of networks.

    Args:
        generator: latents ``[B, *latent_shape]`` to samples ``[B, *shape]``, images in [-1, 1];
            None for the pair of the setting `model`, its weights drawn from `seed`.
        discriminator: samples to one score each, ``[B]`` or ``[B, 1]``; None likewise. With a
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
    ) -> None:
        self.own_callbacks = callback_room.check(callbacks)
        self.problem = problem.make_problem(generator, discriminator, data, config)
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
        self.goal = self.limits
        self.stopped: str | None = None
        self.out: Path | None = None
        self.new = True

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
    history = property(lambda self: self.log.history)

    @by_name(
        HINTS,
        {
            f.name: f"; it is a setting: Trainer(..., {f.name}=...)"
            for f in fields(Config)
            if f.name not in config_room.LIMITS
        },
    )
    def fit(
        self,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        until: Callable[[loop.State], bool] | None = None,
    ) -> dict[str, Any]:
        """Train until the first of the given limits holds.

        The limits are totals of the whole run, so a resumed run finishes the run it continues; with
        none of them given, those of the last call, of the checkpoint or of the settings hold.

        Args:
            epochs: passes over the data.
            steps: training steps.
            seconds: training time.
            until: called with the `State` after every log line; a true value stops the run.

        Returns:
            a summary: steps (of the whole run), seconds, ms_per_step (both of this call), engine,
            device, precision, out, and the statistics of the last step.

        Raises:
            NonFiniteLossError: losses or weights became infinite or NaN; the last good checkpoint
                is kept.
            KeyboardInterrupt: Ctrl-C, after the step was finished and the run saved.
            SystemExit: SIGTERM, likewise, with exit status 143. A handler of your own is called
                instead.
            ValueError: no limit is given.
            Whatever a callback, the data or a network raises, after the last whole step was saved.
        """
        self.goal, self.target = loop.goal_of(
            self, {"epochs": epochs, "steps": steps, "seconds": seconds}, until
        )
        own = [] if until is None else [callback_room.Until(until)]
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

    def sample(self, n: int = 64, condition: Any = None) -> Tensor:
        """Samples of the generator, or of its running average if one is kept.

        The latents are the same in every call, so pictures taken along a run show how it develops.

        Args:
            n: how many. Default 64.
            condition: for a generator that takes one: a class for all of them, or n conditions, as
                the data have them. Default: the classes in turn, or what the data begin with.

        Returns:
            float32 [n, *shape] on the training device, made in eval mode; images in [-1, 1].

        Raises:
            ValueError: n is no number of at least 1, or the condition does not fit.
        """
        p = self.problem
        condition = conditions.to_sample_by(p, integer(1).take("n", n), condition)
        return sampling.sample(
            self.ema or self.generator, n, p.latent, p.seed, p.device, p.data.drawable, condition
        )

    def plot(self, path: str | os.PathLike) -> None:
        """Write a PNG with both losses over the steps."""
        pictures.loss_plot(self.history, Path(path).expanduser())

    def save(self) -> Path:
        """Write `out`/checkpoint.pt and return its path.

        Raises:
            ValueError: the trainer has no `out`.
            NonFiniteLossError: losses or weights are not finite; the earlier checkpoint stays.
        """
        if self.out is None:
            raise ConfigError("there is nowhere to save: make the Trainer with out='runs/name'")
        self.guard.look_at_losses(self)
        self.guard.look_at_weights(self)
        directory.make(self.out)
        path = self.out / checkpoint.FILE
        checkpoint.save(path, resuming.state_of(self), keep=self.config.keep)
        self.saved, self.saved_step = path, self.step
        return path

    def save_all(self) -> None:
        """`save`, `export` to the run's directory, and what callbacks lay beside."""
        self.save()
        self.export(self.out)
        with self.random_states.outside():
            for callback in self.callbacks:
                callback.save(self, self.out)

    def export(self, directory: str | os.PathLike) -> None:
        """Write generator.pth and discriminator.pth: state dicts on the CPU.

        generator.pth holds the weights that `sample` uses: the running average, if one is kept.
        """
        place = Path(directory).expanduser()
        place.mkdir(parents=True, exist_ok=True)
        for name, network in (
            ("generator", self.ema or self.generator),
            ("discriminator", self.discriminator),
        ):
            checkpoint.save_weights(place / f"{name}.pth", wrapped.state_dict(network))

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
            data: needed if the run was not given its data by a name or path.
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
        trainer._build(*networks, opened, config, callbacks)
        resuming.load(trainer, file, state)
        if overrides.keys() & set(config_room.LIMITS):
            trainer.goal = trainer.limits
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
    def state(self) -> loop.State:
        """Where the run stands."""
        return loop.State(
            step=self.step,
            epoch=self.epoch,
            steps_per_epoch=self.steps_per_epoch,
            d_loss=self.log.last["d_loss"],
            g_loss=self.log.last["g_loss"],
            seconds=self.seconds,
            ms_per_step=self.ms_per_step,
            target=self.target,
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
