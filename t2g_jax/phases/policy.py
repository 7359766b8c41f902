"""Policy training with any method: sample, turn experience into rows, update, now and then test."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from t2g_jax.config import Config, require_measured
from t2g_jax.errors import T2GError
from t2g_jax.methods import collect_guarded, make_method
from t2g_jax.models.heads import Params
from t2g_jax.phases import samples
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.rollouts.turns import attempt, only_grades
from t2g_jax.run import provenance
from t2g_jax.run.context import Context, once, say
from t2g_jax.run.samples import write_samples
from t2g_jax.run.trainer import Experience, run_training
from t2g_jax.run.workspace import Workspace
from t2g_jax.tasks.base import name_of_task
from t2g_jax.tasks.scoring import floor_of
from t2g_jax.training.metrics import Stopwatch

TESTED = ("test_accuracy", "test_reward")
"""What is measured on the test split."""


def run(config: Config, workdir: str | os.PathLike[str], method: str) -> dict[str, Any]:
    """Trains a policy, unless that is done; returns its summary.

    What is asked of the config's methods is asked of this one, too, if it is not among them.
    """
    config = config.including(method)
    if not Workspace(workdir, config).is_complete(method):
        require_measured(config, [method])
    return once(
        method,
        config,
        workdir,
        functools.partial(train, method=method),
        needs=provenance.parents(method, config),
    )


def train(context: Context, method: str) -> dict[str, Any]:
    """Trains a policy.

    Raises:
      T2GError: a phase that the method starts from is not complete.
    """
    chosen = make_method(method, context)
    every = chosen.config.eval_every

    def collect(state, step: int) -> Experience:
        experience = (
            collect_guarded(chosen, state, step)
            if method in context.config.outside
            else chosen.collect(state, step)
        )
        played = experience.trajectories
        shown = [played[i] for i in samples.chosen(chosen.config, step, len(played))]
        metrics = dict(experience.metrics)
        if shown or (every and step % every == 0):
            with context.watch.stage("evaluate"):
                if shown:
                    made = samples.samples_of(context, chosen, step, shown)
                    write_samples(context.workspace.phase(method), step, made)
                if every and step % every == 0:
                    metrics |= test_scores(context, state.params, step)
        return dataclasses.replace(experience, metrics=metrics)

    def measure(params: Params, step: int) -> dict[str, float]:
        keep_best = context.config.checkpoint.keep_best
        if keep_best not in TESTED:
            return {}
        found = test_scores(context, params, step)
        if keep_best not in found:
            raise T2GError(
                f"checkpoint.keep_best is {keep_best}, but the task "
                f"{name_of_task(context.task)} only grades: use test_reward"
            )
        return found

    def start() -> Params:
        """What learns; nobody else keeps it, so that it is in memory once."""
        params = context.weights.with_adapters(chosen.params, method)
        del chosen.params
        return params

    budget, steps = chosen.config.token_budget, chosen.config.steps
    if budget is not None and steps != type(chosen.config).steps:
        say(f"{method}: ends after {budget:,} generated tokens; steps ({steps}) is not looked at")
    floor = floor_of(context.task, context.prompts.test_examples())
    _, summary = run_training(
        context, method, start(), collect, chosen.plan, measure=measure, floor=floor
    )
    return summary


def test_scores(context: Context, params: Params, step: int) -> dict[str, float]:
    """Single-turn "test_reward" and, unless the task only grades, "test_accuracy" on the test
    split, one sample each: a point of the learning curve."""
    examples = context.prompts.test_examples()
    turns = attempt(
        # Not the sampling that the step learns from.
        Rollouts.of(dataclasses.replace(context, watch=Stopwatch(), tally=collections.Counter())),
        params,
        examples,
        [context.prompts.render(example.prompt) for example in examples],
        jax.random.fold_in(context.keys.key("test_accuracy"), step),
        batch_size=context.config.evaluate.batch_size,
        step=step,
    )
    found = {"test_reward": float(np.mean([turn.score.reward for turn in turns]))}
    if not only_grades(turns):
        found = {"test_accuracy": float(np.mean([turn.correct for turn in turns]))} | found
    return found
