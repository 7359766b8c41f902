"""Completions kept for the report, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t2g_jax.judges.base import JudgeError
from t2g_jax.phases.context import Context
from t2g_jax.phases.judgement import judge, token_labels
from t2g_jax.phases.rollout import Turn
from t2g_jax.phases.workspace import write_text
from t2g_jax.report.contents import Report, Sample, TokenCell


def sample_of(
    context: Context,
    turn: Turn,
    *,
    title: str,
    predicted: np.ndarray | None = None,
    advantages: np.ndarray | None = None,
    predicted_critique: str | None = None,
) -> Sample:
    """A completion with the judge's labels and what a reward model and a method made of it.

    Args:
      predicted, advantages: [n], one for each completion token.
    """
    judgement = judge(context, turn)
    if isinstance(judgement, JudgeError):
        critique, true = f"(no critique: {judgement.reason})", None
    else:
        critique, true = judgement.critique.text, token_labels(judgement.spans, len(turn.tokens))
    return Sample(
        title=title,
        prompt=turn.example.prompt,
        critique=critique,
        predicted_critique=predicted_critique,
        reward=turn.score.reward,
        tokens=token_cells(
            context, turn.tokens, predicted=predicted, true=true, advantages=advantages
        ),
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


def write_samples(folder: Path, step: int, samples: Sequence[Sample]) -> None:
    """Keeps the samples of a step; writing them again replaces them."""
    kept = Report(title="samples", samples=tuple(samples))
    write_text(folder / "samples" / f"{step:08d}.json", kept.to_json())


def read_samples(folder: Path) -> list[Sample]:
    """All samples of a phase, earliest step first."""
    files = sorted((folder / "samples").glob("*.json"))
    return [
        sample
        for file in files
        for sample in Report.from_json(file.read_bytes(), source=str(file)).samples
    ]
