"""What a run's directory tells of it, and what in it could not be read."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgan import metrics, resuming
from fastgan.alarms import Alarm
from fastgan.config import Config, ConfigError
from fastgan.run import checkpoint, log, pictures
from fastgan.run.checkpoint import CheckpointError
from fastgan.until import HIGHER

if TYPE_CHECKING:
    from fastgan.trainer import Trainer

_PICTURE = re.compile(r"(\d{8,})\.png")
_LEFT_OUT = ("out", "if_exists", "console")


class Save(NamedTuple):
    """A checkpoint on disk."""

    name: str
    step: int | None
    size: int


@dataclass
class Run:
    """Everything that a report says of one run, but for what its networks make.

    Attributes:
        name: short; of several runs no two have the same.
        place: its directory, as a command line takes it; None for one that writes nothing.
        settings: by name, plain values; empty where they could not be read.
        about: what became of them: data, engine, device, ...
        lines: of the log, each with a "step".
        times: (step, seconds of training) of as many lines.
        alarms: those that were raised.
        quality: what was measured, in the order of the steps.
        pictures: (step, file) of samples along the run, by step.
        saves: its checkpoints, the newest first.
        state: of the newest checkpoint; None without one.
        file: that checkpoint.
        step: how far it is.
        goal: limits of the run by name.
        resume: the command or call that continues it.
        notes: what could not be read, a sentence each.
    """

    name: str
    place: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    times: list[tuple[int, float]] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    quality: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[tuple[int, Path]] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    state: dict[str, Any] | None = None
    file: Path | None = None
    step: int = 0
    goal: dict[str, Any] = field(default_factory=dict)
    resume: str | None = None
    notes: list[str] = field(default_factory=list)

    def points(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a number of the log lines: its mean since the line before, if told."""
        return pictures.numbers(self.lines, name)

    @property
    def seconds(self) -> float | None:
        """Training time."""
        return self.times[-1][1] if self.times else None

    @property
    def by_command(self) -> bool:
        """Whether commands can make its networks and data again."""
        return self.state is not None and not resuming.needed(self.state)

    @property
    def versions(self) -> dict[str, str]:
        """Of fastgan, torch and python, with which it was saved last."""
        return {} if self.state is None else self.state["versions"]


def of_directory(path: str | os.PathLike) -> Run:
    """The run in a directory, or that of a checkpoint.

    Raises:
        ConfigError: there is no run.
    """
    given = Path(path).expanduser()
    place = given.parent if given.is_file() else given
    run = Run(place.resolve().name, str(place))
    if not place.is_dir():
        raise ConfigError(f"there is no run {given}; give the directory of one")
    try:
        run.file, run.state = resuming.read(given)
    except CheckpointError as error:
        run.notes.append(f"{error}.")
    run.lines = list(_lines(run, place / log.LOG, "step"))
    config = _config(run, place / log.CONFIG)
    if run.state is None and not run.lines and not config:
        file = "" if given == place else f"{given} is no checkpoint, and "
        raise ConfigError(
            f"{file}{place.resolve() if file else place} holds no run: neither a "
            f"{checkpoint.FILE} that can be read nor a {log.LOG}; give the directory of a run"
        )
    run.settings, run.about = config.get("settings", {}), config.get("about", {})
    run.times = [
        (line["step"], line["seconds"])
        for line in _lines(run, place / log.TIMING, "step", "seconds")
    ]
    run.quality = _newest(_lines(run, place / log.QUALITY, "step"))
    run.pictures = sorted(
        (int(found[1]), file)
        for file in _files(place / pictures.SERIES)
        if (found := _PICTURE.fullmatch(file.name))
    )
    run.saves = [
        Save(file.name, _step_of(file), file.stat().st_size)
        for file in sorted(checkpoint.saves(place / checkpoint.FILE), key=_step_of, reverse=True)
    ]
    if (newest := place / checkpoint.FILE).is_file():
        run.saves.insert(0, Save(newest.name, run.state and run.state["step"], _size(newest)))
    run.step = max((line["step"] for line in run.lines), default=0)
    if run.state is not None:
        _of_state(run, place)
    return run


def of_trainer(trainer: Trainer) -> Run:
    """A run at work, with all that it has written so far."""
    told = resuming.about(trainer)
    if trainer.out is not None and trainer.saved is not None:
        run = of_directory(trainer.out)
    else:
        run = Run(trainer.data.name, None, notes=["It writes to no directory (out is None)."])
        if trainer.out is not None:
            run.notes = ["It has saved nothing yet."]
    run.settings, run.about = told["settings"], told["about"]
    run.lines = list(trainer.history)
    run.step, run.goal = trainer.step, dict(trainer.goal)
    for callback in trainer.callbacks:
        run.alarms = list(getattr(callback, "raised", run.alarms))
    return run


def named(runs: list[Run]) -> list[Run]:
    """The runs with names that differ: more of their paths where it needs that, or numbers."""
    for parts in range(2, 5):
        twice = _twice(runs)
        for run in runs:
            if run.name in twice and run.place is not None:
                run.name = "/".join(Path(run.place).resolve().parts[-parts:])
    for twice in _twice(runs):
        for number, run in enumerate([r for r in runs if r.name == twice], 1):
            run.name = f"{twice} ({number})"
    return runs


def _twice(runs: list[Run]) -> set[str]:
    names = [run.name for run in runs]
    return {name for name in names if names.count(name) > 1}


def measured(runs: list[Run]) -> list[str]:
    """The numbers that are in their measurements, those of the metrics by name first."""
    found = {
        name: None
        for run in runs
        for line in run.quality
        for name, value in line.items()
        if name not in ("step", "n", "seconds") and _is_number(value)
    }
    known = [name for name in (*metrics.METRICS, *metrics.TABLE_METRICS) if name in found]
    return [*known, *(name for name in found if name not in known)]


def better(name: str) -> str:
    """An arrow to where a measured number is better; "" where neither end is."""
    if name in (*HIGHER, "shapes", "pairs", "efficacy"):
        return "↑"
    return "↓" if name in metrics.METRICS else ""


def differing(runs: list[Run]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, and for one run those beside the defaults.

    Returns:
        by name a value for each run; None where a run does not say.
    """
    if len(runs) == 1:
        defaults = Config().to_dict()
        own = runs[0].settings
        return {n: [own[n]] for n in shown(runs) if n in own and own[n] != defaults.get(n)}
    values = {name: [run.settings.get(name) for run in runs] for name in shown(runs)}
    return {n: found for n, found in values.items() if any(v != found[0] for v in found)}


def shown(runs: list[Run]) -> list[str]:
    """The settings that a report tells, in the order of the table; unknown ones at the end."""
    known = [f.name for f in fields(Config) if f.name not in _LEFT_OUT]
    others = {name for run in runs for name in run.settings} - {*known, *_LEFT_OUT}
    return [n for n in known if any(n in run.settings for run in runs)] + sorted(others)


def _of_state(run: Run, place: Path) -> None:
    state = run.state
    run.settings = state["config"]
    run.goal = state["goal"]
    run.step = max(run.step, state["step"])
    for found in state["callbacks"].values():
        raised = found.get("raised") if isinstance(found, dict) else None
        run.alarms += [Alarm(*one) for one in raised or () if len(one) == len(Alarm._fields)]
    missing = resuming.needed(state)
    run.resume = resuming.command(place, missing)
    if state["step"] < run.step:
        run.notes.append(
            f"The log goes on to step {run.step:,}, the checkpoint holds step {state['step']:,}: "
            "the run is still at work, or was ended before it could save."
        )


def _config(run: Run, file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
        if not all(isinstance(config[name], dict) for name in ("settings", "about")):
            raise ValueError("it is no run's")
        return config
    except FileNotFoundError:
        run.notes.append(f"There is no {log.CONFIG}.")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        run.notes.append(f"{log.CONFIG} cannot be read: {checkpoint.first_line(error)}.")
    return {}


def _lines(run: Run, file: Path, *numbers: str) -> Iterator[dict[str, Any]]:
    """The lines of a file that are objects and have these numbers; others are counted in a note."""
    if not file.is_file():
        return
    damaged = 0
    with open(file, "rb") as lines:
        for text in lines:
            try:
                line = json.loads(text)
                if all(_is_number(line[name]) for name in numbers):
                    yield line
                    continue
            except (ValueError, KeyError, TypeError, RecursionError):
                pass
            damaged += 1
    if damaged:
        lines = "1 line" if damaged == 1 else f"{damaged:,} lines"
        run.notes.append(f"{lines} of {file.name} cannot be read and are left out.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _newest(lines: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of measurements of one step by the same means the last, by step."""
    found = {
        (line["step"], str(line.get("features")), str(line.get("data")), line.get("n")): line
        for line in lines
    }
    return sorted(found.values(), key=lambda line: line["step"])


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _step_of(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _size(file: Path) -> int:
    return file.stat().st_size
