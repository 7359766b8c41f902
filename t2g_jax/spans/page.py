"""A text, searched for the phrases that were quoted from it."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

from rapidfuzz import fuzz

from t2g_jax.spans import sameness
from t2g_jax.spans.quotes import CharSpan, Quote
from t2g_jax.spans.reading import Place, Reading, Unit
from t2g_jax.spans.search import Budget, Search, TooLong

# Shortest phrase, in plain characters, that may be misquoted.
_FUZZY_LENGTH = 8
# A fuzzy match must beat the next best by this much (of 100).
_FUZZY_MARGIN = 5.0
# Characters of a quote's neighbors that are compared.
_CONTEXT_LENGTH = 200
# Likeness from which it is said what differs.
_NEAR = 60.0
# Most places of a phrase, and when no steps are left; most characters that are compared to find
# them; and the longest text and phrase that are searched for more than the phrase as it stands.
_PLACES, _FEW = 10_000, 50
_COMPARED = 20_000_000
_LONGEST, _LONGEST_PHRASE = 200_000, 40_000

_ABSENT = "the phrase is not in the text"
_STANDS = "the phrase occurs once"


@dataclass(frozen=True)
class Found:
    """Every place where a phrase was found, in reading order; or none, and why."""

    places: Sequence[Place]
    how: Literal["exact", "normalized", "fuzzy"]
    scores: list[float] | None = None  # None: all 100
    reason: str = ""

    def span(self, i: int, quote: Quote) -> CharSpan:
        score = 100.0 if self.scores is None else self.scores[i]
        return CharSpan(*self.places[i], quote.reward, quote.text, self.how, score)


class Page:
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

    def find(self, quote: Quote) -> Found:
        """The places of a quote's phrase that it may mean, and how they were found.

        Raises:
          TooLong: the search takes too many steps.
        """
        named = quote.ordinal is not None or quote.before or quote.after
        return self._find(quote) if named else self.unqualified(quote.text)

    def _unqualified(self, phrase: str) -> Found:
        return self._find(Quote(phrase, 0.0))

    def _find(self, quote: Quote) -> Found:
        phrase = quote.text
        exact, all_of_them = self.exact(phrase)
        if not all_of_them and (
            not quote.ordinal or quote.ordinal > len(exact) or quote.before or quote.after
        ):
            raise TooLong
        if places := self._meant(exact, quote):
            return Found(places, "exact")
        for name, searched, most in (
            ("text", self.text, _LONGEST),
            ("phrase", phrase, _LONGEST_PHRASE),
        ):
            if len(searched) > most:
                reason = f"the {name} is too long to be searched for more (> {most:,} characters)"
                return Found([], "exact", reason=f"{_ABSENT} as it stands, and {reason}")
        found, differing = self.normalized(phrase)
        if places := self._meant(found, quote):
            return Found(places, "normalized")
        fuzzy = self.fuzzy(phrase)
        if fuzzy.places:
            return fuzzy
        if inside := exact or found:
            return Found([], "exact", reason=_inside(self.text, inside))
        if differing:
            return Found([], "normalized", reason=f"{_ABSENT}; what is there {differing}")
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

    def _fuzzy(self, phrase: str) -> Found:
        if self.threshold is None:
            return Found([], "fuzzy", reason=_ABSENT)
        quote = self.read(phrase)
        self.budget.spend(100 + len(phrase) // 2)
        if len(quote.plain.text.strip()) < _FUZZY_LENGTH:
            reason = f"{_ABSENT}, and is too short (< {_FUZZY_LENGTH}) to be matched fuzzily"
            return Found([], "fuzzy", reason=self._nearest(quote, quote.units) or reason)
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
            return Found(near, "fuzzy", [matches[place] for place in near])
        reason = f"{_ABSENT}, and no passage is {self.threshold:g} % like it"
        differing = "" if passages else self._nearest(quote, units)
        return Found([], "fuzzy", reason=differing or reason)

    def _nearest(self, quote: Reading, units: Sequence[Unit]) -> str:
        """How the passage that is most like a quote differs from it; empty if none is like it."""
        nearest = self.search.nearest(units)
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


def _inside(text: str, places: Sequence[Place]) -> str:
    """Why a phrase that only stands within words is nowhere."""
    start, end = places[0]
    around = text[max(0, start - 10) : start], text[start:end], text[end : end + 10]
    left, right = (around[0].split() or [""])[-1], (around[2].split() or [""])[0]
    word = left * (not around[0][-1:].isspace()) + around[1] + right * (not around[2][:1].isspace())
    count = f"ambiguous: the phrase occurs {len(places)} times" if len(places) > 1 else _STANDS
    return f"{count}, only within longer words or characters, as in {word!r:.60}; quote all of it"


def _occurrences(text: str, phrase: str, most: int) -> tuple[tuple[Place, ...], bool]:
    """Where `phrase` occurs in `text`, overlaps included, and whether these are all its places."""
    places: list[Place] = []
    most = min(most, _COMPARED // len(phrase) + 1)
    at = text.find(phrase)
    while at >= 0 and len(places) < most:
        places.append((at, at + len(phrase)))
        at = text.find(phrase, at + 1)
    return tuple(places), at < 0
