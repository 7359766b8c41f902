"""What the phases of a config need of its task beyond prompts and a reward, asked before they
begin."""

from __future__ import annotations

from collections.abc import Iterator

from t2g_jax.config import Config, RolloutConfig, section_of
from t2g_jax.errors import T2GError
from t2g_jax.judges.custom import OWN_JUDGE
from t2g_jax.tasks.base import Task, capability, name_of_task, require_capability
from t2g_jax.tasks.scoring import is_scored


def require_needed(config: Config, task: Task) -> None:
    """Checks that a task can do what a config asks of it.

    Raises:
      T2GError: it cannot; the message says what needs it, and the ways out.
    """
    for name, needed_by in needed(config, task):
        require_capability(task, name, needed_by=needed_by)
    size = len(task.split("train"))
    if config.needs_reward_model and config.annotate.prompts > size:
        raise T2GError(
            f"annotate.prompts ({config.annotate.prompts}) must not exceed the {size} training "
            f"examples of the task {name_of_task(task)}: no prompt is annotated twice"
        )
    if config.judge.name == OWN_JUDGE and not getattr(task, "judge_quotes", True):  # of rows
        for needed_by in quotes_needed(config, task):
            raise T2GError(
                f"the task {name_of_task(task)} has a judge that says the rows' `feedback` and "
                f"quotes nothing, but quotes are what {needed_by} is made of: name a judge that "
                "quotes in judge.name (docs/judges.md), or give task.settings.reward"
            )
    rewards = getattr(task, "rewards", None)  # of rows
    for method in config.methods:
        if config.of_method(method).keeps_right and rewards and not rewards.decides:
            raise T2GError(grades_only(task, method))


def grades_only(task: Task, method: str) -> str:
    """Why a method can choose nothing for being right."""
    return (
        f"{method} keeps right answers, but the task {name_of_task(task)} only grades them: set "
        f"{section_of(method)}.least_reward, or (rows) correct_from of a reward"
    )


def needed(config: Config, task: Task) -> Iterator[tuple[str, str]]:
    """Names of capabilities, and what needs them."""
    sft = config.sft
    if sft.steps:
        yield "demonstrate", f"sft.steps ({sft.steps})"
        if sft.critique_fraction and sft.critiques == "task":
            yield "judge", f"sft.critique_fraction ({sft.critique_fraction:g})"
    if config.judge.name != OWN_JUDGE:
        return
    if not is_scored(task):
        yield "judge", "a reward without `score`"
    for method in config.methods:
        if asks_judge(config.of_method(method)):
            yield "judge", method


def quotes_needed(config: Config, task: Task) -> Iterator[str]:
    """What is made of the quotes of the judge's critiques."""
    if not is_scored(task):
        yield "the reward of a task without `score`"
    for method in config.methods:
        if config.of_method(method).marks_spans:
            yield f"the spans of {method}"


def ignored(config: Config, task: Task) -> list[str]:
    """What the config and the rows have that this run does nothing with, in a line each."""
    lines: list[str] = []
    if not any(asks_judge(config.of_method(method)) for method in config.methods):
        return lines
    told = getattr(task, "columns", {}).get("privileged_context", 0)  # of rows
    if told and config.judge.name != OWN_JUDGE:
        lines.append(
            f"Warning: task: `privileged_context` ({told} rows) is not shown to anybody, as only "
            "the rows' own judge tells it (judge: {name: task})"
        )
    sft = config.sft
    if sft.steps and sft.repair_fraction and (why := why_no_repairs(config, task)):
        lines.append(
            f"Warning: sft.repair_fraction ({sft.repair_fraction:g}): the warm start shows no "
            f"second attempts, as the task has {why}"
        )
    return lines


def why_no_repairs(config: Config, task: Task) -> str | None:
    """What the task lacks so that a warm start cannot show second attempts; None: nothing."""
    others = config.judge.name != OWN_JUDGE
    if (config.sft.critiques == "task" or not others) and capability(task, "judge") is None:
        return "no judge of its own" + others * "; sft.critiques: judge shows the run's critiques"
    if capability(task, "solve") is None:
        return (
            "no right answers: give it `solve(example)` (rows: an `answer` that the reward calls "
            "right, which of a function needs `correct_from`)"
        )
    return None


def asks_judge(section: RolloutConfig) -> bool:
    """Whether a method learns from critiques."""
    # One that marks spans learns from those that its reward model has learned from.
    return section.marks_spans or section.critiques_per_step > 0
