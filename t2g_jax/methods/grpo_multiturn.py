"""Multi-turn GRPO: every turn's return, compared with the group's. The baseline of RLTF.

"Expanding the Capabilities of Reinforcement Learning via Text Feedback", Song et al., arXiv
2602.02482.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from t2g_jax.advantages import turn_returns
from t2g_jax.config import EpisodeConfig
from t2g_jax.methods.base import MethodExperience, Trajectory, group_advantages
from t2g_jax.methods.policy import PolicyMethod, with_fields
from t2g_jax.models.heads import Params
from t2g_jax.rollouts.episodes import Episode, play, turn_rewards
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.state import TrainState
from t2g_jax.training.terms import ADVANTAGES


@dataclasses.dataclass(frozen=True)
class MoreRows:
    """What else is learned from a round's episodes.

    metrics: of that. distillation: with what each episode's last turn is distilled into its first,
    by the episode's number.
    """

    rows: Sequence[TokenSequence] = ()
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    distillation: Mapping[int, float] = dataclasses.field(default_factory=dict)


class GRPOMultiTurn(PolicyMethod):
    """Multi-turn GRPO."""

    name = "grpo-multiturn"
    config: EpisodeConfig

    def collect(self, state: TrainState, step: int) -> MethodExperience:
        config, truncated = self.config, self.rollouts.sampling.truncates
        episodes, metrics = self.play(state.params, step)
        rows, before = self.score(state, [episode.row(truncated=truncated) for episode in episodes])
        penalty = self.penalty(state, rows, before)
        rewards, took_place = turn_rewards(episodes, config.turns)
        for i, (episode, cost) in enumerate(zip(episodes, penalty.per_token, strict=True)):
            for h, where in enumerate(episode.completions()):
                rewards[i, h] -= cost[where].sum()
        advantages = turn_advantages(rewards, took_place, config)
        rows = policy_rows(episodes, advantages, with_fields(rows, penalty.fields))
        more = self.more_rows(state, step, episodes)
        return MethodExperience(
            [*rows, *more.rows],
            {**metrics, **penalty.metrics, **more.metrics},
            penalty.carry,
            [
                Trajectory(episode, values[: len(episode.turns)].tolist(), more.distillation.get(i))
                for i, (episode, values) in enumerate(zip(episodes, advantages, strict=True))
            ],
        )

    def play(self, params: Params, step: int) -> tuple[list[Episode], dict[str, float]]:
        """The episodes of a step, and metrics."""
        return play(self.rollouts, params, self.config, self.name, step, turns=self.config.turns)

    def more_rows(self, state: TrainState, step: int, episodes: Sequence[Episode]) -> MoreRows:
        """What else is learned from the episodes."""
        del state, step, episodes
        return MoreRows()


def turn_advantages(
    rewards: np.ndarray, took_place: np.ndarray, config: EpisodeConfig
) -> np.ndarray:
    """Turn returns R_h = Σ_{k ≥ h} γ^(k−h) r_k, compared in the group turn by turn: [P · G, H]."""
    returns = np.asarray(turn_returns(rewards, took_place, gamma=config.gamma))
    return group_advantages(returns, took_place, config.advantage, config.group_size)


def policy_rows(
    episodes: Sequence[Episode], advantages: np.ndarray, rows: Sequence[TokenSequence]
) -> list[TokenSequence]:
    """The rows of the episodes, with the advantage of each turn on its tokens."""
    found = []
    for episode, row, values in zip(episodes, rows, advantages, strict=True):
        of_tokens = np.zeros(len(row), np.float32)
        for where, value in zip(episode.completions(), values, strict=False):
            of_tokens[where] = value
        found.append(row.with_fields({ADVANTAGES: of_tokens}))
    return found
