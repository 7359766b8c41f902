"""What a judge says of a completion, and which of its tokens it is said of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.judges.guard import alignment_of
from t2g_jax.rollouts.turns import Turn
from t2g_jax.run.panel import JudgePanel
from t2g_jax.spans import TokenSpan, Unaligned, to_token_spans
from t2g_jax.tasks.base import Critique, JudgeError


@dataclasses.dataclass(frozen=True)
class Judgment:
    """A critique, its quotes as spans of the completion's tokens, and those not found there."""

    critique: Critique
    spans: tuple[TokenSpan, ...]
    unaligned: tuple[Unaligned, ...]


def judge(judges: JudgePanel, tokenizer: ChatTokenizer, turn: Turn) -> Judgment | JudgeError:
    """The judge's critique of a completion with its quotes aligned, or why there is none."""
    feedback = judges.critique(turn.example, turn.text)
    return feedback if isinstance(feedback, JudgeError) else aligned(tokenizer, turn, feedback)


def aligned(tokenizer: ChatTokenizer, turn: Turn, critique: Critique) -> Judgment:
    """A critique of a completion with its quotes aligned."""
    alignment = alignment_of(turn.text, tuple(critique.quotes))
    offsets = tokenizer.offsets(turn.tokens)
    return Judgment(critique, to_token_spans(alignment.spans, offsets), alignment.unaligned)


def token_labels(spans: Iterable[TokenSpan], length: int) -> np.ndarray:
    """The reward [length] of each token; the lowest where spans overlap, 0 where none is.

    As `spans.token_rewards`, for one completion on the host: lengths differ, and compiling for each
    would take longer.
    """
    rewards = np.full(length, np.inf, np.float32)
    for span in spans:
        covered = slice(span.start, span.end)
        rewards[covered] = np.minimum(rewards[covered], span.reward)
    return np.where(np.isinf(rewards), 0, rewards).astype(np.float32)
