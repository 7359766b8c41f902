"""How often a judge was asked and failed, as columns of the log and in words."""

from __future__ import annotations

import collections
from collections.abc import Mapping

from t2g_jax.printing import one_line

FAILED = "judge_failed/"
"""How the columns of the log begin that count the judge's failures by reason."""

_REASONS = 20
"""Reasons that are counted apart; a judge may have a new one each time."""


def failed_column(tally: Mapping[str, int], reason: str) -> str:
    """The column of a reason; that of all others where there are too many."""
    column = f"{FAILED}{one_line(reason)}"
    many = sum(name.startswith(FAILED) for name in tally) >= _REASONS
    return column if column in tally or not many else f"{FAILED}other reasons"


def judge_columns(tally: Mapping[str, float]) -> dict[str, int]:
    """What a tally, or a line of the log, says of the judge."""
    names = ("judge_calls", "judge_cached", "judge_failures")
    return {
        name: int(count)
        for name, count in tally.items()
        if name in names or name.startswith(FAILED)
    }


def counted(reasons: Mapping[str, int]) -> str:
    """Reasons in words, the most frequent first: "7 timed out, 3 no critique"."""
    most = collections.Counter(reasons).most_common()
    return ", ".join(f"{count} {one_line(reason)}" for reason, count in most)


def failures_in_words(columns: Mapping[str, float]) -> str:
    """The judge's failures by reason, from `judge_columns`; empty if there are none."""
    failed = {
        name.removeprefix(FAILED): int(n) for name, n in columns.items() if name.startswith(FAILED)
    }
    if not failed:
        return ""
    asked = int(columns.get("judge_calls", 0)) + int(columns.get("judge_cached", 0))
    return f"{sum(failed.values())} of {asked} critiques failed: {counted(failed)}"
