"""What a task is: prompts, a reward, and helpers that a study of feedback needs."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from t2g_jax.errors import T2GError

if TYPE_CHECKING:  # judges know tasks, not the other way round
    from t2g_jax.judges.base import CritiqueLevel, Judge

Split = Literal["train", "test"]


class TaskError(T2GError):
    """A task that cannot be made as asked: says which setting, and what would be right."""


@dataclass(frozen=True)
class Example:
    """One problem.

    `answer` is a right answer, as it would stand inside the box. `metadata` holds what the scorer
    and the judge need; it can be written as JSON.
    """

    id: str
    prompt: str
    answer: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Score:
    """What a completion earned. Make it with `Score.of`."""

    correct: bool
    formatted: bool
    reward: float

    @classmethod
    def of(cls, *, correct: bool, formatted: bool) -> "Score":
        """reward = correct + 0.1 (formatted − 1): 1 right, 0 wrong, −0.1 wrong without a box.

        RLTF, arXiv 2602.02482.
        """
        return cls(correct, formatted, float(correct) + 0.1 * (float(formatted) - 1.0))


@dataclass(frozen=True)
class Floor:
    """Accuracy of the best policy that does not solve the task, and that policy in words."""

    accuracy: float
    policy: str


class Task(Protocol):
    """Prompts and a reward. A completion is plain text, without the prompt."""

    name: str
    system: str
    """System prompt; empty where the prompt says it all."""

    def split(self, split: Split) -> Sequence[Example]:
        """The examples of a split, the same in every process; no problem is in both splits."""

    def extract_answer(self, completion: str) -> str | None:
        """The final answer, tidied; None if the completion gives none."""

    def score(self, example: Example, completion: str) -> Score:
        """Never raises, whatever the completion."""

    def floor(self, examples: Sequence[Example]) -> Floor:
        """The best trivial policy on exactly these examples."""

    def solve(self, example: Example) -> str:
        """A completion that is right, in the shortest regular form."""

    def demonstrate(self, example: Example, rng: random.Random) -> str:
        """A careless solver's first attempt in the same form; right only now and then."""

    def judge(self, level: "CritiqueLevel") -> "Judge":
        """A program that critiques completions of this task."""
