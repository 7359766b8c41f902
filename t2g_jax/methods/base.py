"""What a method is, and what the methods share: groups of attempts, their scores, their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from t2g_jax import kl
from t2g_jax.config import PolicyConfig
from t2g_jax.models.heads import Params
from t2g_jax.phases.context import Context
from t2g_jax.phases.rollout import Turn, attempt
from t2g_jax.phases.training import Collected, Learning, padded
from t2g_jax.sampling.generate import Completion
from t2g_jax.training.batch import Row, row
from t2g_jax.training.objective import Objective
from t2g_jax.training.state import TrainState
from t2g_jax.training.step import score


class Method(Protocol):
    """A way of learning from attempts."""

    params: Params
    """Where it starts: the warm start and the heads it needs."""
    learning: Learning

    @property
    def config(self) -> PolicyConfig:
        """Its section of the config."""

    def collect(self, state: TrainState, step: int) -> Collected:
        """The rows of a step; depends on the state and the step alone."""


def first_attempts(
    context: Context, params: Params, config: PolicyConfig, name: str, step: int
) -> list[Turn]:
    """G attempts at each of P training prompts, those of a prompt side by side."""
    drawn = context.train_examples(name, step, config.prompts_per_step)
    examples = [example for example in drawn for _ in range(config.group_size)]
    prompts = [context.prompt(example.prompt) for example in examples]
    key = step_key(context, name, step, 0)
    return attempt(context, params, examples, prompts, key, batch_size=len(examples))


def step_key(context: Context, name: str, step: int, turn: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(context.key(name), step), turn)


def sampled(completion: Completion, *, truncates: bool) -> dict[str, np.ndarray]:
    """Fields about how a completion's tokens were sampled; `truncates`: see `Sampling`."""
    fields = {"old_logprobs": completion.logprobs}
    return fields | {"cutoffs": completion.cutoffs} if truncates else fields


def policy_fields(context: Context) -> tuple[str, ...]:
    """The fields of `Batch` that a policy gradient needs."""
    fields = ("policy_weight", "advantages", "old_logprobs")
    return (*fields, "cutoffs") if context.sampling.truncates else fields


def policy_learning(
    context: Context,
    config: PolicyConfig,
    *,
    fields: Sequence[str] = (),
    carry: dict[str, float] | None = None,
    **objective: Any,
) -> Learning:
    """How a method learns: what its section shares with the others, and what it adds.

    Args:
      fields: of `Batch`, beside those that every policy gradient needs.
      carry: see `TrainState`.
      objective: settings of `Objective`, beside the clip range and the sampler's temperature.
    """
    return Learning(
        optimizer=config.optimizer,
        objective=Objective(
            epsilon_low=config.epsilon_low,
            epsilon_high=config.epsilon_high,
            temperature=context.config.sampling.temperature,
            **objective,
        ),
        fields=(*policy_fields(context), *fields),
        steps=config.steps,
        epochs=config.epochs,
        minibatches=config.minibatches,
        micro_batches=config.micro_batches,
        carry=carry or {},
    )


def completion_row(context: Context, turn: Turn, **fields: float | np.ndarray) -> Row:
    """Prompt and completion, with fields about the completion's tokens."""
    about: dict[str, Any] = sampled(turn.completion, truncates=context.sampling.truncates)
    return row((turn.prompt, {}), (turn.tokens, about | fields))


def logprobs_of(
    context: Context, params: Params, rows: Sequence[Row], *, temperature: float = 1.0
) -> list[np.ndarray]:
    """Log-probability of each token of each row given those before it; 0 for the first."""
    with context.watch.stage("score"):
        batch = padded(context, [Row(item.tokens, {}) for item in rows])
        scored = jax.device_get(
            score(params, batch, model=context.model, temperature=temperature, mesh=context.mesh)[
                "logprobs"
            ]
        )
    return [
        np.concatenate([[0.0], values[: len(item) - 1]])
        for item, values in zip(rows, scored, strict=False)  # the batch ends in padding
    ]


def reference_logprobs(
    context: Context, reference: Params, turns: Sequence[Turn]
) -> tuple[list[np.ndarray], float]:
    """What the reference policy makes of sampled completions.

    Returns:
      Log-probabilities [n] of each completion's tokens, at the sampler's temperature and not
      truncated, so that the divergence stays finite; and the mean k3 divergence of a token from
      the distribution it was sampled from.
    """
    rows = [row((turn.prompt, {}), (turn.tokens, {})) for turn in turns]
    temperature = context.config.sampling.temperature
    whole = logprobs_of(context, reference, rows, temperature=temperature)
    logprobs = [values[len(turn.prompt) :] for turn, values in zip(turns, whole, strict=True)]
    sampled_logprobs = np.concatenate([turn.completion.logprobs for turn in turns])
    return logprobs, float(np.mean(kl.k3(sampled_logprobs, np.concatenate(logprobs))))


def attempt_metrics(turns: Sequence[Turn]) -> dict[str, float]:
    """How first attempts did, on average."""
    return {
        "accuracy": float(np.mean([turn.score.correct for turn in turns])),
        "reward": float(np.mean([turn.score.reward for turn in turns])),
        "formatted": float(np.mean([turn.score.formatted for turn in turns])),
        "completion_tokens": float(np.mean([len(turn.completion.tokens) for turn in turns])),
        "cut_off": float(np.mean([not turn.completion.ended for turn in turns])),
    }


def tokens_generated(turns: Sequence[Turn]) -> int:
    return sum(len(turn.completion.tokens) for turn in turns)
