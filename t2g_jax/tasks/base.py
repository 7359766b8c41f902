"""What a task is, and what a judge of its completions says: prompts, a reward, critiques."""

from __future__ import annotations

import enum
import math
import random
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol

from t2g_jax.errors import T2GError
from t2g_jax.spans.quotes import Quote

MAX_REASON = 60
"""Characters of a failure's reason; a longer one is no reason to count by."""

MAX_DETAILS = 2000
"""Characters kept of what is said about a failure."""


Split = Literal["train", "test"]


class TaskError(T2GError):
    """A task that cannot be made as asked: says which setting, and what would be right."""


Message = dict[str, str]
"""A message of a chat: "role" (system, user, assistant or tool) and "content"."""
Prompt = str | list[Message]
"""What is asked: the user's text, or the messages of a chat up to the assistant's turn."""


@dataclass(frozen=True)
class Example:
    """One problem.

    `answer` is a right answer, if there is one to compare with. `metadata` holds what else the
    scorer and the judge need; it can be written as JSON.
    """

    id: str
    prompt: Prompt
    answer: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What a completion earned.

    reward: what methods compare; finite.
    correct: whether it is right. None: the task only grades, and then always does; such a task has
      no accuracy, and its mean reward stands for it.
    formatted: whether it has the form that is scored; None: there is no such form.
    metrics: other numbers; their means are logged as `score_NAME`.
    """

    reward: float
    correct: bool | None = None
    formatted: bool | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, *, correct: bool, formatted: bool) -> Score:
        """reward = correct + 0.1 (formatted − 1): 1 right, 0 wrong, −0.1 wrong without a box.

        RLTF, arXiv 2602.02482.
        """
        return cls(float(correct) + 0.1 * (float(formatted) - 1.0), correct, formatted)


@dataclass(frozen=True)
class Floor:
    """Accuracy of the best policy that does not solve the task, and that policy in words."""

    accuracy: float
    policy: str


class Task(Protocol):
    """Prompts, and a reward of completions, which are plain text without the prompt.

    A task has `score`, or else its judge's critiques are the reward, see `scoring`. What it may
    have besides is in `Capable`, and asked for only by what needs it.
    """

    def split(self, split: Split) -> Sequence[Example]:
        """The examples of a split, the same in every process; no problem is in both splits."""


class Capable(Task, Protocol):
    """All that a task may have. One that has it only at times sets it to None where not."""

    name: str
    system: str
    """System prompt, before prompts that have none of their own; empty: none."""

    def score(self, example: Example, completion: str) -> Score:
        """What a completion earns, whatever it is."""

    def score_batch(
        self, examples: Sequence[Example], completions: Sequence[str]
    ) -> Sequence[Score]:
        """In place of `score`, of all completions of a round."""

    def floor(self, examples: Sequence[Example]) -> Floor:
        """The best trivial policy on exactly these examples."""

    def solve(self, example: Example) -> str | None:
        """A completion that is right, in the shortest regular form. None: there is none."""

    def demonstrate(self, example: Example, rng: random.Random) -> str | None:
        """A completion to begin with, such as a careless solver's first attempt, right only now
        and then. None: there is none for this example."""

    def judge(self, level: CritiqueLevel) -> Judge:
        """A program that critiques completions of this task."""


def capability(task: Task, name: str) -> Any:
    """A method of `Capable` that a task may have; None: it has none."""
    found = getattr(task, name, None)
    return found if callable(found) else None


def require_capability(task: Task, name: str, *, needed_by: str) -> Any:
    """A method of `Capable` that a task must have.

    Args:
      needed_by: what needs it, in the words of the config.

    Raises:
      T2GError: it has none; the message says who needs it, and the ways out.
    """
    found = capability(task, name)
    if found is None:
        raise T2GError(f"the task {name_of_task(task)} {_MISSING[name].format(needed_by)}")
    return found


_MISSING = {
    "demonstrate": (
        "has no demonstrations, which {} needs: give it `demonstrate(example, rng)` (rows: a "
        "`demonstration` column), or begin with a pretrained model (model.pretrained, sft.steps 0)"
    ),
    "solve": (
        "has no right answers to show, which {} needs: give it `solve(example)` (rows: an `answer` "
        "that the reward calls right, which of a function needs `correct_from`)"
    ),
    "judge": (
        "has no judge of its own, which {} needs: name one in judge.name (docs/judges.md), give "
        "the task `judge(level)` (rows: a `feedback` column), or choose a method that needs none, "
        "such as grpo"
    ),
    "score": "has no `score(example, completion)`, which {} needs",
}


def name_of_task(task: Task) -> str:
    """The task's own name, or that of its class."""
    name = getattr(task, "name", None)
    return plain_text(name, 100) if isinstance(name, str) and name else type(task).__name__


def messages_of(prompt: Prompt, system: str = "") -> list[Message]:
    """A prompt as the messages of a chat, after a system prompt unless it has its own."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def prompt_text(prompt: Prompt) -> str:
    """A prompt as it is shown to people; a chat with the roles before the messages."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


# --- Critiques --------------------------------------------------------------------------------


class CritiqueLevel(enum.Enum):
    """How much a critique tells the policy. None of them tells it the answer."""

    CORRECTNESS = "correctness"
    """Right or wrong."""
    WHAT = "what"
    """Which errors, and how many."""
    WHERE = "where"
    """Which errors, and where."""


class JudgeError(Exception):
    """No critique could be had. It is counted as a failure, never taken for praise.

    Args:
      reason: short and from a small set, as failures are counted by it. One that is empty or longer
        than `MAX_REASON` goes into the details; the failure then counts as "gave no critique".
      details: for whoever looks into one of them: an exception, an answer, or anything else. Its
        text is kept, at most `MAX_DETAILS` characters of it.
    """

    def __init__(self, reason: object, details: object = "") -> None:
        said, more = (plain_text(value, MAX_DETAILS) for value in (reason, details))
        if not 0 < len(said) <= MAX_REASON:
            said, more = "gave no critique", ": ".join(part for part in (said, more) if part)
        self.reason = said
        self.details = more[:MAX_DETAILS]
        super().__init__(f"{said}: {self.details}" if more else said)


def plain_text(value: object, limit: int) -> str:
    """The text of anything: a plain `str` of Unicode characters, at most `limit` of them."""
    try:
        text = str.__getitem__(str(value), slice(limit))  # of a subclass of str, too
    except Exception:  # whose __str__ is broken
        text = f"({type(value).__name__})"
    return text.encode("utf-8", "backslashreplace").decode()[:limit]


def shown(value: object) -> str:
    """A value in a message: its type, and the beginning of its repr."""
    return f"{plain_text(type(value).__name__, 60)} {plain_text(_repr(value), 60)}".rstrip()


def _repr(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception:  # which is broken, too
        return ""


@dataclass(frozen=True)
class Critique:
    """Text feedback on a completion, and the phrases it praises or blames.

    Only `text` ever reaches the policy. `quotes` are phrases of the completion, good (+1) or poor
    (−1), that reward models learn from; `reasoning` is what the judge thought beforehand.
    """

    text: str
    quotes: tuple[Quote, ...] = ()
    reasoning: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `from_dict` gives an equal critique back."""
        return {
            "text": self.text,
            "quotes": [asdict(quote) for quote in self.quotes],
            "reasoning": self.reasoning,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Critique:
        """A critique from what `to_dict` wrote.

        Raises:
          T2GError: a key is missing, unknown, or of the wrong type; the message names it.
        """
        _check_keys(values, cls, required={"text"}, where="critique")
        quotes = values.get("quotes", ())
        if not isinstance(quotes, list | tuple):
            raise T2GError(f"critique: `quotes` is {quotes!r:.60}; must be a list of quotes")
        return cls(
            text=_string(values, "text", "critique"),
            quotes=tuple(_quote(quote, f"critique: quotes[{i}]") for i, quote in enumerate(quotes)),
            reasoning=_string(values, "reasoning", "critique"),
        )


CRITIQUE_REQUEST = "Critique the answer."
"""What a model is asked that is to critique the answer before."""

MARK_REQUEST = "Mark the answer."
"""What a reward model is asked that is to mark the spans of an answer which it has critiqued."""


class Judge(Protocol):
    """A source of critiques: a program, a language model, or a person."""

    name: str

    def critique(self, example: Example, completion: str) -> Critique:
        """Raises JudgeError if this completion cannot be judged."""


def _quote(values: Any, where: str) -> Quote:
    _check_keys(values, Quote, required={"text", "reward"}, where=where)
    reward, ordinal = values["reward"], values.get("ordinal")
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise T2GError(f"{where}: `reward` is {reward!r:.60}; must be a number, e.g. 1 or -1")
    if ordinal is not None and (type(ordinal) is not int or ordinal < 1):
        raise T2GError(f"{where}: `ordinal` is {ordinal!r:.60}; must be 1, 2, ... or null")
    text, before, after = (_string(values, key, where) for key in ("text", "before", "after"))
    return Quote(text, float(reward), ordinal, before, after)


def _check_keys(values: Any, kind: type, *, required: set[str], where: str) -> None:
    if not isinstance(values, Mapping):
        raise T2GError(f"{where}: is {values!r:.60}; must be a mapping of keys to values")
    known = [field.name for field in fields(kind)]
    for key in values:
        if key not in known:
            raise T2GError(f"{where}: unknown key `{key}`; known: {', '.join(known)}")
    for key in required - values.keys():
        raise T2GError(f"{where}: `{key}` is missing")


def _string(values: Mapping[str, Any], key: str, where: str) -> str:
    value = values.get(key, "")
    if not isinstance(value, str):
        raise T2GError(f"{where}: `{key}` is {value!r:.60}; must be text")
    return value
