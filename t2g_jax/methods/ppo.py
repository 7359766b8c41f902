"""PPO: rewards of tokens become advantages, by GAE if there is a value head.

"Proximal Policy Optimization Algorithms", Schulman et al., arXiv 1707.06347. Token reward
rₜ = [t is the last] · R − β·KLₜ, R the task's reward: what Text2Grad is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.typing import ArrayLike

from t2g_jax.advantages import gae, whiten
from t2g_jax.config import PPOConfig
from t2g_jax.methods.base import MethodExperience, Trajectory
from t2g_jax.methods.policy import PolicyMethod, with_fields
from t2g_jax.methods.scores import Scores
from t2g_jax.models import heads
from t2g_jax.parallel.shapes import bucket, round_up
from t2g_jax.rollouts.attempts import (
    attempt_metrics,
    completion_row,
    first_attempts,
    tokens_generated,
)
from t2g_jax.rollouts.episodes import Episode
from t2g_jax.rollouts.turns import Turn
from t2g_jax.run.context import Context
from t2g_jax.training.sequences import Field, TokenSequence
from t2g_jax.training.state import TrainState
from t2g_jax.training.terms import (
    ADVANTAGES,
    OLD_VALUES,
    POLICY_WEIGHT,
    RETURNS,
    Term,
    Value,
)


class PPO(PolicyMethod):
    """Scalar reward in, per-token advantages out."""

    name = "ppo"
    config: PPOConfig

    def __init__(self, context: Context):
        super().__init__(context)
        if self.config.heads:
            with_heads = heads.add_heads(
                self.params, context.model, context.keys.key("value_head"), heads=self.config.heads
            )
            self.params = context.weights.place(with_heads)

    def terms(self) -> tuple[Term, ...]:
        return (*super().terms(), *((Value(self.config),) if self.config.heads else ()))

    def collect(self, state: TrainState, step: int) -> MethodExperience:
        config, truncated = self.config, self.rollouts.sampling.truncates
        turns = first_attempts(self.rollouts, state.params, config, self.name, step)
        earned, metrics = self.token_rewards(turns)
        sampled = [
            completion_row(turn, {POLICY_WEIGHT: 1.0}, truncated=truncated) for turn in turns
        ]
        rows, before = self.score(state, sampled)
        penalty = self.penalty(state, rows, before)
        rewards = [-cost for cost in penalty.per_token]
        for reward, given, turn in zip(rewards, earned, turns, strict=True):
            reward[len(turn.prompt) :] += given
        estimates = self.estimates(rows, rewards, before)
        metrics = attempt_metrics(turns, config.group_size) | penalty.metrics | metrics
        metrics["tokens_generated"] = tokens_generated(turns)
        return MethodExperience(
            with_fields(
                rows, [a | dict(b) for a, b in zip(estimates, penalty.fields, strict=True)]
            ),
            metrics,
            penalty.carry,
            [
                self.trajectory(turn, given, found[ADVANTAGES][len(turn.prompt) :])
                for turn, given, found in zip(turns, earned, estimates, strict=True)
            ],
        )

    def token_rewards(self, turns: Sequence[Turn]) -> tuple[list[np.ndarray], dict[str, float]]:
        """The reward of each completion token, arrays [n], and metrics."""
        rewards = [np.zeros(len(turn.tokens), np.float32) for turn in turns]
        for reward, turn in zip(rewards, turns, strict=True):
            reward[-1:] = turn.score.reward
        return rewards, {}

    def trajectory(self, turn: Turn, earned: np.ndarray, advantages: np.ndarray) -> Trajectory:
        """What the report is told of a completion, token by token."""
        del earned
        return Trajectory(Episode((turn,)), [advantages])

    def estimates(
        self, rows: Sequence[TokenSequence], rewards: Sequence[np.ndarray], before: Scores | None
    ) -> list[dict[Field, np.ndarray]]:
        """`ADVANTAGES` of each row, and what else its terms read of the returns.

        Args:
          rows: with `POLICY_WEIGHT`, not 0 on the tokens that were sampled.
          rewards: [n] for each row, about each token.
          before: what the policy made of them, with values.
        """
        assert before is not None  # there is a value head
        return estimate(rows, rewards, [about["values"] for about in before], self.config)


def estimate(
    rows: Sequence[TokenSequence],
    rewards: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    config: PPOConfig,
) -> list[dict[Field, np.ndarray]]:
    """`ADVANTAGES` by GAE, `RETURNS` and `OLD_VALUES` of each row.

    Args:
      rows: with `POLICY_WEIGHT`, not 0 on the tokens that were sampled.
      rewards, values: [n] for each row, about each token and about the state before it.
    """
    mask, before = table([row.values[POLICY_WEIGHT] for row in rows]), table(values)
    advantages, returns = gae(
        table(rewards), before, mask, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    if config.whiten:
        advantages = whiten(advantages, mask)
    return fields_of(rows, {ADVANTAGES: advantages, RETURNS: returns, OLD_VALUES: before * mask})


def table(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays [n] about the tokens of rows as one, padded with 0 to one of few shapes."""
    out = np.zeros((round_up(len(arrays)), bucket(arrays)), np.float32)
    for row, array in zip(out, arrays, strict=False):
        row[: len(array)] = array
    return out


def fields_of(
    rows: Sequence[TokenSequence], tables: Mapping[Field, ArrayLike]
) -> list[dict[Field, np.ndarray]]:
    """What tables say about the tokens of each row."""
    found = dict(zip(tables, jax.device_get(list(tables.values())), strict=True))
    return [
        {field: array[i, : len(row)] for field, array in found.items()}
        for i, row in enumerate(rows)
    ]
