"""What changed along runs: samples and curves, and the bar that moves through their steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from fastgan.report import charts, frames
from fastgan.report.charts import Curve, Mark
from fastgan.report.facts import Run
from fastgan.report.frames import Frame
from fastgan.report.markup import Markup, data, tag
from fastgan.statistics import MEASURES, STATISTICS

STOPS = 400
"""Places of the bar at most."""

_PAIRS = {
    "Losses": ("Means since the last log line.", {"d_loss": "D", "g_loss": "G"}),
    "Scores of D": (
        "Means of what D says of real and of generated samples: logits where the loss works on "
        "them, where 0 is undecided.",
        {"d_real": "real", "d_fake": "generated"},
    ),
    "Accuracy of D": (
        "Share of real and of generated samples that D takes for what they are, at the log line's "
        "step.",
        {"d_real_accuracy": "real", "d_fake_accuracy": "generated"},
    ),
    "Spread of D's scores": (
        "Standard deviation over the batch, at the log line's step.",
        {"d_real_spread": "real", "d_fake_spread": "generated"},
    ),
    "Norms of gradients": (
        "Of all weights of a network, before they are clipped, at the log line's step.",
        {"d_grad_norm": "D", "g_grad_norm": "G"},
    ),
    "Size of updates": (
        "What an update changed, over the weights before it, at the log line's step.",
        {"d_update_ratio": "D", "g_update_ratio": "G"},
    ),
}
_SLOTS = {"D": 0, "G": 1, "real": 2, "generated": 3}
_HELP = {
    **{one.name: f"{one.help[0].upper()}{one.help[1:]}; means since the last log line."
       for one in STATISTICS},
    **{one.name: f"{one.help[0].upper()}{one.help[1:]}; at the log line's step."
       for one in MEASURES},
    "diversity": "Mean distance of samples to each other, over that of the data.",
    "ms per step": "Time from line to line, over the steps.",
}  # fmt: skip


def bar(
    of: str, stops: Sequence[int], plays: Sequence[int], unit: str, label: str, *, loops: bool
) -> Markup:
    """The slider that pictures and charts follow, and a button; "" where there is nowhere to go.

    Args:
        of: what they are told by.
        stops: the places.
        plays: those of them, by number, that the button goes through.
        unit: a word before the place.
        label: what a screen reader calls it.
        loops: play begins again at the end.
    """
    if len(stops) < 2:
        return Markup("")
    last = 0 if loops else len(stops) - 1
    return tag(
        "div",
        tag("button", "Play", type="button"),
        tag(
            "input", type="range", min=0, max=len(stops) - 1, step=1, value=last, aria_label=label,
            autocomplete="off",
        ),
        tag("output"),
        data({"stops": stops, "plays": plays, "unit": unit, "loops": loops}),
        class_="scrub" if loops else "scrub sticky",
        data_scrub=of,
        role="group",
        aria_label=label,
        hidden=True,
    )  # fmt: skip


def series(
    name: str, found: Sequence[Frame], of: str, alt: str, unit: str, *, last: bool
) -> Markup:
    """A figure of pictures, of which one is seen.

    Args:
        name: its title.
        found: the pictures.
        of: the bar that they follow.
        alt: what they show.
        unit: a word before the place of each; "" to tell none.
        last: the last is seen until the bar moves; else the first.
    """
    seen = len(found) - 1 if last else 0
    images = []
    for i, frame in enumerate(found):
        place = f" at {unit} {frame.at:,}" if unit else f", {i + 1} of {len(found)}"
        width, height = frame.size
        # Small ones are enlarged by the page, and their pixels are to be seen.
        style = "pixels" if max(frame.size) < 600 else None
        images.append(
            tag("img", src=frame.uri, alt=alt + place, data_at=frame.at, hidden=i != seen,
                width=width, height=height, class_=style)
        )  # fmt: skip
    told = tag("output", f"{unit} {found[seen].at:,}") if unit else None
    caption = tag("figcaption", tag("strong", name), ", " if told else None, told)
    return tag("figure", caption, images, class_="frames", data_of=of)


def section(runs: Sequence[Run], room: int, made: Markup) -> Markup:
    """Samples and curves of the runs, under one bar.

    Args:
        runs: the runs.
        room: bytes that pictures may take.
        made: what stands between them.
    """
    pictures = {}
    for i, run in enumerate(runs):
        pictures[i], unread = frames.embed(run.pictures, room // len(runs))
        for name in unread:
            run.notes.append(f"The picture {name} cannot be read and is left out.")
    steps = {frame.at for found in pictures.values() for frame in found}
    lines = {line["step"] for run in runs for line in run.lines}
    stops = frames.spread(sorted(steps | lines), STOPS)
    stops = sorted({*stops, *steps})
    plays = [i for i, stop in enumerate(stops) if stop in steps or not steps]
    figures = [
        series(run.name, found, "time", f"Samples of {run.name}", "step", last=True)
        for run, found in zip(runs, pictures.values(), strict=True)
        if found
    ]
    samples = None
    if figures:
        samples = tag(
            "section",
            tag("h2", "Samples through time"),
            tag("p", "The same latents at each step.", class_="help"),
            tag("div", figures, class_="side"),
            id="samples",
        )
    drawn = [figure for figure in _charts(runs) if figure]
    curves = None
    if drawn:
        curves = tag(
            "section", tag("h2", "Curves"), tag("div", drawn, class_="charts"), id="curves"
        )
    moved = bar("time", stops, plays, "step", "Step of the run", loops=False)
    beside = len(runs) == 1 and (samples or made) and curves
    columns = tag("div", tag("div", samples, made), tag("div", curves), class_=beside and "beside")
    return tag("div", moved, columns)


def _charts(runs: Sequence[Run]) -> Iterator[Markup]:
    marks = [mark for run in runs for mark in _marks(run, several=len(runs) > 1)]
    span = (0, max((run.step for run in runs), default=0) or 1)

    def made(title: str, curves: list[Curve], help: str) -> Markup:
        return charts.chart(title, curves, span=span, help=help, marks=marks)

    paired = [name for _, names in _PAIRS.values() for name in names]
    if len(runs) == 1:
        for title, (help, names) in _PAIRS.items():
            curves = [
                Curve(words, runs[0].points(name), _SLOTS[words]) for name, words in names.items()
            ]
            yield made(title, curves, help)
        singles = [(name, name) for name in _others(runs, paired)]
    else:
        titles = {
            name: f"{title}: {words}"
            for title, (_, names) in _PAIRS.items()
            for name, words in names.items()
        }
        singles = [*titles.items(), *((name, name) for name in _others(runs, paired))]
    for name, title in singles:
        curves = [Curve(run.name, run.points(name), i) for i, run in enumerate(runs)]
        yield made(title, curves, _HELP.get(name, ""))
    title = "ms per step"
    curves = [Curve(run.name, _pace(run), i) for i, run in enumerate(runs)]
    yield made(title, curves, _HELP[title])


def _others(runs: Sequence[Run], but: Sequence[str]) -> list[str]:
    """The numbers of the log lines that are in no pair, in the order of the lines."""
    found = {}
    for run in runs:
        for line in run.lines:
            for name, value in line.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    found[name.removesuffix("_mean")] = None
    return [name for name in found if name not in ("step", "epoch", *but)]


def _pace(run: Run) -> list[tuple[int, float]]:
    return [
        (step, 1e3 * (seconds - earlier) / (step - before))
        for (before, earlier), (step, seconds) in pairwise([(0, 0.0), *run.times])
        if step > before and seconds >= earlier
    ]


def _marks(run: Run, *, several: bool) -> list[Mark]:
    """From which step to which each alarm was in the log lines."""
    found: list[Mark] = []
    begun: dict[str, int] = {}
    for before, line in pairwise([{}, *run.lines, {}]):
        now = line.get("alarms") or ()
        now = [str(name) for name in now] if isinstance(now, (list, tuple)) else [str(now)]
        for name in [name for name in begun if name not in now]:
            first = begun.pop(name)
            words = f"{name}, step {first:,} to {before['step']:,}"
            found.append(Mark(first, before["step"], f"{run.name}: {words}" if several else words))
        for name in now:
            begun.setdefault(name, line["step"])
    return found
