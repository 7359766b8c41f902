"""Reports: what a run achieved, as one HTML file and on the terminal.

`contents` is the data, `html` draws the page, `terminal` draws tables and progress with rich, and
`statistics` says how sure an accuracy is.
"""

from t2g_jax.report.contents import (
    ClassScore,
    Curve,
    PhaseTime,
    Report,
    ResultRow,
    Sample,
    TokenCell,
)
from t2g_jax.report.html import render, write
from t2g_jax.report.statistics import clustered_interval, wilson_interval
from t2g_jax.report.terminal import PhaseProgress, class_score_table, result_table, token_line

__all__ = [
    "ClassScore",
    "Curve",
    "PhaseProgress",
    "PhaseTime",
    "Report",
    "ResultRow",
    "Sample",
    "TokenCell",
    "class_score_table",
    "clustered_interval",
    "render",
    "result_table",
    "token_line",
    "wilson_interval",
    "write",
]
