"""Evaluation: accuracy of first attempts without feedback, and of second attempts with it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t2g_jax.config import METHODS, Config
from t2g_jax.judges.counts import judge_columns
from t2g_jax.models.heads import Params
from t2g_jax.report import learnability
from t2g_jax.report.statistics import clustered_interval
from t2g_jax.rollouts.turns import Turn, attempt, unbroken
from t2g_jax.run import provenance
from t2g_jax.run.claim import claimed
from t2g_jax.run.context import READING, Context, say
from t2g_jax.run.workspace import SFT, Workspace, read_json, write_json
from t2g_jax.runtime import hosts
from t2g_jax.sections import differences
from t2g_jax.tasks.base import JudgeError

FEW = 16
"""Test prompts of a first look."""


def run(
    config: Config, workdir: str | os.PathLike[str], *, only: Sequence[str] | None = None
) -> dict[str, Any]:
    """Evaluates the warm start and every method that is complete; returns their scores by phase.

    A policy that can hardly be learned from is pointed out. `only` some phases: early, as the
    warm start before anything else; what is measured then is what a later call finds.

    What has its evaluation.json is not evaluated again, if that is of the same parameters and was
    measured with the same settings.

    Raises:
      T2GError: the warm start is not complete.
    """
    workspace = Workspace(workdir, config, free=READING)
    workspace.summary(SFT)
    with claimed(workdir):
        return _run(Context.open(config, workdir, read_only=True), only)


def _run(context: Context, only: Sequence[str] | None) -> dict[str, Any]:
    workspace, scores = context.workspace, {}
    done = [name for name in (SFT, *METHODS) if workspace.is_complete(name)]
    begun = hosts.broadcast_from_primary(
        lambda: [name for name in METHODS if workspace.has_work(name)]
    )
    for name in begun if only is None else ():
        if name not in done:
            say(f"{name}: not complete, and left out")
    for phase in done if only is None else only:
        path = workspace.phase(phase) / "evaluation.json"
        before, now = _before(path), measured(context, phase)
        changed = [] if before is None else _changed(before, now)
        if before is not None and not changed:
            scores[phase] = before
        else:
            if changed:
                say(f"{phase}: measured again, as it is of other settings: {', '.join(changed)}")
            scores[phase] = evaluate(context, phase) | now
            write_json(path, scores[phase])
        say(line(scores[phase]))
        if phase == SFT:
            for warning in learnability.of_warm_start(scores[phase]):
                say(f"Warning: {phase}: {warning}")
    return scores


def _before(path: Path) -> dict[str, Any] | None:
    """The scores that were written there, if any were."""
    return hosts.broadcast_from_primary(
        lambda: read_json(path, made_by="t2g evaluate") if path.exists() else None
    )


def measured(context: Context, phase: str) -> dict[str, Any]:
    """What a score of a phase stands for: "step", the "fingerprint" of the phase's parameters (of
    its last step), and the "settings" that it is measured with, by key."""
    workspace = context.workspace
    step = context.weights.best_step(phase)
    return {
        "step": hosts.broadcast_from_primary(lambda: provenance.last_step(workspace, phase))
        if step is None
        else step,
        "fingerprint": provenance.artifact(workspace, phase),
        "settings": provenance.measured_with(context.config),
    }


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what scores are of that they should not be."""
    settings = before.get("settings")
    if not isinstance(settings, dict):
        return ["they are not known"]
    found = differences(settings, now["settings"])
    if before.get("fingerprint") != now["fingerprint"]:
        found.append("of other parameters")
    if before.get("step") != now["step"]:
        found.append(f"step: {before.get('step')} → {now['step']}")
    return found


def evaluate(context: Context, phase: str) -> dict[str, Any]:
    """Scores a phase's policy on the test split.

    Returns:
      "accuracy" of first attempts with its 95 % "interval" (samples of a prompt are a cluster),
      "formatted" and "cut_off": shares of them in the form that is scored, and of those that reach
      sampling.max_new_tokens, "equal_groups": share of prompts whose samples all have the same
      reward (None with one sample),
      "second_turn": share solved after at most one critique (None without `evaluate.second_turn`),
      "judge": calls, cached and failed, as in the log, "judge_failures": first attempts that got
      none, "no_room": those with no room in the context for a second, "broken": completions that
      end where the model gave no distribution, which count as wrong, "prompts_too_long": test
      prompts with no room for a first, which count for nothing, "floor" and "floor_policy",
      "correct": [prompts][samples], "seconds".

    Raises:
      T2GError: all completions are broken.
    """
    began = time.monotonic()
    before = context.tally.copy()
    settings = context.config.evaluate
    step = context.weights.best_step(phase)
    params = context.weights.load(phase, step=step)
    tests = context.prompts.test_examples()
    examples = [example for example in tests for _ in range(settings.samples_per_prompt)]
    key = context.keys.key("evaluate")
    rows = settings.batch_size * settings.samples_per_prompt
    prompts = [context.prompts.render(example.prompt) for example in examples]
    first = attempt(context, params, examples, prompts, key, batch_size=rows)
    unbroken(first)
    correct = np.array([turn.score.correct for turn in first])

    again: dict[int, list[int]] = {}
    failures = no_room = 0
    wrong = np.flatnonzero(~correct).tolist() if settings.second_turn else []
    wrong = [index for index in wrong if not first[index].completion.broken]
    said = context.judges.critiques(
        [first[index].example for index in wrong], [first[index].text for index in wrong]
    )
    for index, feedback in zip(wrong, said, strict=True):
        if isinstance(feedback, JudgeError):
            failures += 1
            continue
        prompt = first[index].after_feedback(context, feedback.text)
        if context.prompts.has_room(prompt):
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
        "accuracy": float(correct.mean()),
        "interval": list(clustered_interval(by_prompt)),
        "formatted": float(np.mean([turn.score.formatted for turn in first])),
        "cut_off": float(np.mean([not turn.completion.ended for turn in first])),
        "equal_groups": _equal(first, settings.samples_per_prompt),
        "second_turn": float(solved.mean()) if settings.second_turn else None,
        "judge": judge_columns(context.tally - before),
        "judge_failures": failures,
        "no_room": no_room,
        "broken": sum(turn.completion.broken for turn in (*first, *second)),
        "prompts_too_long": context.config.task.test_size - len(tests),
        "floor": floor.accuracy,
        "floor_policy": floor.policy,
        "correct": by_prompt.astype(int).tolist(),
        "seconds": time.monotonic() - began,
    }


def first_look(context: Context, params: Params) -> dict[str, Any]:
    """How a policy answers a few test prompts, once each: in seconds, before anything is trained.

    Returns:
      "accuracy", "formatted" and "cut_off", as of `evaluate`, and "count".
    """
    examples = context.prompts.test_examples()[:FEW]
    prompts = [context.prompts.render(example.prompt) for example in examples]
    turns = attempt(
        context, params, examples, prompts, context.keys.key("first look"), batch_size=len(examples)
    )
    return {
        "count": len(turns),
        "accuracy": float(np.mean([turn.score.correct for turn in turns])),
        "formatted": float(np.mean([turn.score.formatted for turn in turns])),
        "cut_off": float(np.mean([not turn.completion.ended for turn in turns])),
    }


def line(score: dict[str, Any]) -> str:
    """The scores of a phase in words."""
    low, high = score["interval"]
    second = score["second_turn"]
    after = "" if second is None else f", {second:.1%} after one critique"
    return (
        f"{score['phase']}: {score['accuracy']:.1%} of first attempts right ({low:.1%} to "
        f"{high:.1%}){after}; floor {score['floor']:.1%}, {score['floor_policy']}"
    )


def _equal(turns: Sequence[Turn], samples: int) -> float | None:
    if samples < 2:
        return None
    rewards = np.array([turn.score.reward for turn in turns]).reshape(-1, samples)
    return float(np.mean(np.ptp(rewards, axis=1) == 0))
