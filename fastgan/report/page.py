"""The page: one file of HTML that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from fastgan.config import ConfigError
from fastgan.report import charts, drawn, frames, of_table, sections, through_time
from fastgan.report.charts import Curve
from fastgan.report.drawn import Maker
from fastgan.report.facts import Run
from fastgan.report.markup import Markup, table, tag, text
from fastgan.run.checkpoint import first_line
from fastgan.version import __version__

ROOM = 4_200_000
"""Bytes that pictures may take: a page stays under five million."""
WALK = 0.35
"""The part of it for walks."""
_ROWS, _VECTORS, _LONGEST = 8, 6, 2048

_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
_SMOOTH = (
    "From a latent to the next and back to the first, in {} pictures. Samples that jump from one "
    "to another are a sign of some that were learned by heart."
)
_TITLES = {
    "overview": "Where it stands",
    "samples": "Samples",
    "curves": "Curves",
    "made": "What it makes",
    "alarms": "Alarms",
    "quality": "Quality",
    "settings": "Settings",
    "machine": "Speed",
    "checkpoints": "Checkpoints",
}


def render(runs: Sequence[Run], makers: Sequence[Callable[[], Maker]]) -> str:
    """HTML of a report on some runs.

    Args:
        runs: with names that differ.
        makers: of each, what gives its generator; ConfigError from it is told in the page.
    """
    # Before the notes, which tell of pictures that cannot be read.
    moved = through_time.section(runs, int(ROOM * (1 - WALK)), _made(runs, makers))
    body = [
        sections.overview(runs),
        sections.notes(runs),
        moved,
        sections.alarms(runs),
        sections.quality(runs),
        sections.settings(runs),
        sections.machine(runs),
        sections.checkpoints(runs),
    ]
    lead = "A report on what was trained, with everything in this one file."
    return whole(", ".join(run.name for run in runs), lead, body, _TITLES)


def whole(title: str, lead: str, body: Sequence[Markup], sections: Mapping[str, str]) -> str:
    """HTML of a page.

    Args:
        title: what stands at its head.
        lead: a sentence under it.
        body: its parts.
        sections: what links to the parts with an id are called; others are not linked to.
    """
    links = [
        tag("li", tag("a", words, href=f"#{name}"))
        for name, words in sections.items()
        if any(f'id="{name}"' in part for part in body)
    ]
    top = tag(
        "header",
        tag("h1", title),
        tag("p", lead, class_="lead"),
        tag("nav", tag("ul", links), aria_label="Sections"),
    )
    end = tag("footer", f"Written by fastgan {__version__}.")
    script = tag("script", _file("page.js"))
    html = tag("html", _head(title), tag("body", top, tag("main", body), end, script), lang="en")
    return text(Markup("<!doctype html>\n"), html, Markup("\n"))


def _head(names: str) -> Markup:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{names}: a fastgan report"),
        tag("style", _file("page.css")),
    )


def _file(name: str) -> Markup:
    return Markup(resources.files("fastgan.report").joinpath(name).read_text(encoding="utf-8"))


def _made(runs: Sequence[Run], makers: Sequence[Callable[[], Maker]]) -> Markup:
    walks, others = [], []
    for run, maker in zip(runs, makers, strict=True):
        try:
            found = maker()
            if found.table is not None:
                others += [_rows(run, found), of_table.plots(run.name, found)]
            elif found.images:
                room = int(ROOM * WALK / len(runs))
                pictures, _ = frames.embed(drawn.walk(found), room)
                walks.append((run.name, pictures))
            elif (vectors := _vectors(run, found)) is not None:
                others.append(vectors)
        except ConfigError as error:
            others.append(_nothing(run, str(error)))
        except Exception as error:  # a network of a user's own may fail in any way
            others.append(_nothing(run, f"The generator could not be asked: {first_line(error)}"))
    parts = []
    if walks:
        count = min(len(pictures) for _, pictures in walks)
        stops = [frame.at for frame in min((p for _, p in walks), key=len)]
        figures = [
            through_time.series(name, pictures, "walk", f"A walk through latents of {name}", "",
                                last=False)
            for name, pictures in walks
        ]  # fmt: skip
        parts += [
            tag("h2", "A walk through the latents"),
            tag("p", _SMOOTH.format(count), class_="help"),
            through_time.bar("walk", stops, [*range(len(stops))], "picture", "Place on the walk",
                             loops=True),
            tag("div", figures, class_="side"),
        ]  # fmt: skip
    elif others:
        parts.append(tag("h2", "What it makes"))
    if not parts:
        return Markup("")
    return tag("section", parts, others, id="made")


def _nothing(run: Run, why: str) -> Markup:
    why = why if why.endswith(".") else f"{why}."
    return tag("p", f"{run.name}: no samples could be made for this page. {why}")


def _rows(run: Run, maker: Maker) -> Markup:
    found = maker.rows(_ROWS)
    head = ["row", *map(str, found.columns)]
    rows = [(i + 1, *map(_cell, row)) for i, row in enumerate(found.itertuples(index=False))]
    return table(head, rows, f"{_ROWS} rows that {run.name} makes")


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _vectors(run: Run, maker: Maker) -> Markup | None:
    """Samples as lines, unless they are points of a plane, which have pictures, or too long."""
    samples = maker.samples(_VECTORS).flatten(1)
    length = samples.shape[1]
    if not 2 < length <= _LONGEST:
        return None
    curves = [
        Curve(f"sample {i + 1}", list(enumerate(values)), i)
        for i, values in enumerate(samples.tolist())
    ]
    return charts.chart(
        f"{_VECTORS} samples of {run.name}", curves, span=(0, length - 1), follows=False,
        help="The numbers of a sample, one after the other.",
    )  # fmt: skip
