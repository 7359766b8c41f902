import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2g_jax.errors import T2GError
from t2g_jax.judges import Critique, CritiqueLevel
from t2g_jax.spans.align import align
from t2g_jax.spans.quotes import Quote
from t2g_jax.tasks.puzzles.quoting import phrase, quote_at, quote_last_line

QUOTES = st.builds(
    Quote,
    text=st.text(),
    reward=st.floats(-2, 2),
    ordinal=st.none() | st.integers(1, 9),
    before=st.text(),
    after=st.text(),
)


@given(st.text(), st.lists(QUOTES, max_size=3), st.text())
def test_json_round_trip(text, quotes, reasoning):
    critique = Critique(text, tuple(quotes), reasoning)
    assert Critique.from_dict(json.loads(json.dumps(critique.to_dict()))) == critique


def test_what_may_be_left_out():
    assert Critique.from_dict({"text": "Good."}) == Critique("Good.")
    values = {"text": "Good.", "quotes": [{"text": "so", "reward": 1}]}
    assert Critique.from_dict(values).quotes == (Quote("so", 1.0),)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "critique: is \\[\\]; must be a mapping"),
        ({}, "critique: `text` is missing"),
        ({"text": 3}, "critique: `text` is 3; must be text"),
        ({"text": "", "critique": ""}, "unknown key `critique`; known: text, quotes, reasoning"),
        ({"text": "", "reasoning": None}, "critique: `reasoning` is None; must be text"),
        ({"text": "", "quotes": {}}, "critique: `quotes` is {}; must be a list"),
        ({"text": "", "quotes": ["so"]}, "quotes\\[0\\]: is 'so'; must be a mapping"),
        ({"text": "", "quotes": [{"text": "so"}]}, "quotes\\[0\\]: `reward` is missing"),
        ({"text": "", "quotes": [{"reward": 1}]}, "quotes\\[0\\]: `text` is missing"),
        ({"text": "", "quotes": [{"text": "so", "reward": True}]}, "`reward` is True; must be"),
        ({"text": "", "quotes": [{"text": "so", "reward": float("nan")}]}, "`reward` is nan"),
        ({"text": "", "quotes": [{"text": "", "reward": 1, "ordinal": 0}]}, "`ordinal` is 0"),
        ({"text": "", "quotes": [{"text": "", "reward": 1, "before": 0}]}, "`before` is 0"),
    ],
)
def test_critiques_that_cannot_be_read(values, message):
    with pytest.raises(T2GError, match=message):
        Critique.from_dict(values)


@given(st.text("aab \n", min_size=1, max_size=30), st.data())
def test_quotes_mean_the_place_they_are_taken_from(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    quote = quote_at(text, start, end, -1.0)
    if quote.text.strip():
        (span,) = align(text, [quote]).spans
        assert (span.start, span.end, span.reward, span.how) == (start, end, -1.0, "exact")


@given(st.text("ab \n\t", max_size=30))
def test_quote_of_the_last_line(text):
    lines = text.split()
    quotes = quote_last_line(text, -1.0)
    assert len(quotes) == bool(lines)
    if lines:
        assert quotes[0].text == text.strip().split("\n")[-1].strip()
        assert len(align(text, quotes).spans) == 1


def test_phrase():
    def say(level, max_listed=8):
        return phrase(level, what="Two.", where=["A.", "B.", "C."], max_listed=max_listed)

    assert say(CritiqueLevel.CORRECTNESS) == "Wrong."
    assert say(CritiqueLevel.WHAT) == "Two."
    assert say(CritiqueLevel.WHERE) == "A. B. C."
    assert say(CritiqueLevel.WHERE, 3) == "A. B. C."
    assert say(CritiqueLevel.WHERE, 2) == "A. B. And 1 more error."
    assert say(CritiqueLevel.WHERE, 1) == "A. And 2 more errors."
