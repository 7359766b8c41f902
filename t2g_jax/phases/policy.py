"""Policy training with any method: sample, turn experience into rows, update, now and then test."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from t2g_jax.config import Config, Method, require_measured
from t2g_jax.methods import make_method
from t2g_jax.models.heads import Params
from t2g_jax.phases import samples
from t2g_jax.rollouts.turns import attempt
from t2g_jax.run import provenance
from t2g_jax.run.context import Context, once, say
from t2g_jax.run.samples import write_samples
from t2g_jax.run.trainer import Experience, run_training
from t2g_jax.run.workspace import Workspace
from t2g_jax.training.metrics import Stopwatch


def run(config: Config, workdir: str | os.PathLike[str], method: Method) -> dict[str, Any]:
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


def train(context: Context, method: Method) -> dict[str, Any]:
    """Trains a policy.

    Raises:
      T2GError: a phase that the method starts from is not complete.
    """
    chosen = make_method(method, context)
    every = chosen.config.eval_every

    def collect(state, step: int) -> Experience:
        experience = chosen.collect(state, step)
        played = experience.trajectories
        shown = [played[i] for i in samples.chosen(chosen.config, step, len(played))]
        metrics = dict(experience.metrics)
        if shown or (every and step % every == 0):
            with context.watch.stage("evaluate"):
                if shown:
                    made = samples.samples_of(context, chosen, step, shown)
                    write_samples(context.workspace.phase(method), step, made)
                if every and step % every == 0:
                    metrics["test_accuracy"] = test_accuracy(context, state.params, step)
        return dataclasses.replace(experience, metrics=metrics)

    def measure(params: Params, step: int) -> dict[str, float]:
        if context.config.checkpoint.keep_best != "test_accuracy":
            return {}
        return {"test_accuracy": test_accuracy(context, params, step)}

    def start() -> Params:
        """What learns; nobody else keeps it, so that it is in memory once."""
        params = context.weights.with_adapters(chosen.params, method)
        del chosen.params
        return params

    budget, steps = chosen.config.token_budget, chosen.config.steps
    if budget is not None and steps != type(chosen.config).steps:
        say(f"{method}: ends after {budget:,} generated tokens; steps ({steps}) is not looked at")
    floor = context.task.floor(context.prompts.test_examples())
    _, summary = run_training(
        context, method, start(), collect, chosen.plan, measure=measure, floor=floor
    )
    return summary


def test_accuracy(context: Context, params: Params, step: int) -> float:
    """Single-turn accuracy on the test split, one sample each: a point of the learning curve."""
    examples = context.prompts.test_examples()
    turns = attempt(
        # Not the sampling that the step learns from.
        dataclasses.replace(context, watch=Stopwatch(), tally=collections.Counter()),
        params,
        examples,
        [context.prompts.render(example.prompt) for example in examples],
        jax.random.fold_in(context.keys.key("test_accuracy"), step),
        batch_size=context.config.evaluate.batch_size,
    )
    return float(np.mean([turn.score.correct for turn in turns]))
