"""What the phases of a config need of its task beyond prompts and a reward, asked before they
begin."""

from __future__ import annotations

from collections.abc import Iterator

from t2g_jax.config import Config, RolloutConfig
from t2g_jax.errors import T2GError
from t2g_jax.judges.custom import OWN_JUDGE
from t2g_jax.tasks.base import Task, capability, name_of_task, require_capability


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
    rewards = getattr(task, "rewards", None)  # of rows
    chooses = config.rejection_sampling.least_reward is None
    if "rejection-sampling" in config.methods and chooses and rewards and not rewards.decides:
        raise T2GError(grades_only(task))


def grades_only(task: Task) -> str:
    """Why nothing can be chosen for being right."""
    return (
        f"rejection-sampling keeps right answers, but the task {name_of_task(task)} only grades "
        "them: set rejection_sampling.least_reward, or (rows) correct_from of a reward"
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
    if capability(task, "score_batch") is None and capability(task, "score") is None:
        yield "judge", "a reward without `score`"
    for method in config.methods:
        if asks_judge(config.of_method(method)):
            yield "judge", method


def asks_judge(section: RolloutConfig) -> bool:
    """Whether a method learns from critiques."""
    # One that marks spans learns from those that its reward model has learned from.
    return section.marks_spans or section.critiques_per_step > 0
