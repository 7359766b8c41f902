"""Reports: what a run achieved, as one HTML file and on the terminal.

`contents` is the data, `html` draws the page, `terminal` draws tables and progress with rich,
`statistics` says how sure an accuracy is, and `collapse` what looks wrong in a log.
"""

from t2g_jax.report.collapse import Collapse, collapses
from t2g_jax.report.contents import (
    ClassScore,
    Curve,
    PhaseTime,
    Report,
    ResultRow,
    Retry,
    Sample,
    TokenCell,
)
from t2g_jax.report.html import render, write
from t2g_jax.report.statistics import clustered_interval
from t2g_jax.report.terminal import PhaseProgress, class_score_table, result_table, token_line

__all__ = [
    "ClassScore",
    "Collapse",
    "Curve",
    "PhaseProgress",
    "PhaseTime",
    "Report",
    "ResultRow",
    "Retry",
    "Sample",
    "TokenCell",
    "class_score_table",
    "clustered_interval",
    "collapses",
    "render",
    "result_table",
    "token_line",
    "write",
]
