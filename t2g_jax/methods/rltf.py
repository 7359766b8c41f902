"""RLTF: learn from episodes what was only right after feedback.

"Expanding the Capabilities of Reinforcement Learning via Text Feedback", Song et al.,
arXiv 2602.02482. Three methods that add to one another: multi-turn GRPO, its baseline; RLTF-SD,
which distils the repaired answer into the first turn; RLTF-FM, which learns to predict the
feedback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from t2g_jax.advantages import first_turn, group_centred
from t2g_jax.config import EpisodeConfig, RLTFFMConfig, RLTFSDConfig
from t2g_jax.judges.base import Critique, JudgeError
from t2g_jax.methods.base import policy_learning, scored
from t2g_jax.methods.episodes import (
    Episode,
    criticised,
    episode_samples,
    play,
    policy_rows,
    turn_advantages,
    turn_rewards,
)
from t2g_jax.methods.reference import Reference
from t2g_jax.phases.context import Context
from t2g_jax.phases.rollout import Turn
from t2g_jax.phases.span_rewards import critique_request
from t2g_jax.phases.training import Collected
from t2g_jax.training.batch import Row, row
from t2g_jax.training.state import TrainState


class GRPOMultiTurn:
    """Multi-turn GRPO: every turn's return, compared with the group's."""

    name = "grpo-multiturn"

    def __init__(self, context: Context, **learning: Any):
        self.context = context
        self.config = config = self.section(context)
        warm_start = context.params()
        self.reference = Reference(context, config, warm_start)
        self.params = warm_start
        self.learning = policy_learning(context, config, **learning)

    def section(self, context: Context) -> EpisodeConfig:
        """The method's settings."""
        return context.config.grpo_multiturn

    def collect(self, state: TrainState, step: int) -> Collected:
        context, config = self.context, self.config
        episodes, metrics = play(context, state.params, config, self.name, step, turns=config.turns)
        rows = [episode.row(truncates=context.sampling.truncates) for episode in episodes]
        charge = self.reference.charge(state, rows)
        rewards, took_place = turn_rewards(episodes, config.turns)
        for i, (episode, cost) in enumerate(zip(episodes, charge.costs, strict=True)):
            for h, where in enumerate(episode.completions()):
                rewards[i, h] -= cost[where].sum()
        advantages = turn_advantages(rewards, took_place, config)
        rows = policy_rows(episodes, advantages, rows)
        more, about = self.more_rows(state, step, episodes)
        samples = episode_samples(
            context, config, episodes, method=self.name, step=step, advantages=advantages
        )
        return Collected([*rows, *more], metrics | charge.metrics | about, charge.carry, samples)

    def more_rows(
        self, state: TrainState, step: int, episodes: Sequence[Episode]
    ) -> tuple[list[Row], dict[str, float]]:
        """What else is learned from the episodes, and metrics of that."""
        del state, step, episodes
        return [], {}


class RLTFSelfDistillation(GRPOMultiTurn):
    """RLTF-SD: multi-turn GRPO, and the repaired answer distilled into the first turn."""

    name = "rltf-sd"
    config: RLTFSDConfig

    def __init__(self, context: Context):
        config = context.config.rltf_sd
        super().__init__(
            context,
            fields=("distill_weight", "teacher_logprobs"),
            correction=config.correction,
            logprob_floor=config.logprob_floor,
        )

    def section(self, context: Context) -> RLTFSDConfig:
        return context.config.rltf_sd

    def more_rows(
        self, state: TrainState, step: int, episodes: Sequence[Episode]
    ) -> tuple[list[Row], dict[str, float]]:
        config = self.config
        coefficient = config.distill_coefficient
        if config.distill_schedule == "linear":
            coefficient *= (step + 1) / config.steps
        rows = distilled_rows(episodes, config, coefficient)
        if rows:
            # log π(y_last|x₀) before the update: what the floor looks at.
            before = scored(self.context, state.params, rows, config.rows_at_once)
            for item, about in zip(rows, before, strict=True):
                item.fields["old_logprobs"] = about["logprobs"]
        return rows, {"distilled": len(rows), "distill_coefficient": coefficient}


def distilled_rows(
    episodes: Sequence[Episode], config: RLTFSDConfig, coefficient: float
) -> list[Row]:
    """Rows (x₀, y_last) of the episodes with a second turn, of P groups of G side by side.

    The advantage is λ (r_last − b), b the mean of all r₀ of the group (`first_turn`) or of its
    r_last (`second_turn`). "old_logprobs" are still to be added.
    """
    first, final, retried = np.array(
        [(e.turns[0].score.reward, e.turns[-1].score.reward, len(e.turns) > 1) for e in episodes],
        np.float32,
    ).T.reshape(3, -1, config.group_size)
    if config.baseline == "first_turn":
        gains = first_turn(final, first, retried)
    else:
        gains = group_centred(final, retried)
    rows = []
    for episode, gain in zip(episodes, np.ravel(gains), strict=True):
        if len(episode.turns) > 1:
            last = episode.turns[-1]
            about: dict[str, Any] = {
                "distill_weight": 1.0,
                "advantages": coefficient * gain,
                "teacher_logprobs": last.completion.logprobs,
            }
            rows.append(row((episode.turns[0].prompt, {}), (last.tokens, about)))
    return rows


class RLTFFeedbackModelling(GRPOMultiTurn):
    """RLTF-FM: multi-turn GRPO, and the judge's critique of the first attempt predicted."""

    name = "rltf-fm"
    config: RLTFFMConfig

    def __init__(self, context: Context):
        super().__init__(
            context,
            fields=("nll_weight",),
            nll_coefficient=context.config.rltf_fm.feedback_coefficient,
        )

    def section(self, context: Context) -> RLTFFMConfig:
        return context.config.rltf_fm

    def more_rows(
        self, state: TrainState, step: int, episodes: Sequence[Episode]
    ) -> tuple[list[Row], dict[str, float]]:
        """Rows (f_FM(x₀, y₀), c₀) of the first attempts that the judge criticised."""
        del state, step
        context = self.context
        if self.config.critique_correct:
            right = [episode for episode in episodes if not episode.critiques]
            for episode, feedback in zip(right, criticised(context, right), strict=True):
                episode.critiques.append(feedback)
        rows = [
            feedback_row(context, episode.turns[0], episode.critiques[0])
            for episode in episodes
            if episode.critiques and isinstance(episode.critiques[0], Critique)
        ]
        rows = [item for item in rows if context.has_room(item.tokens, 0)]
        said = [critique for episode in episodes for critique in episode.critiques]
        failures = sum(isinstance(critique, JudgeError) for critique in said)
        return rows, {"critiques_learned": len(rows), "judge_failures": failures}


def feedback_row(context: Context, turn: Turn, feedback: Critique) -> Row:
    """x, y, the request for a critique, and the critique, whose tokens are learned."""
    tokenizer = context.tokenizer
    critique = tokenizer.answer(feedback.text)
    asked = [*turn.prompt, *turn.tokens, *critique_request(context, turn.tokens)]
    return row((asked, {}), (critique, {"nll_weight": 1.0}))
