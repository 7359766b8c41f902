"""GRPO: the reward of each attempt, centred in its group; no feedback is used.

"DeepSeekMath", Shao et al., arXiv 2402.03300; without division by the standard deviation it is
Dr. GRPO, Liu et al., arXiv 2503.20783.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2g_jax.advantages import group_centred
from t2g_jax.config import GRPOConfig
from t2g_jax.methods.base import (
    attempt_metrics,
    completion_row,
    first_attempts,
    policy_learning,
    reference_logprobs,
    tokens_generated,
)
from t2g_jax.phases.context import Context
from t2g_jax.phases.rollout import Turn
from t2g_jax.phases.training import Collected
from t2g_jax.training.state import TrainState


class GRPO:
    """The baseline that sees only the reward."""

    def __init__(self, context: Context):
        self.context = context
        self.config = config = context.config.grpo
        self.params = self.reference = context.params()
        self.learning = policy_learning(
            context,
            config,
            fields=("ref_logprobs",) if config.kl_coefficient else (),
            kl_coefficient=config.kl_coefficient,
        )

    def collect(self, state: TrainState, step: int) -> Collected:
        turns = first_attempts(self.context, state.params, self.config, "grpo", step)
        references, divergence = reference_logprobs(self.context, self.reference, turns)
        fields = [{"advantages": advantage} for advantage in advantages(turns, self.config)]
        if self.config.kl_coefficient:
            for about, logprobs in zip(fields, references, strict=True):
                about["ref_logprobs"] = logprobs
        rows = [
            completion_row(self.context, turn, policy_weight=1.0, **about)
            for turn, about in zip(turns, fields, strict=True)
        ]
        metrics = attempt_metrics(turns) | {
            "kl": divergence,
            "tokens_generated": tokens_generated(turns),
        }
        return Collected(rows, metrics)


def advantages(turns: Sequence[Turn], settings: GRPOConfig) -> np.ndarray:
    """Rewards [P · G] centred in groups of G."""
    rewards = np.array([turn.score.reward for turn in turns], np.float32)
    rewards = rewards.reshape(-1, settings.group_size)
    everyone = np.ones_like(rewards)
    return np.asarray(group_centred(rewards, everyone, scale_by_std=settings.scale_by_std)).ravel()
