"""Span rewards for completions: from the reward model in one forward pass, or from the judge.

A reward-model row is x, y, request, critique and, when it is critique-conditioned, a second request
and y again. The span-reward head then labels the second copy, every token of which has seen the
critique and the whole completion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from t2g_jax.judges.base import JudgeError
from t2g_jax.models.heads import SPAN_CLASSES, Params
from t2g_jax.phases.context import Context
from t2g_jax.phases.rollout import Turn, critique
from t2g_jax.phases.training import padded
from t2g_jax.phases.workspace import REWARD_MODEL
from t2g_jax.sampling.generate import generate
from t2g_jax.spans import align, to_token_spans, token_rewards
from t2g_jax.training.batch import Row, row
from t2g_jax.training.step import span_probabilities

CRITIQUE_REQUEST = "Critique the answer."
MARK_REQUEST = "Mark the answer."


def judge_labels(context: Context, turn: Turn) -> np.ndarray | None:
    """The judge's reward for each token of a completion; None if the judge fails."""
    feedback = critique(context, turn)
    if isinstance(feedback, JudgeError):
        return None
    tokens = turn.completion.tokens.tolist()
    spans = to_token_spans(
        align(turn.text, feedback.quotes).spans, context.tokenizer.offsets(tokens)
    )
    return labels([(span.start, span.end, span.reward) for span in spans], len(tokens))


def labels(spans: Sequence[tuple[int, int, float]], length: int) -> np.ndarray:
    """Rewards [length] of tokens from (start, end, reward) spans; the lowest wins, none is 0."""
    starts, ends, rewards = (np.array(column) for column in zip(*spans)) if spans else ([0],) * 3
    return np.asarray(token_rewards(np.asarray(starts), np.asarray(ends), rewards, length))


def reward_model_row(
    context: Context,
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    critique_tokens: Sequence[int] | None = None,
    span_labels: np.ndarray | float = 0.0,
    critique_weight: float = 1.0,
) -> Row:
    """A row that teaches or asks the reward model.

    Args:
      prompt, completion: x and y as they were sampled.
      critique_tokens: the critique with its end token; None leaves all after y out.
      span_labels: −1, 0 or +1 for each token of y.
      critique_weight: weight of each critique token in the likelihood.
    """
    tokenizer = context.tokenizer
    labelled = {"span_weight": 1.0, "span_labels": span_labels}
    conditioned = context.config.reward_model.critique_conditioned
    parts: list = [(prompt, {}), (completion, {} if conditioned else labelled)]
    if critique_tokens is not None:
        parts += [
            (_request(context, completion), {}),
            (critique_tokens, {"nll_weight": critique_weight}),
        ]
        if conditioned:
            parts += [
                (tokenizer.next_turn(MARK_REQUEST, ended=True), {}),
                (completion, labelled),
            ]
    return row(*parts)


Answer = tuple[Sequence[int], Sequence[int]]
"""The tokens of a prompt and of a completion."""


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """The trained reward model, ready to label completions."""

    context: Context
    params: Params

    @classmethod
    def load(cls, context: Context) -> RewardModel:
        """Raises T2GError if the reward model has not been trained."""
        return cls(context, context.params(REWARD_MODEL, with_heads=("span_head",)))

    def rewards(self, answers: Sequence[Answer]) -> list[np.ndarray]:
        """Expected span reward p(good) − p(poor) of each completion token: arrays [n]."""
        return [p @ SPAN_CLASSES for p in self.probabilities(answers)]

    def probabilities(self, answers: Sequence[Answer]) -> list[np.ndarray]:
        """p(poor), p(neutral), p(good) of each completion token: arrays [n, 3].

        A critique-conditioned model writes its critiques first.
        """
        context = self.context
        critiques: Sequence[Sequence[int] | None] = [None] * len(answers)
        if context.config.reward_model.critique_conditioned:
            critiques = self.critiques(answers)
        rows = [
            reward_model_row(context, prompt, completion, critique_tokens=written)
            for (prompt, completion), written in zip(answers, critiques, strict=True)
        ]
        batch = padded(context, [Row(item.tokens, {}) for item in rows])
        probabilities = jax.device_get(span_probabilities(self.params, batch, model=context.model))
        return [
            probabilities[i, : len(item)][item.fields["span_weight"] > 0]
            for i, item in enumerate(rows)
        ]

    def critiques(self, answers: Sequence[Answer]) -> list[list[int]]:
        """The likeliest critiques: tokens, with the end token."""
        context = self.context
        written = generate(
            self.params,
            [[*prompt, *completion, *_request(context, completion)] for prompt, completion in answers],
            jax.random.key(0),  # nothing is drawn at temperature 0
            config=context.model,
            sampling=dataclasses.replace(context.sampling, temperature=0.0, top_k=0, top_p=1.0),
            mesh=context.mesh,
            batch_size=len(answers),
            context_length=context.config.model.context_length,
        )
        end = context.tokenizer.end_id
        return [[*c.tokens.tolist(), *([] if c.ended else [end])] for c in written]


def _request(context: Context, completion: Sequence[int]) -> list[int]:
    ended = len(completion) > 0 and int(completion[-1]) in context.tokenizer.stop_ids
    return context.tokenizer.next_turn(CRITIQUE_REQUEST, ended=ended)
