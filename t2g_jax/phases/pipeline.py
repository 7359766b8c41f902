"""`t2g run`: all phases of a config in order; what is complete is not done again."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

from t2g_jax.config import Config, require_measured
from t2g_jax.phases import annotate, evaluate, judge_calls, policy, reporting, reward_model, sft
from t2g_jax.report.contents import Report
from t2g_jax.report.terminal import followed_by, format_duration
from t2g_jax.run.claim import claimed
from t2g_jax.run.context import Context, say
from t2g_jax.run.workspace import ANNOTATE, REWARD_MODEL, SFT, Workspace


def phases(config: Config) -> dict[str, Callable[..., dict[str, Any]]]:
    """The training phases of a config by name, in order: only those that its methods need."""
    chosen: dict[str, Callable[..., dict[str, Any]]] = {SFT: sft.run}
    if config.needs_reward_model:
        chosen |= {ANNOTATE: annotate.run, REWARD_MODEL: reward_model.run}
    chosen |= {name: functools.partial(policy.run, method=name) for name in config.methods}
    return chosen


def run(config: Config, workdir: str | os.PathLike[str]) -> Report | None:
    """Runs the phases that are not complete, evaluates, and writes the report, see `reporting`.

    The warm start is evaluated at once: nobody should wait for methods that it is no start for.
    """
    todo = phases(config)
    names = [*todo, judge_calls.EVALUATE]
    began = time.monotonic()

    def announce(name: str) -> None:
        at = names.index(name)
        since = f", {format_duration(time.monotonic() - began)} after the start" if at else ""
        then = f"; then {', '.join(names[at + 1 :])}" if names[at + 1 :] else ""
        say(f"phase {at + 1} of {len(names)}: {name}{since}{then}")

    workspace = Workspace(workdir, config)
    require_measured(config, [name for name in config.methods if not workspace.is_complete(name)])
    with claimed(workdir):
        if not all(workspace.is_complete(name) for name in todo):
            context = Context.open(config, workdir)  # of one that cannot begin, no costs are told
            if context.judge is None:
                say("the task has no judge, and none is named: nothing is tried after a critique")
            else:
                say(judge_calls.announcement(config, len(context.task.split("test"))))
            del context
        evaluation = 0.0
        for name, phase in todo.items():
            announce(name)
            # Of what comes later, only evaluations are known: as many answers as the warm start's.
            last = name == names[-2]
            with followed_by(evaluation * len(config.methods) if last else None):
                phase(config, workdir)
            if name == SFT:
                evaluation = evaluate.run(config, workdir, only=(SFT,))[SFT]["seconds"]
        announce(judge_calls.EVALUATE)
        evaluate.run(config, workdir)
        report = reporting.run(config, workdir)
        say(f"all {len(names)} phases done after {format_duration(time.monotonic() - began)}")
        return report
