"""Judges: text feedback on completions, and the phrases that it is about."""

from t2g_jax.judges.batches import BatchJudge
from t2g_jax.tasks.base import Critique, CritiqueLevel, Judge, JudgeError

__all__ = ["BatchJudge", "Critique", "CritiqueLevel", "Judge", "JudgeError"]
