"""How a program's critique is worded, and how it quotes what it speaks of."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from t2g_jax.spans.quotes import Quote
from t2g_jax.tasks.base import Critique, CritiqueLevel
from t2g_jax.tasks.puzzles.boxed import Box, find_boxed

Parsed = TypeVar("Parsed")


def read_box(
    completion: str, parse: Callable[[str], Parsed | None], *, problem: str
) -> tuple[Box, Parsed] | Critique:
    """The box of a completion and what it says; or the critique of one that says nothing.

    Args:
      parse: the text in the box → what it says, None if it cannot be read.
      problem: what is said of the answer if it cannot: "is not a path".
    """
    box = find_boxed(completion)
    if box is None:
        return Critique("No answer in \\boxed{}.", quote_last_line(completion, -1.0))
    parsed = parse(box.content)
    if parsed is None:
        text = f"The answer in \\boxed{{}} {problem}."
        return Critique(text, quote_box(completion, box, -1.0))
    return box, parsed


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
