"""Learning curves as SVG files: one line for each arm, and a band from its worst seed to its best.

Drawn by matplotlib, of the extra `study`. Readable on a light page and a dark one: each figure
brings its own background.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2g_jax.installation import import_extra
from t2g_jax.report import formatting
from t2g_jax.study.measures import TaskOutcome

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a6d3b")
MARKERS = "os^D"
_STYLE = {
    "axes.edgecolor": "#ccc",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#e4e4e4",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "t2g",  # the same cells give the same file
}


def require_matplotlib() -> None:
    """Raises T2GError if matplotlib is missing, with the extra that has it."""
    import_extra("matplotlib", extra="study", needed_by="the figures of a study")


def learning_curves(task: TaskOutcome, arms: Sequence[str]) -> str:
    """The SVG text of a task: accuracy on the test puzzles over generated tokens.

    Args:
      task: what to draw.
      arms: of the whole study, in order, so that an arm has one color in all figures.

    Raises:
      T2GError: matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(9.5, 5), layout="constrained")
        axes = figure.add_subplot()
        floor, _ = task.floor
        drawn: dict[Any, float] = {}
        if not math.isnan(floor):
            label = f"floor {formatting.percent(floor)}"
            drawn[axes.axhline(floor, color="#777", linestyle="--", label=label)] = floor
        for name, summary in task.arms.items():
            curve, style = summary.curve, list(arms).index(name)
            color, last = COLORS[style % len(COLORS)], curve.accuracy[-1]
            seeds = [outcome.curve.at(np.array(curve.tokens)) for outcome in summary.outcomes]
            low, high = np.min(seeds, 0), np.max(seeds, 0)
            axes.fill_between(curve.tokens, low, high, color=color, alpha=0.12, linewidth=0)
            (line,) = axes.plot(
                curve.tokens,
                curve.accuracy,
                color=color,
                marker=MARKERS[style % len(MARKERS)],
                markevery=[-1],
                label=f"{name} {formatting.score(last, unit=not task.graded)}",
                gid=name,
            )
            drawn[line] = last
        what = "mean reward" if task.graded else "accuracy"
        title = f"{task.task}: {what} of first attempts on test examples"
        axes.set(title=title, xlabel="tokens generated", xlim=(0, None))
        axes.xaxis.set_major_formatter(lambda tokens, _: formatting.count(tokens))
        if not task.graded:
            axes.set(ylim=(0, None))
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
        best_first = sorted(drawn, key=drawn.__getitem__, reverse=True)
        figure.legend(handles=best_first, loc="outside right center", frameon=False)
        text = io.StringIO()
        unsaid = {"Creator": None, "Date": None}
        figure.savefig(text, format="svg", metadata=unsaid | {"Title": title})
    return text.getvalue()
