"""Quotes of a text, and the spans of characters and of tokens that they become."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quote:
    """A phrase that a judge quoted from a text, and what it is worth.

    >>> from t2g_jax import spans
    >>> second = spans.Quote("the cat", reward=-1.0, ordinal=2)
    >>> spans.align("the cat saw the cat", [second]).spans[0].start
    12

    Attributes:
      text: the phrase.
      reward: good (+1), poor (−1), or any finite severity.
      ordinal: which occurrence of the phrase, from 1. Occurrences are counted as plain substrings
        and may overlap: "aa" occurs three times in "aaaa".
      before, after: the text next to the phrase, to tell its occurrences apart.
    """

    text: str
    reward: float
    ordinal: int | None = None
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class CharSpan:
    """Characters start ≤ i < end of a text, how its quote was found, and how alike (0 to 100).

    >>> from t2g_jax import spans
    >>> spans.align("a cat", ["cat"]).spans[0]
    CharSpan(start=2, end=5, reward=1.0, quote='cat', how='exact', score=100.0)
    """

    start: int
    end: int
    reward: float
    quote: str
    how: Literal["exact", "normalized", "fuzzy"]
    score: float


@dataclass(frozen=True)
class Unaligned:
    """A quote without a certain place in the text, and why.

    >>> from t2g_jax import spans
    >>> print(spans.align("a cat, a cat", ["cat"]).unaligned[0].reason)
    ambiguous: the phrase occurs 2 times; give an ordinal, or the text before or after it
    """

    quote: Quote
    reason: str


@dataclass(frozen=True)
class Alignment:
    """Where each quote is (`spans`), or why it is nowhere (`unaligned`); both in quote order.

    >>> from t2g_jax import spans
    >>> alignment = spans.align("a cat", ["cat", "dog"])
    >>> len(alignment.spans), len(alignment.unaligned)
    (1, 1)
    """

    spans: tuple[CharSpan, ...]
    unaligned: tuple[Unaligned, ...]


@dataclass(frozen=True)
class TokenSpan:
    """Tokens start ≤ t < end and their reward; empty (start == end) if no token is covered.

    >>> from t2g_jax import spans
    >>> spans.TokenSpan(start=0, end=2, reward=-1.0)
    TokenSpan(start=0, end=2, reward=-1.0)
    """

    start: int
    end: int
    reward: float
