"""Evaluation: accuracy of first attempts without feedback, and of second attempts with it."""

from __future__ import annotations

import os
import time
from typing import Any

import jax
import numpy as np

from t2g_jax.config import METHODS, Config
from t2g_jax.judges.base import Critique
from t2g_jax.phases.context import Context
from t2g_jax.phases.rollout import attempt, critique
from t2g_jax.phases.workspace import SFT, write_json
from t2g_jax.report.statistics import clustered_interval


def run(config: Config, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Evaluates the warm start and every method that is complete; returns their scores by phase."""
    context = Context.open(config, workdir)
    context.workspace.summary(SFT)
    done = [name for name in METHODS if context.workspace.is_complete(name)]
    scores = {}
    for phase in (SFT, *done):
        scores[phase] = evaluate(context, phase)
        write_json(context.workspace.phase(phase) / "evaluation.json", scores[phase])
    return scores


def evaluate(context: Context, phase: str) -> dict[str, Any]:
    """Scores a phase's policy on the test split.

    Returns:
      "accuracy" of first attempts with its 95 % "interval" (samples of a prompt are a cluster),
      "second_turn": share solved after at most one critique, "floor" and "floor_policy",
      "correct": [prompts][samples], "seconds".
    """
    began = time.monotonic()
    settings = context.config.evaluate
    params = context.params(phase)
    tests = list(context.task.split("test"))
    examples = [example for example in tests for _ in range(settings.samples_per_prompt)]
    key = context.key("evaluate")
    rows = settings.batch_size * settings.samples_per_prompt
    prompts = [context.prompt(example) for example in examples]
    first = attempt(context, params, examples, prompts, key, batch_size=rows)
    correct = np.array([turn.score.correct for turn in first])

    again = []
    for index, turn in enumerate(first):
        feedback = None if turn.score.correct else critique(context, turn)
        if isinstance(feedback, Critique):
            again.append((index, turn.after_feedback(context, feedback.text)))
    solved = correct.copy()
    if again:
        second = attempt(
            context,
            params,
            [examples[index] for index, _ in again],
            [prompt for _, prompt in again],
            jax.random.fold_in(key, 1),
            batch_size=rows,
        )
        for (index, _), turn in zip(again, second, strict=True):
            solved[index] = turn.score.correct
    by_prompt = correct.reshape(len(tests), -1)
    floor = context.task.floor(tests)
    return {
        "phase": phase,
        "accuracy": float(correct.mean()),
        "interval": list(clustered_interval(by_prompt)),
        "formatted": float(np.mean([turn.score.formatted for turn in first])),
        "second_turn": float(solved.mean()),
        "floor": floor.accuracy,
        "floor_policy": floor.policy,
        "correct": by_prompt.astype(int).tolist(),
        "seconds": time.monotonic() - began,
    }
