"""From phrases quoted by a judge to character spans, and from character spans to token spans.

Wrong labels hurt a reward model more than missing ones, so a quote is aligned only where its place
is certain. Every other quote comes back in `Alignment.unaligned` with the reason in words.
"""

import math
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from numbers import Real
from typing import Literal

from rapidfuzz import fuzz


@dataclass(frozen=True)
class Quote:
    """A phrase that a judge quoted from a text, and what it is worth.

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
    """Characters start ≤ i < end of a text, how its quote was found, and how alike (0 to 100)."""

    start: int
    end: int
    reward: float
    quote: str
    how: Literal["exact", "normalised", "fuzzy"]
    score: float


@dataclass(frozen=True)
class Unaligned:
    """A quote without a certain place in the text, and why."""

    quote: Quote
    reason: str


@dataclass(frozen=True)
class Alignment:
    """Where each quote is (`spans`), or why it is nowhere (`unaligned`); both in quote order."""

    spans: tuple[CharSpan, ...]
    unaligned: tuple[Unaligned, ...]


@dataclass(frozen=True)
class TokenSpan:
    """Tokens start ≤ t < end and their reward; empty (start == end) if no token is covered."""

    start: int
    end: int
    reward: float


def align(
    text: str,
    quotes: Sequence[Quote | str | tuple[str, float]],
    *,
    fuzzy_threshold: float | None = 90.0,
) -> Alignment:
    """Find where in `text` each quote was taken from.

    The first stage that finds the phrase decides:
      1. exact: the phrase, character by character;
      2. normalised: after Unicode NFKC, case folding, plain quotation marks and dashes, and one
         space for each run of white space. Spans are in characters of the original text;
      3. fuzzy: the passage most alike by insert-delete distance, from 8 characters on. It starts
         and ends between words, and must hold the same numbers as the quote.

    A phrase found at several places goes to
      - the place `ordinal` names; if `before` or `after` fit another place better, nowhere;
      - without `ordinal`, the place whose neighbours fit `before` and `after` clearly best;
      - with neither, whole words are preferred to parts of words. If a choice remains, identical
        quotes share out the places in reading order, provided there are at least as many quotes as
        places. Fewer quotes than places are ambiguous, and stay unaligned.
    A phrase found at one place goes there, whatever its neighbours are said to be. A second quote
    of that place with the same reward is a repeat and stays unaligned; with another reward it is
    kept. Overlapping spans of any reward are kept: which one a token follows is decided by
    `spans.token_rewards` (by default the lowest reward).

    Method: "Text2Grad: Reinforcement Learning from Natural Language Feedback", arXiv 2505.22338,
    aligns words greedily to their first match; this does not.

    Args:
      text: the completion the quotes were taken from.
      quotes: `Quote`, (phrase, reward), or a phrase alone, which is worth +1.
      fuzzy_threshold: least likeness of a fuzzy match, in (0, 100]; None: no fuzzy stage.

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
    page = _Page(text)
    found: dict[str, _Found] = {}
    outcomes: list[CharSpan | str | None] = [None] * len(given)
    unqualified: dict[str, list[int]] = defaultdict(list)
    taken: dict[str, set[tuple[int, int]]] = defaultdict(set)

    for i, quote in enumerate(given):
        if reason := _refusal(quote):
            outcomes[i] = reason
            continue
        if quote.text not in found:
            found[quote.text] = page.find(quote.text, fuzzy_threshold)
        here = found[quote.text]
        if not here.places:
            outcomes[i] = here.reason
        elif quote.ordinal is None and (len(here.places) == 1 or not (quote.before + quote.after)):
            unqualified[quote.text].append(i)
        else:
            choice = _choose(page, here.places, quote)
            outcomes[i] = choice if isinstance(choice, str) else here.span(choice, quote)
            if not isinstance(choice, str):
                taken[quote.text].add(here.places[choice])

    for phrase, members in unqualified.items():
        rewards = [given[i].reward for i in members]
        shared = _share(page, found[phrase], rewards, taken[phrase])
        for i, outcome in zip(members, shared, strict=True):
            spanned = outcome if isinstance(outcome, str) else found[phrase].span(outcome, given[i])
            outcomes[i] = spanned

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


# Shortest phrase, in normalised characters, that may be matched fuzzily.
_FUZZY_LENGTH = 8
# A fuzzy match, or a place chosen by its neighbours, must beat the next best by this much (of 100).
_FUZZY_MARGIN = 5.0
_CONTEXT_MARGIN = 10.0
# Likeness below which neighbours are no evidence.
_CONTEXT_FLOOR = 60.0
# So many like passages are ambiguous whatever the rest of the text holds.
_FUZZY_PLACES = 16

Place = tuple[int, int]


@dataclass(frozen=True)
class _Found:
    """Every place where a phrase was found, in reading order; or none, and why."""

    places: list[Place]
    how: Literal["exact", "normalised", "fuzzy"]
    scores: list[float]
    reason: str = ""

    def span(self, i: int, quote: Quote) -> CharSpan:
        return CharSpan(*self.places[i], quote.reward, quote.text, self.how, self.scores[i])


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


def _choose(page: "_Page", places: list[Place], quote: Quote) -> int | str:
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
            return f"ordinal {quote.ordinal} and the neighbouring text name different places"
        return nth
    best, second = sorted(scores)[:-3:-1]
    if best < _CONTEXT_FLOOR:
        return f"{count}, none of them next to the text given as before or after"
    if second == best or (best < 100 and second > best - _CONTEXT_MARGIN):
        return f"{count}, and the neighbouring text does not tell them apart; give an ordinal"
    return scores.index(best)


def _share(
    page: "_Page", found: _Found, rewards: list[float], taken: set[Place]
) -> list[int | str]:
    """Places for identical quotes that name none of the phrase's places, or why they get none."""
    everywhere = range(len(found.places))
    if len(found.places) == 1:
        first = {reward: i for i, reward in reversed(list(enumerate(rewards)))}
        again = "repeats an earlier quote of the same phrase, which occurs once"
        return [0 if first[reward] == i else again for i, reward in enumerate(rewards)]
    free = [i for i in everywhere if page.is_whole(found.places[i])] or everywhere
    free = [i for i in free if found.places[i] not in taken]
    if len(rewards) < len(free):
        reason = (
            f"ambiguous: the phrase occurs {len(free)} times; give an ordinal, or the text before "
            "or after it"
        )
        return [reason] * len(rewards)
    again = "every occurrence of the phrase is taken by an identical quote"
    return [*free, *[again] * (len(rewards) - len(free))]


class _Page:
    """A text, searched for phrases. Its normalised copy is made when first needed."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def plain(self) -> "_Normalised":
        return _normalise(self.text)

    def find(self, phrase: str, threshold: float | None) -> _Found:
        if exact := _occurrences(self.text, phrase):
            return _Found(exact, "exact", [100.0] * len(exact))
        query = _normalise(phrase).text.strip()
        if not query:
            return _Found([], "normalised", [], "the quote is empty once normalised")
        if normal := [self.plain.original(p) for p in _occurrences(self.plain.text, query)]:
            normal = list(dict.fromkeys(normal))  # both f of a ligature "ﬀ" are the same character
            return _Found(normal, "normalised", [100.0] * len(normal))
        if threshold is None:
            return _Found([], "normalised", [], "the phrase is not in the text")
        if len(query) < _FUZZY_LENGTH:
            reason = f"the phrase is not in the text, and is too short (< {_FUZZY_LENGTH}) to be "
            return _Found([], "fuzzy", [], reason + "matched fuzzily")
        if not (matches := _fuzzy(self.plain.text, query, threshold)):
            reason = f"the phrase is not in the text, and no passage is {threshold:g} % like it"
            return _Found([], "fuzzy", [], reason)
        best = max(matches.values())
        near = sorted(place for place, score in matches.items() if score >= best - _FUZZY_MARGIN)
        places = [self.plain.original(place) for place in near]
        return _Found(places, "fuzzy", [matches[place] for place in near])

    def is_whole(self, place: Place) -> bool:
        """Whether no word runs on across either end of `place`."""
        return not any(_runs_on(self.text, i) for i in place)

    def context_scores(self, places: list[Place], quote: Quote) -> list[float]:
        """How well the neighbours of each place fit the quote's, 0 to 100; verbatim is 100."""
        before, after = _normalise(quote.before).text.strip(), _normalise(quote.after).text.strip()
        verbatim = [
            self.text[max(0, start - len(quote.before)) : start] == quote.before
            and self.text.startswith(quote.after, end)
            for start, end in places
        ]
        if quote.ordinal is None and any(verbatim):
            return [100.0 * fits for fits in verbatim]
        scores = []
        for (start, end), fits in zip(places, verbatim, strict=True):
            if fits:
                scores.append(100.0)
                continue
            start, end = (bisect_left(self.plain.starts, i) for i in (start, end))
            head = self.plain.text[max(0, start - len(before) - 1) : start].strip()
            tail = self.plain.text[end : end + len(after) + 1].strip()
            parts = [fuzz.ratio(before, head[-len(before) :])] if before else []
            parts += [fuzz.ratio(after, tail[: len(after)])] if after else []
            # Below a verbatim fit, so that one verbatim place wins over its normalised likes.
            scores.append(min(sum(parts) / len(parts), 99.0) if parts else 0.0)
        return scores


def _occurrences(text: str, phrase: str) -> list[Place]:
    """Where `phrase` occurs in `text`, overlaps included."""
    places, at = [], text.find(phrase)
    while at >= 0:
        places.append((at, at + len(phrase)))
        at = text.find(phrase, at + 1)
    return places


@dataclass(frozen=True)
class _Normalised:
    """A normalised text; its character i stands for starts[i] ≤ j < ends[i] of the original."""

    text: str
    starts: list[int]
    ends: list[int]

    def original(self, place: Place) -> Place:
        return self.starts[place[0]], self.ends[place[1] - 1]


_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`", "'"),
        **dict.fromkeys("“”„‟«»", '"'),
        **dict.fromkeys("‐‒–—―−", "-"),
        # Invisible: soft hyphen, zero-width space, word joiner, byte order mark, emoji selectors.
        **dict.fromkeys("\u00ad\u200b\u2060\ufeff\ufe0e\ufe0f", None),
    }
)
# Conjoining Hangul vowels and final consonants, and half-width Japanese voicing marks: letters by
# their category, but NFKC joins them to the letter before.
_JOINING = re.compile("[\u1160-\u11ff\ud7b0-\ud7ff\uff9e\uff9f\uffa0-\uffdc]")
# Scripts written without spaces between words: there, any two characters may be parted.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)


def _normalise(text: str) -> _Normalised:
    out: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    start = 0
    while start < len(text):
        # One character and whatever combines with it: NFKC of the parts is then NFKC of the whole.
        end = start + 1
        while end < len(text) and (_is_mark(text[end]) or _JOINING.match(text[end])):
            end += 1
        part = text[start:end]
        if not part.isascii() or part == "`":
            # NFKC makes a spacing acute, typed as an apostrophe, a space and an accent.
            part = unicodedata.normalize("NFKC", part).replace(" \u0301", "'").translate(_PLAIN)
            part = unicodedata.normalize("NFKC", part.casefold())
        for char in part.lower() if part.isascii() else part:
            if char.isspace() and out and out[-1] == " ":
                ends[-1] = end
            else:
                out.append(" " if char.isspace() else char)
                starts.append(start)
                ends.append(end)
        start = end
    return _Normalised("".join(out), starts, ends)


def _is_mark(char: str) -> bool:
    return char > "\u02ff" and unicodedata.category(char)[0] == "M"


def _runs_on(text: str, i: int) -> bool:
    """Whether a word runs on from text[i − 1] to text[i]."""
    if not 0 < i < len(text):
        return False
    left, right = text[i - 1], text[i]
    if _is_mark(right) or "\u200d" in (left, right):  # an accent; a joined emoji
        return not left.isspace()
    return all(
        (char.isalnum() or char == "_" or _is_mark(char)) and not _UNSPACED.match(char)
        for char in (left, right)
    )


def _fuzzy(text: str, query: str, threshold: float) -> dict[Place, float]:
    """Disjoint passages of a normalised text at least `threshold` like `query`, with likeness."""
    matches: dict[Place, float] = {}
    todo = [(0, len(text))]
    while todo and len(matches) < _FUZZY_PLACES:
        low, high = todo.pop()
        # Too short to be like the query, though the query may hold all of it.
        if 200 * (high - low) < threshold * (high - low + len(query)):
            continue
        # The window has the length of the query and may cut words, so it may score lower.
        hit = fuzz.partial_ratio_alignment(query, text[low:high], score_cutoff=0.85 * threshold)
        if hit is None or hit.dest_start == hit.dest_end:
            continue
        window = low + hit.dest_start, low + hit.dest_end
        start, end = _snap(text, window, query)
        score = fuzz.ratio(query, text[start:end])
        if score >= threshold and _numbers(query) == _numbers(text[start:end]):
            matches[start, end] = score
        start, end = min(start, window[0]), max(end, window[1])
        todo += [(low, start), (end, high)]
    return matches


def _snap(text: str, window: Place, query: str) -> Place:
    """The passage most like `query` that starts and ends between words, near the window's ends."""
    starts = _nearby(text, window[0], lambda i: i < len(text) and text[i] != " ")
    ends = _nearby(text, window[1], lambda i: i > 0 and text[i - 1] != " ")
    passages = [(start, end) for start in starts for end in ends if start < end]
    likeness = lambda p: (fuzz.ratio(query, text[slice(*p)]), p[0] - p[1])  # noqa: E731
    return max(passages, key=likeness, default=(window[0], window[0]))


def _nearby(text: str, at: int, fits: Callable[[int], bool]) -> list[int]:
    """Up to three positions between words on each side of `at`, and `at` itself if it is one."""
    left = (i for i in range(at, -1, -1) if not _runs_on(text, i) and fits(i))
    right = (i for i in range(at + 1, len(text) + 1) if not _runs_on(text, i) and fits(i))
    return [*islice(left, 3), *islice(right, 3)]


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)
