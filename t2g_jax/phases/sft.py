"""Warm start: a careless solver's attempts teach the format, repaired ones the use of feedback.

Reads the task; writes the initial policy. Each row is a conversation x₀, y₀ or x₀, y₀, critique, y₁
with y₀ from the careless solver, the critique from the judge and y₁ right; the policy learns the
assistant's turns.
"""

from __future__ import annotations

import os
import random
from typing import Any

from t2g_jax.config import Config
from t2g_jax.judges.base import Critique
from t2g_jax.models import heads
from t2g_jax.phases.context import Context, once
from t2g_jax.phases.training import Collected, Learning, run_training
from t2g_jax.phases.workspace import SFT
from t2g_jax.tasks.base import Example
from t2g_jax.training.batch import Row, row
from t2g_jax.training.objective import Objective


def run(config: Config, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains the warm start, unless that is done; returns its summary."""
    return once(SFT, config, workdir, train)


def train(context: Context) -> dict[str, Any]:
    """Trains the warm start."""
    sft = context.config.sft

    def collect(state, step: int) -> Collected:
        del state
        return Collected(demonstrations(context, step))

    learning = Learning(
        optimizer=sft.optimizer,
        objective=Objective(),
        fields=("nll_weight",),
        steps=sft.steps,
        micro_batches=sft.micro_batches,
    )
    params = heads.init_params(context.model, context.key("init"))
    _, summary = run_training(context, SFT, params, collect, learning)
    return summary


def demonstrations(context: Context, step: int) -> list[Row]:
    """The rows of a step."""
    sft = context.config.sft
    rng = random.Random(context.seed(f"sft/{step}"))
    examples = context.train_examples(SFT, step, sft.batch_size, among=sft.examples)
    return [demonstration(context, example, rng) for example in examples]


def demonstration(context: Context, example: Example, rng: random.Random) -> Row:
    """A conversation to learn from; every token of the assistant's turns weighs the same."""
    tokenizer, task = context.tokenizer, context.task
    learn, given = {"nll_weight": 1.0}, {"nll_weight": 0.0}
    first = task.demonstrate(example, rng)
    parts: list[Any] = [
        (context.prompt(example.prompt), given),
        ([*tokenizer.encode(first), tokenizer.end_id], learn),
    ]
    repair = rng.random() < context.config.sft.repair_fraction
    if repair and not task.score(example, first).correct:
        feedback = context.critique(example, first)
        if isinstance(feedback, Critique):
            parts += [
                (tokenizer.next_turn(feedback.text, ended=True), given),
                ([*tokenizer.encode(task.solve(example)), tokenizer.end_id], learn),
            ]
    return row(*parts)
