"""Learning curves as SVG files: one line for each arm, and a band from its worst seed to its best.

Readable on a light page and a dark one: each figure brings its own background.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

from t2g_jax.report import formatting
from t2g_jax.report.charts import marker, nice_ticks
from t2g_jax.study.measures import Curve, TaskOutcome

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 58, 176, 34, 46
# Okabe and Ito's colours, which people tell apart who see colours differently.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a6d3b")
_STYLE = """\
<style>
text { font: 12px system-ui, sans-serif; fill: #333 }
.title { font-size: 14px; font-weight: 600 }
.grid { stroke: #e4e4e4 } .floor { stroke: #777; stroke-dasharray: 5 4 }
.line { fill: none; stroke-width: 2; stroke-linejoin: round } .band { opacity: .12 }
</style>"""


def learning_curves(task: TaskOutcome, arms: Sequence[str]) -> str:
    """The SVG text of a task: accuracy on the test puzzles over generated tokens.

    Args:
      task: what to draw.
      arms: of the whole study, in order, so that an arm has one colour in all figures.
    """
    curves = {name: summary.curve for name, summary in task.arms.items()}
    right = max(curve.tokens[-1] for curve in curves.values()) or 1.0
    floor, _ = task.floor
    bands = {name: _band(task, name, curve) for name, curve in curves.items()}
    top = max(max(high) for _, high in bands.values())
    y_ticks = nice_ticks(0.0, min(1.0, max(top, floor, 0.05) * 1.08))
    y_top = max(min(1.0, max(top, floor, 0.05) * 1.08), y_ticks[-1])

    def x(tokens: float) -> float:
        return round(LEFT + tokens / right * (WIDTH - LEFT - RIGHT), 1)

    def y(accuracy: float) -> float:
        return round(HEIGHT - BOTTOM - accuracy / y_top * (HEIGHT - TOP - BOTTOM), 1)

    def path(xs: Sequence[float], ys: Sequence[float]) -> str:
        return "L".join(f"{x(a):g} {y(b):g}" for a, b in zip(xs, ys, strict=True))

    title = f"{task.task}: accuracy of first attempts on test puzzles"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        _STYLE,
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#fff"/>',
        _text(LEFT, 20, title, css="title"),
    ]
    for tick in y_ticks:
        parts += [
            f'<path class="grid" d="M{LEFT} {y(tick):g}H{WIDTH - RIGHT}"/>',
            _text(LEFT - 8, y(tick) + 4, f"{100 * tick:.3g} %", anchor="end"),
        ]
    for tick in nice_ticks(0.0, right):
        parts.append(_text(x(tick), HEIGHT - BOTTOM + 18, formatting.count(tick), anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "tokens generated", anchor="middle"))
    parts.append(f'<path class="floor" d="M{LEFT} {y(floor):g}H{WIDTH - RIGHT}"/>')
    for name, curve in curves.items():
        colour, (low, high) = _colour(arms, name), bands[name]
        if low != high:
            there, back = path(curve.tokens, high), path(curve.tokens[::-1], low[::-1])
            parts.append(f'<path class="band" fill="{colour}" d="M{there}L{back}z"/>')
        parts.append(
            f'<path class="line" stroke="{colour}" d="M{path(curve.tokens, curve.accuracy)}"/>'
        )
    ends = {name: y(curve.accuracy[-1]) for name, curve in curves.items()}
    for name, at in _apart({"floor": y(floor), **ends}).items():
        if name not in curves:
            parts.append(_text(WIDTH - RIGHT + 24, at + 4, f"floor {formatting.percent(floor)}"))
            continue
        style, curve = list(arms).index(name), curves[name]
        parts += [
            f'<path fill="{_colour(arms, name)}" d="{marker(style)}" '
            f'transform="translate({x(curve.tokens[-1]):g} {ends[name]:g})"/>',
            f'<path fill="{_colour(arms, name)}" d="{marker(style)}" '
            f'transform="translate({WIDTH - RIGHT + 14} {at:g})"/>',
            _text(WIDTH - RIGHT + 24, at + 4, f"{name} {formatting.percent(curve.accuracy[-1])}"),
        ]
    return "\n".join((*parts, "</svg>")) + "\n"


def _band(task: TaskOutcome, name: str, curve: Curve) -> tuple[list[float], list[float]]:
    """The lowest and highest seed at each point of the mean curve."""
    points = np.array(curve.tokens)
    seeds = np.stack([outcome.curve.at(points) for outcome in task.arms[name].outcomes])
    return seeds.min(axis=0).tolist(), seeds.max(axis=0).tolist()


def _colour(arms: Sequence[str], name: str) -> str:
    return COLOURS[list(arms).index(name) % len(COLOURS)]


def _apart(places: Mapping[str, float], gap: float = 16.0) -> dict[str, float]:
    """Heights moved so far that labels do not cover each other, in the same order."""
    ordered = sorted(places, key=places.__getitem__)
    heights: list[float] = []
    for name in ordered:
        heights.append(max(places[name], heights[-1] + gap if heights else TOP))
    limit = HEIGHT - BOTTOM + 4.0
    for i in reversed(range(len(heights))):
        heights[i] = round(min(heights[i], limit), 1)
        limit = heights[i] - gap
    return dict(zip(ordered, heights, strict=True))


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> str:
    style = f' class="{css}"' if css else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{style}>{html.escape(text)}</text>'
