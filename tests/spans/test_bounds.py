"""Work on what models and judges write is bounded, however they write it."""

import gc
import random
import sys

import pytest

from t2g_jax.spans import search
from t2g_jax.spans.align import align
from t2g_jax.spans.quotes import Quote
from t2g_jax.spans.reading import Reading

# What a target is set for: half of a completion misquoted, or a critique that is nowhere in it.
COMPLETION, CRITIQUE = 64_000, 100_000
rng = random.Random(0)
WORDS = " ".join("".join(rng.choices("abcdefgh", k=rng.randint(2, 9))) for _ in range(12_000))
TEXTS = {
    name: (unit * (COMPLETION // len(unit) + 1))[:COMPLETION]
    for name, unit in {
        "words": WORDS,
        "lines": "the cat sat on the mat. ",
        "letters": "a",
        "pairs": "a ",
        "accents": "e" + "\u0301\u0323" * 40,
        "marked letters": "a\u0301\u0302 b\u0303 ",
        "Greek": "η γάτα κάθισε στο χαλάκι. ",
        "flags": "\U0001f1eb",
        "characters": "漢字",
        "ligatures": "\ufb01\ufdfa",
        "code": "a=b;",
        "brackets": "((()))[]",
        "marks": "'\"",
        "escapes": '"\\',
        "tags": "<a",
        "numbers": "1 2 3.0 -4 ",
    }.items()
}


@pytest.fixture
def budgets(monkeypatch):
    """The budget of each alignment."""
    made = []

    class Kept(search.Budget):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(sys.modules["t2g_jax.spans.page"], "Budget", Kept)
    return made


def _half(text):
    return text[len(text) // 4 : len(text) * 3 // 4]


def _critique(text, size, length):
    """Quotes of so many characters each and together, none of which stands there."""
    starts = ((i * 7919) % (len(text) - length) for i in range(size // length))
    return [text[start : start + length - 2].upper() + "qz" for start in starts]


@pytest.mark.parametrize("name", ["words", "lines", "marked letters", "flags", "code", "escapes"])
def test_half_of_a_long_completion_misquoted_takes_the_steps_of_a_quote(name, budgets):
    text = TEXTS[name]
    quote = _half(text) + " zzz"
    align(text, [quote])
    read = Reading(text).steps
    least = read + len(quote)  # both are read, which counts
    assert least <= budgets[-1].spent <= read + search.STEPS_EACH <= search.STEPS


@pytest.mark.parametrize("length", [20, 5000])
@pytest.mark.parametrize("name", ["words", "lines", "flags"])
def test_a_long_critique_takes_the_steps_of_all_quotes(name, length, budgets):
    text = TEXTS[name]
    quotes = _critique(text, CRITIQUE, length)
    assert sum(map(len, quotes)) == CRITIQUE
    found = align(text, quotes)
    assert len(found.spans) + len(found.unaligned) == len(quotes)
    assert Reading(text).steps + len(set(quotes)) * length // 2 < budgets[-1].spent <= search.STEPS


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_done_is_counted(name, budgets):
    """Python's calls are an independent count of the work: some ten of them take a microsecond."""
    text = TEXTS[name][:500]
    half = _half(text)
    for quotes in (
        [half + " zzz"],
        ["".join(letter for i, letter in enumerate(half) if i % 50)],
        [half.upper()],
        [half[::-1]],
        [Quote(text[:1], 1.0, before="q" * 300 + text[-3:])],
        _critique(text, 800, 20),
        _critique(text, 800, 200),
    ):
        assert _calls(text, quotes) < 20 * budgets[-1].spent + 1000


def _calls(text, quotes):
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        align(text, quotes)
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("name", ["words", "lines", "pairs", "code"])
def test_what_takes_too_many_steps_is_cut_with_a_reason(monkeypatch, name):
    monkeypatch.setattr(search, "STEPS", 100_000)
    text = TEXTS[name][:16_000]
    quotes = [text[i : i + 9] + " " + text[i + 9 : i + 19] for i in range(0, 9000, 13)]
    alignment = align(text, [*quotes, Quote(text[:1], 1.0, before="zz"), text])
    assert alignment.spans[-1].quote == text  # what stands there is found, whatever went before
    assert any("too long to search" in item.reason for item in alignment.unaligned)
    assert alignment == align(text, [*quotes, Quote(text[:1], 1.0, before="zz"), text])


def test_steps_are_those_of_all_quotes_together(monkeypatch):
    text = TEXTS["words"][:9000]
    quotes = [text[i : i + 50].upper() + "q" for i in range(0, 8000, 100)]
    reasons = {item.reason for item in align(text, quotes).unaligned}
    assert not any("too long" in reason for reason in reasons)
    monkeypatch.setattr(search, "STEPS", Reading(text).steps + 5000)
    late = align(text, quotes).unaligned
    assert "too long" not in late[0].reason
    assert all("too long" in item.reason for item in late[-40:])


def test_a_phrase_with_too_many_places_is_found_by_its_ordinal_alone():
    text = "ab" * 20_000
    assert align(text, [Quote("a", 1.0, ordinal=3)]).spans[0].start == 4
    for quote in (Quote("a", 1.0), Quote("a", 1.0, ordinal=15_000), Quote("a", 1.0, after="b")):
        assert "too long to search" in align(text, [quote]).unaligned[0].reason


def test_a_very_long_text_is_searched_for_phrases_as_they_stand():
    text = "word " * 50_000 + "the end"
    assert align(text, ["the end"]).spans[0].start == 250_000
    assert "too long to be searched for more" in align(text, ["The End"]).unaligned[0].reason


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_afterwards_as_before(enabled):
    try:
        (gc.enable if enabled else gc.disable)()
        align("text", ["text"])
        assert gc.isenabled() == enabled
        with pytest.raises(TypeError):
            align("text", [None])
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
