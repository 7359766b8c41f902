"""RLTF: learn to say at once what feedback led to.

"Expanding the Capabilities of Reinforcement Learning via Text Feedback", Song et al.,
arXiv 2602.02482. A wrong attempt is criticised and tried again; a right one ends the episode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2g_jax.advantages import first_turn, group_centred, turn_returns
from t2g_jax.config import RLTFSDConfig
from t2g_jax.judges.base import JudgeError
from t2g_jax.methods.base import (
    attempt_metrics,
    first_attempts,
    logprobs_of,
    policy_learning,
    reference_logprobs,
    sampled,
    step_key,
    tokens_generated,
)
from t2g_jax.models.heads import Params
from t2g_jax.phases.context import Context
from t2g_jax.phases.rollout import Turn, attempt
from t2g_jax.phases.training import Collected
from t2g_jax.training.batch import Row, row
from t2g_jax.training.state import TrainState


@dataclasses.dataclass
class Episode:
    """The turns of one trajectory; each prompt begins with the tokens of the turn before."""

    turns: list[Turn]

    def row(self, advantages: Sequence[float] | np.ndarray, *, truncates: bool) -> Row:
        """All turns as one sequence (x₀, y₀, feedback, y₁, …), learning the completions."""
        parts: list[Any] = []
        done = 0
        for turn, advantage in zip(self.turns, advantages, strict=True):
            fields = {"policy_weight": 1.0, "advantages": advantage}
            about = sampled(turn.completion, truncates=truncates)
            parts += [(turn.prompt[done:], {}), (turn.tokens, fields | about)]
            done = len(turn.prompt) + len(turn.tokens)
        return row(*parts)

    def distilled_row(self, advantage: float) -> Row:
        """(x₀, y_last): the last completion as an answer to the first prompt."""
        last = self.turns[-1]
        fields: dict[str, Any] = {
            "distill_weight": 1.0,
            "advantages": advantage,
            "teacher_logprobs": last.completion.logprobs,
        }
        return row((self.turns[0].prompt, {}), (last.tokens, fields))


def assemble(
    episodes: Sequence[Episode], settings: RLTFSDConfig, *, truncates: bool = False
) -> tuple[list[Row], list[Row]]:
    """What is learned from P groups of G episodes, those of a prompt side by side.

    Policy gradient: turn returns R_h = Σ_{k ≥ h} γ^(k−h) r_k, centred in the group turn by turn.
    Self-distillation of y_last, where there was a second turn: A = λ (r_last − b), b the mean of
    all r₀ of the group (`first_turn`) or of its r_last (`second_turn`).

    Returns:
      A row for each episode, and the rows to distil, which still lack `old_logprobs`.
    """
    shape = (len(episodes) // settings.group_size, settings.group_size, settings.turns)
    rewards, took_place = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for index, episode in enumerate(episodes):
        where = divmod(index, settings.group_size)
        for h, turn in enumerate(episode.turns):
            rewards[*where, h], took_place[*where, h] = turn.score.reward, 1.0
    returns = turn_returns(rewards, took_place, gamma=settings.gamma)
    advantages = np.asarray(group_centred(returns, took_place)).reshape(-1, settings.turns)
    rows = [
        episode.row(advantages[i, : len(episode.turns)], truncates=truncates)
        for i, episode in enumerate(episodes)
    ]

    final = np.array([episode.turns[-1].score.reward for episode in episodes], np.float32)
    final, retried = final.reshape(shape[:2]), took_place[..., 1]
    if settings.baseline == "first_turn":
        gains = first_turn(final, rewards[..., 0], retried)
    else:
        gains = group_centred(final, retried)
    distilled = [
        episode.distilled_row(settings.distill_coefficient * gain)
        for episode, gain in zip(episodes, np.ravel(gains), strict=True)
        if len(episode.turns) > 1
    ]
    return rows, distilled


class RLTFSelfDistillation:
    """RLTF-SD: multi-turn GRPO, and the repaired answer distilled into the first turn."""

    def __init__(self, context: Context):
        self.context = context
        self.config = config = context.config.rltf_sd
        self.params = self.reference = context.params()
        self.learning = policy_learning(
            context,
            config,
            fields=("distill_weight", "teacher_logprobs"),
            correction=config.correction,
            logprob_floor=config.logprob_floor,
        )

    def collect(self, state: TrainState, step: int) -> Collected:
        context = self.context
        episodes, metrics = self.play(state.params, step)
        firsts = [episode.turns[0] for episode in episodes]
        _, metrics["kl"] = reference_logprobs(context, self.reference, firsts)
        rows, distilled = assemble(episodes, self.config, truncates=context.sampling.truncates)
        if distilled:
            # log π(y_last|x₀) before the update: what the floor looks at.
            before = logprobs_of(context, state.params, distilled)
            for item, logprobs in zip(distilled, before, strict=True):
                item.fields["old_logprobs"] = logprobs
        return Collected([*rows, *distilled], metrics)

    def play(self, params: Params, step: int) -> tuple[list[Episode], dict[str, float]]:
        """P × G episodes: attempts until one is right, turns run out, or the next cannot be had.

        That is where the judge fails, or the context has no room for another attempt.
        """
        context, config = self.context, self.config
        turns = first_attempts(context, params, config, "rltf-sd", step)
        metrics = attempt_metrics(turns) | {"judge_failures": 0, "no_room": 0}
        episodes = open_ended = [Episode([turn]) for turn in turns]
        for h in range(1, config.turns):
            again: list[tuple[Episode, list[int]]] = []
            for episode in open_ended:
                last = episode.turns[-1]
                if last.score.correct:
                    continue
                feedback = context.critique(last.example, last.text)
                if isinstance(feedback, JudgeError):
                    metrics["judge_failures"] += 1
                    continue
                prompt = last.after_feedback(context, feedback.text)
                if context.has_room(prompt):
                    again.append((episode, prompt))
                else:
                    metrics["no_room"] += 1
            if not again:
                break
            retries = attempt(
                context,
                params,
                [episode.turns[0].example for episode, _ in again],
                [prompt for _, prompt in again],
                step_key(context, "rltf-sd", step, h),
                batch_size=len(episodes),
            )
            for (episode, _), turn in zip(again, retries, strict=True):
                episode.turns.append(turn)
            open_ended = [episode for episode, _ in again]
            solved = [turn.score.correct for turn in retries]
            metrics[f"accuracy_turn_{h + 1}"] = float(np.mean(solved))
        metrics["tokens_generated"] = sum(tokens_generated(e.turns) for e in episodes)
        return episodes, metrics
