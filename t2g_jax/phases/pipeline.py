"""`t2g run`: all phases of a config in order; what is complete is not done again."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from t2g_jax.config import Config
from t2g_jax.phases import annotate, evaluate, policy, reporting, reward_model, sft
from t2g_jax.phases.workspace import ANNOTATE, REWARD_MODEL, SFT, claimed
from t2g_jax.report.contents import Report


def phases(config: Config) -> dict[str, Callable[..., dict[str, Any]]]:
    """The training phases of a config by name, in order: only those that its methods need."""
    chosen: dict[str, Callable[..., dict[str, Any]]] = {SFT: sft.run}
    if "text2grad" in config.methods and config.text2grad.span_source == "reward_model":
        chosen |= {ANNOTATE: annotate.run, REWARD_MODEL: reward_model.run}
    chosen |= {name: functools.partial(policy.run, method=name) for name in config.methods}
    return chosen


def run(config: Config, workdir: str | os.PathLike[str]) -> Report | None:
    """Runs the phases that are not complete, evaluates, and writes the report, see `reporting`."""
    with claimed(workdir):
        for phase in phases(config).values():
            phase(config, workdir)
        evaluate.run(config, workdir)
        return reporting.run(config, workdir)
