"""The loop around an engine: when to stop, what to record, what to keep.

The trainer asks its engine for runs of steps ("chunks") and looks at the losses at log intervals
only. How a run is cut into chunks changes nothing but how soon a signal is heard.
"""

import logging
import os
import platform
import secrets
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastgan
from fastgan import diagnosis, engines, losses, problem, sampling
from fastgan.run import checkpoint, directory, pictures, restore, torch_rng
from fastgan.run.checkpoint import CheckpointError
from fastgan.run.log import RunLog
from fastgan.run.signals import Signals

logger = logging.getLogger("fastgan")

CHUNK_SECONDS = 0.2
"""A chunk of steps should take this long, so that a signal is heard soon."""
CHECKPOINT_SECONDS = 60.0
PARTS = ("generator", "discriminator", "optimizer_g", "optimizer_d")
"""What a checkpoint always holds the state of."""
COLUMNS = ("d_loss", "g_loss")


class NonFiniteLossError(FloatingPointError):
    """A loss or a weight became infinite or NaN.

    Attributes:
        step: the first bad step, counted from 1.
    """

    def __init__(self, message: str, step: int):
        """Keep the step beside the message."""
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class State:
    """Where a run stands; handed to `until` and `report` of `Trainer.fit`."""

    step: int
    """Steps done, counted from the start of the run."""
    epoch: int
    """The epoch of the last step, counted from 1."""
    steps_per_epoch: int
    d_loss: float
    """The discriminator's loss at the last step that was logged; NaN before the first."""
    g_loss: float
    seconds: float
    """Training time of the whole run."""
    ms_per_step: float
    """Milliseconds that a step took on average in this call of `fit`, without all else."""
    logged: bool
    """A log line was just written for this step."""
    target: int | None
    """The step at which the run will end, if `epochs` or `steps` says so."""


class Trainer:
    """Trains a pair of networks.

    Args:
        generator: latents ``[B, latent_dim]`` to images ``[B, C, H, W]`` in [-1, 1]; None for the
            reference generator (`fastgan.Generator`), its weights drawn from `seed`.
        discriminator: images to one score per image, ``[B]`` or ``[B, 1]``; None likewise. Both are
            trained in place, on `device`.
        data: what `fastgan.data.open` takes (a name, a path, a tensor, a Dataset), a dict of its
            arguments such as ``{"source": "photos.zip", "image_size": 64}``, or what it returned.
        batch_size: images in a batch. Default 64.
        latent_dim: length of a latent vector (default 100), or the shape of one latent, such as
            ``(100, 1, 1)`` for a generator that starts with a transposed convolution.
        loss: "non-saturating" (default), "minimax", "hinge", "least-squares", "wasserstein", or a
            `fastgan.losses.Game`.
        d_steps: discriminator updates in a step. Default 1.
        lr: learning rate, or (generator's, discriminator's). Default 2e-4.
        betas: Adam's two decay rates. Default (0.5, 0.999).
        optimizer: "adam" (default) or "adamw": the two of `fastgan.optim`, for both networks.
        weight_decay: an L2 penalty with "adam", decoupled from the gradient with "adamw". Default
            0 for either.
        eps: what Adam adds to its denominator. Default 1e-8.
        label_smoothing: s of one-sided label smoothing: real images are labelled 1 - s (Salimans et
            al. 2016). Default 0.
        lr_schedule: function of the step (counted from 0) that gives a factor for both learning
            rates. Default: constant.
        ema: decay of a running average of the generator's weights, such as 0.999; the average is
            what `sample` then uses. Default: none is kept.
        precision: "fp32" (default), "bf16" for products in bfloat16 with fp32 weights, or "fp16"
            for products in float16, the losses scaled by a torch.amp.GradScaler for each network.
        engine: "auto" (default), or the name of the engine to use.
        device: where to train. Default: CUDA if there is a device, else the CPU.
        seed: source of all randomness, in [0, 2**64). Default 0; None picks one and records it.
        out: directory of the run, for log, checkpoints and pictures. Default: nothing is written.
        log_every: steps between two readings of the losses. Default 100.
        checkpoint_every: steps between two checkpoints. Default: one a minute. There is always one
            at the end.
        keep: how many of the last checkpoints stay on disk. Default 2.
        penalty: on the slope of the discriminator: "r1" (Mescheder et al. 2018), "wgan-gp"
            (Gulrajani et al. 2017) or a `fastgan.losses.Penalty`. Default: none. The losses that
            are logged are without it.
        penalty_weight: gamma of R1, lambda of WGAN-GP. Default 10.
        penalty_every: k, to take the penalty in every k-th discriminator update only, k times as
            heavy (Karras et al. 2020). Default 1.

    Attributes:
        generator, discriminator, optimizer_g, optimizer_d, ema, data: the live objects. Between two
            calls of `fit` you may change weights and learning rates.
        engine: the engine at work; `explanation` says why it was chosen.
        step: steps done.
        history: the log lines so far, as dicts.

    Raises:
        ValueError: an argument is out of range, or networks, data and loss do not fit each other.
        FileExistsError: `out` already holds a run.
    """

    def __init__(
        self,
        generator: nn.Module | None,
        discriminator: nn.Module | None,
        data: Any,
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
        engine: str = "auto",
        device: torch.device | str | None = None,
        seed: int | None = 0,
        out: str | os.PathLike | None = None,
        log_every: int = 100,
        checkpoint_every: int | None = None,
        keep: int = 2,
        penalty: str | losses.Penalty | None = None,
        penalty_weight: float | None = None,
        penalty_every: int | None = None,
    ):
        """Check everything, move the networks to the device and choose the engine."""
        problem.at_least(1, log_every=log_every, keep=keep)
        if checkpoint_every is not None:
            problem.at_least(1, checkpoint_every=checkpoint_every)
        seed = secrets.randbits(32) if seed is None else seed
        device = problem.choose_device(device)
        images, source = problem.open_images(data)
        images = images.to(device)
        p = self._problem = problem.make_problem(
            generator,
            discriminator,
            images,
            batch_size=batch_size,
            latent_dim=latent_dim,
            loss=loss,
            d_steps=d_steps,
            lr=lr,
            betas=betas,
            optimizer=optimizer,
            weight_decay=weight_decay,
            eps=eps,
            label_smoothing=label_smoothing,
            lr_schedule=lr_schedule,
            ema=ema,
            precision=precision,
            device=device,
            seed=seed,
            penalty=penalty,
            penalty_weight=penalty_weight,
            penalty_every=penalty_every,
        )
        for network in (p.generator, p.discriminator):
            network.train()
        self.engine, self.explanation = engines.choose(p, engine)
        logger.info(self.explanation)
        self.log_every, self.checkpoint_every, self.keep = log_every, checkpoint_every, keep
        self.steps_per_epoch = -(-images.batches_per_epoch(batch_size) // d_steps)
        self.seconds = 0.0
        self.goal: dict[str, float | None] = {}
        self.config = {
            "generator": problem.recipe(p.generator),
            "discriminator": problem.recipe(p.discriminator),
            "data": source,
            "image_shape": list(images.shape),
            **problem.settings(p),
            "engine": engine,
            "device": str(device),
            "log_every": log_every,
            "checkpoint_every": checkpoint_every,
            "keep": keep,
        }
        self._log = RunLog(COLUMNS)
        self._random_states = torch_rng.OwnStates(seed, device)
        self._saved_step: int | None = None
        self.out = None if out is None else directory.prepare(out)
        self._new = True

    generator = property(lambda self: self._problem.generator)
    discriminator = property(lambda self: self._problem.discriminator)
    optimizer_g = property(lambda self: self._problem.optimizer_g)
    optimizer_d = property(lambda self: self._problem.optimizer_d)
    ema = property(lambda self: self._problem.ema)
    data = property(lambda self: self._problem.data)
    device = property(lambda self: self._problem.device)
    step = property(lambda self: self.engine.step)
    history = property(lambda self: self._log.history)

    def fit(
        self,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        until: Callable[[State], bool] | None = None,
        report: Callable[[State], None] | None = None,
    ) -> dict[str, Any]:
        """Train until the first of the given limits holds.

        The limits are totals of the whole run, so a resumed run finishes the run it continues; with
        none of them given, those of the last call or of the checkpoint hold.

        Args:
            epochs: passes over the data.
            steps: training steps.
            seconds: training time.
            until: called with the `State` after every log line; a true value stops the run.
            report: called with the `State` after every chunk of steps (several times a second).

        Returns:
            a summary: steps (of the whole run), seconds, ms_per_step (both of this call), engine,
            device, precision, d_loss, g_loss (of the last step), out.

        Raises:
            NonFiniteLossError: losses or weights became infinite or NaN; the last good checkpoint
                is kept.
            KeyboardInterrupt: Ctrl-C, after the step was finished and the run saved.
            SystemExit: SIGTERM, likewise, with exit status 143. A handler of your own is called
                instead.
            ValueError: no limit is given.
        """
        target = self._set_goal(epochs, steps, seconds, until)
        limit = self.goal["seconds"]
        before, began = self.step, time.perf_counter()
        earlier, pace = self.seconds, _Pace()
        about = {
            **self.config,
            "data_name": self.data.name,
            "data_origin": self.data.origin,
            "explanation": self.explanation,
        }
        log = self._log.open(self.out, about)
        here = nullcontext() if self.out is None else directory.at_work(self.out, new=self._new)
        with here, Signals() as signals, self._random_states.in_use(), log:
            self._new = False
            checkpoint.try_state(self._state_dict())
            saved_at = time.perf_counter()
            while not signals.received and (target is None or self.step < target):
                if limit is not None and self.seconds >= limit:
                    break
                marks = [every for every in (self.log_every, self.checkpoint_every) if every]
                n = pace.chunk(
                    *(every - self.step % every for every in marks),
                    *([] if target is None else [target - self.step]),
                )
                pace.record(n, self._run(n))
                self.seconds = earlier + time.perf_counter() - began
                logged = self.step % self.log_every == 0
                if logged:
                    self._write_line()
                state = self._state(target, logged, pace.ms_per_step)
                if report is not None:
                    report(state)
                if logged and until is not None and until(state):
                    break
                if self.checkpoint_every:
                    due = self.step % self.checkpoint_every == 0
                else:
                    due = time.perf_counter() - saved_at >= CHECKPOINT_SECONDS
                if due and self.out is not None and self.step != target:
                    self._save_all()
                    saved_at = time.perf_counter()
            if not signals.received:
                self._write_line(whole=False)
            self.seconds = earlier + time.perf_counter() - began
            if self.out is not None:
                self._save_all()
        if signals.received:
            signals.deliver(self._stopped_message(signals.name))
        d_loss, g_loss = self._log.last.values()
        return {
            "steps": self.step,
            "seconds": round(self.seconds - earlier, 3),
            "ms_per_step": round(pace.ms_per_step, 4) if self.step > before else None,
            "engine": self.engine.name,
            "device": str(self.device),
            "precision": self._problem.precision,
            "d_loss": d_loss,
            "g_loss": g_loss,
            "out": None if self.out is None else str(self.out),
        }

    def sample(self, n: int = 64) -> Tensor:
        """Images of the generator, or of its running average if one is kept.

        The latents are the same in every call, so pictures taken along a run show how it develops.

        Args:
            n: how many. Default 64.

        Returns:
            float32 [n, C, H, W] in [-1, 1] on the training device, made in eval mode.
        """
        p = self._problem
        return sampling.sample(self.ema or self.generator, n, p.latent_shape, p.seed, p.device)

    def save(self) -> Path:
        """Write `out`/checkpoint.pt and return its path.

        Raises:
            ValueError: the trainer has no `out`.
            NonFiniteLossError: losses or weights are not finite; the earlier checkpoint stays.
        """
        if self.out is None:
            raise ValueError("there is nowhere to save: make the Trainer with out='runs/name'")
        self._check_losses()
        if name := diagnosis.bad_weights(self._problem):
            raise self._non_finite(f"weights of the {name} are not finite", max(self.step, 1))
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / checkpoint.FILE
        checkpoint.save(path, self._state_dict(), keep=self.keep)
        self._saved_step = self.step
        return path

    def export(self, directory: str | os.PathLike) -> None:
        """Write generator.pth and discriminator.pth: state dicts on the CPU.

        generator.pth holds the weights that `sample` uses: the running average, if one is kept.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        checkpoint.save_weights(directory / "generator.pth", self.ema or self.generator)
        checkpoint.save_weights(directory / "discriminator.pth", self.discriminator)

    def close(self) -> None:
        """Give back what the engine holds besides the networks."""
        self.engine.close()

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        data: Any = None,
        *,
        loss: losses.Game | None = None,
        penalty: losses.Penalty | None = None,
        lr_schedule: Callable[[int], float] | None = None,
        device: torch.device | str | None = None,
        engine: str | None = None,
    ) -> "Trainer":
        """Continue a run exactly where its checkpoint was written.

        On the same device, with the same engine and number of threads, the continued run has the
        same bits as one that was never stopped. On another device it starts from the same bits
        (weights, moments, step, order of the images, masks and uniforms) and then rounds
        differently: noise within 2e-6, sums in another order. Modules that draw from torch's own
        generator get another device's numbers, from the run's seed, where the checkpoint has no
        state of that generator. The log of the run is cut back to the checkpoint.

        Args:
            path: the directory of a run, or a checkpoint in it.
            generator: needed if the run did not train fastgan's reference pair.
            discriminator: likewise.
            data: needed if the run was not given its data by a name or path.
            loss: needed if the run used a `Game` of your own.
            penalty: needed if the run used a `Penalty` of your own.
            lr_schedule: needed if the run had one.
            device: default: the run's device, if this machine has it.
            engine: default: what the run asked for.

        Raises:
            CheckpointError: the checkpoint is missing or damaged, something needed was not passed,
                or what was passed does not fit (the first differing names and shapes are given).
        """
        file = checkpoint.find(path)
        state = checkpoint.load(file)
        config = state["config"]
        saved_loss = None if config["own_loss"] else config["loss"]
        data = restore.require(file, "data", data, config["data"])
        loss = restore.require(file, "loss", loss, saved_loss)
        if config["own_penalty"]:
            restore.require(file, "penalty", penalty, None)
        elif penalty is None and config["penalty"]:
            penalty = losses.penalty(
                config["penalty"], config["penalty_weight"], config["penalty_every"]
            )
        if config["lr_schedule"]:
            restore.require(file, "lr_schedule", lr_schedule, None)
        networks = {"generator": generator, "discriminator": discriminator}
        for name, given in networks.items():
            restore.require(file, name, given, config[name])
            networks[name] = problem.rebuild(config[name]) if given is None else given
            restore.require_fit(file, name, networks[name], state[name])
        wanted = torch.device(config["device"])
        if device is None and (wanted.type != "cuda" or torch.cuda.is_available()):
            device = wanted
        images, source = problem.open_images(data)
        if images.fingerprint() != state["data"]["fingerprint"]:
            raise CheckpointError(
                f"the data is not what {file} was trained on: {images.name} "
                f"({images.fingerprint()}), saved {state['data']['name']} "
                f"({state['data']['fingerprint']}); pass data= the original images"
            )
        trainer = cls(
            **networks,
            **problem.arguments(config),
            data=images,
            loss=loss,
            penalty=penalty,
            lr_schedule=lr_schedule,
            engine=engine or config["engine"],
            device=device,
            **{name: config[name] for name in ("log_every", "checkpoint_every", "keep")},
        )
        trainer.out, trainer._new = file.parent, False
        trainer.config["data"] = source or config["data"]
        trainer._load_state_dict(file, state)
        return trainer

    # --- the parts of fit ------------------------------------------------------------------------

    def _set_goal(self, epochs, steps, seconds, until) -> int | None:
        given = {"epochs": epochs, "steps": steps, "seconds": seconds}
        problem.at_least(1, **{k: v for k, v in given.items() if k != "seconds" and v is not None})
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds is {seconds}; expected more than 0")
        if until is not None or any(value is not None for value in given.values()):
            self.goal = given
        elif not any(value is not None for value in self.goal.values()):
            raise ValueError("say when to stop: fit(epochs=...), steps=, seconds= or until=")
        targets = [] if self.goal["steps"] is None else [self.goal["steps"]]
        if self.goal["epochs"] is not None:
            targets.append(self.goal["epochs"] * self.steps_per_epoch)
        return min(targets, default=None)

    def _run(self, n: int) -> float:
        began = time.perf_counter()
        self._log.add(self.engine.run(n))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def _state(self, target: int | None, logged: bool, ms_per_step: float) -> State:
        return State(
            step=self.step,
            epoch=self._epoch(),
            steps_per_epoch=self.steps_per_epoch,
            d_loss=self._log.last["d_loss"],
            g_loss=self._log.last["g_loss"],
            seconds=self.seconds,
            ms_per_step=ms_per_step,
            logged=logged,
            target=target,
        )

    def _epoch(self) -> int:
        return max(1, -(-self.step // self.steps_per_epoch))

    def _write_line(self, *, whole: bool = True) -> None:
        self._check_losses()
        if line := self._log.line(self.step, self._epoch()):
            self._log.write(line, self.seconds, whole=whole)

    def _check_losses(self) -> None:
        if bad := self._log.first_bad():
            followed, values = bad
            what = f"D loss is {values['d_loss']:g} and G loss is {values['g_loss']:g}"
            raise self._non_finite(what, self.step - followed)

    def _non_finite(self, what: str, step: int) -> NonFiniteLossError:
        kept = "no checkpoint was written"
        if self.out is not None and (self.out / checkpoint.FILE).exists():
            kept = f"the last good checkpoint is {self.out / checkpoint.FILE}"
            if self._saved_step is not None:
                kept += f" (step {self._saved_step})"
        cause = diagnosis.likely_cause(self._problem, step)
        message = f"training stopped: at step {step} {what}. Likely cause: {cause}; {kept}"
        return NonFiniteLossError(message, step)

    def _save_all(self) -> None:
        self.save()
        self.export(self.out)
        if pictures.drawable(self.data.shape):
            pictures.grid(self.sample(64), self.out / pictures.SAMPLES)

    def _stopped_message(self, what: str) -> str:
        if self.out is None:
            return f"stopped by {what} after step {self.step}; nothing was saved (out is None)"
        c = self.config
        how = f"Trainer.resume({str(self.out)!r}, generator, discriminator, data)"
        own = c["own_loss"] or c["own_penalty"] or c["lr_schedule"]
        if c["generator"] and c["discriminator"] and c["data"] and not own:
            how = f"fastgan train --resume {self.out}"
        return f"stopped by {what} after step {self.step}; saved. To continue: {how}"

    # --- state -----------------------------------------------------------------------------------

    def _state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "goal": self.goal,
            "config": self.config,
            "threads": torch.get_num_threads(),
            "data": {"name": self.data.name, "fingerprint": self._fingerprint},
            **{name: getattr(self, name).state_dict() for name in PARTS},
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scalers": [scaler.state_dict() for scaler in self._problem.scalers or ()],
            "random": self._random_states.state_dict(),
            "log": self._log.state_dict(),
            "models": {},
            "callbacks": {},
            "loss": None,
            "versions": {
                "fastgan": fastgan.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        }

    @cached_property
    def _fingerprint(self) -> str:
        return self.data.fingerprint()

    def _load_state_dict(self, file: Path, state: dict[str, Any]) -> None:
        restore.restore(
            file,
            state,
            networks={name: getattr(self, name) for name in ("generator", "discriminator", "ema")},
            optimizers={name: getattr(self, name) for name in ("optimizer_g", "optimizer_d")},
            scalers=self._problem.scalers or (),
        )
        self.engine.step = self._saved_step = state["step"]
        self.seconds, self.goal = state["seconds"], state["goal"]
        with restore.reading(file, "random"):
            self._random_states.load_state_dict(state["random"])
        self._log.load_state_dict(state["log"], file)


class _Pace:
    """Sizes the next chunk of steps from how long the last ones took, and keeps their average."""

    def __init__(self):
        self.n = 1
        self.steps, self.seconds = 0, 0.0

    def chunk(self, *limits: int) -> int:
        return min(self.n, *limits)

    def record(self, n: int, seconds: float) -> None:
        # The first chunk holds the engine's warm-up and says little, hence the slow growth.
        fitting = int(CHUNK_SECONDS * n / max(seconds, 1e-9))
        self.n = max(1, min(fitting, 8 * self.n))
        self.steps += n
        self.seconds += seconds

    @property
    def ms_per_step(self) -> float:
        return self.seconds / self.steps * 1e3 if self.steps else float("nan")
