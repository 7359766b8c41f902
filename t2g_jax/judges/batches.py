"""Judges that are asked about several completions at once, and all others as if they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from t2g_jax.tasks.base import Critique, Example, Judge, JudgeError

Outcome = Critique | JudgeError
"""What became of a question: a critique, or why there is none."""


class BatchJudge(Protocol):
    """A source of critiques that answers several questions in one call."""

    name: str

    def critique_batch(
        self, examples: Sequence[Example], completions: Sequence[str]
    ) -> Sequence[Outcome]:
        """One outcome for each completion, in their order.

        A JudgeError among them says that this one cannot be judged; to raise it says so of all.
        """


AnyJudge = Judge | BatchJudge


def takes_batches(judge: AnyJudge) -> bool:
    """Whether a judge has `critique_batch`, which is then asked even if it has `critique`, too."""
    return callable(getattr(judge, "critique_batch", None))


def batched(judge: AnyJudge) -> Callable[[Sequence[Example], Sequence[str]], Any]:
    """A judge's `critique_batch`; of one that has `critique` alone, one that asks one by one.

    That one returns, for a completion, whatever the judge raised, too.
    """
    if takes_batches(judge):
        return judge.critique_batch  # type: ignore[union-attr]

    def one_by_one(examples: Sequence[Example], completions: Sequence[str]) -> list[Any]:
        return [ask(*question) for question in zip(examples, completions, strict=True)]

    def ask(example: Example, completion: str) -> Any:
        try:
            return judge.critique(example, completion)  # type: ignore[union-attr]
        except BaseException as error:
            return error

    return one_by_one
