"""Whom a run asks for critiques: one judge behind its guard, on one of the run's processes."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from t2g_jax.errors import T2GError
from t2g_jax.judges.batches import AnyJudge
from t2g_jax.judges.counts import failed_column
from t2g_jax.judges.guard import Guard
from t2g_jax.runtime import hosts, preemption
from t2g_jax.runtime.watchdog import beat
from t2g_jax.tasks.base import Critique, Example, JudgeError
from t2g_jax.training.metrics import Stopwatch


@dataclasses.dataclass(frozen=True)
class JudgePanel:
    """A judge, and what is counted of its answers.

    Args:
      judge, guard: who is asked, and what stands before it. None: there is nobody to ask.
      watch: times the stage "judge".
      tally: counts calls and failures, see `judges.counts`.
    """

    judge: AnyJudge | None
    guard: Guard
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    tally: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def critique(self, example: Example, text: str) -> Critique | JudgeError:
        """The judge's critique, or why there is none; a failure is never taken for praise."""
        (outcome,) = self.critiques([example], [text])
        return outcome

    def critiques(
        self, examples: Sequence[Example], texts: Sequence[str]
    ) -> Iterator[Critique | JudgeError]:
        """Yields what `critique` returns for each text, in order.

        Raises:
          T2GError: the judge is down (`judge.max_failures_in_a_row`), or there is none.
        """
        outcomes = self._outcomes(examples, texts)
        while True:
            with self.watch.stage("judge"):
                outcome = next(outcomes, None)
            if outcome is None:
                return
            beat()
            self.tally["judge_failures"] += isinstance(outcome, JudgeError)
            if isinstance(outcome, JudgeError):
                self.tally[failed_column(self.tally, outcome.reason)] += 1
            yield outcome

    def replaced_by(self, judge: AnyJudge) -> JudgePanel:
        """Another judge, of whom nothing is counted or kept."""
        guard = Guard(
            timeout_seconds=self.guard.timeout_seconds,
            max_failures_in_a_row=self.guard.max_failures_in_a_row,
        )
        return dataclasses.replace(self, judge=judge, guard=guard, tally=collections.Counter())

    def _outcomes(
        self, examples: Sequence[Example], texts: Sequence[str]
    ) -> Iterator[Critique | JudgeError]:
        """What the judge said. One of several processes asks, and tells the others every second."""
        if not texts:
            return
        if self.judge is None:
            raise T2GError("there is no judge to ask for a critique: name one in judge.name")
        asked = self.guard.critiques(self.judge, examples, texts, self.tally)
        if not hosts.several():
            yield from asked
            return

        def next_ones() -> list[dict[str, Any]]:
            told: list[dict[str, Any]] = []
            end = time.monotonic() + 1
            for outcome in asked:
                if isinstance(outcome, Critique):
                    told.append({"critique": outcome.to_dict()})
                else:
                    told.append({"reason": outcome.reason, "details": outcome.details})
                if time.monotonic() > end:
                    break
            return told

        known = 0
        while known < len(texts):
            for outcome in hosts.broadcast_from_primary(next_ones):
                known += 1
                if "critique" in outcome:
                    yield Critique.from_dict(outcome["critique"])
                else:
                    yield JudgeError(outcome["reason"], outcome["details"])
            preemption.stop_if_asked()
