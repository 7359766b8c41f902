"""Text2Grad: PPO on a reward for every token, from spans that critiques speak of.

"Text2Grad: Reinforcement Learning from Natural Language Feedback", Wang et al., arXiv 2505.22338.
Token reward rₜ = δₜ − β·KLₜ, δₜ from the reward model (or the judge); the rest is PPO.
docs/deviations.md says where this is not what the authors' code does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2g_jax.advantages import gae, whiten
from t2g_jax.config import Text2GradConfig
from t2g_jax.feedback.judgment import aligned, token_labels
from t2g_jax.feedback.reward_model import Answer, RewardModel
from t2g_jax.methods.base import Trajectory, group_advantages
from t2g_jax.methods.ppo import PPO, fields_of, table
from t2g_jax.methods.scores import Scores
from t2g_jax.rollouts.episodes import Episode
from t2g_jax.rollouts.turns import Turn
from t2g_jax.run.context import Context
from t2g_jax.tasks.base import JudgeError
from t2g_jax.training.sequences import Field, TokenSequence
from t2g_jax.training.terms import ADVANTAGES, POLICY_WEIGHT

FADE_WIDTH = 6
"""Half way through fading this many tokens after its start, as in the authors' summaries."""


class Text2Grad(PPO):
    """Span rewards in, per-token advantages out."""

    name = "text2grad"
    config: Text2GradConfig

    def __init__(self, context: Context):
        super().__init__(context)
        from_model = self.config.span_source == "reward_model"
        self.reward_model = RewardModel.load(context) if from_model else None

    def token_rewards(self, turns: Sequence[Turn]) -> tuple[list[np.ndarray], dict[str, float]]:
        """δ of each completion token, and metrics; where nobody could mark it, all is neutral."""
        marked, counted = self.marked(turns)
        rewards = [
            np.zeros(len(turn.tokens), np.float32) if given is None else given
            for turn, given in zip(turns, marked, strict=True)
        ]
        if self.config.fade_after is not None:
            rewards = [fade_rewards(given, self.config.fade_after) for given in rewards]
        metrics = {
            "span_reward": float(np.concatenate(rewards).mean()),
            "unaligned_quotes": 0,
        }
        return rewards, metrics | counted

    def marked(self, turns: Sequence[Turn]) -> tuple[list[np.ndarray | None], dict[str, float]]:
        """Span rewards of each completion, None where there are none; and what was counted."""
        if self.reward_model is not None:
            with self.rollouts.watch.stage("score"):
                answers = [_answer(turn) for turn in turns]
                rewards = self._read(self.reward_model, answers)
            return rewards, {"no_room": sum(given is None for given in rewards)}
        said = self.rollouts.judges.critiques([t.example for t in turns], [t.text for t in turns])
        marked: list[np.ndarray | None] = []
        unaligned = 0
        for turn, critique in zip(turns, said, strict=True):
            if isinstance(critique, JudgeError):
                marked.append(None)
            else:
                judgment = aligned(self.rollouts.tokenizer, turn, critique)
                marked.append(token_labels(judgment.spans, len(turn.tokens)))
                unaligned += len(judgment.unaligned)
        return marked, {"unaligned_quotes": unaligned}

    def _read(self, model: RewardModel, answers: Sequence[Answer]) -> list[np.ndarray | None]:
        """The reward model's span rewards, expected or hard."""
        at_once, threshold = self.config.rows_at_once, self.config.reward_threshold
        if self.config.reward == "hard":
            return model.hard_rewards(answers, at_once, threshold=threshold)
        return model.rewards(answers, at_once)

    def estimates(
        self, rows: Sequence[TokenSequence], rewards: Sequence[np.ndarray], before: Scores | None
    ) -> list[dict[Field, np.ndarray]]:
        if self.config.heads:
            return super().estimates(rows, rewards, before)
        return compare_to_go(rows, rewards, self.config)

    def trajectory(self, turn: Turn, earned: np.ndarray, advantages: np.ndarray) -> Trajectory:
        return Trajectory(Episode((turn,)), [advantages], span_rewards=earned)


def compare_to_go(
    rows: Sequence[TokenSequence], rewards: Sequence[np.ndarray], config: Text2GradConfig
) -> list[dict[Field, np.ndarray]]:
    """`ADVANTAGES` of each row without a value head: Gₜ − b, with Gₜ = Σ_{k ≥ t} γ^(k−t) r_k.

    The baseline b is the mean of Gₜ over the group's other completions that have a token t, or what
    whitening takes off: the mean over all tokens of the round.

    Args:
      rows: groups side by side, with `POLICY_WEIGHT`, not 0 on the tokens that were sampled.
      rewards: [n] for each row, about each token.
    """
    mask = table([row.values[POLICY_WEIGHT] for row in rows])
    to_go, _ = gae(table(rewards), np.zeros_like(mask), mask, gamma=config.gamma, gae_lambda=1.0)
    advantages = np.asarray(to_go)
    if config.baseline == "group":
        among = advantages[: len(rows)], mask[: len(rows)]
        compared = group_advantages(*among, "leave_one_out", config.group_size)
        advantages = table(list(compared))
    if config.whiten:
        advantages = np.asarray(whiten(advantages, mask))
    return fields_of(rows, {ADVANTAGES: advantages})


def fade_rewards(rewards: np.ndarray, after: int) -> np.ndarray:
    """Span rewards [n] of a completion, fading `after` tokens from the first that is not 0 on."""
    (marked,) = np.nonzero(rewards)
    if not len(marked):
        return rewards
    start = marked[0]
    factors = fade(len(rewards) - start, after)
    return np.concatenate([rewards[:start], rewards[start:] * factors])


def fade(length: int, after: int) -> np.ndarray:
    """1 / (1 + exp(clip(n − after − 6, −10, 6))) for the tokens n = 1 … length."""
    late = np.arange(1, length + 1) - after - FADE_WIDTH
    return (1 / (1 + np.exp(np.clip(late, -10, 6)))).astype(np.float32)


def _answer(turn: Turn) -> Answer:
    return turn.prompt, turn.completion.tokens
