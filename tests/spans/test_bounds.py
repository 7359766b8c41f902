"""Work on what models and judges write is bounded, however they write it."""

import random
import time

import pytest

from t2g_jax.spans import search
from t2g_jax.spans.align import Quote, align

LENGTH = 16_000
rng = random.Random(0)
TEXTS = {
    "words": " ".join("".join(rng.choices("abcdefgh", k=rng.randint(2, 9))) for _ in range(3000)),
    "lines": "the cat sat on the mat. " * 700,
    "letters": "a" * LENGTH,
    "pairs": "a " * (LENGTH // 2),
    "accents": "e" + "\u0301\u0323" * (LENGTH // 2),
    "flags": "\U0001f1eb" * LENGTH,
    "characters": "漢字" * (LENGTH // 2),
    "code": "a=b;" * (LENGTH // 4),
    "marks": "'\"" * (LENGTH // 2),
    "escapes": '"\\' * (LENGTH // 2),
    "tags": "<a" * (LENGTH // 2),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_quote_of_half_a_text_is_decided_in_bounded_time(name):
    """A quarter of a second on a core of one's own; a search without bounds takes a minute."""
    text = TEXTS[name][:LENGTH]
    half = text[LENGTH // 4 : LENGTH * 3 // 4]
    for quote in (half + " zzz", half[:3000] + " zzz " + half[3000:], half.upper(), text + "!"):
        begin = time.process_time()
        align(text, [quote])
        assert time.process_time() - begin < 20


@pytest.mark.parametrize("name", ["words", "lines", "pairs", "code"])
def test_what_takes_too_many_steps_is_cut_with_a_reason(monkeypatch, name):
    monkeypatch.setattr(search, "STEPS", 30_000)
    text = TEXTS[name][:LENGTH]
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
    monkeypatch.setattr(search, "STEPS", 2000)
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
