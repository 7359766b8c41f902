"""Whether a quote and a passage that are alike can only mean the same.

What may differ: white space, case, quotation marks, dashes, ellipses, forms of words, and long
words misspelled. What may not: any other word, number, operator or sign; in code, any character but
white space. Negations, comparisons and short words that turn a meaning around are among those.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise, zip_longest

import regex
from rapidfuzz.distance import Levenshtein

from t2g_jax.spans import words
from t2g_jax.spans.reading import NUMBER, WORD, Place, Reading, Unit, visible

_LISTED = 3
_LONGEST_LISTED = 30
# Differences are searched for among so many units; of more, the first is named.
_COMPARED = 300


def same(quote: Reading, here: Sequence[Unit], text: Reading, there: Sequence[Unit]) -> bool:
    """Whether some units of a quote can only mean the same as some of a text."""
    if len(here) != len(there):
        return False
    if _is_code(quote, here) or _is_code(text, there):
        return _tokens(quote, here) == _tokens(text, there)
    loud = _is_loud(quote, here) or _is_loud(text, there)
    before = None
    for q, t in zip(here, there, strict=True):
        if _in(text.code.inline, text, [t]) or _in(quote.code.inline, quote, [q]):
            if quote.raw((q.start, q.end)) != text.raw((t.start, t.end)):
                return False
        elif not (may_be(q, t.key) and (loud or _same_case(quote, q, text, t, before, here))):
            return False
        if q.key != t.key and (_is_in_name(quote, q) or _is_in_name(text, t)):
            return False
        before = q
    gaps = zip(_gaps(quote, here), _gaps(text, there), strict=True)
    return all(a == b or "-" in (a, b) for a, b in gaps)


def may_be(unit: Unit, key: str) -> bool:
    """Whether a unit of a quote, in prose and whatever its case, may be written `key` in a text."""
    if unit.key == key:
        return True
    if unit.kind != WORD or not (is_plain(unit.key) and is_plain(key)):
        return False
    a, b = unit.key.removesuffix("'s"), key.removesuffix("'s")
    return a == b or words.is_misspelling(a, b) or words.is_form(a, b)


def is_plain(key: str) -> bool:
    """Whether a word has forms and may be misspelled: a name in code or with accents does not."""
    return len(key) > 2 and key.isascii() and key.removesuffix("'s").isalpha()


def differences(quote: Reading, here: Sequence[Unit], text: Reading, there: Sequence[Unit]) -> str:
    """What differs, in words: 'not', 'safe' / 'unsafe', ..."""
    pairs = []
    if _is_code(quote, here) or _is_code(text, there):
        pairs = _edits(_tokens(quote, here), _tokens(text, there))
    if not pairs:
        pairs = _edits([unit.key for unit in here], [unit.key for unit in there])
        telling = [(a, b) for a, b in pairs if not may_be(Unit(a, WORD, 0, 0), b)]
        # If none is, then forms of names or words in code, or their case; or dashes and spaces.
        pairs = telling or pairs or _edits(_raw(quote, here), _raw(text, there))
        pairs = pairs or _edits(_written(quote, here).split(), _written(text, there).split())
    shown = [" / ".join(repr(_short(part)) for part in pair if part) for pair in pairs[:_LISTED]]
    return ", ".join([*shown, *["…"] * (len(pairs) > _LISTED)])


def _edits(a: list[str], b: list[str]) -> list[tuple[str, str]]:
    """What must be replaced, in pairs, one side of a pair being empty for what is added."""
    start = next((i for i, (x, y) in enumerate(zip_longest(a, b)) if x != y), len(a))
    if max(len(a), len(b)) - start > _COMPARED:
        return [(" ".join(a[start : start + 1]), " ".join(b[start : start + 1]))]
    pairs: list[tuple[str, str]] = []
    for edit in Levenshtein.opcodes(a[start:], b[start:]):
        if edit.tag == "equal":
            continue
        left = a[start + edit.src_start : start + edit.src_end]
        right = b[start + edit.dest_start : start + edit.dest_end]
        if edit.tag == "replace":
            pairs += zip(left, right, strict=True)
        else:
            pairs.append((" ".join(left), " ".join(right)))
    return pairs


def _short(words: str) -> str:
    return words if len(words) <= _LONGEST_LISTED else words[: _LONGEST_LISTED - 1] + "…"


def _gaps(reading: Reading, units: Sequence[Unit]) -> list[str]:
    """What stands between units and is none, where it says something: " - ", "-" or ","; or "".

    A dash with space around it may be a minus: "price - cost" is another than "price cost". A comma
    within a number has none behind it: 1,2 is another than 1, 2.
    """
    plain = reading.plain.text
    gaps = []
    for left, right in pairwise(units):
        between = plain[left.end : right.start]
        if "-" in between:
            gaps.append(" - " if " -" in between or "- " in between else "-")
        else:
            within = left.key == "," and right.kind == NUMBER and not between
            gaps.append("," if within and plain[max(left.start - 1, 0)].isdigit() else "")
    return gaps


# Case


def _same_case(
    quote: Reading, q: Unit, text: Reading, t: Unit, before: Unit | None, passage: Sequence[Unit]
) -> bool:
    """Whether case makes no other word of `q` than of `t`."""
    if q.kind != WORD:
        return True
    a, b = (visible(side.raw((u.start, u.end))) for side, u in ((quote, q), (text, t)))
    if a == b:
        return True
    if q.key != t.key:
        # A name has no forms: Adam is not Adams.
        names = a[0].isupper() and b[0].isupper()
        return not names or not (a.rstrip("s") == b.rstrip("s") or _in_sentence(text, t))
    if "_" in a or any(char.isdigit() for char in a):  # x1 is not X1
        return False
    if _CAMEL.match(b):  # maxValue is a name in code
        return False
    if len(a) == 1 and a not in "aAiI":  # nor n N, beside words or numbers of the same alphabet
        return not any(unit.key.isascii() for unit in passage if unit is not q)
    if a.lower() in _INITIALS and {a.isupper(), b.isupper()} == {True, False}:
        return False
    measured = before is not None and before.kind == NUMBER
    return not (measured and (_UNITS.fullmatch(a) or _UNITS.fullmatch(b)))


def _is_in_name(reading: Reading, unit: Unit) -> bool:
    """Whether a word is part of a dotted name, a path, an address or an option: it has no forms."""
    plain = reading.plain.text
    left = plain[max(0, unit.start - _LONGEST_NAME) : unit.start]
    right = plain[unit.end : unit.end + _LONGEST_NAME]
    left = "" if left[-1:].isspace() else "".join(left.split()[-1:])
    right = "" if right[:1].isspace() else "".join(right.split()[:1])
    return _NAME.search(f"{left}{plain[unit.start : unit.end]}{right}") is not None


def _is_loud(reading: Reading, units: Sequence[Unit]) -> bool:
    """Whether all of a passage of several words is in capitals: then case says nothing."""
    letters = _raw(reading, [unit for unit in units if unit.kind == WORD])
    return sum(len(word) > 1 for word in letters) > 1 and all(word.isupper() for word in letters)


def _in_sentence(text: Reading, unit: Unit) -> bool:
    before = text.plain.text[max(0, unit.start - 3) : unit.start].rstrip("\"' ")
    return bool(before) and before[-1] not in ".!?:"


_LONGEST_NAME = 100
_NAME = regex.compile(r"\w[./\\@]\w|(?:^|[(\[\"'])--?\p{L}")
_CAMEL = regex.compile(r"\p{Ll}+\p{Lu}")
# US is not us.
_INITIALS = frozenset("aids it us who".split())
# Units that only case tells apart: 5 mW, 5 MW.
_UNITS = regex.compile("[munpfkMGTPKg]?(?:W|A|V|[bB]|g|m|s|[hH]z|J|N|Pa|F|[lL]|[cC]|[kK]|[wW]h?)")


# Code


def _is_code(reading: Reading, units: Sequence[Unit]) -> bool:
    return bool(units) and _in(reading.code.blocks, reading, units)


def _in(places: list[Place], reading: Reading, units: Sequence[Unit]) -> bool:
    """Whether a passage has a character in one of several disjoint places, which are in order."""
    start, end = _place(reading, units)
    i = bisect_right(places, start, key=lambda place: place[1])
    return i < len(places) and places[i][0] < end


def _tokens(reading: Reading, units: Sequence[Unit]) -> list[str]:
    """The code of a passage without white space, but for that in strings."""
    found = _TOKEN.finditer(_written(reading, units))
    return [match[0] for match in found if match[0] != "`"]


def _written(reading: Reading, units: Sequence[Unit]) -> str:
    return reading.raw((units[0].start, units[-1].end)) if units else ""


def _raw(reading: Reading, units: Sequence[Unit]) -> list[str]:
    return [reading.raw((unit.start, unit.end)) for unit in units]


def _place(reading: Reading, units: Sequence[Unit]) -> Place:
    if not units:
        return 0, 0
    return reading.plain.original((units[0].start, units[-1].end))


_TOKEN = regex.compile(
    r"""
    "(?:[^"\\\n]|\\.){0,300}+" | '(?:[^'\\\n]|\\.){0,300}+'
    | <<= | >>= | \*\*= | //= | === | !== | -> | => | == | != | <= | >= | && | \|\| | \+\+ | --
    | \+= | -= | \*= | /= | %= | &= | \|= | \^= | := | :: | \*\* | // | << | >> | \.\.\.
    | [\p{L}\p{M}\p{N}_]+ | \S
    """,
    regex.VERBOSE,
)
