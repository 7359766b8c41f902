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
from jax.typing import ArrayLike

from t2g_jax.advantages import first_turn, group_centered
from t2g_jax.config import EpisodeConfig, RLTFFMConfig, RLTFSDConfig
from t2g_jax.feedback.reward_model import critique_request
from t2g_jax.methods.base import (
    completion_row,
    policy_learning,
    scored,
    scored_before,
    tokens_generated,
)
from t2g_jax.methods.reference import Reference
from t2g_jax.rollouts.episodes import (
    Episode,
    criticized,
    episode_samples,
    play,
    policy_rows,
    turn_advantages,
    turn_rewards,
)
from t2g_jax.rollouts.turns import Turn
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import Collected
from t2g_jax.tasks.base import Critique, JudgeError
from t2g_jax.training.batch import Row, row
from t2g_jax.training.state import TrainState


class GRPOMultiTurn:
    """Multi-turn GRPO: every turn's return, compared with the group's."""

    name = "grpo-multiturn"

    def __init__(self, context: Context, **learning: Any):
        self.context = context
        self.config = config = self.section(context)
        warm_start = context.weights.load()
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
        before = scored_before(context, config, state, rows)
        charge = self.reference.charge(state, rows, before)
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
            coefficient *= grown(config, state, step, episodes)
        rows = distilled_rows(episodes, config, coefficient)
        if rows:
            # log π(y_last|x₀) before the update: what the floor looks at.
            before = scored(self.context, state.params, rows, config.rows_at_once)
            for item, about in zip(rows, before, strict=True):
                item.fields["old_logprobs"] = about["logprobs"]
            if config.correction != "none":
                self.score_teachers(state, rows, [e.turns[-1] for e in episodes if e.revised])
        return rows, {"distilled": len(rows), "distill_coefficient": coefficient}

    def score_teachers(
        self, state: TrainState, rows: Sequence[Row], revised: Sequence[Turn]
    ) -> None:
        """Makes the "teacher_logprobs" of distilled rows, the sampler's, those of the trainer.

        Both sides of a ratio come from it, see `scored_before`: in bfloat16 the product over a
        sequence would be 1 to 5 % off after no more than ten tokens.
        """
        given = [completion_row(self.context, turn) for turn in revised]
        truncated = self.context.sampling.truncates
        at_once = self.config.rows_at_once
        found = scored(self.context, state.params, given, at_once, truncated=truncated)
        for item, turn, about in zip(rows, revised, found, strict=True):
            learned = item.fields["distill_weight"] != 0
            item.fields["teacher_logprobs"][learned] = about["logprobs"][len(turn.prompt) :]


def grown(config: RLTFSDConfig, state: TrainState, step: int, episodes: Sequence[Episode]) -> float:
    """How far `distill_schedule: linear` has come: from 0 in the first round to 1 in the last.

    i / (N − 1) in round i of N; with a budget of b tokens, of which t were generated before this
    round and n in it, t / (b − n), which is the same if rounds are equally long.
    """
    if config.token_budget is None:
        return progress(step, config.steps)
    before = float(state.carry["progress"]) * config.token_budget
    rest = config.token_budget - sum(tokens_generated(e.turns) for e in episodes)
    return min(before / rest, 1.0) if rest > 0 else 1.0


def progress(step: int, steps: int) -> float:
    """i / (N − 1) of step i: 0 at the first of N steps, 1 at the last; 1 if there is but one."""
    return step / (steps - 1) if steps > 1 else 1.0


def distilled_rows(
    episodes: Sequence[Episode], config: RLTFSDConfig, coefficient: float
) -> list[Row]:
    """Rows (x₀, y_last) of the episodes with a second turn, of P groups of G side by side.

    The advantage is λ (r_last − b), b the mean of all r₀ of the group (`first_turn`), or of the
    rewards that the group had in the same turn (`second_turn`; with H = 2 that is the second).
    "old_logprobs" are still to be added.
    """
    turns = max(len(episode.turns) for episode in episodes)
    rewards, took_place = (
        x.reshape(-1, config.group_size, turns) for x in turn_rewards(episodes, turns)
    )
    last = took_place.sum(-1).astype(int) - 1

    def of_last(values: ArrayLike) -> np.ndarray:
        return np.take_along_axis(np.asarray(values), last[..., None], axis=-1)[..., 0]

    if config.baseline == "first_turn":
        gains = np.asarray(first_turn(of_last(rewards), rewards[..., 0], last > 0))
    else:
        gains = of_last(group_centered(rewards, took_place))
    rows = []
    for episode, gain in zip(episodes, np.ravel(gains), strict=True):
        if episode.revised:
            retry = episode.turns[-1]
            episode.distillation = float(coefficient * gain)
            about: dict[str, Any] = {
                "distill_weight": 1.0,
                "advantages": coefficient * gain,
                "teacher_logprobs": retry.completion.logprobs,
            }
            rows.append(row((episode.turns[0].prompt, {}), (retry.tokens, about)))
    return rows


class RLTFFeedbackModeling(GRPOMultiTurn):
    """RLTF-FM: multi-turn GRPO, and what the judge said of each attempt predicted."""

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
        """Rows (f_FM(x_h, y_h), c_h) of the attempts that the judge criticized."""
        del state, step
        context = self.context
        if self.config.critique_correct:
            # After a last attempt nobody is asked: no turn would come of it.
            right = [episode for episode in episodes if episode.ended_early(self.config.turns)]
            for episode, feedback in zip(right, criticized(context, right), strict=True):
                episode.critiques.append(feedback)
        rows = [
            feedback_row(context, turn, critique)
            for episode in episodes
            for turn, critique in zip(episode.turns, episode.critiques, strict=False)
            if isinstance(critique, Critique)
        ]
        rows = [item for item in rows if context.prompts.has_room(item.tokens, 0)]
        said = [critique for episode in episodes for critique in episode.critiques]
        failures = sum(isinstance(critique, JudgeError) for critique in said)
        return rows, {"critiques_learned": len(rows), "judge_failures": failures}


def feedback_row(context: Context, turn: Turn, feedback: Critique) -> Row:
    """x, y, the request for a critique, and the critique, whose tokens are learned."""
    tokenizer = context.tokenizer
    critique = tokenizer.answer(feedback.text)
    asked = [*turn.prompt, *turn.tokens, *critique_request(context, turn.tokens)]
    return row((asked, {}), (critique, {"nll_weight": 1.0}))
