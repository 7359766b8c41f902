"""The report as one HTML file that needs nothing else: no network, no server, no framework.

Everything a model or a judge wrote reaches the page as text: Jinja2 escapes it in the markup, and
the token heat maps travel as JSON in a script element of a non-executable type, drawn by report.js
with text nodes only. A content security policy allows exactly the style sheet and the script of
this package, by their hashes, and nothing from anywhere.
"""

import base64
import dataclasses
import hashlib
import importlib.resources
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import markupsafe

from t2g_jax.report import charts, formatting
from t2g_jax.report.contents import Report, ResultRow, Retry, Sample, reliability_rows
from t2g_jax.runtime import durable


def render(report: Report) -> str:
    """The report as a self-contained HTML page; equal reports give equal pages."""
    assets = importlib.resources.files("t2g_jax.report") / "assets"
    style = (assets / "report.css").read_text(encoding="utf-8")
    script = (assets / "report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    writers = "percent decimal score interval gain count duration moment".split()
    environment.filters |= {name: getattr(formatting, name) for name in writers}
    template = environment.from_string((assets / "report.html.j2").read_text(encoding="utf-8"))
    figures = charts.charts(report.curves, report.results)
    palette = charts.colors(report.curves, report.results, report.phases)
    page = template.render(
        report=report,
        policy=_content_security_policy(style, script),
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        tasks=_tasks(report.results),
        charts=figures,
        frame=charts,
        palette=palette,
        legend={line.label: line.color for figure in figures for line in figure.lines},
        bars=_time_bars(report, palette),
        macro_f1=_mean([score.f1 for score in report.class_scores]),
        support=sum(score.support for score in report.class_scores),
        reliability=reliability_rows(report.calibration),
        differences=any(made.differs or made.misfits for made in report.made_with),
        config=_yaml_lines(report.config_yaml),
        data=_json_for_script(
            {
                "charts": [_chart_data(figure) for figure in figures],
                "samples": [_sample_data(sample) for sample in report.samples],
                "advantageScale": advantage_scale(report.samples),
            }
        ),
    )
    # A judge's JSON may hold half a surrogate pair; UTF-8 cannot.
    return page.encode("utf-8", "replace").decode("utf-8")


def write(report: Report, path: str | os.PathLike) -> pathlib.Path:
    """Writes `render(report)` to `path`, whole or not at all; creates missing folders."""
    path = pathlib.Path(path)
    durable.write_text(path, render(report))
    return path


def advantage_scale(samples) -> float:
    """The |advantage| drawn in full color: the 99th percentile over all tokens, so that one
    outlier does not bleach the rest. Larger ones share its color; hovering shows the number."""
    sizes = sorted(
        abs(token.advantage)
        for sample in samples
        for attempt in (sample, *sample.retries)
        for token in attempt.tokens
        if token.advantage is not None and math.isfinite(token.advantage)
    )
    return (sizes[math.ceil(0.99 * len(sizes)) - 1] if sizes else 0.0) or 1.0


@dataclasses.dataclass(frozen=True)
class _Task:
    """Rows that share a task and a floor, and the scale their bars are drawn on."""

    name: str
    floor: float
    floor_policy: str
    rows: tuple[ResultRow, ...]
    unit: bool  # accuracies in [0, 1], written as percentages
    top: float

    def across(self, value: float) -> str | None:
        """Position along the bar, None if there is no such value."""
        if not math.isfinite(value):
            return None
        return f"{100 * min(max(value / self.top, 0.0), 1.0):.2f}%"

    def above_floor(self, row: ResultRow) -> bool:
        """Whether the whole interval after training lies above the floor (or none is known)."""
        return not row.after_interval[0] <= self.floor


def _tasks(results) -> list[_Task]:
    groups: dict[tuple, list[ResultRow]] = {}
    for row in results:
        # repr, because a floor that is not known is NaN, which equals nothing.
        groups.setdefault((row.task, repr(float(row.floor)), row.floor_policy), []).append(row)
    tasks = []
    for (name, _, policy), rows in groups.items():
        numbers = [rows[0].floor]
        for row in rows:
            numbers += [row.before, row.after, *row.before_interval, *row.after_interval]
        unit = not any(row.graded for row in rows) and formatting.unit_scale(numbers)
        largest = max((n for n in numbers if math.isfinite(n)), default=1.0)
        top = 1.0 if unit else max(largest * 1.05, 1e-9)
        tasks.append(_Task(name, rows[0].floor, policy, tuple(rows), unit, top))
    return tasks


def _time_bars(report: Report, palette: Mapping[str, int]) -> dict[str, Any]:
    total = sum(phase.seconds for phase in report.phases if math.isfinite(phase.seconds))
    bars, start = [], 0.0
    for phase in report.phases:
        share = phase.seconds / total if total > 0 and math.isfinite(phase.seconds) else 0.0
        bars.append(
            {
                "phase": phase.phase,
                "seconds": phase.seconds,
                "share": share,
                "x": f"{100 * start:.3f}%",
                "width": f"{100 * share:.3f}%",
                "color": palette[phase.phase],
            }
        )
        start += share
    return {"total": total, "phases": bars}


def _chart_data(chart: charts.Chart) -> dict[str, Any]:
    return {
        "x": chart.x_label,
        "xRange": chart.x_range,
        "yRange": chart.y_range,
        "percent": chart.as_percent,
        "lines": [
            {
                "label": line.label,
                "color": line.color,
                "steps": _numbers(line.steps),
                "values": _numbers(line.values),
            }
            for line in chart.lines
        ],
    }


def _sample_data(sample: Sample) -> dict[str, Any]:
    return {
        "title": sample.title,
        "method": sample.method,
        "step": sample.step,
        "prompt": sample.prompt,
        "attempts": [_attempt_data(sample), *map(_attempt_data, sample.retries)],
    }


def _attempt_data(attempt: Sample | Retry) -> dict[str, Any]:
    """Columns rather than one object a token: a third of the size."""
    return {
        "critique": attempt.critique,
        "predictedCritique": attempt.predicted_critique,
        "reward": _number(attempt.reward),
        "correct": attempt.correct,
        "distillation": _number(getattr(attempt, "distillation", None)),
        "text": [token.text for token in attempt.tokens],
        "predicted": _numbers(token.predicted for token in attempt.tokens),
        "true": _numbers(token.true for token in attempt.tokens),
        "advantage": _numbers(token.advantage for token in attempt.tokens),
    }


def _numbers(values) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float | None) -> float | None:
    """Six digits are more than the page shows; JSON has no NaN, so it travels as null."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.6g}")


def _mean(values) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _yaml_lines(text: str) -> list[tuple[str, str, str]]:
    """Each line as (indent, key with its colon, rest), enough to set the keys apart."""
    lines = []
    for line in text.rstrip("\n").split("\n") if text.strip() else []:
        match = re.match(r"^(\s*(?:- )?)([\w.\-]+:)(?=\s|$)(.*)$", line)
        lines.append((match[1], match[2], match[3]) if match else ("", "", line))
    return lines


def _json_for_script(value: Any) -> markupsafe.Markup:
    """JSON that cannot end, or open, an HTML element: <, > and & only ever as \\u escapes."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)


def _content_security_policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
