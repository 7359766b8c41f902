"""Finding quotes in what they are of: how long it takes at most, whatever a judge writes."""

from __future__ import annotations

import random
import time

from benchmarks.measure import Section, duration
from t2g_jax.spans.align import align

COMPLETION = 64_000
CRITIQUE = 100_000

_SMILE, _SKIN, _JOIN = "\U0001f44d", "\U0001f3fd", "\u200d"
_UNITS = {
    "letters": "a",
    "single letters": "a ",
    "sentences": "the cat sat on the mat. ",
    "misspelled": "teh cta sta no hte mta. ",
    "accents": "e" + "\u0301\u0323" * 40,
    "flags": "\U0001f1eb",
    "emoji": _SMILE + _SKIN + _JOIN,
    "Chinese": "漢字",
    "ligatures": "\ufb01\ufdfa",
    "code": "a=b;",
    "brackets": "((()))[]",
    "quotation marks": "'\"",
    "escapes": '"\\',
    "tags": "<a",
    "ellipses": "a … b ... ",
    "numbers": "1 2 3.0 -4 ",
    "blank lines": "a\n\n\t ",
    "LaTeX": "\\frac{a}{b}$",
}


def measure(*, small: bool = False) -> Section:
    size = 2_000 if small else COMPLETION
    rows = []
    for name, text in _texts(size).items():
        one = max(_seconds(text, [quote]) for quote in _quotes(text))
        many = max(
            _seconds(text, quotes) for quotes in _critiques(text, CRITIQUE * size // COMPLETION)
        )
        rows.append([name, duration(one), duration(many)])
    words = f"""
A completion of {size:,} characters of one kind; the longest of several quotes that are almost in
it, in seconds of the processor, and of critiques of {CRITIQUE * size // COMPLETION:,} characters:
hundreds of quotes that are not there. Work is counted in steps and cut where it is too much, with a
reason, so that no judge keeps a run waiting.
"""
    return Section(
        "Finding quotes",
        words,
        ["text", "one quote, target: ≤ 1 s", "a critique, target: ≤ 5 s"],
        rows,
    )


def _texts(size: int) -> dict[str, str]:
    rng = random.Random(0)
    words = ("".join(rng.choices("abcdefgh", k=rng.randint(2, 9))) for _ in range(size))
    repeated = {name: (unit * (size // len(unit) + 1))[:size] for name, unit in _UNITS.items()}
    return {"words": " ".join(words)[:size]} | repeated


def _quotes(text: str) -> list[str]:
    """What is almost there: with something added, in the middle or at the end, in capitals."""
    half = text[len(text) // 4 : len(text) * 3 // 4]
    third = len(half) // 3
    return [
        half + " zzz",
        half[:third] + " zzz " + half[third:],
        half.upper(),
        half[::-1],
        half[:third] + "…" + half[-third:] + " zzz",
        text + "!",
        "".join(letter for i, letter in enumerate(half) if i % 50),
    ]


def _critiques(text: str, size: int) -> list[list[str]]:
    """Quotes of so many characters together, none of which is there as it stands."""

    def cut(length: int) -> list[str]:
        starts = [(i * 7919) % max(len(text) - length, 1) for i in range(size // length)]
        return [text[start : start + length - 2].upper() + "qz" for start in starts]

    return [cut(20), cut(50), cut(500), cut(5000), [(text + text)[: size - 2] + "qz"]]


def _seconds(text: str, quotes: list[str]) -> float:
    begin = time.process_time()
    align(text, quotes)
    return time.process_time() - begin
