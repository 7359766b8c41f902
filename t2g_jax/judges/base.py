"""What a judge is: it reads a completion and says, in words, what is good and poor in it."""

import enum
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from t2g_jax.errors import T2GError
from t2g_jax.spans.align import Quote
from t2g_jax.tasks.base import Example
from t2g_jax.tasks.boxed import Box

MAX_REASON = 60
"""Characters of a failure's reason; a longer one is no reason to count by."""

MAX_DETAILS = 2000
"""Characters kept of what is said about a failure."""


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
    def from_dict(cls, values: Mapping[str, Any]) -> "Critique":
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


class Judge(Protocol):
    """A source of critiques: a program, a language model, or a person."""

    name: str

    def critique(self, example: Example, completion: str) -> Critique:
        """Raises JudgeError if this completion cannot be judged."""


def phrase(level: CritiqueLevel, *, what: str, where: Sequence[str], max_listed: int) -> str:
    """The errors of a wrong answer in words, as much as `level` allows."""
    match level:
        case CritiqueLevel.CORRECTNESS:
            return "Wrong."
        case CritiqueLevel.WHAT:
            return what
        case CritiqueLevel.WHERE:
            more = len(where) - max_listed
            rest = (f"And {more} more error{'s' * (more > 1)}.",) if more > 0 else ()
            return " ".join((*where[:max_listed], *rest))


def quote_at(completion: str, start: int, end: int, reward: float) -> Quote:
    """A quote of completion[start:end], numbered so that it means this occurrence and no other."""
    text = completion[start:end]
    return Quote(text, reward, ordinal=1 + _occurrences_before(completion, text, start))


def quote_box(completion: str, box: Box, reward: float) -> tuple[Quote, ...]:
    """What the box holds, or the braces if it is empty."""
    start, end = _strip(completion, box.start, box.end)
    if start == end:
        start, end = box.start - 1, box.end + 1
    return (quote_at(completion, start, end, reward),)


def quote_last_line(completion: str, reward: float) -> tuple[Quote, ...]:
    """The last line that says anything: where an answer should have been. () if there is none."""
    start, end = _strip(completion, 0, len(completion))
    start, end = _strip(completion, completion.rfind("\n", start, end) + 1 or start, end)
    return (quote_at(completion, start, end, reward),) if start < end else ()


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    """`start` and `end` without the blanks at either end of text[start:end]."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _occurrences_before(completion: str, text: str, start: int) -> int:
    """How many occurrences of `text` begin before `start`, overlapping ones included."""
    count, position = 0, completion.find(text)
    while 0 <= position < start:
        count, position = count + 1, completion.find(text, position + 1)
    return count


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
