"""GRPO: the reward of each attempt, compared with its group; no feedback is used.

"DeepSeekMath", Shao et al., arXiv 2402.03300. By its settings it is also Dr. GRPO (arXiv
2503.20783), RLOO (arXiv 2402.14740), DAPO (arXiv 2503.14476), GSPO (arXiv 2507.18071) or CISPO
(arXiv 2506.13585).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2g_jax.config import GRPOConfig
from t2g_jax.methods.base import MethodExperience, Trajectory, group_advantages
from t2g_jax.methods.policy import PolicyMethod, with_fields
from t2g_jax.models.heads import Params
from t2g_jax.rollouts.attempts import (
    attempt_metrics,
    completion_row,
    first_attempts,
    tokens_generated,
)
from t2g_jax.rollouts.episodes import Episode
from t2g_jax.rollouts.turns import Turn
from t2g_jax.training.state import TrainState
from t2g_jax.training.terms import ADVANTAGES, POLICY_WEIGHT


class GRPO(PolicyMethod):
    """The baseline that sees only the reward."""

    name = "grpo"
    config: GRPOConfig

    def collect(self, state: TrainState, step: int) -> MethodExperience:
        config, truncated = self.config, self.rollouts.sampling.truncates
        turns, metrics = self.attempts(state.params, step)
        sampled = [
            completion_row(turn, {POLICY_WEIGHT: 1.0}, truncated=truncated) for turn in turns
        ]
        rows, before = self.score(state, sampled)
        penalty = self.penalty(state, rows, before)
        rewards = np.array(
            [
                turn.score.reward - self.overlong(turn) - cost.sum()
                for turn, cost in zip(turns, penalty.per_token, strict=True)
            ],
            np.float32,
        )
        advantages = group_advantages(
            rewards, np.ones_like(rewards), config.advantage, config.group_size
        )
        fields = [
            {ADVANTAGES: advantage * row.values[POLICY_WEIGHT], **its}
            for row, advantage, its in zip(rows, advantages, penalty.fields, strict=True)
        ]
        return MethodExperience(
            with_fields(rows, fields),
            metrics | penalty.metrics,
            penalty.carry,
            [
                Trajectory(Episode((turn,)), [float(advantage)])
                for turn, advantage in zip(turns, advantages, strict=True)
            ],
        )

    def attempts(self, params: Params, step: int) -> tuple[list[Turn], dict[str, float]]:
        """P groups of attempts, and how those did that were sampled first.

        With `resample_rounds`, groups whose rewards are all equal give way to others; if there are
        not enough, fewer groups are left, but never none.
        """
        rollouts, config = self.rollouts, self.config
        turns = first_attempts(rollouts, params, config, self.name, step)
        metrics = attempt_metrics(turns, config.group_size)
        metrics["tokens_generated"] = tokens_generated(turns)
        if not config.resample_rounds:
            return turns, metrics
        kept = keep_unequal(turns, config.group_size)
        for draw in range(1, config.resample_rounds + 1):
            if len(kept) >= len(turns):
                break
            more = first_attempts(rollouts, params, config, self.name, step, draw=draw)
            metrics["tokens_generated"] += tokens_generated(more)
            kept += keep_unequal(more, config.group_size)
        kept = kept[: len(turns)]
        metrics["groups_kept"] = len(kept) // config.group_size
        return kept or turns, metrics

    def overlong(self, turn: Turn) -> float:
        """DAPO's soft punishment, arXiv 2503.14476, Eq. 13: from 0 to 1 over the last tokens."""
        if not self.config.overlong_tokens:
            return 0.0
        free = self.rollouts.sampling.max_new_tokens - self.config.overlong_tokens
        return max(len(turn.tokens) - free, 0) / self.config.overlong_tokens


def keep_unequal(turns: Sequence[Turn], group_size: int) -> list[Turn]:
    """The groups that teach something: not all of their rewards are equal."""
    groups = [turns[i : i + group_size] for i in range(0, len(turns), group_size)]
    return [turn for group in groups if len({t.score.reward for t in group}) > 1 for turn in group]
