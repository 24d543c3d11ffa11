"""Curves as SVG that fits any width: lines stretch, labels are texts beside them and do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastgan.report.markup import Markup, data, tag
from fastgan.run.pictures import Axis

WIDTH, HEIGHT = 1000.0, 300.0
POINTS = 600
"""Of a curve at most; of more the lowest and highest of neighbours stay."""
COLOURS = 8
"""Classes of the page's style: c0, c1, ..."""


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        name: what the legend calls it.
        points: (x, y), in the order of x.
        slot: which colour; from the ninth on lines are dashed.
    """

    name: str
    points: Sequence[tuple[float, float]]
    slot: int

    @property
    def style(self) -> str:
        """The classes of its line."""
        return f"c{self.slot % COLOURS}" + (" dashed" if self.slot >= COLOURS else "")


@dataclass(frozen=True)
class Mark:
    """Something that happened, from one x to another.

    Attributes:
        first: where it begins.
        last: where it ends.
        words: what it was.
    """

    first: float
    last: float
    words: str


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    span: tuple[float, float],
    help: str = "",
    marks: Sequence[Mark] = (),
    follows: bool = True,
) -> Markup:
    """A figure with some curves; "" if none has a point.

    Args:
        title: what the numbers are.
        curves: drawn in this order.
        span: lowest and highest x, the same for charts that belong together.
        help: said under the title.
        marks: drawn behind the curves.
        follows: whether the legend tells the values at the step that is looked at.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return Markup("")
    x = Axis(span, 0.0, WIDTH, ticks=5)
    values = [v for c in curves for _, v in c.points]
    # Most of what is nothing all along cannot be less, such as a count.
    y = Axis(values if any(values) else [0.0, 1.0], HEIGHT, 0.0, ticks=5, room=0.06)
    curves = [Curve(c.name, thinned(c.points, POINTS), c.slot) for c in curves]
    legend = [
        tag(
            "li",
            tag("span", class_=f"key {curve.style}", aria_hidden="true"),
            tag("span", curve.name, class_="name"),
            tag("output", short(curve.points[-1][1]), class_="value") if follows else None,
        )
        for curve in curves
    ]
    plot = tag(
        "div",
        _drawing(x, y, curves, marks),
        [_tick("y", "top", y.place(at) / HEIGHT, short(at)) for at in y.ticks],
        [_tick("x", "left", x.place(at) / WIDTH, thousands(at)) for at in x.ticks],
        [_dot(x, y, curve) for curve in curves if len(curve.points) == 1],
        tag("span", class_="cursor", aria_hidden="true") if follows else None,
        class_="plot",
        role="img",
        aria_label=_told(title, curves, marks),
    )
    caption = tag(
        "figcaption",
        tag("strong", title),
        tag("span", help, class_="help") if help else None,
        tag("ul", legend, class_="legend"),
    )
    parts = [caption, plot]
    if follows:
        values = [[[at for at, _ in c.points], [_brief(v) for _, v in c.points]] for c in curves]
        parts.append(data({"span": [x.low, x.high], "curves": values}))
    return tag("figure", parts, class_="chart", data_follows=follows)


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """About so many points at most, so that the line looks as before."""
    if len(points) <= most:
        return list(points)
    size = -(-2 * len(points) // most)
    found = {points[0], points[-1]}
    for at in range(0, len(points), size):
        some = points[at : at + size]
        found |= {min(some, key=lambda p: p[1]), max(some, key=lambda p: p[1])}
    return sorted(found)


def short(number: float) -> str:
    """A number in a few digits."""
    return f"{number:.4g}"


def thousands(number: float) -> str:
    """A whole number with commas."""
    return f"{number:,.10g}"


def _brief(number: float) -> float:
    return float(f"{number:.5g}")


def _drawing(x: Axis, y: Axis, curves: Sequence[Curve], marks: Sequence[Mark]) -> Markup:
    lines = [("g", f"M0 {_at(y.place(tick))}H{WIDTH:g}") for tick in y.ticks]
    lines += [
        (curve.style, "M" + "L".join(f"{_at(x.place(a))} {_at(y.place(b))}" for a, b in c))
        for curve in curves
        if len(c := curve.points) > 1
    ]
    return tag(
        "svg",
        [_band(x, mark) for mark in marks],
        [tag("path", d=path, class_=style) for style, path in lines],
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        preserveAspectRatio="none",
        aria_hidden="true",
        focusable="false",
    )


def _band(x: Axis, mark: Mark) -> Markup:
    begin, end = x.place(mark.first), x.place(mark.last)
    return tag(
        "rect",
        tag("title", mark.words),
        x=_at(begin),
        y=0,
        width=_at(max(end - begin, 5.0)),
        height=f"{HEIGHT:g}",
        class_="alarm",
    )


def _tick(axis: str, side: str, part: float, words: str) -> Markup:
    style = f"{side}:{_at(100 * part)}%"
    return tag("span", words, class_=f"tick {axis}", style=style, aria_hidden="true")


def _dot(x: Axis, y: Axis, curve: Curve) -> Markup:
    ((a, b),) = curve.points
    style = f"left:{_at(100 * x.place(a) / WIDTH)}%;top:{_at(100 * y.place(b) / HEIGHT)}%"
    return tag("span", class_=f"dot {curve.style}", style=style, aria_hidden="true")


def _at(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")


def _told(title: str, curves: Sequence[Curve], marks: Sequence[Mark]) -> str:
    """What a reader who does not see the chart is told."""
    found = []
    for curve in curves:
        values = [value for _, value in curve.points]
        found.append(
            f"{curve.name} goes from {short(values[0])} to {short(values[-1])}, "
            f"lowest {short(min(values))}, highest {short(max(values))}"
            if len(values) > 1
            else f"{curve.name} is {short(values[0])}"
        )
    found += [mark.words for mark in marks]
    return f"{title}: {'; '.join(found)}."
