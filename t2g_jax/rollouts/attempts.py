"""First attempts at training prompts, in groups; how they did; and the rows that learn them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from t2g_jax.config import RolloutConfig
from t2g_jax.models.heads import Params
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.rollouts.turns import Turn, attempt, unbroken
from t2g_jax.sampling.generate import Completion
from t2g_jax.tasks.scoring import score_metrics
from t2g_jax.training.forward import CUTOFFS
from t2g_jax.training.sequences import Field, TokenSequence, Values
from t2g_jax.training.terms import SAMPLER_LOGPROBS


def first_attempts(
    rollouts: Rollouts,
    params: Params,
    config: RolloutConfig,
    name: str,
    step: int,
    *,
    draw: int = 0,
) -> list[Turn]:
    """G attempts at each of P training prompts, those of a prompt side by side.

    A group in which one is broken is left out, so there may be fewer.

    `draw` tells apart the rounds of a step that samples more than once.
    """
    purpose = f"{name}/{draw}" if draw else name
    drawn = rollouts.prompts.train_examples(purpose, step, config.prompts_per_step)
    examples = [example for example in drawn for _ in range(config.group_size)]
    prompts = [rollouts.prompts.render(example.prompt) for example in examples]
    key = rollouts.keys.at_step(purpose, step)
    at_once = config.rows_at_once or len(examples)
    turns = attempt(
        rollouts,
        params,
        examples,
        prompts,
        key,
        batch_size=at_once,
        step=step,
        steps=config.steps,
    )
    return unbroken(turns, config.group_size)


def attempt_metrics(turns: Sequence[Turn], group_size: int) -> dict[str, float]:
    """How first attempts did, on average; `equal_groups`: the share that cannot be compared, where
    there is more than one of a prompt."""
    lengths = [len(turn.completion.tokens) for turn in turns]
    rewards = np.array([turn.score.reward for turn in turns]).reshape(-1, group_size)
    equal = {"equal_groups": float(np.mean(np.ptp(rewards, axis=1) == 0))}
    return {
        **score_metrics([turn.score for turn in turns]),
        **(equal if group_size > 1 else {}),
        "completion_tokens": float(np.mean(lengths)),
        "completion_tokens_max": max(lengths),
        "cut_off": float(np.mean([not turn.completion.ended for turn in turns])),
    }


def tokens_generated(turns: Sequence[Turn]) -> int:
    return sum(len(turn.completion.tokens) for turn in turns)


def completion_row(
    turn: Turn, values: Mapping[Field, Values], *, truncated: bool = False
) -> TokenSequence:
    """Prompt and completion, with values about the completion's tokens and their sampling."""
    about = {**sampling_values(turn.completion, truncated=truncated), **values}
    return TokenSequence.from_parts((turn.prompt, {}), (turn.tokens, about))


def sampling_values(completion: Completion, *, truncated: bool) -> dict[Field, np.ndarray]:
    """How a completion's tokens were sampled; `truncated`: see `Sampling.truncates`."""
    cutoffs = {CUTOFFS: completion.cutoffs} if truncated else {}
    return {SAMPLER_LOGPROBS: completion.logprobs, **cutoffs}
