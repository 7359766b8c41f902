"""From phrases quoted by a judge to character spans, and from character spans to token spans.

Wrong labels hurt a reward model more than missing ones, so a quote is aligned only where its place
is certain. Every other quote comes back in `Alignment.unaligned` with the reason in words.
"""

import contextlib
import gc
import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from numbers import Real
from typing import Literal

from rapidfuzz import fuzz

from t2g_jax.spans import sameness
from t2g_jax.spans.reading import Place, Reading, Unit
from t2g_jax.spans.search import Budget, Search, TooLong


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


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Pauses the garbage collector: a search makes many small objects and no cycles, and in a
    process full of other objects, collections would take as long as the search."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collections()
def align(
    text: str,
    quotes: Sequence[Quote | str | tuple[str, float]],
    *,
    fuzzy_threshold: float | None = 90.0,
) -> Alignment:
    """Find where in `text` each quote was taken from.

    The first stage that finds the phrase decides:
      1. exact: the phrase, character by character;
      2. normalized: whatever its case, forms of the same characters (Unicode), shapes of quotation
         marks and dashes, and amounts of white space. Spans are in characters of the original text;
      3. fuzzy: the passage most alike, from 8 characters on, if it can only mean the same. Its
         quotation marks, hyphens and ellipses may be others or none, its words other forms of the
         same (-s, -ed, -ing) or misspelled, within, if they are long. Any other word, number,
         operator or sign, and in code any character but white space, makes it another passage: the
         quote is unaligned, for the reason "... differs in: ...".

    A phrase starts and ends at whole words, numbers and user-perceived characters: "cat" is not in
    "concatenate", nor "is" in "isn't", 5 in −5, or 👍 in 👍🏽.

    A phrase found at several places goes to
      - the place `ordinal` names, be it within a word; if `before` or `after` fit another place
        better, nowhere;
      - without `ordinal`, the place whose neighbors fit `before` and `after` clearly best. It may
        be within a word if they fit character by character;
      - with neither, identical quotes share out the places in reading order, provided there are at
        least as many quotes as places. Fewer quotes than places are ambiguous, and stay unaligned.
    A phrase found at one place goes there, whatever its neighbors are said to be. A second quote
    of that place with the same reward is a repeat and stays unaligned; with another reward it is
    kept. Overlapping spans of any reward are kept: which one a token follows is decided by
    `spans.token_rewards` (by default the lowest reward).

    The search is bounded by counted steps, whatever text and quotes are: about a second for a quote
    and 5 for many, of a text of 64,000 characters. A quote whose search would take more is
    unaligned, "too long to search"; a phrase that stands in the text as it is seldom is.

    Method: "Text2Grad: Reinforcement Learning from Natural Language Feedback", arXiv 2505.22338,
    aligns words greedily to their first match; this does not.

    >>> from t2g_jax import spans
    >>> alignment = spans.align("The “cat” sat.", [('the "cat"', 1.0), ("dog", -1.0)])
    >>> for span in alignment.spans:
    ...     print(span.start, span.end, span.reward, span.how)
    0 9 1.0 normalized
    >>> for quote, reason in ((lost.quote, lost.reason) for lost in alignment.unaligned):
    ...     print(f"{quote.text}: {reason}")
    dog: the phrase is not in the text, and is too short (< 8) to be matched fuzzily

    Args:
      text: the completion the quotes were taken from.
      quotes: `Quote`, (phrase, reward), or a phrase alone, which is worth +1.
      fuzzy_threshold: least likeness of a fuzzy match, by the letters of its words, in (0, 100];
        None: no fuzzy stage.

    Returns:
      Alignment. Each quote is in `spans` or in `unaligned`, among them empty quotes and quotes
      whose reward is not finite.

    Raises:
      TypeError: a quote is of none of these forms.
      ValueError: fuzzy_threshold is outside (0, 100].
    """
    if fuzzy_threshold is not None and not 0 < fuzzy_threshold <= 100:
        raise ValueError(f"fuzzy_threshold must be in (0, 100] or None, got {fuzzy_threshold!r}")
    given = [_as_quote(quote) for quote in quotes]
    page = _Page(text, fuzzy_threshold)
    outcomes: list[CharSpan | str | None] = [None] * len(given)
    # Quotes that name none of their phrase's places, by the phrase and its place if it is one.
    unnamed: dict[tuple[str, Place | None], tuple[_Found, list[int]]] = {}
    taken: dict[str, set[Place]] = defaultdict(set)

    for i, quote in enumerate(given):
        page.budget.begin()
        if reason := _refusal(quote):
            outcomes[i] = reason
            continue
        try:
            here = page.find(quote)
            if not here.places:
                outcomes[i] = here.reason
            elif quote.ordinal is None and (
                len(here.places) == 1 or not (quote.before + quote.after)
            ):
                only = here.places[0] if len(here.places) == 1 else None
                unnamed.setdefault((quote.text, only), (here, []))[1].append(i)
            else:
                choice = _choose(page, here.places, quote)
                outcomes[i] = choice if isinstance(choice, str) else here.span(choice, quote)
                if not isinstance(choice, str):
                    taken[quote.text].add(here.places[choice])
        except TooLong:
            outcomes[i] = _TOO_LONG

    for (phrase, _), (here, members) in unnamed.items():
        shared = _share(here, [given[i].reward for i in members], taken[phrase])
        for i, outcome in zip(members, shared, strict=True):
            outcomes[i] = outcome if isinstance(outcome, str) else here.span(outcome, given[i])

    pairs = zip(given, outcomes, strict=True)
    return Alignment(
        spans=tuple(o for o in outcomes if isinstance(o, CharSpan)),
        unaligned=tuple(Unaligned(q, o) for q, o in pairs if isinstance(o, str)),
    )


def to_token_spans(
    char_spans: Sequence[CharSpan], offsets: Sequence[tuple[int, int]]
) -> tuple[TokenSpan, ...]:
    """The tokens that each character span covers.

    A token belongs to a span if the two share a character. White space at the ends of an exact
    quote does not count: the token " foo" belongs to "foo", the token " " before it does not belong
    to " foo". Of a character spread over several tokens, all of them belong. A token of zero width
    (a special token) belongs only if tokens on both sides of it do.

    >>> from t2g_jax import spans
    >>> alignment = spans.align("The cat sat", [("cat sat", 1.0)])
    >>> spans.to_token_spans(alignment.spans, [(0, 3), (3, 7), (7, 11), (11, 11)])
    (TokenSpan(start=1, end=3, reward=1.0),)

    Args:
      char_spans: S spans, as from `align`.
      offsets: per token its (start, end) in the text the spans refer to, end exclusive. Starts and
        ends never decrease, except at tokens of zero width, which may have any position.

    Returns:
      S TokenSpans, in the order of `char_spans`. A span that covers no token (the completion was
      cut before it, say) gives an empty TokenSpan, start == end: padding for `spans.token_rewards`.
      Report it: `[c for c, t in zip(char_spans, token_spans) if t.start == t.end]`.

    Raises:
      ValueError: a span is empty or reversed, its reward is not finite, or offsets run backwards.
    """
    tokens = [(t, start, end) for t, (start, end) in enumerate(offsets) if end != start]
    for (_, s0, e0), (t, s1, e1) in pairwise([(0, 0, 0), *tokens]):
        if s1 < s0 or e1 < e0 or e1 < s1:
            raise ValueError(f"offsets run backwards at token {t}: ({s0}, {e0}) then ({s1}, {e1})")
    starts, ends = [start for _, start, _ in tokens], [end for _, _, end in tokens]

    spans = []
    for span in char_spans:
        if not 0 <= span.start < span.end:
            raise ValueError(f"character span {span} is empty or reversed")
        if not math.isfinite(span.reward):
            raise ValueError(f"the reward of character span {span} is not finite")
        start, end = span.start, span.end
        if span.how == "exact" and len(span.quote) == end - start and not span.quote.isspace():
            start += len(span.quote) - len(span.quote.lstrip())
            end -= len(span.quote) - len(span.quote.rstrip())
        first, last = bisect_right(ends, start), bisect_left(starts, end)  # indices into `tokens`
        if first < last:
            spans.append(TokenSpan(tokens[first][0], tokens[last - 1][0] + 1, span.reward))
        else:
            spans.append(TokenSpan(0, 0, span.reward))
    return tuple(spans)


# Shortest phrase, in plain characters, that may be misquoted.
_FUZZY_LENGTH = 8
# A fuzzy match, or a place chosen by its neighbors, must beat the next best by this much (of 100).
_FUZZY_MARGIN = 5.0
_CONTEXT_MARGIN = 10.0
# Likeness below which neighbors are no evidence, and characters of them that are compared.
_CONTEXT_FLOOR = 60.0
_CONTEXT_LENGTH = 200
# Likeness from which it is said what differs.
_NEAR = 60.0
# Most places of a phrase, and when no steps are left; most characters that are compared to find
# them; and the longest text and phrase that are searched for more than the phrase as it stands.
_PLACES, _FEW = 10_000, 50
_COMPARED = 20_000_000
_LONGEST, _LONGEST_PHRASE = 200_000, 40_000


@dataclass(frozen=True)
class _Found:
    """Every place where a phrase was found, in reading order; or none, and why."""

    places: Sequence[Place]
    how: Literal["exact", "normalized", "fuzzy"]
    scores: list[float] | None = None  # None: all 100
    reason: str = ""

    def span(self, i: int, quote: Quote) -> CharSpan:
        score = 100.0 if self.scores is None else self.scores[i]
        return CharSpan(*self.places[i], quote.reward, quote.text, self.how, score)


def _as_quote(quote: Quote | str | tuple[str, float]) -> Quote:
    if isinstance(quote, str):
        quote = Quote(quote, 1.0)
    elif isinstance(quote, (tuple, list)) and len(quote) == 2:
        quote = Quote(*quote)
    texts = isinstance(quote, Quote) and [quote.text, quote.before, quote.after]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"a quote is a Quote, a str or a (str, reward) pair, got {quote!r}")
    if not isinstance(quote.reward, Real):
        raise TypeError(f"the reward of quote {quote.text!r} is no number: {quote.reward!r}")
    return quote


def _refusal(quote: Quote) -> str:
    """Why a quote is refused before any search; empty if it is not."""
    if not quote.text.strip():
        return "the quote is empty"
    if not math.isfinite(quote.reward):
        return f"the reward is {quote.reward}, not a finite number"
    ordinal = quote.ordinal
    if ordinal is not None and (type(ordinal) is not int or ordinal < 1):
        return f"ordinal counts from 1, got {ordinal!r}"
    return ""


def _choose(page: "_Page", places: Sequence[Place], quote: Quote) -> int | str:
    """The index of the place that `ordinal`, `before` and `after` name, or why there is none."""
    count = f"the phrase occurs {len(places)} time{'s' * (len(places) > 1)}"
    nth = None if quote.ordinal is None else quote.ordinal - 1
    if nth is not None and nth >= len(places):
        return f"ordinal {quote.ordinal} is out of range: {count}"
    if len(places) == 1 or not (quote.before + quote.after):
        return nth
    scores = page.context_scores(places, quote)
    if nth is not None:
        if max(scores) >= max(_CONTEXT_FLOOR, scores[nth] + _CONTEXT_MARGIN):
            return f"ordinal {quote.ordinal} and the neighboring text name different places"
        return nth
    best, second = sorted(scores)[:-3:-1]
    if best < _CONTEXT_FLOOR:
        return f"{count}, none of them next to the text given as before or after"
    if second == best or (best < 100 and second > best - _CONTEXT_MARGIN):
        return f"{count}, and the neighboring text does not tell them apart; give an ordinal"
    return scores.index(best)


def _share(found: _Found, rewards: list[float], taken: set[Place]) -> list[int | str]:
    """Places for identical quotes that name none of the phrase's places, or why they get none."""
    if len(found.places) == 1:
        first = {reward: i for i, reward in reversed(list(enumerate(rewards)))}
        again = "repeats an earlier quote of the same phrase, which occurs once"
        return [0 if first[reward] == i else again for i, reward in enumerate(rewards)]
    free = [i for i, place in enumerate(found.places) if place not in taken]
    if len(rewards) < len(free):
        reason = (
            f"ambiguous: the phrase occurs {len(free)} times; give an ordinal, or the text before "
            "or after it"
        )
        return [reason] * len(rewards)
    again = "every occurrence of the phrase is taken by an identical quote"
    return [*free, *[again] * (len(rewards) - len(free))]


class _Page:
    """A text, searched for phrases."""

    def __init__(self, text: str, threshold: float | None):
        self.text = text
        self.threshold = threshold
        self.reading = Reading(text)
        self.budget = Budget()
        self.search = Search(self.reading, self.budget)
        self.read = cache(self._read)
        self.exact = cache(self._exact)
        self.normalized = cache(self._normalized)
        self.fuzzy = cache(self._fuzzy)
        self.whole = cache(self._whole)
        self.unqualified = cache(self._unqualified)

    def find(self, quote: Quote) -> _Found:
        """The places of a quote's phrase that it may mean, and how they were found.

        Raises:
          TooLong: the search takes too many steps.
        """
        named = quote.ordinal is not None or quote.before or quote.after
        return self._find(quote) if named else self.unqualified(quote.text)

    def _unqualified(self, phrase: str) -> _Found:
        return self._find(Quote(phrase, 0.0))

    def _find(self, quote: Quote) -> _Found:
        phrase = quote.text
        exact, all_of_them = self.exact(phrase)
        if not all_of_them and (
            not quote.ordinal or quote.ordinal > len(exact) or quote.before or quote.after
        ):
            raise TooLong
        if places := self._meant(exact, quote):
            return _Found(places, "exact")
        for name, searched, most in (
            ("text", self.text, _LONGEST),
            ("phrase", phrase, _LONGEST_PHRASE),
        ):
            if len(searched) > most:
                reason = f"the {name} is too long to be searched for more (> {most:,} characters)"
                return _Found([], "exact", reason=f"{_ABSENT} as it stands, and {reason}")
        found, differing = self.normalized(phrase)
        if places := self._meant(found, quote):
            return _Found(places, "normalized")
        fuzzy = self.fuzzy(phrase)
        if fuzzy.places:
            return fuzzy
        if inside := exact or found:
            return _Found([], "exact", reason=_inside(self.text, inside))
        if differing:
            return _Found([], "normalized", reason=f"{_ABSENT}; what is there {differing}")
        return fuzzy

    def _exact(self, phrase: str) -> tuple[tuple[Place, ...], bool]:
        places, all_of_them = _occurrences(self.text, phrase, _FEW if self.budget.over else _PLACES)
        self.budget.charge(len(places))
        return places, all_of_them

    def _meant(self, places: tuple[Place, ...], quote: Quote) -> Sequence[Place]:
        """The places that a quote may mean: whole words, unless it names one within a word."""
        if quote.ordinal is not None or not places:
            return places
        whole = self.whole(places)
        if not (quote.before or quote.after):
            return [place for place, fits in zip(places, whole, strict=True) if fits]
        self.budget.spend(len(places))
        return [p for p, fits in zip(places, whole, strict=True) if fits or self._next_to(p, quote)]

    def _whole(self, places: tuple[Place, ...]) -> list[bool]:
        # What stands there as it is, and not too often, is found whatever went before.
        (self.budget.charge if len(places) <= _FEW else self.budget.spend)(20 * len(places))
        return [self.reading.is_whole(place) for place in places]

    def _next_to(self, place: Place, quote: Quote) -> bool:
        """Whether a quote's neighbors are next to a place, character by character."""
        start, end = place
        before = self.text.endswith(quote.before, 0, start)
        return before and self.text.startswith(quote.after, end)

    def _read(self, phrase: str) -> Reading:
        reading = Reading(phrase)
        self.budget.spend(len(phrase))
        self.budget.charge(reading.steps - len(phrase))
        return reading

    @cached_property
    def searched(self) -> Reading:
        """The text, read for more than a phrase as it stands, which all quotes pay for."""
        self.budget.share(self.reading.steps)
        return self.reading

    def _normalized(self, phrase: str) -> tuple[tuple[Place, ...], str]:
        """Places of a phrase in its plain spelling, and how others differ that look like it."""
        text, reading = self.searched, self.read(phrase)
        query = reading.plain.text.strip()
        if not query:
            return (), "is empty once normalized"
        self.budget.spend(50 + len(query) // 10)
        found, all_of_them = _occurrences(text.plain.text, query, _PLACES)
        self.budget.spend(10 * len(found))
        if not all_of_them:
            raise TooLong
        places: dict[Place, None] = {}
        another: tuple[list[Unit], list[Unit]] | None = None
        shift = reading.plain.text.index(query)
        for start, end in found:
            if not text.plain.cuts_no_cluster((start, end)):
                continue
            there = text.units_in((start, end))
            self.budget.spend(8 * len(there))
            moved = shift - start
            here = [Unit(u.key, u.kind, u.start + moved, u.end + moved) for u in there]
            if sameness.same(reading, here, text, there):
                places[text.plain.original((start, end))] = None
            else:
                another = here, there
        if another is None:
            return tuple(places), ""
        here, there = another
        return tuple(places), "differs in: " + sameness.differences(reading, here, text, there)

    def _fuzzy(self, phrase: str) -> _Found:
        if self.threshold is None:
            return _Found([], "fuzzy", reason=_ABSENT)
        quote = self.read(phrase)
        self.budget.spend(100 + len(phrase) // 2)
        if len(quote.plain.text.strip()) < _FUZZY_LENGTH:
            reason = f"{_ABSENT}, and is too short (< {_FUZZY_LENGTH}) to be matched fuzzily"
            return _Found([], "fuzzy", reason=self._nearest(quote, quote.units) or reason)
        # Punctuation that ends a quote is often the critic's.
        units = list(quote.units)
        while len(units) > 1 and units[-1].key in (".", ",", ";", ":") and not quote.code.blocks:
            units.pop()
        units = self.search.respaced(quote, units)
        matches: dict[Place, float] = {}
        passages = self.search.passages(quote, units)
        for passage in passages:
            score = self.search.likeness(units, passage)
            there = self.reading.units[slice(*passage)]
            place = self.reading.plain.original((there[0].start, there[-1].end))
            cut = not self.reading.plain.cuts_no_cluster((there[0].start, there[-1].end))
            if score >= self.threshold and not cut and self.reading.is_whole(place):
                matches[place] = score
        if matches:
            best = max(matches.values())
            near = sorted(p for p, score in matches.items() if score >= best - _FUZZY_MARGIN)
            return _Found(near, "fuzzy", [matches[place] for place in near])
        reason = f"{_ABSENT}, and no passage is {self.threshold:g} % like it"
        differing = "" if passages else self._nearest(quote, units)
        return _Found([], "fuzzy", reason=differing or reason)

    def _nearest(self, quote: Reading, units: Sequence[Unit]) -> str:
        """How the passage that is most like a quote differs from it; empty if none is like it."""
        nearest = self.search.nearest(quote, units)
        if not nearest or self.search.likeness(units, nearest) < min(_NEAR, self.threshold):
            return ""
        there = self.reading.units[slice(*nearest)]
        differing = sameness.differences(quote, units, self.reading, there)
        return f"{_ABSENT}; what is most like it differs in: {differing}"

    def context_scores(self, places: Sequence[Place], quote: Quote) -> list[float]:
        """How well the neighbors of each place fit the quote's, 0 to 100; verbatim is 100."""
        self.budget.spend(len(places))
        verbatim = [self._next_to(place, quote) for place in places]
        if quote.ordinal is None and any(verbatim):
            return [100.0 * fits for fits in verbatim]
        self.budget.spend(20 * len(places) + len(quote.before) + len(quote.after))
        plain = self.reading.plain
        before = Reading(quote.before[-_LONGEST:]).plain.text.strip()[-_CONTEXT_LENGTH:]
        after = Reading(quote.after[:_LONGEST]).plain.text.strip()[:_CONTEXT_LENGTH]
        scores = []
        for (start, end), fits in zip(places, verbatim, strict=True):
            if fits:
                scores.append(100.0)
                continue
            start, end = (bisect_left(plain.starts, i) for i in (start, end))
            head = plain.text[max(0, start - len(before) - 1) : start].strip()
            tail = plain.text[end : end + len(after) + 1].strip()
            parts = [fuzz.ratio(before, head[-len(before) :])] if before else []
            parts += [fuzz.ratio(after, tail[: len(after)])] if after else []
            # Below a verbatim fit, so that one verbatim place wins over its normalized likes.
            scores.append(min(sum(parts) / len(parts), 99.0) if parts else 0.0)
        return scores


_ABSENT = "the phrase is not in the text"
_TOO_LONG = (
    "too long to search: its places take more steps to compare than they may; quote a shorter "
    "phrase as it stands, or fewer phrases"
)


def _inside(text: str, places: Sequence[Place]) -> str:
    """Why a phrase that only stands within words is nowhere."""
    start, end = places[0]
    around = text[max(0, start - 10) : start], text[start:end], text[end : end + 10]
    left, right = (around[0].split() or [""])[-1], (around[2].split() or [""])[0]
    word = left * (not around[0][-1:].isspace()) + around[1] + right * (not around[2][:1].isspace())
    count = f"ambiguous: the phrase occurs {len(places)} times" if len(places) > 1 else _STANDS
    return f"{count}, only within longer words or characters, as in {word!r:.60}; quote all of it"


_STANDS = "the phrase occurs once"


def _occurrences(text: str, phrase: str, most: int) -> tuple[tuple[Place, ...], bool]:
    """Where `phrase` occurs in `text`, overlaps included, and whether these are all its places."""
    places: list[Place] = []
    most = min(most, _COMPARED // len(phrase) + 1)
    at = text.find(phrase)
    while at >= 0 and len(places) < most:
        places.append((at, at + len(phrase)))
        at = text.find(phrase, at + 1)
    return tuple(places), at < 0
