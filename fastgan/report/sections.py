"""What a report says in words and tables: where runs stand, settings, alarms, quality, machine."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from fastgan.config import field_of, owned
from fastgan.config.config import Config
from fastgan.report import charts, facts
from fastgan.report.facts import Run
from fastgan.report.markup import Markup, table, tag, text

_LONG = ("data", "networks")
_UNITS = ("B", "kB", "MB", "GB", "TB")


def overview(runs: Sequence[Run]) -> Markup:
    """Where the runs stand."""
    rows: dict[str, list[Any]] = {}
    for i, run in enumerate(runs):
        for name, value in _overview(run, brief=len(runs) > 1):
            rows.setdefault(name, [None] * len(runs))[i] = value
    if len(runs) == 1:
        body = tag(
            "dl",
            [
                tag("div", tag("dt", name), tag("dd", value), class_=name in _LONG and "long")
                for name, (value,) in rows.items()
            ],
            class_="facts",
        )
    else:
        head = ["", *(_keyed(i, run) for i, run in enumerate(runs))]
        body = table(head, [(name, *_told(values)) for name, values in rows.items()], "The runs")
    return tag("section", tag("h2", "Where it stands"), body, id="overview")


def notes(runs: Sequence[Run]) -> Markup:
    """What could not be read, if anything."""
    told = [
        f"{run.name}: {note}" if len(runs) > 1 else note
        for run in runs
        for note in dict.fromkeys(run.notes)
    ]
    if not told:
        return Markup("")
    items = tag("ul", [tag("li", note) for note in told])
    return tag("section", tag("h2", "To know"), items, class_="notes", id="notes")


def alarms(runs: Sequence[Run]) -> Markup:
    """Alarms with their evidence, or why there are none."""
    parts = []
    for run in runs:
        if len(runs) > 1:
            parts.append(tag("h3", run.name))
        if run.alarms:
            items = [
                tag(
                    "li",
                    tag("strong", alarm.name),
                    f", step {alarm.step:,}: {alarm.evidence}. Suggestion: {alarm.suggestion}.",
                )
                for alarm in run.alarms
            ]
            parts.append(tag("ul", items, class_="raised"))
        elif any("diversity" in line for line in run.lines):
            parts.append(tag("p", "The run was watched, and no alarm was raised."))
        else:
            parts.append(
                tag("p", "The run was not watched: ", tag("code", "fastgan train --alarms"),
                    " tells of collapse, saturation, divergence and starving.")
            )  # fmt: skip
    return tag("section", tag("h2", "Alarms"), parts, id="alarms")


def quality(runs: Sequence[Run]) -> Markup:
    """What was measured of samples."""
    names = facts.measured(list(runs))
    rows = []
    for run in runs:
        for line in run.quality:
            where = f"{run.name}, step {line['step']:,}" if len(runs) > 1 else f"{line['step']:,}"
            values = [_number(line.get(name)) for name in names]
            rows.append((where, *values, line.get("n"), line.get("features"), line.get("data")))
    if not rows:
        run = runs[0]
        way = f"fastgan evaluate {_shell(run)}" if run.by_command else "trainer.evaluate()"
        body = [tag("p", "Nothing has been measured yet. This measures it:"), _line(way)]
    else:
        arrows = [(name, "\u00a0", facts.better(name)) for name in names]  # kept on one line
        head = ["step", *(text(*pair) for pair in arrows), "samples", "compared by", "data"]
        body = [
            table(head, [_told(row) for row in rows], "↑ higher is better, ↓ lower is better"),
            tag("p", "Numbers of one kind of features say nothing beside those of another.",
                class_="help"),
        ]  # fmt: skip
    return tag("section", tag("h2", "Quality"), body, id="quality")


def settings(runs: Sequence[Run]) -> Markup:
    """What differs, and all of them."""
    names = [run.name for run in runs]
    differing = facts.differing(list(runs))
    several = len(runs) > 1
    what = "What differs between the runs" if several else "What differs from the defaults"
    if differing:
        rows = [(name, *map(_value, values)) for name, values in differing.items()]
        parts = [table(["setting", *(names if several else ["value"])], rows, what)]
    else:
        nothing = "the runs have the same settings" if several else "all settings are the defaults"
        parts = [tag("p", f"Nothing differs: {nothing}.")]
    known = Config.__dataclass_fields__
    rows = [
        (
            text(name, " ", tag("span", field_of(name).metadata["help"], class_="help"))
            if name in known
            else name,
            *(_value(run.settings[name]) if name in run.settings else "–" for run in runs),
        )
        for name in facts.shown(list(runs))
    ]
    if rows:
        head = ["setting", *(names if several else ["value"])]
        parts.append(
            tag("details", tag("summary", "All settings"), table(head, rows, "All settings"))
        )
    return tag("section", tag("h2", "Settings"), parts, id="settings")


def machine(runs: Sequence[Run]) -> Markup:
    """How fast, by which engine, on what."""
    rows: dict[str, list[Any]] = {}
    for i, run in enumerate(runs):
        for name, value in _machine(run):
            rows.setdefault(name, [None] * len(runs))[i] = value
    head = ["", *(run.name for run in runs)] if len(runs) > 1 else ["", "value"]
    body = table(head, [(name, *_told(values)) for name, values in rows.items()],
                 "Where and how fast the steps were made")  # fmt: skip
    return tag("section", tag("h2", "Speed and machine"), body, id="machine")


def checkpoints(runs: Sequence[Run]) -> Markup:
    """What is on disk, and the commands that go on from there."""
    parts = []
    for run in runs:
        if len(runs) > 1:
            parts.append(tag("h3", run.name))
        if run.saves:
            rows = [
                (save.name, "–" if save.step is None else f"{save.step:,}", _size(save.size))
                for save in run.saves
            ]
            parts.append(table(["file", "step", "size"], rows, f"In {run.place}"))
        if run.resume is not None:
            parts += [tag("p", "To continue the run (limits are totals):"), _line(run.resume)]
        elif run.place is not None:
            parts.append(tag("p", "There is no checkpoint that the run could be continued from."))
        if run.by_command:
            place = _shell(run)
            parts.append(tag("p", "To draw samples, to measure them, to take the network away:"))
            parts.append(
                _line(*(f"fastgan {word} {place}" for word in ("sample", "evaluate", "export")))
            )
    if not parts:
        parts = [tag("p", "Nothing of the run is on disk.")]
    return tag("section", tag("h2", "Checkpoints"), parts, id="checkpoints")


def _overview(run: Run, brief: bool) -> Iterable[tuple[str, Any]]:
    about = run.about
    epoch = run.lines[-1].get("epoch") if run.lines else None
    yield "step", f"{run.step:,}" + (f" (epoch {epoch:,})" if isinstance(epoch, int) else "")
    wanted = [f"{value:,} {name}" for name, value in run.goal.items() if value is not None]
    if wanted:
        yield "asked for", " or ".join(wanted)
    if run.seconds is not None:
        yield "training time", _duration(run.seconds)
    if run.lines:
        for name, words in (("d_loss", "D's loss"), ("g_loss", "G's loss")):
            if points := run.points(name):
                yield words, charts.short(points[-1][1])
    if run.quality:
        line = run.quality[-1]
        for name in ("fid", "precision", "recall", "swd", "shapes", "pairs", "efficacy"):
            if name in line:
                yield name, f"{_number(line[name])} (step {line['step']:,})"
    if data := (not brief and about.get("origin")) or about.get("data"):
        yield "data", data
    yield "networks", f"{_network(run, 'generator')} against {_network(run, 'discriminator')}"


def _machine(run: Run) -> Iterable[tuple[str, Any]]:
    if len(run.times) and run.times[-1][1] > 0:
        step, seconds = run.times[-1]
        pace = f"{1e3 * seconds / step:.3g} ms, {step / seconds:,.0f} steps a second"
        yield "a step took", pace
    for name in ("engine", "precision", "device"):
        if about := run.about.get(name):
            yield name, about
    if run.state is not None:
        yield "threads", run.state["threads"]
    for name, value in (run.about.get("machine") or {}).items():
        yield name, value
    for name, value in run.versions.items():
        yield name, value


def _network(run: Run, name: str) -> str:
    described = (run.about.get("models") or {}).get(name)
    words = "a network of your own"
    if isinstance(described, dict):
        words = described.get("network", "?")
    if run.state is None:
        return words
    count = sum(value.numel() for value in run.state[name].values() if hasattr(value, "numel"))
    return f"{words} ({count:,} weights)"


def _keyed(slot: int, run: Run) -> Markup:
    return text(
        tag("span", class_=f"key c{slot % charts.COLOURS}", aria_hidden="true"), " ", run.name
    )


def _told(values: Iterable[Any]) -> list[Any]:
    return ["–" if value is None else value for value in values]


def _number(value: Any) -> str | None:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return charts.short(value)
    return None


def _value(value: Any) -> str:
    if (name := owned(value)) is not None:
        return f"{name} (your own)"
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def _line(*commands: str) -> Markup:
    return tag("p", [tag("code", command, class_="line") for command in commands])


def _shell(run: Run) -> str:
    return shlex.quote(str(run.place))


def _size(size: float) -> str:
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
