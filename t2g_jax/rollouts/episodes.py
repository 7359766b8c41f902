"""Episodes: a wrong attempt is criticized and tried again, a right one ends the conversation.

The protocol of RLTF, "Expanding the Capabilities of Reinforcement Learning via Text Feedback",
Song et al., arXiv 2602.02482.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t2g_jax.advantages import turn_returns
from t2g_jax.config import EpisodeConfig, RolloutConfig
from t2g_jax.methods.base import (
    attempt_metrics,
    compared,
    first_attempts,
    sampled,
    step_key,
    tokens_generated,
)
from t2g_jax.models.heads import Params
from t2g_jax.phases.samples import chosen, episode_sample
from t2g_jax.report.contents import Sample
from t2g_jax.rollouts.turns import Turn, attempt
from t2g_jax.run.context import Context
from t2g_jax.tasks.base import Critique, JudgeError
from t2g_jax.training.batch import Row, row


@dataclasses.dataclass
class Episode:
    """The turns of one trajectory; each prompt begins with the tokens of the turn before.

    critiques: of each turn that was criticized, or why there is none; the last turn may have none.
    distillation: with what the last turn is distilled into the first, None if it is not.
    """

    turns: list[Turn]
    critiques: list[Critique | JudgeError] = dataclasses.field(default_factory=list)
    distillation: float | None = None

    def row(self, *, truncates: bool = False) -> Row:
        """All turns as one sequence (x₀, y₀, feedback, y₁, …), learning the completions."""
        parts: list[Any] = []
        done = 0
        for turn in self.turns:
            about = {"policy_weight": 1.0} | sampled(turn.completion, truncates=truncates)
            parts += [(turn.prompt[done:], {}), (turn.tokens, about)]
            done = len(turn.prompt) + len(turn.tokens)
        return row(*parts)

    @property
    def revised(self) -> bool:
        """Whether there was an attempt after feedback."""
        return len(self.turns) > 1

    def ended_early(self, turns: int) -> bool:
        """Whether an attempt was right before `turns` ran out, so that nobody criticized it."""
        return len(self.turns) < turns and self.turns[-1].score.correct

    def completions(self) -> list[slice]:
        """Where the completion of each turn stands in the row."""
        return [slice(n := len(turn.prompt), n + len(turn.tokens)) for turn in self.turns]


def play(
    context: Context, params: Params, config: RolloutConfig, name: str, step: int, *, turns: int
) -> tuple[list[Episode], dict[str, float]]:
    """P × G episodes: attempts until one is right, turns run out, or the next cannot be had.

    That is where the judge fails, the context has no room for another attempt, or it is broken.
    """
    firsts = first_attempts(context, params, config, name, step)
    metrics = attempt_metrics(firsts, config.group_size) | {"judge_failures": 0, "no_room": 0}
    episodes = open_ended = [Episode([turn]) for turn in firsts]
    for h in range(1, turns):
        wrong = [episode for episode in open_ended if not episode.turns[-1].score.correct]
        again: list[tuple[Episode, list[int]]] = []
        for episode, feedback in zip(wrong, criticized(context, wrong), strict=True):
            episode.critiques.append(feedback)
            if isinstance(feedback, JudgeError):
                metrics["judge_failures"] += 1
                continue
            prompt = episode.turns[-1].after_feedback(context, feedback.text)
            if context.prompts.has_room(prompt):
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
            step_key(context, name, step, h),
            batch_size=config.rows_at_once or len(episodes),
        )
        open_ended, scores = [], []
        for (episode, _), turn in zip(again, retries, strict=True):
            if not turn.completion.broken:
                episode.turns.append(turn)
                open_ended.append(episode)
                scores.append(turn.score.correct)
        if scores:
            metrics[f"accuracy_turn_{h + 1}"] = float(np.mean(scores))
    metrics["tokens_generated"] = sum(tokens_generated(e.turns) for e in episodes)
    return episodes, metrics


def criticized(context: Context, episodes: Sequence[Episode]) -> Iterator[Critique | JudgeError]:
    """The judge's critique of the last turn of each episode, or why there is none."""
    lasts = [episode.turns[-1] for episode in episodes]
    return context.judges.critiques([turn.example for turn in lasts], [turn.text for turn in lasts])


def turn_rewards(episodes: Sequence[Episode], turns: int) -> tuple[np.ndarray, np.ndarray]:
    """The reward of each turn, and 1 where it took place: arrays [P · G, H]."""
    rewards = np.zeros((len(episodes), turns), np.float32)
    took_place = np.zeros_like(rewards)
    for i, episode in enumerate(episodes):
        for h, turn in enumerate(episode.turns):
            rewards[i, h], took_place[i, h] = turn.score.reward, 1.0
    return rewards, took_place


def turn_advantages(
    rewards: np.ndarray, took_place: np.ndarray, config: EpisodeConfig
) -> np.ndarray:
    """Turn returns R_h = Σ_{k ≥ h} γ^(k−h) r_k, compared in the group turn by turn: [P · G, H]."""
    returns = np.asarray(turn_returns(rewards, took_place, gamma=config.gamma))
    return compared(returns, took_place, config.advantage, config.group_size)


def policy_rows(
    episodes: Sequence[Episode], advantages: np.ndarray, rows: Sequence[Row]
) -> list[Row]:
    """The rows of the episodes, with the advantage of each turn on its tokens."""
    for episode, item, values in zip(episodes, rows, advantages, strict=True):
        item.fields["advantages"] = np.zeros(len(item), np.float32)
        for where, value in zip(episode.completions(), values, strict=False):
            item.fields["advantages"][where] = value
    return list(rows)


def episode_samples(
    context: Context,
    config: RolloutConfig,
    episodes: Sequence[Episode],
    *,
    method: str,
    step: int,
    advantages: np.ndarray | None = None,
) -> list[Sample]:
    """The episodes of a step that the report shows."""
    return [
        episode_sample(
            context,
            (episode := episodes[i]).turns,
            episode.critiques,
            method=method,
            step=step,
            distillation=episode.distillation,
            advantages_per_turn=(
                None if advantages is None else list(advantages[i, : len(episode.turns)])
            ),
        )
        for i in chosen(config, step, len(episodes))
    ]
