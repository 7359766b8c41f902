"""Geometry of the learning curves: data in, SVG coordinates out, for the template to draw."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

from t2g_jax.report import formatting
from t2g_jax.report.contents import Curve, PhaseTime, ResultRow

WIDTH, HEIGHT = 384, 236
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 12, 42  # margins around the plot
COLORS = 16  # line styles in report.css: eight colors, solid and then dashed
MARKERS = (  # one shape for each style in turn, so that lines differ without color too
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "M-3.2 -3.2h6.4v6.4h-6.4z",
    "M0 -4.2L4.2 3.2H-4.2z",
    "M0 -4.4L4.4 0L0 4.4L-4.4 0z",
)
_LEAST = {"nats": 1e-3, "share": 1e-3, "tokens": 1.0}
"""By unit, the length of the shortest axis: differences that nobody cares for look like none."""
MAX_POINTS = 400  # drawn per line; a longer one is thinned, keeping every peak and trough


@dataclasses.dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclasses.dataclass(frozen=True)
class Line:
    label: str
    color: int
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


def colors(
    curves: Iterable[Curve],
    results: Iterable[ResultRow] = (),
    phases: Iterable[PhaseTime] = (),
) -> dict[str, int]:
    """Style of every label: of methods, which keep it in tables, curves and times, then others."""
    labels = [row.method for row in results] + [curve.label for curve in curves]
    labels += [phase.phase for phase in phases]
    return {label: index % COLORS for index, label in enumerate(dict.fromkeys(labels))}


def marker(color: int) -> str:
    """SVG path of a line style's marker; a color's solid and dashed styles get different ones."""
    return MARKERS[(color + color // 8) % len(MARKERS)]


def charts(curves: Sequence[Curve], results: Sequence[ResultRow] = ()) -> tuple[Chart, ...]:
    """One chart for each metric and x-axis, in order of appearance, one line for each curve.

    Charts of one metric say in their unit against what they are drawn.
    """
    palette = colors(curves, results)
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.metric, curve.x_label), []).append(curve)
    often = collections.Counter(metric for metric, _ in groups)
    return tuple(
        _chart(metric, x_label, group, _floors(group, results), palette, often[metric] > 1)
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
    return tuple(float(f"{k * step:.15g}") for k in range(first, last + 1))


def tick_texts(ticks: Sequence[float], *, as_percent: bool = False) -> tuple[str, ...]:
    """The ticks of an axis, each told exactly, all in one way: the shortest that does.

    (0.0, 0.5, 1.0) -> "0.0", "0.5", "1.0"; (0, 5000, 10000) -> "0", "5 k", "10 k";
    (0, 5e-6, 1e-5) -> "0", "0.5e−5", "1.0e−5". Signs are U+2212, and spaces narrow.
    """
    if as_percent:
        return tuple(f"{text}\u202f%" for text in tick_texts([100 * tick for tick in ticks]))
    largest = max((abs(tick) for tick in ticks), default=0.0)
    units = [(1.0, "")]
    if largest >= 10_000:
        units += [(size, f"\u202f{suffix}") for size, suffix in formatting.SIZES if size <= largest]
    elif 0 < largest < 1e-3:
        power = math.floor(math.log10(largest))
        units.append((10.0**power, f"e{power}"))
    ways = [_written(ticks, size, suffix) for size, suffix in units]
    return min(ways, key=lambda texts: max(map(len, texts), default=0))


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
    least = _LEAST.get(unit.partition(" ")[0], 0.0)
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
    x_texts, y_texts = tick_texts(x_ticks), tick_texts(y_ticks, as_percent=as_percent)
    return Chart(
        title=title,
        unit=unit,
        x_label=x_label,
        x_range=x_range,
        y_range=y_range,
        x_ticks=tuple(Tick(place(x, 0)[0], t) for x, t in zip(x_ticks, x_texts, strict=True)),
        y_ticks=tuple(Tick(place(0, y)[1], t) for y, t in zip(y_ticks, y_texts, strict=True)),
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


def _floors(group: Sequence[Curve], results: Sequence[ResultRow]) -> list[tuple[float, str]]:
    """Floors to draw on a chart of single-turn accuracy, which is what they are measured in: its
    own task's if the metric names one, else all."""
    metric = group[0].metric.lower()
    if "accuracy" not in metric or not all(curve.single_turn for curve in group):
        return []
    rows = [row for row in results if math.isfinite(row.floor)]
    named = [row for row in rows if row.task.lower() in metric]
    tasks = {row.task for row in named or rows}
    many = len(tasks) > 1
    found = {(row.floor, f"floor, {row.task}" if many else "floor") for row in named or rows}
    return sorted(found)


def _y_range(values, floors, as_percent, least) -> tuple[float, float]:
    """`least`: an axis is at least so long, and so long that float32's rounding is no spike."""
    low, high = min(values), max(values)
    if as_percent:
        return 0.0, min(1.0, max(high, *floors, 0.05) * 1.1)
    least = max(least, 1e-5, 1e-4 * max(abs(low), abs(high)))
    if high - low < least:
        wide_low, wide_high = _spread(low, high)
        if wide_high - wide_low >= least:
            return wide_low, wide_high
        start = 0.0 if low >= 0 and high < least else (low + high - least) / 2
        return start, start + least
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


def _written(ticks: Sequence[float], size: float, suffix: str) -> tuple[str, ...]:
    """In units of `size`, with as few decimals as leave nothing of any tick away."""
    scaled = [tick / size for tick in ticks]
    rounding = 1e-12 * max(map(abs, scaled), default=0.0)
    digits = next(
        n for n in range(400) if all(abs(value - round(value, n)) <= rounding for value in scaled)
    )
    return tuple(
        formatting.minus(f"{value:.{digits}f}{suffix}") if value or suffix == "" else "0"
        for value in scaled
    )


def _split_unit(metric: str) -> tuple[str, str]:
    """ "KL (nats)" -> ("KL", "nats")."""
    match = re.fullmatch(r"(.+?)\s*\(([^()]+)\)", metric)
    return (match[1], match[2]) if match else (metric, "")
