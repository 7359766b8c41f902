"""Geometry of the learning curves: data in, SVG coordinates out, for the template to draw."""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence

from t2g_jax.report import formatting
from t2g_jax.report.contents import Curve, ResultRow

WIDTH, HEIGHT = 384, 236
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 12, 42  # margins around the plot
COLOURS = 16  # line styles in report.css: eight colours, solid and then dashed
MARKERS = (  # one shape for each style in turn, so that lines differ without colour too
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "M-3.2 -3.2h6.4v6.4h-6.4z",
    "M0 -4.2L4.2 3.2H-4.2z",
    "M0 -4.4L4.4 0L0 4.4L-4.4 0z",
)
_READ_COARSELY = {"nats", "share", "tokens"}
"""Units in which nobody cares for less than a thousandth, which may be rounding."""
MAX_POINTS = 400  # drawn per line; a longer one is thinned, keeping every peak and trough


@dataclasses.dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclasses.dataclass(frozen=True)
class Line:
    label: str
    colour: int
    path: str
    dots: tuple[tuple[float, float], ...]  # points with a gap on both sides, which no path shows
    end: tuple[float, float] | None
    steps: tuple[float, ...]
    values: tuple[float, ...]
    last: str


@dataclasses.dataclass(frozen=True)
class Floor:
    at: float
    text: str


@dataclasses.dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    x_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    floors: tuple[Floor, ...]
    as_percent: bool
    summary: str


def colours(curves: Iterable[Curve], results: Iterable[ResultRow] = ()) -> dict[str, int]:
    """Line style of every label, in order of appearance; methods in the table share it."""
    labels = dict.fromkeys([row.method for row in results] + [curve.label for curve in curves])
    return {label: index % COLOURS for index, label in enumerate(labels)}


def marker(colour: int) -> str:
    """SVG path of a line style's marker; a colour's solid and dashed styles get different ones."""
    return MARKERS[(colour + colour // 8) % len(MARKERS)]


def charts(curves: Sequence[Curve], results: Sequence[ResultRow] = ()) -> tuple[Chart, ...]:
    """One chart for each metric and x-axis, in order of appearance, one line for each curve.

    Charts of one metric say in their unit against what they are drawn.
    """
    palette = colours(curves, results)
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.metric, curve.x_label), []).append(curve)
    often = collections.Counter(metric for metric, _ in groups)
    return tuple(
        _chart(metric, x_label, group, _floors(metric, results), palette, often[metric] > 1)
        for (metric, x_label), group in groups.items()
    )


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) inside [low, high]."""
    if not high > low:
        return (low,)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(k * step, 12) for k in range(first, last + 1))


def thin(steps: Sequence[float], values: Sequence[float], limit: int = MAX_POINTS):
    """At most `limit` points: the lowest and highest of each stretch, so that no spike is lost."""
    if len(steps) <= limit:
        return tuple(steps), tuple(values)
    stretches = limit // 2 - 1
    keep = {0, len(steps) - 1}
    for k in range(stretches):
        stretch = range(k * len(steps) // stretches, (k + 1) * len(steps) // stretches)
        finite = [i for i in stretch if math.isfinite(values[i])] or [stretch.start]
        keep |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
    chosen = sorted(keep)
    return tuple(steps[i] for i in chosen), tuple(values[i] for i in chosen)


def _chart(metric, x_label, group, floors, palette, say_against) -> Chart:
    points = [thin(curve.steps, curve.values) for curve in group]
    finite = [
        (x, y)
        for xs, ys in points
        for x, y in zip(xs, ys, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]
    xs = [x for x, _ in finite] or [0.0]
    ys = [y for _, y in finite] or [0.0]
    as_percent = "accuracy" in metric.lower() and formatting.unit_scale(ys)
    x_range = _spread(min(xs), max(xs))
    title, unit = _split_unit(metric)
    least = 1e-3 if unit.partition(" ")[0] in _READ_COARSELY else 0.0
    y_range = _y_range(ys, [value for value, _ in floors], as_percent, least)
    if say_against:
        unit = f"{unit}, over {x_label}" if unit else f"over {x_label}"

    def place(x, y):
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    write = formatting.percent if as_percent else formatting.decimal
    lines = []
    for curve, (steps, values) in zip(group, points, strict=True):
        path, dots, end = _trace(steps, values, place)
        last = next((v for v in reversed(values) if math.isfinite(v)), math.nan)
        lines.append(
            Line(curve.label, palette[curve.label], path, dots, end, steps, values, write(last))
        )
    y_ticks = nice_ticks(*y_range)
    x_ticks = [x for x in nice_ticks(*x_range) if x == round(x)]  # half a step is none
    return Chart(
        title=title,
        unit=unit,
        x_label=x_label,
        x_range=x_range,
        y_range=y_range,
        x_ticks=tuple(Tick(place(x, 0)[0], formatting.count(x)) for x in x_ticks),
        y_ticks=tuple(Tick(place(0, y)[1], _tick_text(y, y_ticks, as_percent)) for y in y_ticks),
        lines=tuple(lines),
        floors=tuple(Floor(place(0, value)[1], text) for value, text in floors),
        as_percent=as_percent,
        summary="; ".join(f"{line.label} ends at {line.last}" for line in lines),
    )


def _trace(steps, values, place):
    """SVG path with gaps where a point is not finite, points alone between gaps, the last point."""
    runs, run = [], []
    for x, y in zip(steps, values, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            run.append(place(x, y))
        elif run:
            runs.append(run)
            run = []
    runs = [*runs, run] if run else runs
    path = " ".join("M" + "L".join(f"{x:g} {y:g}" for x, y in run) for run in runs if len(run) > 1)
    dots = tuple(run[0] for run in runs if len(run) == 1)
    return path, dots, (runs[-1][-1] if runs else None)


def _floors(metric: str, results: Sequence[ResultRow]) -> list[tuple[float, str]]:
    """Floors to draw on an accuracy chart: its own task's if the metric names one, else all."""
    if "accuracy" not in metric.lower():
        return []
    rows = [row for row in results if math.isfinite(row.floor)]
    named = [row for row in rows if row.task.lower() in metric.lower()]
    tasks = {row.task for row in named or rows}
    many = len(tasks) > 1
    found = {(row.floor, f"floor, {row.task}" if many else "floor") for row in named or rows}
    return sorted(found)


def _y_range(values, floors, as_percent, least) -> tuple[float, float]:
    """`least`: an axis is at least so long, and so long that float32's rounding is no spike."""
    low, high = min(values), max(values)
    if as_percent:
        return 0.0, min(1.0, max(high, *floors, 0.05) * 1.1)
    least = max(least, 1e-6, 1e-4 * max(abs(low), abs(high)))
    if high - low < least:
        middle = (low + high) / 2
        start = 0.0 if low >= 0 and high < least else middle - least / 2
        return (start, start + least) if high > low else _spread(low, high)
    if low >= 0 and low < 0.4 * high:
        low = 0.0
    low, high = _spread(low, high)
    margin = 0.06 * (high - low)
    return (low if low == 0 else low - margin), high + margin


def _spread(low: float, high: float) -> tuple[float, float]:
    """Room around a single value, so that the axis has a length."""
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _tick_text(value: float, ticks: Sequence[float], as_percent: bool) -> str:
    if as_percent:
        return _tick_text(value * 100, [tick * 100 for tick in ticks], False) + "\u202f%"
    largest = max(abs(tick) for tick in ticks)
    if largest >= 10_000:
        return formatting.count(value)
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=largest or 1.0)
    if step < 1e-4:
        return f"{value:.0e}" if value else "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits}f}".replace("-", "−")


def _split_unit(metric: str) -> tuple[str, str]:
    """ "KL (nats)" -> ("KL", "nats")."""
    match = re.fullmatch(r"(.+?)\s*\(([^()]+)\)", metric)
    return (match[1], match[2]) if match else (metric, "")
