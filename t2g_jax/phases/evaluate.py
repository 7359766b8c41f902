"""Evaluation: accuracy of first attempts without feedback, and of second attempts with it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t2g_jax import hosts
from t2g_jax.config import METHODS, Config
from t2g_jax.judges.base import JudgeError
from t2g_jax.phases.context import Context, say
from t2g_jax.phases.rollout import attempt, unbroken
from t2g_jax.phases.workspace import SFT, Workspace, claimed, read_json, write_json
from t2g_jax.report.statistics import clustered_interval


def run(config: Config, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Evaluates the warm start and every method that is complete; returns their scores by phase.

    What has its evaluation.json is not evaluated again.

    Raises:
      T2GError: the warm start is not complete.
    """
    with claimed(workdir):
        return _run(config, workdir)


def _run(config: Config, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    Workspace(workdir, config).summary(SFT)
    context = Context.open(config, workdir)
    done = [name for name in METHODS if context.workspace.is_complete(name)]
    scores = {}
    for phase in (SFT, *done):
        path = context.workspace.phase(phase) / "evaluation.json"
        before = _before(path)
        if before is not None:
            scores[phase] = before
        else:
            scores[phase] = evaluate(context, phase)
            write_json(path, scores[phase])
        say(line(scores[phase]))
    return scores


def _before(path: Path) -> dict[str, Any] | None:
    """The scores that were written there, if any were."""
    return hosts.from_first(
        lambda: read_json(path, made_by="t2g evaluate") if path.exists() else None
    )


def evaluate(context: Context, phase: str) -> dict[str, Any]:
    """Scores a phase's policy on the test split.

    Returns:
      "step" of the checkpoint, if it is not the last, "accuracy" of first attempts with its 95 %
      "interval" (samples of a prompt are a cluster),
      "second_turn": share solved after at most one critique, "judge_failures": first attempts that
      got none, "no_room": those with no room in the context for a second, "broken": completions
      that end where the model gave no distribution, which count as wrong, "prompts_too_long":
      test prompts with no room for a first, which count for nothing, "floor" and "floor_policy",
      "correct": [prompts][samples], "seconds".

    Raises:
      T2GError: all completions are broken.
    """
    began = time.monotonic()
    settings = context.config.evaluate
    step = context.best_step(phase)
    params = context.params(phase, step=step)
    tests = context.test_examples()
    examples = [example for example in tests for _ in range(settings.samples_per_prompt)]
    key = context.key("evaluate")
    rows = settings.batch_size * settings.samples_per_prompt
    prompts = [context.prompt(example.prompt) for example in examples]
    first = attempt(context, params, examples, prompts, key, batch_size=rows)
    unbroken(first)
    correct = np.array([turn.score.correct for turn in first])

    again: dict[int, list[int]] = {}
    failures = no_room = 0
    wrong = [i for i in np.flatnonzero(~correct).tolist() if not first[i].completion.broken]
    said = context.critiques(
        [first[index].example for index in wrong], [first[index].text for index in wrong]
    )
    for index, feedback in zip(wrong, said, strict=True):
        if isinstance(feedback, JudgeError):
            failures += 1
            continue
        prompt = first[index].after_feedback(context, feedback.text)
        if context.has_room(prompt):
            again[index] = prompt
        else:
            no_room += 1
    solved = correct.copy()
    second = attempt(
        context,
        params,
        [examples[index] for index in again],
        list(again.values()),
        jax.random.fold_in(key, 1),
        batch_size=rows,
    )
    solved[list(again)] = [turn.score.correct for turn in second]
    by_prompt = correct.reshape(len(tests), -1)
    floor = context.task.floor(tests)
    return {
        "phase": phase,
        "step": step,
        "accuracy": float(correct.mean()),
        "interval": list(clustered_interval(by_prompt)),
        "formatted": float(np.mean([turn.score.formatted for turn in first])),
        "second_turn": float(solved.mean()),
        "judge_failures": failures,
        "no_room": no_room,
        "broken": sum(turn.completion.broken for turn in (*first, *second)),
        "prompts_too_long": context.config.task.test_size - len(tests),
        "floor": floor.accuracy,
        "floor_policy": floor.policy,
        "correct": by_prompt.astype(int).tolist(),
        "seconds": time.monotonic() - began,
    }


def line(score: dict[str, Any]) -> str:
    """The scores of a phase in words."""
    low, high = score["interval"]
    return (
        f"{score['phase']}: {score['accuracy']:.1%} of first attempts right ({low:.1%} to "
        f"{high:.1%}), {score['second_turn']:.1%} after one critique; floor {score['floor']:.1%}, "
        f"{score['floor_policy']}"
    )
