"""The report: reads what the phases left in the work directory, writes report.html."""

from __future__ import annotations

import collections
import datetime
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.console

from t2g_jax.config import Config, to_yaml
from t2g_jax.config.base import differences
from t2g_jax.errors import T2GError
from t2g_jax.judges.counts import FAILED
from t2g_jax.printing import one_line
from t2g_jax.report import html, learnability, terminal
from t2g_jax.report.collapse import collapses
from t2g_jax.report.contents import (
    Calibration,
    ClassScore,
    Curve,
    JudgeUse,
    MadeWith,
    PhaseTime,
    ReliabilityBin,
    Report,
    ResultRow,
)
from t2g_jax.report.formatting import duration, percent
from t2g_jax.run import provenance
from t2g_jax.run.samples import read_samples
from t2g_jax.run.workspace import REWARD_MODEL, SFT, Workspace, command, read_json
from t2g_jax.runtime import hosts
from t2g_jax.training.metrics import FILE, checksum, read_metrics
from t2g_jax.version import __version__

SECOND = "accuracy_turn_2"
CURVES = {
    "test_accuracy": "Single-turn accuracy, test prompts",
    "test_reward": "Reward of first attempts, test prompts",
    "accuracy": "Single-turn accuracy, training prompts",
    SECOND: "Accuracy of second attempts, after wrong first ones",
    "reward_turn_2": "Reward of second attempts",
    "reward": "Reward",
    "span_reward": "Span reward (mean of a token)",
    "equal_groups": "Groups with equal rewards (share)",
    "entropy": "Entropy (nats a token)",
    "kl": "KL to the warm start (nats a token)",
    "kl_sampler_trainer": "KL of sampler and trainer (nats a token)",
    "clip_fraction": "Clip fraction",
    "completion_tokens": "Completion length (tokens)",
}
"""Metrics of the policy phases that are drawn, and their titles."""

COUNTS = ("step", "tokens_generated", "tokens_generated_total")
BY_TOKENS = ("test_accuracy", "accuracy")
ONLY_GRADED = ("test_reward", "reward_turn_2")
"""Drawn where there is no accuracy, which says more."""
"""Those that are drawn a second time, against the tokens generated before: what a step costs
differs from method to method."""


def run(config: Config, workdir: str | os.PathLike[str]) -> Report | None:
    """Writes report.html and prints its table; returns the contents, on the first process only.

    Raises:
      T2GError: nothing has been evaluated yet.
    """
    workspace = Workspace(workdir, config)
    reports: list[Report] = []
    hosts.broadcast_from_primary(lambda: reports.append(_write(workspace)))
    return reports[0] if reports else None


def _write(workspace: Workspace) -> Report:
    report = contents(workspace)
    html.write(report, workspace.report)
    console = rich.console.Console()
    if report.class_scores:
        terminal.print_table(console, terminal.class_score_table(report))
    if report.calibration:
        terminal.print_table(console, terminal.calibration_table(report))
    terminal.print_table(console, terminal.result_table(report))
    for text in dict.fromkeys(record.measured for record in report.made_with if record.measured):
        of = [record.phase for record in report.made_with if record.measured == text]
        console.print(terminal.safe_text(f"{', '.join(of)}: {text}"), soft_wrap=True)
    for warning in report.warnings:
        console.print(
            terminal.safe_text(f"Warning: {one_line(warning)}"), style="yellow", soft_wrap=True
        )
    took = ", ".join(f"{time.phase} {duration(time.seconds)}" for time in report.phases)
    console.print(terminal.safe_text(f"Time by phase: {took}"))
    console.print(terminal.safe_text(f"Report: {workspace.report}"), soft_wrap=True)
    return report


def contents(workspace: Workspace) -> Report:
    """The report of a work directory, with whatever phases are complete."""
    config = workspace.config
    phases = hosts.broadcast_from_primary(workspace.complete_phases)
    summaries = {name: workspace.summary(name) for name in phases}
    methods = [name for name in config.known_methods if name in summaries]
    evaluations = {name: _evaluation(workspace, name) for name in (SFT, *methods)}
    made = [made_with(workspace, name, evaluations.get(name)) for name in phases]
    before = evaluations[SFT]
    results, curves, samples = [], [], []
    warnings = [warning for record in made for warning in _warnings(record)]
    warnings += [
        f"{name} is not complete, and left out: `{command(name)} CONFIG` goes on with it"
        for name in config.known_methods
        if name not in summaries and workspace.has_work(name)
    ]
    for name in methods:
        after = evaluations[name]
        # Of another warm start nobody knows here what it was before.
        began_here = not any(f" {SFT}/" in problem for problem in _of(made, name).misfits)
        unknown = (math.nan, math.nan)
        if before["settings"] != after["settings"]:
            warnings.append(
                f"{name} was not measured as the warm start was: "
                + ", ".join(differences(before["settings"], after["settings"]))
            )
        results.append(
            ResultRow(
                method=name,
                task=config.task.name,
                before=headline(before) if began_here else math.nan,
                before_interval=tuple(before["interval"]) if began_here else unknown,
                after=headline(after),
                after_interval=tuple(after["interval"]),
                graded=after["accuracy"] is None,
                floor=_floor(after),
                floor_policy=after["floor_policy"],
                tokens_trained=summaries[name]["tokens_trained"],
                tokens_generated=summaries[name]["tokens_generated"],
                seconds=summaries[name]["seconds"],
            )
        )
        log = workspace.phase(name) / FILE
        lines = read_metrics(log, numbers={*CURVES, *COUNTS})
        there, steps = {line["step"] for line in lines}, range(1, summaries[name]["step"] + 1)
        absent = next((step for step in steps if step not in there), None)
        if absent is not None:
            warnings.append(f"{name}: its log has no line of step {absent}: curves have holes")
        if "log" in summaries[name] and summaries[name]["log"] != checksum(log):
            warnings.append(
                f"{name}: {log} is not as it was when the phase ended: curves may be of another run"
            )
        curves += drawn(
            name, lines, after if _measured_as_trained(workspace, name, after) else None
        )
        warnings += [
            f"{name}, step {sign.step}: {sign.text}"
            for sign in collapses(lines, floor=_floor(after), floor_policy=after["floor_policy"])
        ]
        samples += read_samples(workspace.phase(name))
    about_spans = summaries.get(REWARD_MODEL, {})
    scores = about_spans.get("class_scores", ())
    begins = [f"{SFT}: {text}" for text in learnability.of_warm_start(before)]
    begins += [f"{REWARD_MODEL}: {text}" for text in learnability.of_reward_model(scores)]
    return Report(
        title=f"t2g_jax: {config.name}",
        subtitle=(
            f"{config.task.name}, seed {config.seed}. After the warm start {_warm_start(before)}."
        ),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        warnings=(*begins, *warnings),
        results=tuple(results),
        curves=tuple(curves),
        phases=tuple(PhaseTime(name, summaries[name]["seconds"]) for name in phases),
        class_scores=tuple(ClassScore(**found) for found in scores),
        calibration=tuple(
            Calibration(
                found["label"],
                found["error"],
                tuple(ReliabilityBin(**row) for row in found["bins"]),
            )
            for found in about_spans.get("calibration", ())
        ),
        judge=tuple(judge_uses(workspace, summaries)),
        samples=tuple(samples),
        config_yaml=to_yaml(config),
        environment=environment(config.seed, summaries),
        made_with=tuple(made),
    )


def environment(seed: int, summaries: Mapping[str, Any]) -> dict[str, str]:
    """Where and with what complete phases were made; phase by phase where they differ."""
    values: dict[str, dict[str, list[str]]] = {}
    for phase, summary in summaries.items():
        for name, value in summary.get("environment", {}).items():
            values.setdefault(name, {}).setdefault(value, []).append(phase)
    found = {"seed": str(seed)}
    for name, by_value in values.items():
        each = [f"{value} ({', '.join(made)})" for value, made in by_value.items()]
        found[name] = "; ".join(each) if each[1:] else next(iter(by_value))
    return found


def judge_uses(workspace: Workspace, summaries: Mapping[str, Any]) -> Iterator[JudgeUse]:
    """What each phase asked the judge; evaluations by themselves."""

    def use(phase: str, columns: Mapping[str, int], **about: Any) -> Iterator[JudgeUse]:
        if columns.get("judge_calls") or columns.get("judge_cached"):
            yield JudgeUse(
                phase,
                calls=columns.get("judge_calls", 0),
                cached=columns.get("judge_cached", 0),
                failures={
                    name.removeprefix(FAILED): count
                    for name, count in columns.items()
                    if name.startswith(FAILED)
                },
                **about,
            )

    for phase, summary in summaries.items():
        about = {name: summary.get(name) for name in ("quotes", "unaligned")}
        examples = tuple(summary.get("unaligned_examples", ()))
        yield from use(phase, summary.get("judge", {}), **about, examples=examples)
    evaluated: collections.Counter[str] = collections.Counter()
    for phase in summaries:
        path = workspace.phase(phase) / "evaluation.json"
        if path.exists():
            evaluated.update(read_json(path, made_by="t2g evaluate").get("judge", {}))
    yield from use("evaluate", evaluated)


def drawn(
    label: str, lines: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any] | None = None
) -> list[Curve]:
    """The curves of a log: against steps and, where it counts them, against tokens generated.

    Args:
      evaluation: of what came of it: the last point of the test accuracy, unless the last step
        was looked at already or another step's checkpoint was evaluated.
    """
    curves = []
    graded = not any("accuracy" in line or "test_accuracy" in line for line in lines)
    tested_by = "test_reward" if graded else "test_accuracy"
    tested = [tested_by in line for line in lines]
    at_the_end = (
        evaluation is not None and any(tested) and evaluation.get("step") == lines[-1]["step"]
    )
    if evaluation is not None and at_the_end and not tested[-1]:
        last = {name: lines[-1][name] for name in COUNTS if name in lines[-1]}
        if "tokens_generated" in last:
            last["tokens_generated"] = 0  # after them all
        lines = [*lines, last | {tested_by: headline(evaluation)}]
    for metric, title in CURVES.items():
        if metric in ONLY_GRADED and not graded:
            continue
        points = [line for line in lines if line.get(metric) is not None]
        counted = [line for line in points if all(line.get(name) is not None for name in COUNTS)]
        values = tuple(line[metric] for line in points)
        if points:
            steps = tuple(line["step"] for line in points)
            first = metric != SECOND
            curves.append(Curve(label, title, "steps", steps, values, single_turn=first))
        if counted and metric in BY_TOKENS and counted == points:
            # What is measured in a step is measured before it learns from that step's tokens.
            before = tuple(
                line["tokens_generated_total"] - line["tokens_generated"] for line in points
            )
            curves.append(Curve(label, title, "tokens generated", before, values))
    return curves


def made_with(workspace: Workspace, phase: str, evaluation: Mapping[str, Any] | None) -> MadeWith:
    """What a complete phase was made and measured with."""
    record = provenance.of_phase(workspace, phase)
    differs = provenance.differs(record, workspace.config, phase)
    for stretch in record.get("earlier", []):
        was = ", ".join(f"{key}: {value}" for key, value in stretch["inputs"].items())
        differs.append(f"until step {stretch['until']}: {was}")
    if record["version"] != __version__:
        differs.append(f"t2g_jax {record['version']}")
    return MadeWith(
        phase=phase,
        step=(evaluation or workspace.summary(phase)).get("step"),
        measured="" if evaluation is None else _measured(evaluation),
        differs=tuple(differs),
        misfits=tuple(provenance.misfits(workspace, phase)),
    )


def _measured_as_trained(workspace: Workspace, phase: str, evaluation: Mapping[str, Any]) -> bool:
    """Whether a score is of the settings (temperature, seed, …) that its phase was trained with."""
    inputs = provenance.of_phase(workspace, phase)["inputs"]
    return all(inputs.get(key, value) == value for key, value in evaluation["settings"].items())


def headline(evaluation: Mapping[str, Any]) -> float:
    """What a policy is measured by: its accuracy, or its mean reward where the task only grades."""
    accuracy = evaluation["accuracy"]
    return evaluation["reward"] if accuracy is None else accuracy


def _floor(evaluation: Mapping[str, Any]) -> float:
    return math.nan if evaluation["floor"] is None else evaluation["floor"]


def _warm_start(evaluation: Mapping[str, Any]) -> str:
    """What the warm start does, in words."""
    second = evaluation.get("second_turn")
    if evaluation["accuracy"] is None:
        after = "" if second is None else f", {second:.3g} after one critique"
        return f"first attempts earn {evaluation['reward']:.3g} on average{after}"
    after = "" if second is None else f", {percent(second)} after one critique"
    return f"{percent(evaluation['accuracy'])} of first attempts are right{after}"


def _measured(evaluation: Mapping[str, Any]) -> str:
    """The settings of an evaluation in words."""
    settings, tests = evaluation["settings"], len(evaluation["rewards"])
    parts = [
        f"{settings['evaluate.samples_per_prompt']} samples of each of {tests} test prompts",
        f"seed {settings['seed']}",
        f"temperature {settings['sampling.temperature']:g}",
        f"top_k {settings['sampling.top_k']}" if settings["sampling.top_k"] else "",
        f"top_p {settings['sampling.top_p']:g}" if settings["sampling.top_p"] < 1 else "",
        f"at most {settings['sampling.max_new_tokens']} tokens",
        f"judge level {settings['judge.level']}",
        "best checkpoint" if settings["evaluate.checkpoint"] == "best" else "",
    ]
    return ", ".join(part for part in parts if part)


def _warnings(made: MadeWith) -> Iterator[str]:
    for problem in made.misfits:
        yield f"{made.phase} was made from {problem}: the two do not belong together"
    if made.differs:
        more = f", and {len(made.differs) - 4} more" if len(made.differs) > 4 else ""
        yield f"{made.phase} was made with {', '.join(made.differs[:4])}{more}"


def _of(made: Sequence[MadeWith], phase: str) -> MadeWith:
    return next(record for record in made if record.phase == phase)


def _evaluation(workspace: Workspace, phase: str) -> dict[str, Any]:
    """The scores of a phase.

    Raises:
      T2GError: there are none, they are damaged, or of other parameters than those that are there.
    """
    path = workspace.phase(phase) / "evaluation.json"
    if not path.exists():
        raise T2GError(f"{path} is missing: first run `t2g evaluate CONFIG`")
    found = read_json(path, made_by="t2g evaluate")
    if workspace.is_complete(phase) and found.get("fingerprint") != provenance.artifact(
        workspace, phase
    ):
        raise T2GError(
            f"{path} is of other parameters than those that {phase} has now: first run "
            "`t2g evaluate CONFIG`"
        )
    if "settings" not in found:
        raise T2GError(
            f"{path} does not say with which settings it was measured: first run "
            "`t2g evaluate CONFIG`"
        )
    return found
