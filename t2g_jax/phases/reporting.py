"""The report: reads what the phases left in the work directory, writes report.html."""

from __future__ import annotations

import datetime
import json
import os
import platform
from typing import Any

import jax
import rich.console

import t2g_jax
from t2g_jax.config import METHODS, Config, to_yaml
from t2g_jax.errors import T2GError
from t2g_jax.phases.samples import read_samples
from t2g_jax.phases.workspace import ANNOTATE, REWARD_MODEL, SFT, Workspace
from t2g_jax.report import html, terminal
from t2g_jax.report.contents import ClassScore, Curve, PhaseTime, Report, ResultRow
from t2g_jax.report.formatting import duration
from t2g_jax.training.metrics import read_metrics

CURVES = {
    "test_accuracy": "Single-turn accuracy, test prompts",
    "accuracy": "Single-turn accuracy, training prompts",
    "accuracy_turn_2": "Accuracy of second attempts",
    "span_reward": "Span reward (mean of a token)",
    "entropy": "Entropy (nats)",
    "kl": "KL to the warm start (nats)",
    "clip_fraction": "Clip fraction",
    "completion_tokens": "Completion length (tokens)",
}
"""Metrics of the policy phases that are drawn, and their titles."""


def run(config: Config, workdir: str | os.PathLike[str]) -> Report:
    """Writes report.html and prints its table; returns the contents.

    Raises:
      T2GError: nothing has been evaluated yet.
    """
    workspace = Workspace(workdir, config)
    report = contents(workspace)
    if jax.process_index() != 0:
        return report
    html.write(report, workspace.report)
    console = rich.console.Console()
    if report.class_scores:
        console.print(terminal.class_score_table(report))
    console.print(terminal.result_table(report))
    took = ", ".join(f"{time.phase} {duration(time.seconds)}" for time in report.phases)
    console.print(f"Time by phase: {took}", markup=False, highlight=False)
    console.print(f"Report: {workspace.report}", markup=False, highlight=False, soft_wrap=True)
    return report


def contents(workspace: Workspace) -> Report:
    """The report of a work directory, with whatever phases are complete."""
    config = workspace.config
    phases = [
        name for name in (SFT, ANNOTATE, REWARD_MODEL, *METHODS) if workspace.is_complete(name)
    ]
    summaries = {name: workspace.summary(name) for name in phases}
    methods = [name for name in METHODS if name in summaries]
    before = _evaluation(workspace, SFT)
    results, curves, samples = [], [], []
    for name in methods:
        after = _evaluation(workspace, name)
        results.append(
            ResultRow(
                method=name,
                task=config.task.name,
                before=before["accuracy"],
                before_interval=tuple(before["interval"]),
                after=after["accuracy"],
                after_interval=tuple(after["interval"]),
                floor=after["floor"],
                floor_policy=after["floor_policy"],
                tokens_trained=summaries[name]["tokens_trained"],
                tokens_generated=summaries[name]["tokens_generated"],
                seconds=summaries[name]["seconds"],
            )
        )
        lines = read_metrics(workspace.phase(name))
        curves += [
            Curve(
                label=name,
                metric=title,
                x_label="steps",
                steps=tuple(line["step"] for line in lines if metric in line),
                values=tuple(line[metric] for line in lines if metric in line),
            )
            for metric, title in CURVES.items()
            if any(metric in line for line in lines)
        ]
        samples += read_samples(workspace.phase(name))
    scores = summaries.get(REWARD_MODEL, {}).get("class_scores", [])
    return Report(
        title=f"t2g_jax: {config.name}",
        subtitle=(
            f"{config.task.name}, seed {config.seed}. After the warm start "
            f"{before['accuracy']:.0%} of first attempts are right, "
            f"{before['second_turn']:.0%} after one critique."
        ),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        results=tuple(results),
        curves=tuple(curves),
        phases=tuple(PhaseTime(name, summaries[name]["seconds"]) for name in phases),
        class_scores=tuple(ClassScore(**score) for score in scores),
        samples=tuple(samples),
        config_yaml=to_yaml(config),
        environment={
            "t2g_jax": t2g_jax.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
            "seed": str(config.seed),
        },
    )


def _evaluation(workspace: Workspace, phase: str) -> dict[str, Any]:
    path = workspace.phase(phase) / "evaluation.json"
    if not path.exists():
        raise T2GError(f"{path} is missing: first run `t2g evaluate CONFIG`")
    return json.loads(path.read_text("utf-8"))
