"""From phrases quoted by a judge to character spans, and from character spans to token spans.

Wrong labels hurt a reward model more than missing ones, so a quote is aligned only where its place
is certain. Every other quote comes back in `Alignment.unaligned` with the reason in words.
"""

import contextlib
import gc
import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

from t2g_jax.spans.page import Found, Page
from t2g_jax.spans.quotes import Alignment, CharSpan, Quote, TokenSpan, Unaligned
from t2g_jax.spans.reading import Place
from t2g_jax.spans.search import TooLong

# A place chosen by its neighbors must beat the next best by this much (of 100); likeness below
# which neighbors are no evidence.
_CONTEXT_MARGIN = 10.0
_CONTEXT_FLOOR = 60.0
_TOO_LONG = (
    "too long to search: its places take more steps to compare than they may; quote a shorter "
    "phrase as it stands, or fewer phrases"
)


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
      TypeError: text is no string, quotes are no list, or a quote is of none of these forms. A
        string is no list of quotes: its letters would be.
      ValueError: fuzzy_threshold is outside (0, 100].
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {text!r}")
    check_quotes(quotes)
    if fuzzy_threshold is not None and not 0 < fuzzy_threshold <= 100:
        raise ValueError(f"fuzzy_threshold must be in (0, 100] or None, got {fuzzy_threshold!r}")
    given = [_as_quote(quote) for quote in quotes]
    page = Page(text, fuzzy_threshold)
    outcomes: list[CharSpan | str | None] = [None] * len(given)
    # Quotes that name none of their phrase's places, by the phrase and its place if it is one.
    unnamed: dict[tuple[str, Place | None], tuple[Found, list[int]]] = {}
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


def check_quotes(quotes: Any) -> None:
    """TypeError unless these may be several quotes: what is one by itself, or a mapping, is not.

    >>> from t2g_jax.spans.align import check_quotes
    >>> check_quotes(["cat", ("dog", -1.0)])
    """
    if isinstance(quotes, Mapping):
        raise TypeError(
            f"quotes must be a list of quotes, got {quotes!r}; give (phrase, reward) pairs, "
            "list(quotes.items())"
        )
    if isinstance(quotes, str | bytes | Quote):
        raise TypeError(f"quotes must be a list of quotes, got {quotes!r}; give [{quotes!r}]")
    if not isinstance(quotes, Iterable):
        raise TypeError(f"quotes must be a list of quotes, got {quotes!r}; give [] for none")


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


def _choose(page: Page, places: Sequence[Place], quote: Quote) -> int | str:
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


def _share(found: Found, rewards: list[float], taken: set[Place]) -> list[int | str]:
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
