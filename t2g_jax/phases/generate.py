"""`t2g generate`: a trained policy answers; critiques and span rewards are shown in colour."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Literal

import numpy as np
import rich.console
from rich.text import Text

from t2g_jax import hosts
from t2g_jax.config import Config, Method
from t2g_jax.errors import T2GError
from t2g_jax.models.heads import Params
from t2g_jax.phases.context import Context, say
from t2g_jax.phases.rollout import attempt, complete
from t2g_jax.phases.samples import sample_of, token_cells
from t2g_jax.phases.span_rewards import RewardModel, Tokens
from t2g_jax.phases.workspace import REWARD_MODEL
from t2g_jax.report.contents import Sample
from t2g_jax.report.terminal import safe_text, token_line

EXAMPLES = 3
"""Test examples that are answered without a prompt."""

MARKERS: dict[Literal["true", "predicted"], str] = {
    "true": "the judge",
    "predicted": "the reward model",
}


def run(
    config: Config,
    workdir: str | os.PathLike[str],
    method: Method | str,
    prompt: str | None,
    console: rich.console.Console | None = None,
) -> None:
    """Prints answers of a phase's policy.

    Args:
      method: whose policy: a method, or "sft".
      prompt: what to answer; None: a few test examples.
      console: where to print; None: stdout.

    Raises:
      T2GError: that policy has not been trained; the prompt is empty or too long.
    """
    context = Context.open(config, workdir)
    params = context.params(method, step=context.best_step(method))
    trained = context.workspace.is_complete(REWARD_MODEL)
    model = RewardModel.load(context) if trained else None
    console = console or rich.console.Console(highlight=False, quiet=not hosts.is_first())
    for sample in answers(context, params, model, prompt):
        show(console, sample)


def answers(
    context: Context, params: Params, model: RewardModel | None, prompt: str | None
) -> Iterator[Sample]:
    """The answers to a prompt or to test examples, as far as they can be judged.

    The judge has to know the task, so it reads answers to test examples only; a prompt of one's own
    has no reward either (NaN). Without a reward model nothing is predicted.
    """
    key = context.key("generate")
    if prompt is not None:
        tokens = _checked(context, prompt)
        (completion,) = complete(context, params, [tokens], key, batch_size=1)
        predicted, critique = _marks(context, model, tokens, completion.tokens)
        cells = token_cells(context, completion.tokens.tolist(), predicted=predicted)
        yield Sample("", prompt, "", critique, math.nan, cells)
        return
    examples = context.test_examples()[:EXAMPLES]
    if too_long := context.tally["prompts_too_long"]:
        say(f"{too_long} test prompts leave no room for an answer and are passed over")
    prompts = [context.prompt(example.prompt) for example in examples]
    for turn in attempt(context, params, examples, prompts, key, batch_size=len(examples)):
        predicted, critique = _marks(context, model, turn.prompt, turn.tokens)
        yield sample_of(context, turn, predicted=predicted, predicted_critique=critique)


def show(console: rich.console.Console, sample: Sample) -> None:
    """Prints a sample: the answer once for each who marked it, then what was said of it."""

    def section(title: str, text: Text) -> None:
        console.print(Text(title, style="bold"))
        console.print(text)

    console.rule()
    section("Prompt", safe_text(sample.prompt))
    marked = [
        which
        for which in MARKERS
        if any(getattr(cell, which) is not None for cell in sample.tokens)
    ]
    for which in marked:
        section(f"Answer, marked by {MARKERS[which]}", token_line(sample.tokens, which))
    if not marked:
        section("Answer", token_line(sample.tokens))
    if sample.critique:
        section("Critique of the judge", safe_text(sample.critique))
    if sample.predicted_critique is not None:
        section("Critique of the reward model", safe_text(sample.predicted_critique))
    if not math.isnan(sample.reward):
        section("Reward", Text(f"{sample.reward:.1f}"))


def _checked(context: Context, prompt: str) -> list[int]:
    """The tokens of a prompt that somebody typed."""
    if not prompt.strip():
        raise T2GError("--prompt is empty; write what to answer, or leave it out for test examples")
    tokens = context.prompt(prompt)
    if not context.has_room(tokens):
        raise context.no_room("--prompt", len(tokens))
    return tokens


def _marks(
    context: Context, model: RewardModel | None, prompt: Tokens, completion: Tokens
) -> tuple[np.ndarray | None, str | None]:
    """The reward model's span rewards and critique; None of what it cannot give."""
    if model is None:
        return None, None
    (predicted,), (critique,) = (
        model.rewards([(prompt, completion)]),
        model.critiques([(prompt, completion)]),
    )
    return predicted, None if critique is None else model.tokenizer.decode(critique)
