"""What completions earn in a run: by the task, or by the judge where the task leaves it to him."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from t2g_jax.run.panel import JudgePanel
from t2g_jax.runtime import hosts
from t2g_jax.runtime.watchdog import beat
from t2g_jax.tasks.base import Critique, Example, Score, Task, capability
from t2g_jax.tasks.scoring import is_scored, score_completions, score_of_critique


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The scores of completions.

    Args:
      task: whose score it is.
      judges: whose critiques are the reward where the task has no score.
    """

    task: Task
    judges: JudgePanel

    def scores(
        self,
        examples: Sequence[Example],
        texts: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]],
        step: int = 0,
        steps: int = 0,
    ) -> list[Score | None]:
        """What completions earn, see `tasks.scoring`; None where the judge was to say and failed.

        Of several processes one asks code of the user's, and tells the others.

        Args:
          completion_ids, step, steps: for rewards that depend on them.

        Raises:
          T2GError: the user's code failed, or the judge is down.
        """
        if not is_scored(self.task):
            said = self.judges.critiques(examples, texts)
            return [score_of_critique(c) if isinstance(c, Critique) else None for c in said]

        def asked() -> list[Score]:
            return score_completions(
                self.task,
                examples,
                texts,
                completion_ids=completion_ids,
                step=step,
                steps=steps,
            )

        # A program of ours is quick, and says the same anywhere.
        if capability(self.task, "score_batch") is None:
            return list(asked())

        def told() -> list[dict[str, Any]]:
            return [vars(score) | {"metrics": dict(score.metrics)} for score in asked()]

        with self.judges.watch.stage("judge"):
            found = hosts.broadcast_from_primary(told)
        beat()
        return [Score(**score) for score in found]
