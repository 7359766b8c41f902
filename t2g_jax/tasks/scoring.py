"""What completions earn: by the task's own score, or by what the judge's critiques praise and
blame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from t2g_jax.tasks.base import Critique, Example, Floor, Score, Task, capability


def is_scored(task: Task) -> bool:
    """Whether the task says itself what completions earn, and does not leave it to its judge."""
    return any(capability(task, name) is not None for name in ("score_batch", "score"))


def score_completions(
    task: Task,
    examples: Sequence[Example],
    completions: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]] | None = None,
    step: int = 0,
    steps: int = 0,
) -> list[Score] | None:
    """The score of each completion by the task; None: it leaves that to its judge.

    Args:
      completion_ids, step, steps: for reward functions that ask for them; see `reward_functions`.

    Raises:
      T2GError: code of the user's raised, or returned what is no score.
    """
    if (batched := capability(task, "score_batch")) is not None:
        about: dict[str, Any] = {"completion_ids": completion_ids, "step": step, "steps": steps}
        return list(batched(examples, completions, **about))
    if (score := capability(task, "score")) is not None:
        return [score(*pair) for pair in zip(examples, completions, strict=True)]
    return None


def score_of_critique(critique: Critique) -> Score:
    """The reward of a critique where a task has no score: the mean reward of its quotes.

    r = (1/n) Σᵢ δᵢ over the n quotes, as they praise (+1) or blame (−1); 0 without any: it says
    nothing of the completion. Whether that is right nobody says.
    """
    rewards = [quote.reward for quote in critique.quotes]
    return Score(math.fsum(rewards) / len(rewards) if rewards else 0.0)


def floor_of(task: Task, examples: Sequence[Example]) -> Floor | None:
    """The best trivial policy on examples, where the task knows one."""
    floor = capability(task, "floor")
    return None if floor is None else floor(examples)


def accuracy(scores: Sequence[Score]) -> float | None:
    """The share of right ones, of those that can be right; None: the task only grades."""
    known = [score.correct for score in scores if score.correct is not None]
    return sum(known) / len(known) if known else None


def score_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """Means for the log: "reward", "accuracy" and "formatted" where there is such a thing, and the
    task's own metrics as "score_NAME"."""
    metrics = {"reward": math.fsum(score.reward for score in scores) / len(scores)}
    if (right := accuracy(scores)) is not None:
        metrics = {"accuracy": right} | metrics
    formatted = [score.formatted for score in scores if score.formatted is not None]
    if formatted:
        metrics["formatted"] = sum(formatted) / len(formatted)
    names = dict.fromkeys(name for score in scores for name in score.metrics)
    for name in names:
        values = [score.metrics[name] for score in scores if name in score.metrics]
        metrics[f"score_{name}"] = math.fsum(values) / len(values)
    return metrics
