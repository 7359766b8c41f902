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
from t2g_jax.methods.base import (
    attempt_metrics,
    completion_row,
    first_attempts,
    policy_learning,
    scored_before,
    tokens_generated,
)
from t2g_jax.methods.reference import Reference
from t2g_jax.models import heads
from t2g_jax.parallel.shapes import bucket, round_up
from t2g_jax.phases.samples import chosen, episode_sample
from t2g_jax.report.contents import Sample
from t2g_jax.rollouts.turns import Turn
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import Collected
from t2g_jax.training.batch import Row
from t2g_jax.training.state import TrainState


class PPO:
    """Scalar reward in, per-token advantages out."""

    name = "ppo"

    def __init__(self, context: Context):
        self.context = context
        self.config = config = self.section(context)
        warm_start = context.weights.load()
        self.reference = Reference(context, config, warm_start)
        with_value_head = heads.add_heads(
            warm_start, context.model, context.keys.key("value_head"), heads=("value_head",)
        )
        self.params = context.weights.place(with_value_head)
        self.learning = policy_learning(
            context,
            config,
            fields=("returns", "old_values"),
            value_coefficient=config.value_coefficient,
            value_clip=config.value_clip,
        )

    def section(self, context: Context) -> PPOConfig:
        """The method's settings."""
        return context.config.ppo

    def collect(self, state: TrainState, step: int) -> Collected:
        config = self.config
        turns = first_attempts(self.context, state.params, config, self.name, step)
        earned, metrics = self.token_rewards(turns)
        rows = [completion_row(self.context, turn, policy_weight=1.0) for turn in turns]
        found = scored_before(self.context, config, state, rows)
        assert found is not None  # there is a value head
        charge = self.reference.charge(state, rows, found)
        rewards = [-cost for cost in charge.costs]
        for reward, given, turn in zip(rewards, earned, turns, strict=True):
            reward[len(turn.prompt) :] += given
        values = [about["values"] for about in found]
        estimate(rows, rewards, values, config)
        samples: Sequence[Sample] = ()
        if shown := chosen(config, step, len(turns)):
            with self.context.watch.stage("evaluate"):
                samples = [
                    self.sample(turns[i], earned[i], _of_completion(rows[i], turns[i]), step)
                    for i in shown
                ]
        metrics = attempt_metrics(turns, config.group_size) | charge.metrics | metrics
        metrics["tokens_generated"] = tokens_generated(turns)
        return Collected(rows, metrics, charge.carry, samples)

    def token_rewards(self, turns: Sequence[Turn]) -> tuple[list[np.ndarray], dict[str, float]]:
        """The reward of each completion token, arrays [n], and metrics."""
        rewards = [np.zeros(len(turn.tokens), np.float32) for turn in turns]
        for reward, turn in zip(rewards, turns, strict=True):
            reward[-1:] = turn.score.reward
        return rewards, {}

    def sample(self, turn: Turn, earned: np.ndarray, advantages: np.ndarray, step: int) -> Sample:
        """A completion for the report, token by token."""
        del earned
        return episode_sample(
            self.context, [turn], method=self.name, step=step, advantages_per_turn=[advantages]
        )


def estimate(
    rows: Sequence[Row],
    rewards: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    config: PPOConfig,
) -> None:
    """Gives the rows "advantages", "returns" and "old_values".

    Args:
      rows: with "policy_weight", not 0 on the tokens that were sampled.
      rewards, values: [n] for each row, about each token and about the state before it.
    """
    shape = (round_up(len(rows)), bucket(rows))  # few shapes are compiled

    def table(arrays: Sequence[np.ndarray]) -> np.ndarray:
        out = np.zeros(shape, np.float32)
        for i, array in enumerate(arrays):
            out[i, : len(array)] = array
        return out

    mask = table([item.fields["policy_weight"] for item in rows])
    advantages, returns = gae(
        table(rewards), table(values), mask, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    if config.whiten:
        advantages = whiten(advantages, mask)
    found = {"advantages": advantages, "returns": returns, "old_values": table(values) * mask}
    for name, slots in jax.device_get(found).items():
        for item, slot in zip(rows, slots, strict=False):  # slots end in padding
            item.fields[name] = slot[: len(item)]


def _of_completion(item: Row, turn: Turn) -> np.ndarray:
    return item.fields["advantages"][len(turn.prompt) :]
