"""Charts as inline SVG: lines over the steps, and the spread of a score over the cases.

Colours come from the page's style sheet by class, so that a chart follows the reader's light or dark mode. Each has its
reading in words for those who do not see it; a script adds the values under the pointer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from semisam_tf.report.figures import count, metric_name, score, short
from semisam_tf.report.markup import Attribute, Child, Html, element

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 10, 34
_Y_TICKS = 4
_ROW_HEIGHT, _STRIP_BOTTOM = 46, 24
# More points than this are averaged in groups: a chart is some 300 pixels wide.
_MAX_POINTS = 300
# Quartiles of fewer cases say less than the points themselves.
_CASES_OF_A_BOX = 5


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        title: Above the chart.
        note: What it is, in a few words; shown below the title.
        kind: Class of the style sheet that colours it: "loss", "ramp" or "sam".
        steps, values: Points in order; a value of None interrupts the line.
    """

    title: str
    note: str
    kind: str
    steps: Sequence[int]
    values: Sequence[float | None]


@dataclass(frozen=True)
class _Scale:
    """A linear axis: `low` and `high` lie at the coordinates `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        margin = 1e-9 * (self.high - self.low)
        return [v for v in _round_values(self.low, self.high, most) if self.low - margin <= v <= self.high + margin]


def _round_values(low: float, high: float, most: int) -> list[float]:
    """Round numbers at equal distances, the first at or below `low`, the last at or above `high`."""
    values = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(value) for value in values]


def line_chart(series: Series, last_step: int, marks: Sequence[tuple[int, str]] = ()) -> Html:
    """A figure with one line.

    Args:
        series: At least one of its values is not None.
        last_step: The axis ends here, so that one sees how far a run has come.
        marks: Steps to mark with a word.
    """
    steps, values = thinned(series.steps, series.values)
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    low, high = min(0.0, *(v for _, v in known)), max(v for _, v in known)
    x = _Scale(0, max(last_step, steps[-1], 1), _LEFT, _WIDTH - _RIGHT)
    bounds = _round_values(low, high if high > low else low + 1.0, _Y_TICKS)
    y = _Scale(bounds[0], bounds[-1], _HEIGHT - _BOTTOM, _TOP)
    parts: list[Child] = [_horizontal_grid(y), _step_axis(x), [_mark(x(step), word) for step, word in marks]]
    for run in _unbroken(steps, values):
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in run)
        if len(run) > 1:
            parts.append(element("polyline", points=points, class_="line"))
        else:
            parts.append(element("circle", cx=f"{x(run[0][0]):.1f}", cy=f"{y(run[0][1]):.1f}", r=2.5, class_="dot"))
    last = f"{short(known[-1][1])} at step {known[-1][0]}"
    words = f"{series.title}: {short(known[0][1])} at step {known[0][0]}, {last}, between {short(low_of(known))} and "
    drawing = element(
        "svg", parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=f"{words}{short(high)}.",
        data_steps=",".join(str(step) for step, _ in known), data_values=",".join(f"{v:.4g}" for _, v in known),
        data_frame=f"{x.start},{x.end},{y.start},{y.end}", data_range=f"{x.low},{x.high},{y.low},{y.high}",
    )  # fmt: skip
    return _figure(series.title, element("output", last), series.note, drawing, f"chart {series.kind}")


def low_of(points: Sequence[tuple[int, float]]) -> float:
    """The smallest value."""
    return min(value for _, value in points)


def thinned(
    steps: Sequence[int], values: Sequence[float | None], most: int = _MAX_POINTS
) -> tuple[list[int], list[float | None]]:
    """At most `most` points: means of groups of neighbours, each at its last step. Few points stay as they are."""
    if len(steps) <= most:
        return list(steps), list(values)
    groups = np.array_split(np.arange(len(steps)), most)
    known = [[v for v in (values[i] for i in group) if v is not None] for group in groups]
    return [steps[group[-1]] for group in groups], [float(np.mean(some)) if some else None for some in known]


def strip_chart(metric: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Html:
    """The spread of a score: a point a case, and the median with the quartiles of five cases or more.

    Args:
        metric: Name in metrics.json.
        rows: Label and (case, value) of each row; a row without values says so. Not all rows are empty.
    """
    everything = [value for _, points in rows for _, value in points]
    left = 14 if len(rows) == 1 else 62
    height = _ROW_HEIGHT * len(rows) + _STRIP_BOTTOM
    low, high = (0.0, 1.0) if metric in ("dice", "jaccard") else (0.0, max(max(everything), 1e-6))
    x = _Scale(low, high, left, _WIDTH - _RIGHT - 6)
    parts = [
        [
            element("line", x1=f"{x(v):.1f}", x2=f"{x(v):.1f}", y1=4, y2=height - _STRIP_BOTTOM, class_="grid"),
            element("text", short(v), x=f"{x(v):.1f}", y=height - 8, text_anchor="middle"),
        ]
        for v in x.ticks(5)
    ]
    words = []
    for number, (label, points) in enumerate(rows):
        middle = _ROW_HEIGHT * (number + 0.5)
        if len(rows) > 1:
            parts.append([element("text", label, x=left - 8, y=middle + 4, text_anchor="end")])
        parts.append(_row(metric, x, middle, points))
        words.append(f"{label}: {_in_words(metric, [v for _, v in points])}")
    label = f"{metric_name(metric)}. {' '.join(words)}"
    drawing = element("svg", parts, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=label)
    note = " ".join(words) if len(rows) == 1 else ""
    return _figure(metric_name(metric), None, note.removeprefix(f"{rows[0][0]}: "), drawing, "chart score")


def _row(metric: str, x: _Scale, middle: float, points: Sequence[tuple[str, float]]) -> list[Html]:
    values = np.array([value for _, value in points])
    parts = []
    if not len(values):
        return [element("text", "no case has one", x=x.start + 4, y=middle + 4)]
    if len(values) >= _CASES_OF_A_BOX:
        first, third = np.percentile(values, (25, 75))
        box: dict[str, Attribute] = {
            "x": f"{x(first):.1f}",
            "width": f"{max(x(third) - x(first), 1.0):.1f}",
            "y": middle - 15,
            "height": 30,
        }
        parts.append(element("rect", rx=3, class_="box", **box))
    median = f"{x(float(np.median(values))):.1f}"
    parts.append(element("line", x1=median, x2=median, y1=middle - 17, y2=middle + 17, class_="median"))
    # Neighbours in value lie on different heights, so that equal cases are seen as several.
    for place, index in enumerate(np.argsort(values, kind="stable")):
        case_id, value = points[index]
        offset = (0, -7, 7)[place % 3] if len(values) > 1 else 0
        title = element("title", f"{case_id}: {score(metric, value)}")
        parts.append(element("circle", title, cx=f"{x(value):.1f}", cy=middle + offset, r=4, class_="point"))
    return parts


def _in_words(metric: str, values: Sequence[float]) -> str:
    if not values:
        return "no case has one."
    if len(values) == 1:
        return f"{score(metric, values[0])}, one case."
    first, median, third = np.percentile(values, (25, 50, 75))
    shown = [score(metric, float(v)) for v in (min(values), first, median, third, max(values))]
    spread = f"quartiles {shown[1]} to {shown[3]}, " if len(values) >= _CASES_OF_A_BOX else ""
    return f"median {shown[2]}, {spread}{shown[0]} to {shown[4]}, {count(len(values), 'case')}."


def _figure(title: str, readout: Html | None, note: str, drawing: Html, class_: str) -> Html:
    caption = [element("strong", title), readout, element("span", note, class_="note") if note else None]
    return element("figure", element("figcaption", caption), drawing, class_=class_)


def _horizontal_grid(y: _Scale) -> list[Html]:
    return [
        part
        for value in y.ticks(_Y_TICKS)
        for part in (
            element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y(value):.1f}", y2=f"{y(value):.1f}", class_="grid"),
            element("text", short(value), x=_LEFT - 6, y=f"{y(value) + 4:.1f}", text_anchor="end"),
        )
    ]


def _step_axis(x: _Scale) -> list[Html]:
    bottom = _HEIGHT - _BOTTOM
    labels = [
        element("text", short(value), x=f"{x(value):.1f}", y=bottom + 16, text_anchor="middle") for value in x.ticks(4)
    ]
    return [*labels, element("text", "step", x=_WIDTH - _RIGHT, y=_HEIGHT - 4, text_anchor="end", class_="unit")]


def _mark(x: float, word: str) -> list[Html]:
    line = element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="mark")
    beside, anchor = (x - 4, "end") if x > _WIDTH / 2 else (x + 4, "start")
    text = element("text", word, x=f"{beside:.1f}", y=_TOP + 10, text_anchor=anchor)
    return [line, text]


def _unbroken(steps: Sequence[int], values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Runs of points that have a value."""
    runs: list[list[tuple[int, float]]] = [[]]
    for step, value in zip(steps, values, strict=True):
        if value is not None:
            runs[-1].append((step, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
