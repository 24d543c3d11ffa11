"""An ensemble: K runs, trained as many at once as there are cores, each as if it were alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastgan import config as config_room
from fastgan import loop, resuming
from fastgan.callbacks import Callback
from fastgan.config import Config, ConfigError, takes_limits, takes_settings
from fastgan.config.kinds import integer
from fastgan.distributed import World
from fastgan.many import course
from fastgan.many import members as room
from fastgan.many.course import Course, Watch, threads
from fastgan.many.members import Member, Shared
from fastgan.many.progress import Progress
from fastgan.many.results import Results, is_number
from fastgan.run import directory
from fastgan.run.checkpoint import CheckpointError
from fastgan.run.lock import RunLock
from fastgan.trainer import Trainer
from fastgan.until import HIGHER

TABLE = "results.csv"


class Ensemble:
    """Trains many pairs of networks that differ in a seed, a setting or their data.

    Each member is an ordinary run, bit for bit that of a `Trainer` with the same settings, and with
    `out` it has a directory of its own, with which all commands for runs work. Members whose steps
    are whole programs in C++ (engine `fused` on the CPU, data in memory) are trained several at
    once, one thread each, and wait for nobody; on CUDA, those whose steps are one persistent kernel
    share a launch, each with its part of the GPU. Their numbers depend neither on the number of
    threads nor on what runs beside them. Others are trained one after the other, each with all
    threads. A member that diverges or fails is marked with the reason, and the others go on.

    Args:
        make_pair: called with each member's `Config`, with torch's generator seeded by the member's
            seed; returns its (generator, discriminator). Default: the pair of the setting `model`.
        data: as for `Trainer`; read once for all members. Default: the setting `data`.
        config: the settings of all members. Default: its defaults.
        members: how many, which differ in `seed` from that of the settings on; or a dict of
            settings for each, as `fastgan.grid` makes them. "data" may be anything that `data` may.
        callbacks: a function that makes the callbacks of one member, as each keeps a state.
        out: directory of the whole. Default: the setting `out`.
        at_once: members that are trained at once. Default: torch.get_num_threads(), and on CUDA as
            many as one launch takes.
        **overrides: settings of all members, laid over `config`. A loss, method or other object of
            your own is copied for each member.

    Attributes:
        members: each with `name`, `settings`, `status`, `reason`, `scores` and its `trainer`.
        out: the directory, or None.

    Raises:
        ValueError: an argument is out of range, or networks, data and loss do not fit each other.
        FileExistsError: `out` already holds an ensemble or a run.
    """

    @takes_settings()
    def __init__(
        self,
        make_pair: Callable[[Config], tuple] | None = None,
        data: Any = None,
        config: Config | None = None,
        *,
        members: int | Sequence[Mapping[str, Any]],
        callbacks: Callable[[], Any] | None = None,
        out: str | os.PathLike | None = None,
        at_once: int | None = None,
        **overrides: Any,
    ):
        """Check everything and make every member."""
        if out is not None:
            overrides["out"] = out
        config = config_room.settings_of(config, overrides)
        configs, given, plain = room.configs_of(members, config)
        self._settle(callbacks, at_once, config.console)
        if config.out is not None:
            self.out = _prepare(config.out, config.if_exists)
        names = [f"{i:0{len(str(len(configs) - 1))}d}" for i in range(len(configs))]
        shared = Shared()

        def make(i: int) -> Trainer:
            place = {} if self.out is None else {"out": self.out / names[i]}
            one = configs[i].with_(**place)
            made = self._new(i, one, make_pair, _data_of(given[i], data), shared)
            beside = made.engine.beside and made.engine.company is None
            if beside and one.threads not in (None, 1):
                raise ConfigError(
                    f"threads is {one.threads}, and members that are trained at once have one "
                    "each; leave it out, and say how many with at_once="
                )
            return made

        try:
            self._make([Member(*both) for both in zip(names, plain, strict=True)], make)
        except ConfigError:
            if self.out is not None and self.out.is_dir():
                for place in (*self.out.iterdir(), self.out):  # made for members that will not be
                    with contextlib.suppress(OSError):
                        place.rmdir()
            raise

    @classmethod
    @takes_settings(resume=True)
    def resume(
        cls,
        path: str | os.PathLike,
        make_pair: Callable[[Config], tuple] | None = None,
        data: Any = None,
        *,
        members: Sequence[Mapping[str, Any]] | None = None,
        callbacks: Callable[[], Any] | None = None,
        at_once: int | None = None,
        data_changed: bool = False,
        **overrides: Any,
    ) -> Ensemble:
        """Continue an ensemble after whatever ended it, each member from its own checkpoint.

        Members that were done stay done; `fit` without a limit goes on to the limits of before.

        Args:
            path: the directory of the ensemble.
            make_pair: as for `Ensemble`, if the networks are your own.
            data: if the members were not given their data by a name or path.
            members: the dicts that the ensemble was made of, where they hold objects of your own,
                data among them.
            callbacks: as for `Ensemble`; those of a run's names get their states back.
            at_once: as for `Ensemble`.
            data_changed: go on although the data are not what the members were trained on.
            **overrides: as for `Trainer.resume`, for every member.

        Raises:
            CheckpointError: there is no ensemble, or a member cannot be continued.
        """
        out = directory.absolute(path)
        saved = room.read(out)
        entries = saved["members"]
        if members is not None and len(members) != len(entries):
            raise ConfigError(
                f"members has {len(members)} entries, and the ensemble in {out} {len(entries)}"
            )
        self = cls.__new__(cls)
        console = overrides.get("console") or entries[0]["config"].get("console", "auto")
        self._settle(callbacks, at_once, console)
        self.out, self.goal = out, saved["goal"]
        shared = Shared()

        def make(i: int) -> Trainer:
            given = {} if members is None else dict(members[i])
            own = _data_of(given, data)
            given.pop("data", None)
            changes = {**overrides, **given}
            place = out / entries[i]["name"]
            if make_pair is None and entries[i]["own_pair"]:
                raise CheckpointError("its networks are your own; pass the make_pair they are from")
            if not room.begun(place):
                config = room.config_of(place, entries[i]["config"], changes)
                made = self._new(i, config, make_pair, own, shared)
                made.goal = room.goal_of(saved, overrides) or made.goal
                return made
            file, state = resuming.read(place)
            config = resuming.config_of(file, state, changes)
            made = Trainer.resume(
                file.parent,
                *room.pair_of(make_pair, config),
                shared.of(own, config),
                callbacks=self._callbacks(i),
                data_changed=data_changed,
                **changes,
            )
            shared.keep(own, config, made.data)
            return made

        self._make([Member(**entry) for entry in entries], make)
        if overrides.keys() & set(config_room.LIMITS):
            for member in self.members:
                member.status = "begun" if member.status == "done" else member.status
        return self

    def _settle(self, callbacks: Any, at_once: int | None, console: str) -> None:
        if World.here().size > 1:
            raise ConfigError(
                "an ensemble trains its members in one process, and there are several ranks here; "
                "start it without torchrun"
            )
        if callbacks is not None and not callable(callbacks):
            raise ConfigError(
                "callbacks: expected a function that makes the callbacks of one member, such as "
                "lambda: [fastgan.Alarms()], as each keeps a state of its own"
            )
        self._make_callbacks = callbacks
        self.at_once = None if at_once is None else integer(1).take("at_once", at_once)
        self.progress = Progress(console)
        self.out: Path | None = None
        self.goal: dict[str, Any] | None = None
        self.until: str | Callable | None = None
        self.course: Course | None = None

    def _callbacks(self, i: int) -> tuple[Callback, ...]:
        made = () if self._make_callbacks is None else self._make_callbacks()
        made = tuple(made) if isinstance(made, (list, tuple)) else (made,)
        return (*made, Watch(self, i))

    def _new(
        self, i: int, config: Config, make_pair: Callable | None, own: Any, shared: Shared
    ) -> Trainer:
        """The run of a member, from its beginning."""
        pair = room.pair_of(make_pair, config)
        made = Trainer(*pair, shared.of(own, config), config, callbacks=self._callbacks(i))
        shared.keep(own, config, made.data)
        return made

    def _make(self, members: list[Member], make: Callable[[int], Trainer]) -> None:
        self.members = members
        with threads(torch.get_num_threads()):
            for i, member in enumerate(members):
                try:
                    member.trainer = make(i)
                    member.config = member.trainer.config.to_dict()
                    networks = resuming.described(member.trainer.problem)
                    member.own_pair = None in networks.values()
                except ValueError as error:
                    kind = CheckpointError if isinstance(error, CheckpointError) else ConfigError
                    raise kind(f"member {member.name}: {error}") from error

    # --- training --------------------------------------------------------------------------------

    @takes_limits("Ensemble")
    def fit(
        self,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        until: str | Callable[[loop.State], bool] | None = None,
    ) -> Results:
        """Train every member until the first of the given limits holds; as for `Trainer.fit`.

        Members that are done stay as they are, and so do those that have diverged; one that failed
        otherwise is tried again from its last checkpoint.

        Args:
            epochs: passes over the data, of each member.
            steps: training steps of each member.
            seconds: training time of each member, while others may be at work.
            until: a text such as "jsd<0.05", or a function of a member's `State`.

        Returns:
            the table of results, which is also written to results.csv.

        Raises:
            KeyboardInterrupt: Ctrl-C, after the members at work have finished their steps and were
                saved; SIGTERM likewise with SystemExit. A second one does not wait.
            ValueError: no limit is given.
        """
        if self.course is not None and self.course.at_work:
            raise ConfigError("this ensemble is being trained already; wait for that call of fit")
        limits = {"epochs": epochs, "steps": steps, "seconds": seconds}
        self.course = Course(self, limits, until)
        self.course.run()
        return self.results()

    def keep(self) -> None:
        """Write ensemble.json and results.csv, if there is a directory."""
        if self.out is not None:
            room.write(self.out, self.members, self.goal)
            self.results().to_csv(self.out / TABLE)

    # --- what became of it -----------------------------------------------------------------------

    def results(self) -> Results:
        """A row for each member; see `fastgan.many.Results`."""
        rows = []
        for member in self.members:
            t = member.trainer
            last = {name: value for name, value in member.line.items() if name != "step"}
            rows.append(
                {
                    "member": member.name,
                    **member.settings,
                    "status": member.status,
                    "step": t.step,
                    "train_seconds": round(t.seconds, 3),
                    **last,
                    **member.scores,
                    **({} if member.reason is None else {"reason": member.reason}),
                }
            )
        varied = list(dict.fromkeys(name for m in self.members for name in m.settings))
        scores = list(dict.fromkeys(name for m in self.members for name in m.scores))
        return Results(rows, varied, scores)

    def evaluate(
        self, metrics: str | Sequence[str] | None = None, n: int | None = None, **options: Any
    ) -> Results:
        """Measure every member that is done; the arguments are those of `Trainer.evaluate`.

        Returns:
            the table of results with the metrics, which ensemble.json keeps.
        """
        for member in self.members:
            if member.status == "done":
                self._measure(member, metrics, n, options)
        self.keep()
        return self.results()

    @staticmethod
    def _measure(member: Member, metrics: Any, n: int | None, options: dict[str, Any]) -> None:
        found = member.trainer.evaluate(metrics, n, **options)
        for name, value in found.items():
            if name not in ("n", "seconds") and isinstance(value, (int, float)):
                member.scores[name] = float(value) if is_number(value) else None

    def best(self, by: str, *, higher: bool | None = None) -> Trainer:
        """The member that is best by a column of the results.

        Args:
            by: the column, or a metric of `fastgan.metrics`, which is measured where it is missing.
            higher: whether more is better. Default: what is usual for a metric, else less is.

        Raises:
            ValueError: there is no such column or metric, or no member that is done has a value.
        """
        # Here, as most ensembles do without.
        from fastgan.metrics import METRICS

        for member in self.members:
            if by in METRICS and member.status == "done" and by not in member.scores:
                self._measure(member, by, None, {})
        if by in METRICS:
            self.keep()
        values = self.results().column(by)
        done = [
            (value, i)
            for i, value in enumerate(values)
            if is_number(value) and self.members[i].status == "done"
        ]
        if not done:
            raise ConfigError(f"no member that is done has a value of {by!r}")
        pick = max if (by in HIGHER if higher is None else higher) else min
        return self[pick(done, key=lambda pair: pair[0])[1]]

    def __len__(self) -> int:
        """How many members there are."""
        return len(self.members)

    def __getitem__(self, i: int) -> Trainer:
        """The run of a member, by its number."""
        return self.members[i].trainer

    def __iter__(self) -> Iterator[Trainer]:
        """The runs."""
        return (member.trainer for member in self.members)

    def __repr__(self) -> str:
        """How many there are, how they stand and where they lie."""
        found = [member.status for member in self.members]
        stand = ", ".join(f"{found.count(s)} {s}" for s in room.STATUSES if s in found)
        return f"<fastgan.Ensemble: {stand}{f', out {self.out}' if self.out else ''}>"


def _data_of(given: Mapping[str, Any], data: Any) -> Any:
    """What a member was given besides its settings; None where a setting says it."""
    own = given.get("data", data)
    return None if isinstance(given.get("data"), str) else own


def _prepare(out: str | os.PathLike, if_exists: str) -> Path:
    """The directory of a new ensemble, as `directory.prepare` finds that of a run."""
    path = directory.absolute(out)
    if not (path / room.FILE).exists() or if_exists == "count":
        return directory.prepare(path, if_exists)
    if if_exists == "fail":
        raise FileExistsError(
            f"out: {path} already holds an ensemble; continue it with resume, replace it with "
            "if_exists='overwrite', keep both with if_exists='count', or choose another name"
        )
    with RunLock(path):
        for place in path.iterdir():
            if place.is_dir() and place.name.isdecimal():
                directory.prepare(place, "overwrite")
        for name in (room.FILE, course.LOG, TABLE):
            (path / name).unlink(missing_ok=True)
    return path
