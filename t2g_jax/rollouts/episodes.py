"""Episodes: a wrong attempt is criticized and tried again, a right one ends the conversation.

The protocol of RLTF, "Expanding the Capabilities of Reinforcement Learning via Text Feedback",
Song et al., arXiv 2602.02482.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t2g_jax.config import RolloutConfig
from t2g_jax.models.heads import Params
from t2g_jax.rollouts.attempts import (
    attempt_metrics,
    first_attempts,
    sampling_values,
    tokens_generated,
)
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.rollouts.turns import Turn, attempt
from t2g_jax.tasks.base import Critique, JudgeError
from t2g_jax.tasks.scoring import score_metrics
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.terms import POLICY_WEIGHT


@dataclasses.dataclass(frozen=True)
class Episode:
    """The turns of one trajectory; each prompt begins with the tokens of the turn before.

    critiques: of each turn that was criticized, or why there is none; the last turn may have none.
    """

    turns: tuple[Turn, ...]
    critiques: tuple[Critique | JudgeError, ...] = ()

    def followed_by(self, turn: Turn) -> Episode:
        """The same, and another attempt."""
        return dataclasses.replace(self, turns=(*self.turns, turn))

    def told(self, feedback: Critique | JudgeError) -> Episode:
        """The same, and what was said of its last attempt."""
        return dataclasses.replace(self, critiques=(*self.critiques, feedback))

    def row(self, *, truncated: bool = False) -> TokenSequence:
        """All turns as one sequence (x₀, y₀, feedback, y₁, …), learning the completions."""
        parts: list[Any] = []
        done = 0
        for turn in self.turns:
            about = sampling_values(turn.completion, truncated=truncated)
            parts += [(turn.prompt[done:], {}), (turn.tokens, {POLICY_WEIGHT: 1.0, **about})]
            done = len(turn.prompt) + len(turn.tokens)
        return TokenSequence.from_parts(*parts)

    @property
    def revised(self) -> bool:
        """Whether there was an attempt after feedback."""
        return len(self.turns) > 1

    def ended_early(self, turns: int) -> bool:
        """Whether an attempt was right before `turns` ran out, so that nobody criticized it."""
        return len(self.turns) < turns and self.turns[-1].correct

    def completions(self) -> list[slice]:
        """Where the completion of each turn stands in the row."""
        return [slice(n := len(turn.prompt), n + len(turn.tokens)) for turn in self.turns]


def play(
    rollouts: Rollouts, params: Params, config: RolloutConfig, name: str, step: int, *, turns: int
) -> tuple[list[Episode], dict[str, float]]:
    """P × G episodes: attempts until one is right, turns run out, or the next cannot be had.

    That is where the judge fails, the context has no room for another attempt, or it is broken.
    Where the task only grades, no attempt is right, and each may be improved on.
    """
    firsts = first_attempts(rollouts, params, config, name, step)
    metrics = attempt_metrics(firsts, config.group_size) | {"judge_failures": 0, "no_room": 0}
    episodes = [Episode((turn,)) for turn in firsts]
    under_way: Sequence[int] = range(len(episodes))
    for h in range(1, turns):
        wrong = [i for i in under_way if not episodes[i].turns[-1].correct]
        again: dict[int, list[int]] = {}  # prompts, by episode
        said = criticized(rollouts, [episodes[i] for i in wrong])
        for i, feedback in zip(wrong, said, strict=True):
            episodes[i] = episodes[i].told(feedback)
            if isinstance(feedback, JudgeError):
                metrics["judge_failures"] += 1
                continue
            prompt = episodes[i].turns[-1].after_feedback(rollouts.tokenizer, feedback.text)
            if rollouts.prompts.has_room(prompt):
                again[i] = prompt
            else:
                metrics["no_room"] += 1
        if not again:
            break
        retries = attempt(
            rollouts,
            params,
            [episodes[i].turns[0].example for i in again],
            list(again.values()),
            rollouts.keys.at_step(name, step, h),
            batch_size=config.rows_at_once or len(episodes),
            step=step,
            steps=config.steps,
        )
        made = {i: t for i, t in zip(again, retries, strict=True) if not t.unusable}
        for i, turn in made.items():
            episodes[i] = episodes[i].followed_by(turn)
        if made:
            found = score_metrics([turn.score for turn in made.values()])
            names = ("accuracy", "reward")
            metrics |= {f"{name}_turn_{h + 1}": found[name] for name in names if name in found}
        under_way = list(made)
    metrics["tokens_generated"] = sum(tokens_generated(e.turns) for e in episodes)
    return episodes, metrics


def criticized(rollouts: Rollouts, episodes: Sequence[Episode]) -> Iterator[Critique | JudgeError]:
    """The judge's critique of the last turn of each episode, or why there is none."""
    lasts = [episode.turns[-1] for episode in episodes]
    return rollouts.judges.critiques(
        [turn.example for turn in lasts], [turn.text for turn in lasts]
    )


def turn_rewards(episodes: Sequence[Episode], turns: int) -> tuple[np.ndarray, np.ndarray]:
    """The reward of each turn, and 1 where it took place: arrays [P · G, H]."""
    rewards = np.zeros((len(episodes), turns), np.float32)
    took_place = np.zeros_like(rewards)
    for i, episode in enumerate(episodes):
        for h, turn in enumerate(episode.turns):
            rewards[i, h], took_place[i, h] = turn.score.reward, 1.0
    return rewards, took_place
