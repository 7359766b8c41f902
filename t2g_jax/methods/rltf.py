"""RLTF: learning from text feedback what to say without it.

"Expanding the Capabilities of Reinforcement Learning via Text Feedback", Song et al., arXiv
2602.02482. Two additions to multi-turn GRPO: RLTF-SD distills the repaired answer into the first
turn; RLTF-FM learns to predict the feedback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from t2g_jax.advantages import first_turn, group_centered
from t2g_jax.config import RLTFFMConfig, RLTFSDConfig
from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.feedback.reward_model import critique_request
from t2g_jax.methods.grpo_multiturn import GRPOMultiTurn, MoreRows
from t2g_jax.models.heads import Params
from t2g_jax.rollouts.attempts import completion_row, tokens_generated
from t2g_jax.rollouts.episodes import Episode, criticized, turn_rewards
from t2g_jax.rollouts.turns import Turn
from t2g_jax.tasks.base import Critique, JudgeError
from t2g_jax.training.forward import Need
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.state import TrainState
from t2g_jax.training.terms import (
    ADVANTAGES,
    DISTILL_WEIGHT,
    NLL,
    NLL_WEIGHT,
    OLD_LOGPROBS,
    TEACHER_LOGPROBS,
    SelfDistillation,
    Term,
)


class RLTFSelfDistillation(GRPOMultiTurn):
    """RLTF-SD: multi-turn GRPO, and the repaired answer distilled into the first turn."""

    name = "rltf-sd"
    config: RLTFSDConfig

    def terms(self) -> tuple[Term, ...]:
        return (*super().terms(), self.distillation)

    @property
    def distillation(self) -> SelfDistillation:
        """The term that it adds."""
        return SelfDistillation(self.config)

    @property
    def scores(self) -> Mapping[str, Need]:
        """Also of the repaired answers: as answers to their own prompts, where a correction needs
        both sides of its ratio from the trainer, and to the first prompts, where the floor looks
        at them in more than one update."""
        corrected = self.config.correction != "none"
        return {
            **super().scores,
            **({"score (second turns)": Need.LOGPROBS} if corrected else {}),
            **({"score (distilled)": Need.LOGPROBS} if self.distillation.reads_old else {}),
        }

    def more_rows(self, state: TrainState, step: int, episodes: Sequence[Episode]) -> MoreRows:
        config = self.config
        coefficient = config.distill_coefficient
        if config.distill_schedule == "linear":
            coefficient *= measure_progress(config, state, step, episodes)
        gains = distillation_gains(episodes, config, coefficient)
        revised = {i: episodes[i] for i in gains}
        teachers = None
        if config.correction != "none":
            teachers = self.teacher_logprobs(state.params, [e.turns[-1] for e in revised.values()])
        rows = distilled_rows(list(revised.values()), list(gains.values()), teachers)
        if self.distillation.reads_old:
            before = self.logprobs(state.params, rows)
            rows = [
                row.with_fields({OLD_LOGPROBS: old}) for row, old in zip(rows, before, strict=True)
            ]
        metrics = {"distilled": len(rows), "distill_coefficient": coefficient}
        return MoreRows(rows, metrics, gains)

    def teacher_logprobs(self, params: Params, revised: Sequence[Turn]) -> list[np.ndarray]:
        """log π(y_last | x_last) of the trainer, [n] for the tokens of each completion.

        Both sides of a ratio come from the trainer: in bfloat16 the sampler's product over a
        sequence would be 1 to 5 % off after no more than ten tokens.
        """
        truncated = self.rollouts.sampling.truncates
        given = [completion_row(turn, {}, truncated=truncated) for turn in revised]
        found = self.logprobs(params, given)
        return [x[len(turn.prompt) :] for x, turn in zip(found, revised, strict=True)]

    def logprobs(self, params: Params, rows: Sequence[TokenSequence]) -> list[np.ndarray]:
        """log π of the tokens of rows under the distribution that they were sampled from."""
        at_once = self.config.rows_at_once
        found = self.score_rows(params, rows, Need.LOGPROBS, rows_at_once=at_once)
        return [about["logprobs"] for about in found]


def measure_progress(
    config: RLTFSDConfig, state: TrainState, step: int, episodes: Sequence[Episode]
) -> float:
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


def distillation_gains(
    episodes: Sequence[Episode], config: RLTFSDConfig, coefficient: float
) -> dict[int, float]:
    """λ (r_last − b) of the episodes with a second turn, by number; of P groups of G side by side.

    b is the mean of all r₀ of the group (`first_turn`), or of the rewards that the group had in the
    same turn (`second_turn`; with H = 2 that is the second).
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
    return {
        i: float(coefficient * gain)
        for i, (episode, gain) in enumerate(zip(episodes, np.ravel(gains), strict=True))
        if episode.revised
    }


def distilled_rows(
    episodes: Sequence[Episode],
    gains: Sequence[float],
    teacher_logprobs: Sequence[np.ndarray] | None = None,
) -> list[TokenSequence]:
    """Rows (x₀, y_last) of episodes that were revised, with their gains as advantages.

    Args:
      teacher_logprobs: log π(y_last | x_last), for each [n]; None: nobody reads them.
    """
    rows = []
    for i, (episode, gain) in enumerate(zip(episodes, gains, strict=True)):
        about: dict[Any, Any] = {DISTILL_WEIGHT: 1.0, ADVANTAGES: gain}
        if teacher_logprobs is not None:
            about[TEACHER_LOGPROBS] = teacher_logprobs[i]
        rows.append(
            TokenSequence.from_parts(
                (episode.turns[0].prompt, {}), (episode.turns[-1].tokens, about)
            )
        )
    return rows


class RLTFFeedbackModeling(GRPOMultiTurn):
    """RLTF-FM: multi-turn GRPO, and what the judge said of each attempt predicted."""

    name = "rltf-fm"
    config: RLTFFMConfig

    def terms(self) -> tuple[Term, ...]:
        return (*super().terms(), NLL(self.config.feedback_coefficient))

    def play(self, params: Params, step: int) -> tuple[list[Episode], dict[str, float]]:
        """Also what the judge says of right attempts, if that is to be learned."""
        episodes, metrics = super().play(params, step)
        if self.config.critique_correct:
            # After a last attempt nobody is asked: no turn would come of it.
            right = [i for i, e in enumerate(episodes) if e.ended_early(self.config.turns)]
            said = criticized(self.rollouts, [episodes[i] for i in right])
            for i, feedback in zip(right, said, strict=True):
                episodes[i] = episodes[i].told(feedback)
                metrics["judge_failures"] += isinstance(feedback, JudgeError)
        return episodes, metrics

    def more_rows(self, state: TrainState, step: int, episodes: Sequence[Episode]) -> MoreRows:
        """Rows (f_FM(x_h, y_h), c_h) of the attempts that the judge criticized."""
        del state, step
        prompts = self.rollouts.prompts
        rows = [
            feedback_row(self.rollouts.tokenizer, turn, critique)
            for episode in episodes
            for turn, critique in zip(episode.turns, episode.critiques, strict=False)
            if isinstance(critique, Critique)
        ]
        rows = [row for row in rows if prompts.has_room(row.tokens, 0)]
        return MoreRows(rows, {"critiques_learned": len(rows)})


def feedback_row(tokenizer: ChatTokenizer, turn: Turn, feedback: Critique) -> TokenSequence:
    """x, y, the request for a critique, and the critique, whose tokens are learned."""
    critique = tokenizer.answer(feedback.text)
    asked = [*turn.prompt, *turn.tokens, *critique_request(tokenizer, turn.tokens)]
    return TokenSequence.from_parts((asked, {}), (critique, {NLL_WEIGHT: 1.0}))
