"""PPO with a value head: rewards of tokens become advantages by GAE.

"Proximal Policy Optimization Algorithms", Schulman et al., arXiv 1707.06347. Token reward
rₜ = [t is the last] · R − β·KLₜ, R the task's reward: what Text2Grad is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from t2g_jax.advantages import gae, whiten
from t2g_jax.config import PPOConfig
from t2g_jax.methods.base import MethodExperience, Trajectory
from t2g_jax.methods.policy import PolicyMethod, with_fields
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
        with_value_head = heads.add_heads(
            self.params, context.model, context.keys.key("value_head"), heads=("value_head",)
        )
        self.params = context.weights.place(with_value_head)

    def terms(self) -> tuple[Term, ...]:
        return (*super().terms(), Value(self.config))

    def collect(self, state: TrainState, step: int) -> MethodExperience:
        config, truncated = self.config, self.rollouts.sampling.truncates
        turns = first_attempts(self.rollouts, state.params, config, self.name, step)
        earned, metrics = self.token_rewards(turns)
        sampled = [
            completion_row(turn, {POLICY_WEIGHT: 1.0}, truncated=truncated) for turn in turns
        ]
        rows, before = self.score(state, sampled)
        assert before is not None  # there is a value head
        penalty = self.penalty(state, rows, before)
        rewards = [-cost for cost in penalty.per_token]
        for reward, given, turn in zip(rewards, earned, turns, strict=True):
            reward[len(turn.prompt) :] += given
        estimates = estimate(rows, rewards, [about["values"] for about in before], config)
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


def estimate(
    rows: Sequence[TokenSequence],
    rewards: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    config: PPOConfig,
) -> list[dict[Field, np.ndarray]]:
    """`ADVANTAGES`, `RETURNS` and `OLD_VALUES` of each row.

    Args:
      rows: with `POLICY_WEIGHT`, not 0 on the tokens that were sampled.
      rewards, values: [n] for each row, about each token and about the state before it.
    """
    shape = (round_up(len(rows)), bucket(rows))  # few shapes are compiled

    def table(arrays: Sequence[np.ndarray]) -> np.ndarray:
        out = np.zeros(shape, np.float32)
        for i, array in enumerate(arrays):
            out[i, : len(array)] = array
        return out

    mask = table([row.values[POLICY_WEIGHT] for row in rows])
    advantages, returns = gae(
        table(rewards), table(values), mask, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    if config.whiten:
        advantages = whiten(advantages, mask)
    found = jax.device_get((advantages, returns, table(values) * mask))
    return [
        {
            field: array[i, : len(row)]
            for field, array in zip((ADVANTAGES, RETURNS, OLD_VALUES), found, strict=True)
        }
        for i, row in enumerate(rows)
    ]
