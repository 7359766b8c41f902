"""Completions kept for the report, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t2g_jax.judges.base import JudgeError
from t2g_jax.phases.context import Context
from t2g_jax.phases.rollout import Turn, critique
from t2g_jax.phases.span_rewards import judge_labels
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
    feedback = critique(context, turn)
    true = judge_labels(context, turn)
    tokens = turn.completion.tokens.tolist()
    offsets = context.tokenizer.offsets(tokens)

    def at(values: np.ndarray | None, i: int) -> float | None:
        return None if values is None else float(values[i])

    cells = [
        TokenCell(
            turn.text[start:end] or context.tokenizer.decode([tokens[i]], skip_special=False),
            at(predicted, i),
            at(true, i),
            at(advantages, i),
        )
        for i, (start, end) in enumerate(offsets)
    ]
    return Sample(
        title=title,
        prompt=turn.example.prompt,
        critique=f"(no critique: {feedback.reason})"
        if isinstance(feedback, JudgeError)
        else feedback.text,
        predicted_critique=predicted_critique,
        reward=turn.score.reward,
        tokens=tuple(cells),
    )


def write_samples(folder: Path, step: int, samples: Sequence[Sample]) -> None:
    """Keeps the samples of a step; writing them again replaces them."""
    kept = folder / "samples"
    kept.mkdir(exist_ok=True)
    write_text(kept / f"{step:08d}.json", Report(title="samples", samples=tuple(samples)).to_json())


def read_samples(folder: Path) -> list[Sample]:
    """All samples of a phase, earliest step first."""
    files = sorted((folder / "samples").glob("*.json"))
    return [
        sample
        for file in files
        for sample in Report.from_json(file.read_bytes(), source=str(file)).samples
    ]
