"""What a method is, and what the methods share: attempts, their rows, scores and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from t2g_jax.advantages import group_centered, leave_one_out
from t2g_jax.config import Divergence, Place, PolicyConfig, RolloutConfig, charged
from t2g_jax.models.heads import Params
from t2g_jax.reductions import Reduction
from t2g_jax.rollouts.turns import Turn, attempt, unbroken
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import Collected, Learning, about_rows
from t2g_jax.sampling.generate import Completion
from t2g_jax.training.batch import Row, row
from t2g_jax.training.objective import Objective
from t2g_jax.training.state import TrainState
from t2g_jax.training.step import score


class Method(Protocol):
    """A way of learning from attempts."""

    params: Params
    """Where it starts: the warm start and the heads it needs, without adapters."""
    learning: Learning

    @property
    def config(self) -> RolloutConfig:
        """Its section of the config."""

    def collect(self, state: TrainState, step: int) -> Collected:
        """The rows of a step; depends on the state and the step alone."""


# --- Attempts -------------------------------------------------------------------------------------


def first_attempts(
    context: Context, params: Params, config: RolloutConfig, name: str, step: int, *, draw: int = 0
) -> list[Turn]:
    """G attempts at each of P training prompts, those of a prompt side by side.

    A group in which one is broken is left out, so there may be fewer.

    `draw` tells apart the rounds of a step that samples more than once.
    """
    purpose = f"{name}/{draw}" if draw else name
    drawn = context.prompts.train_examples(purpose, step, config.prompts_per_step)
    examples = [example for example in drawn for _ in range(config.group_size)]
    prompts = [context.prompts.render(example.prompt) for example in examples]
    key = step_key(context, purpose, step, 0)
    at_once = config.rows_at_once or len(examples)
    turns = attempt(context, params, examples, prompts, key, batch_size=at_once)
    return unbroken(turns, config.group_size)


def step_key(context: Context, name: str, step: int, turn: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(context.keys.key(name), step), turn)


def attempt_metrics(turns: Sequence[Turn], group_size: int) -> dict[str, float]:
    """How first attempts did, on average; `equal_groups`: the share that cannot be compared, where
    there is more than one of a prompt."""
    lengths = [len(turn.completion.tokens) for turn in turns]
    rewards = np.array([turn.score.reward for turn in turns]).reshape(-1, group_size)
    equal = {"equal_groups": float(np.mean(np.ptp(rewards, axis=1) == 0))}
    return {
        "accuracy": float(np.mean([turn.score.correct for turn in turns])),
        "reward": float(rewards.mean()),
        "formatted": float(np.mean([turn.score.formatted for turn in turns])),
        **(equal if group_size > 1 else {}),
        "completion_tokens": float(np.mean(lengths)),
        "completion_tokens_max": max(lengths),
        "cut_off": float(np.mean([not turn.completion.ended for turn in turns])),
    }


def tokens_generated(turns: Sequence[Turn]) -> int:
    return sum(len(turn.completion.tokens) for turn in turns)


def compared(rewards: np.ndarray, took_place: np.ndarray, how: str, group_size: int) -> np.ndarray:
    """Advantages of rewards [P · G, ...] over others of their group of G; see `GroupConfig`."""
    shape = (-1, group_size, *rewards.shape[1:])
    grouped = rewards.reshape(shape), took_place.reshape(shape)
    if how == "leave_one_out":
        advantages = leave_one_out(*grouped)
    else:
        advantages = group_centered(*grouped, scale_by_std=how == "scaled")
    return np.asarray(advantages).reshape(rewards.shape)


# --- Rows, about their own tokens -----------------------------------------------------------------


def completion_row(context: Context, turn: Turn, **fields: float | np.ndarray) -> Row:
    """Prompt and completion, with fields about the completion's tokens."""
    about: dict[str, Any] = sampled(turn.completion, truncates=context.sampling.truncates)
    return row((turn.prompt, {}), (turn.tokens, about | fields))


def sampled(completion: Completion, *, truncates: bool) -> dict[str, np.ndarray]:
    """Fields about how a completion's tokens were sampled; `truncates`: see `Sampling`."""
    fields = {"old_logprobs": completion.logprobs}
    return fields | {"cutoffs": completion.cutoffs} if truncates else fields


Scored = Sequence[dict[str, np.ndarray]]
"""What `scored` returns."""


def scored(
    context: Context,
    params: Params,
    rows: Sequence[Row],
    at_once: int | None = None,
    *,
    truncated: bool = False,
) -> list[dict[str, np.ndarray]]:
    """What a policy makes of each token of each row, given those before it; 0 for the first.

    Args:
      at_once: rows that are computed at once; None: all.
      truncated: whether to follow the "cutoffs" of the rows.

    Returns:
      For each row "logprobs" and "entropy" [n] at the sampler's temperature, not truncated, so that
      divergences stay finite; and "values" [n] if there is a value head. If truncated, "logprobs"
      and "entropy" are of the distribution sampled from, and "untruncated" [n] is added.
    """
    temperature = context.config.sampling.temperature
    fields = ("cutoffs",) if truncated else ()
    with context.watch.stage("score"):
        settings: dict[str, Any] = {"model": context.model, "temperature": temperature}
        settings |= {"mesh": context.mesh, "with_untruncated": truncated}
        found = about_rows(
            context, rows, lambda batch: score(params, batch, **settings), at_once, fields=fields
        )
    return [{name: about_tokens(values) for name, values in one.items()} for one in found]


def scored_before(
    context: Context, config: PolicyConfig, state: TrainState, rows: Sequence[Row]
) -> Scored | None:
    """What the policy makes of a round's rows before it learns from them; None if nobody asks.

    Ratios begin at exactly 1 only if both sides come from the trainer: log-probabilities of a
    sampler in bfloat16 are up to 2e-2 off for a token, 3e-3 on average over a sequence of 32. So
    where there is more than one update "old_logprobs" become the trainer's, and the sampler's are
    kept as "sampler_logprobs". A single update compares with itself, see `objective`.
    """
    if not (reads_before(context, config) or "value_head" in state.params):
        return None
    truncated = context.sampling.truncates
    found = scored(context, state.params, rows, config.rows_at_once, truncated=truncated)
    if updates_per_step(config) > 1:
        for item, about in zip(rows, found, strict=True):
            sampler = item.fields["old_logprobs"]
            own = about["logprobs"] * (item.fields["policy_weight"] != 0)
            item.fields |= {"sampler_logprobs": sampler, "old_logprobs": own}
    return found


def reads_before(context: Context, config: PolicyConfig) -> bool:
    """Whether the policy reads a round's rows before it learns from them, also without values.

    For ratios if there are several updates, and for a divergence if the sampler's log-probabilities
    will not do: they are of a truncated distribution, or rounded otherwise and yet a reward.
    """
    kl, kl_in = divergence(config)
    costs = kl_in == "reward" and config.kl_coefficient > 0
    compared = kl != "full" and (context.sampling.truncates or costs)
    return updates_per_step(config) > 1 or compared


def divergence(config: PolicyConfig) -> tuple[Divergence, Place]:
    """Which divergence from the reference a method is charged for, and where."""
    return charged(config.kl, config.kl_in, config.default_kl_in)


def has_kl_term(config: PolicyConfig) -> bool:
    """Whether the loss has a term for the divergence."""
    return divergence(config)[1] == "loss" and config.kl_coefficient > 0


def updates_per_step(config: RolloutConfig) -> int:
    """Optimizer updates that learn from the same rows."""
    return config.epochs * config.minibatches


def about_tokens(values: np.ndarray) -> np.ndarray:
    """From the slots of a row [n], each about the next token, to the row's own tokens [n]."""
    return np.concatenate([np.zeros(1, values.dtype), values[:-1]])


# --- Learning -------------------------------------------------------------------------------------


def policy_learning(
    context: Context,
    config: PolicyConfig,
    *,
    fields: Sequence[str] = (),
    **objective: Any,
) -> Learning:
    """How a policy-gradient method learns: what its section shares with others, and what it adds.

    Args:
      fields: of `Batch`, beside those that every policy gradient needs.
      objective: settings of `Objective`, beside those that all sections have.
    """
    in_loss = ("kl_weight", "ref_logprobs") if has_kl_term(config) else ()
    truncation = ("cutoffs",) if context.sampling.truncates else ()
    renewed = ("sampler_logprobs",) if updates_per_step(config) > 1 else ()
    return learning(
        config,
        fields=(
            *("policy_weight", "advantages", "old_logprobs"),
            *renewed,
            *truncation,
            *in_loss,
            *fields,
        ),
        carry={"kl_coefficient": config.kl_coefficient},
        objective=Objective(
            surrogate=config.surrogate,
            epsilon_low=config.epsilon_low,
            epsilon_high=config.epsilon_high,
            reduction=Reduction(config.reduction),
            longest=context.config.sampling.max_new_tokens,
            temperature=context.config.sampling.temperature,
            kl=divergence(config)[0],
            **objective,
        ),
    )


def learning(
    config: RolloutConfig,
    *,
    fields: Sequence[str],
    objective: Objective,
    carry: dict[str, float] | None = None,
) -> Learning:
    """How any method learns from the rows of its rounds."""
    return Learning(
        optimizer=config.optimizer,
        objective=objective,
        fields=tuple(fields),
        steps=config.steps,
        token_budget=config.token_budget,
        epochs=config.epochs,
        minibatches=config.minibatches,
        micro_batches=config.micro_batches,
        carry=carry or {},
    )
