"""GRPO: the reward of each attempt, centred in its group; no feedback is used.

"DeepSeekMath", Shao et al., arXiv 2402.03300; without division by the standard deviation it is
Dr. GRPO, Liu et al., arXiv 2503.20783.
"""

from __future__ import annotations

import numpy as np

from t2g_jax.advantages import group_centred
from t2g_jax.methods.base import (
    attempt_metrics,
    completion_row,
    first_attempts,
    logprobs_of,
    policy_fields,
    tokens_generated,
)
from t2g_jax.phases.context import Context
from t2g_jax.phases.training import Collected, Learning
from t2g_jax.training.objective import Objective
from t2g_jax.training.state import TrainState


class GRPO:
    """The baseline that sees only the reward."""

    def __init__(self, context: Context):
        self.context = context
        self.config = config = context.config.grpo
        self.params = context.params()
        self.reference = self.params
        fields = policy_fields(context)
        self.learning = Learning(
            optimizer=config.optimizer,
            objective=Objective(
                epsilon_low=config.epsilon_low,
                epsilon_high=config.epsilon_high,
                temperature=context.config.sampling.temperature,
                kl_coefficient=config.kl_coefficient,
            ),
            fields=(*fields, "ref_logprobs") if config.kl_coefficient else fields,
            steps=config.steps,
            epochs=config.epochs,
            minibatches=config.minibatches,
            micro_batches=config.micro_batches,
        )

    def collect(self, state: TrainState, step: int) -> Collected:
        config = self.config
        turns = first_attempts(self.context, state.params, config, "grpo", step)
        rewards = np.array([turn.score.reward for turn in turns], np.float32)
        rewards = rewards.reshape(config.prompts_per_step, config.group_size)
        advantages = np.asarray(
            group_centred(rewards, np.ones_like(rewards), scale_by_std=config.scale_by_std)
        ).ravel()
        rows = [
            completion_row(self.context, turn, policy_weight=1.0, advantages=advantage)
            for turn, advantage in zip(turns, advantages)
        ]
        if config.kl_coefficient:
            for item, logprobs in zip(rows, logprobs_of(self.context, self.reference, rows)):
                item.fields["ref_logprobs"] = logprobs
        metrics = attempt_metrics(turns) | {"tokens_generated": tokens_generated(turns)}
        return Collected(rows, metrics)
