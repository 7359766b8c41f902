"""Trajectories and completions as the report shows them, token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from t2g_jax.config import RolloutConfig
from t2g_jax.feedback.judgment import Judgment, aligned, judge, token_labels
from t2g_jax.methods.base import Method, Trajectory
from t2g_jax.report.contents import Retry, Sample, TokenCell
from t2g_jax.rollouts.turns import Turn
from t2g_jax.run.context import Context
from t2g_jax.tasks.base import Critique, JudgeError, prompt_text

SAMPLES = 6
"""Completions shown in the report of a step whose completions are shown."""


def chosen(config: RolloutConfig, step: int, count: int) -> range:
    """Which of a step's completions (or episodes) to keep: the first of each of six groups.

    Args:
      step: from 0; most keep none, see `kept_steps`.
      count: completions of the step, those of a prompt side by side.
    """
    kept = step in kept_steps(config, step + 1)
    return range(0, count, config.group_size)[: SAMPLES if kept else 0]


def samples_of(
    context: Context, method: Method, step: int, trajectories: Sequence[Trajectory]
) -> list[Sample]:
    """Trajectories of a method as the report shows them, with what its reward model says of them.

    Where a method marks spans the judge is asked, too, to be compared with it.
    """
    return [_sample(context, method, step, trajectory) for trajectory in trajectories]


def _sample(context: Context, method: Method, step: int, trajectory: Trajectory) -> Sample:
    episode, advantages = trajectory.episode, trajectory.advantages
    if trajectory.span_rewards is None:
        return episode_sample(
            context,
            episode.turns,
            episode.critiques,
            method=method.name,
            step=step,
            distillation=trajectory.distillation,
            advantages_per_turn=advantages,
        )
    (turn,) = episode.turns
    critique = None
    if method.reward_model is not None:
        (tokens,) = method.reward_model.critiques([(turn.prompt, turn.completion.tokens)])
        critique = None if tokens is None else method.reward_model.tokenizer.decode(tokens)
    return sample_of(
        context,
        turn,
        method=method.name,
        step=step,
        predicted=trajectory.span_rewards,
        advantages=None if advantages is None else np.asarray(advantages[0]),
        predicted_critique=critique,
    )


def kept_steps(config: RolloutConfig, steps: int) -> Collection[int]:
    """The steps, of so many, that keep completions: the first, the middle and the last.

    With a token budget the last step is not known: whenever the test accuracy is looked at.
    """
    if config.token_budget is not None:
        return range(0, steps, config.eval_every or steps)
    return {step for step in (0, config.steps // 2, config.steps - 1) if step < steps}


def sample_of(
    context: Context,
    turn: Turn,
    *,
    method: str = "",
    step: int = 0,
    predicted: np.ndarray | None = None,
    advantages: np.ndarray | None = None,
    predicted_critique: str | None = None,
) -> Sample:
    """A completion with the judge's labels and what a reward model and a method made of it.

    Args:
      method, step: who sampled it and when, from 0; nobody who is known if `method` is empty.
      predicted, advantages: [n], one for each completion token.
    """
    critique, true = _said(judge(context.judges, context.tokenizer, turn), len(turn.tokens))
    return Sample(
        title=f"{method}, step {step + 1}" if method else "",
        prompt=prompt_text(turn.example.prompt),
        critique=critique,
        predicted_critique=predicted_critique,
        reward=turn.score.reward,
        tokens=token_cells(
            context, turn.tokens, predicted=predicted, true=true, advantages=advantages
        ),
        correct=turn.score.correct,
        method=method,
        step=step + 1 if method else None,
    )


def episode_sample(
    context: Context,
    turns: Sequence[Turn],
    critiques: Sequence[Critique | JudgeError | None] = (),
    *,
    method: str,
    step: int,
    advantages_per_turn: Sequence[float | np.ndarray] | None = None,
    distillation: float | None = None,
) -> Sample:
    """A conversation y₀, critique, y₁, …, or a single attempt; the judge is not asked.

    Args:
      turns: at least one.
      critiques: of each turn; None, or beyond the end: nobody was asked.
      method, step: who sampled it and when, from 0.
      advantages_per_turn: for each turn, one number or one for each token [n].
      distillation: of the last turn into the first, see `Retry`.

    Raises:
      ValueError: more critiques than turns, or not one advantage for each turn.
    """
    missing = len(turns) - len(critiques)
    if not turns or missing < 0:
        raise ValueError(f"{len(critiques)} critiques of {len(turns)} turns; give at most one each")
    attempts = []
    for turn, critique, advantage in zip(
        turns,
        [*critiques, *[None] * missing],
        [None] * len(turns) if advantages_per_turn is None else advantages_per_turn,
        strict=True,
    ):
        n = len(turn.tokens)
        marked = (
            aligned(context.tokenizer, turn, critique)
            if isinstance(critique, Critique)
            else critique
        )
        text, true = _said(marked, n)
        values = None if advantage is None else np.broadcast_to(advantage, (n,))
        attempts.append(
            Retry(
                tokens=token_cells(context, turn.tokens, true=true, advantages=values),
                reward=turn.score.reward,
                critique=text,
                correct=turn.score.correct,
            )
        )
    attempts[-1] = dataclasses.replace(attempts[-1], distillation=distillation)
    first, *retries = attempts
    return Sample(
        title=f"{method}, step {step + 1}",
        prompt=prompt_text(turns[0].example.prompt),
        critique=first.critique,
        predicted_critique=None,
        reward=first.reward,
        tokens=first.tokens,
        correct=first.correct,
        method=method,
        step=step + 1,
        retries=tuple(retries),
    )


def token_cells(
    context: Context,
    tokens: Sequence[int],
    *,
    predicted: np.ndarray | None = None,
    true: np.ndarray | None = None,
    advantages: np.ndarray | None = None,
) -> tuple[TokenCell, ...]:
    """The tokens of a completion as they are shown, each with its values; special ones by name."""
    text = context.tokenizer.decode(tokens)

    def at(values: np.ndarray | None, i: int) -> float | None:
        return None if values is None else float(values[i])

    return tuple(
        TokenCell(
            text[start:end] or context.tokenizer.decode([tokens[i]], skip_special=False),
            at(predicted, i),
            at(true, i),
            at(advantages, i),
        )
        for i, (start, end) in enumerate(context.tokenizer.offsets(tokens))
    )


def _said(judgment: Judgment | JudgeError | None, tokens: int) -> tuple[str, np.ndarray | None]:
    """A critique in words and the labels [n] it gives, None where it gives none."""
    if judgment is None:
        return "", None
    if isinstance(judgment, JudgeError):
        return f"(no critique: {judgment.reason})", None
    return judgment.critique.text, token_labels(judgment.spans, tokens)
