"""Evaluation: accuracy of first attempts without feedback, and of second attempts with it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t2g_jax.config import Config
from t2g_jax.config.base import differences
from t2g_jax.judges.counts import judge_columns
from t2g_jax.models.heads import Params
from t2g_jax.report import learnability
from t2g_jax.report.statistics import clustered_interval, reward_interval
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.rollouts.turns import UNSCORED, Turn, attempt, only_grades, unbroken
from t2g_jax.run import provenance
from t2g_jax.run.claim import claimed
from t2g_jax.run.context import READING, Context, say
from t2g_jax.run.workspace import SFT, Workspace, read_json, write_json
from t2g_jax.runtime import hosts
from t2g_jax.tasks.base import JudgeError
from t2g_jax.tasks.scoring import floor_of, score_metrics

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
    methods = context.config.known_methods
    done = [name for name in (SFT, *methods) if workspace.is_complete(name)]
    begun = hosts.broadcast_from_primary(
        lambda: [name for name in methods if workspace.has_work(name)]
    )
    for name in begun if only is None else ():
        if name not in done:
            say(f"{name}: not complete, and left out")
    for phase in done if only is None else only:
        path = workspace.phase(phase) / "evaluation.json"
        before, now = _before(path), describe_measurement(context, phase)
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


def describe_measurement(context: Context, phase: str) -> dict[str, Any]:
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
      "accuracy" and mean "reward" of first attempts; accuracy is None where the task only grades,
      and then the mean reward stands for it in "interval", 95 % (samples of a prompt are a
      cluster), and "second_turn": after at most one critique (None without `evaluate.second_turn`,
      or without a judge),
      "formatted" and "cut_off": shares of them in the form that is scored (None: there is none),
      and of those that reach sampling.max_new_tokens, "equal_groups": share of prompts whose
      samples all have the same reward (None with one sample),
      "judge": calls, cached and failed, as in the log, "judge_failures": first attempts that got
      none, "no_room": those with no room in the context for a second, "broken": completions that
      end where the model gave no distribution, which count as wrong, "prompts_too_long": test
      prompts with no room for a first, which count for nothing, "floor" (None: it is not known)
      and "floor_policy", "correct" (None where "accuracy" is) and "rewards": [prompts][samples],
      "seconds".

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
    rollouts = Rollouts.of(context)
    first = attempt(rollouts, params, examples, prompts, key, batch_size=rows)
    unbroken(first)
    graded = only_grades(first)

    def worth(turns: Sequence[Turn]) -> list[float]:
        return [turn.score.reward if graded else float(turn.correct) for turn in turns]

    values = np.array(worth(first))
    again: dict[int, list[int]] = {}
    failures = no_room = 0
    second_turn = settings.second_turn and context.judge is not None
    wrong = [i for i, turn in enumerate(first) if not turn.correct and not turn.unusable]
    wrong = wrong if second_turn else []
    said = context.judges.critiques(
        [first[index].example for index in wrong], [first[index].text for index in wrong]
    )
    for index, feedback in zip(wrong, said, strict=True):
        if isinstance(feedback, JudgeError):
            failures += 1
            continue
        prompt = first[index].after_feedback(context.tokenizer, feedback.text)
        if context.prompts.has_room(prompt):
            again[index] = prompt
        else:
            no_room += 1
    improved = values.copy()
    second = attempt(
        rollouts,
        params,
        [examples[index] for index in again],
        list(again.values()),
        jax.random.fold_in(key, 1),
        batch_size=rows,
    )
    improved[list(again)] = worth(second)
    by_prompt = values.reshape(len(tests), -1)
    rewards = np.array([turn.score.reward for turn in first]).reshape(len(tests), -1)
    usable = [turn.score for turn in first if not turn.unusable]
    floor = None if graded else floor_of(context.task, tests)
    return {
        "phase": phase,
        "accuracy": None if graded else float(values.mean()),
        "reward": float(rewards.mean()),
        "interval": list(reward_interval(by_prompt) if graded else clustered_interval(by_prompt)),
        "formatted": score_metrics(usable).get("formatted"),
        "cut_off": float(np.mean([not turn.completion.ended for turn in first])),
        "equal_groups": _equal(first, settings.samples_per_prompt),
        "second_turn": float(improved.mean()) if second_turn else None,
        "judge": judge_columns(context.tally - before),
        "judge_failures": failures,
        "no_room": no_room,
        "broken": sum(turn.completion.broken for turn in (*first, *second)),
        "prompts_too_long": len(context.task.split("test")) - len(tests),
        "floor": None if floor is None else floor.accuracy,
        "floor_policy": "" if floor is None else floor.policy,
        "correct": None if graded else by_prompt.astype(int).tolist(),
        "rewards": rewards.tolist(),
        "seconds": time.monotonic() - began,
    }


def first_look(context: Context, params: Params) -> dict[str, Any]:
    """How a policy answers a few test prompts, once each: in seconds, before anything is trained.

    Returns:
      "accuracy", "reward", "formatted" and "cut_off", as of `evaluate`, and "count".
    """
    examples = context.prompts.test_examples()[:FEW]
    prompts = [context.prompts.render(example.prompt) for example in examples]
    turns = attempt(
        Rollouts.of(context),
        params,
        examples,
        prompts,
        context.keys.key("first look"),
        batch_size=len(examples),
    )
    usable = [turn.score for turn in turns if not turn.unusable] or [UNSCORED]
    found = score_metrics(usable)
    return {
        "count": len(turns),
        "accuracy": None if only_grades(turns) else float(np.mean([t.correct for t in turns])),
        "reward": found["reward"],
        "formatted": found.get("formatted"),
        "cut_off": float(np.mean([not turn.completion.ended for turn in turns])),
    }


def line(score: dict[str, Any]) -> str:
    """The scores of a phase in words."""
    low, high = score["interval"]
    second = score["second_turn"]
    if score["accuracy"] is None:
        after = "" if second is None else f", {second:.3g} after one critique"
        reward = f"{score['reward']:.3g} for first attempts ({low:.3g} to {high:.3g})"
        return f"{score['phase']}: mean reward {reward}{after}"
    after = "" if second is None else f", {second:.1%} after one critique"
    floor = score["floor"]
    at_least = "" if floor is None else f"; floor {floor:.1%}, {score['floor_policy']}"
    return (
        f"{score['phase']}: {score['accuracy']:.1%} of first attempts right ({low:.1%} to "
        f"{high:.1%}){after}{at_least}"
    )


def _equal(turns: Sequence[Turn], samples: int) -> float | None:
    if samples < 2:
        return None
    rewards = np.array([turn.score.reward for turn in turns]).reshape(-1, samples)
    return float(np.mean(np.ptp(rewards, axis=1) == 0))
