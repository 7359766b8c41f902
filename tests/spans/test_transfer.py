import itertools

import numpy as np
import pytest
from family_tokenizers import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from t2g_jax.spans import TokenSpan, transfer_spans, transfer_values

TOKENIZERS = {name: family.make() for name, family in FAMILIES.items()}
TEXT = "The cat sat on\nthe  mat."


def pieces(text, cuts):
    return list(itertools.pairwise([0, *sorted(cuts), len(text)]))


@st.composite
def tokenizations(draw, text=TEXT):
    """Cuts at any characters, some of them (as bytes are) more than one token for a character, and
    tokens without text."""
    offsets = pieces(text, draw(st.sets(st.integers(1, len(text) - 1))))
    out = []
    for start, end in offsets:
        if draw(st.integers(0, 9)) == 0:
            out.append((start, start))
        out += [(start, end)] * (draw(st.integers(1, 3)) if end - start == 1 else 1)
    return out + [(len(text), len(text))] * draw(st.integers(0, 1))


cut_only = st.sets(st.integers(1, len(TEXT) - 1)).map(lambda cuts: pieces(TEXT, cuts))


def numbers(offsets, seed=0):
    return np.random.default_rng(seed).normal(size=len(offsets))


def by_characters(values, source, target):
    """Character after character; None where a token has none in common with the source."""
    out = []
    for start, end in target:
        if start == end:
            here = [v for v, o in zip(values, source, strict=True) if o == (start, start)]
        else:
            here = [
                np.mean([v for v, (a, b) in zip(values, source, strict=True) if a <= c < b])
                for c in range(start, end)
            ]
        out.append(np.mean(here) if here else None)
    return out


def test_by_hand():
    # "abcdef" as ab|cdef and as a|bcd|ef; then an end token
    source, target = [(0, 2), (2, 6), (6, 6)], [(0, 1), (1, 4), (4, 6), (6, 6)]
    carried = transfer_values([1.0, -2.0, 5.0], source, target)
    np.testing.assert_allclose(carried, [1, (1 - 2 - 2) / 3, -2, 5])
    assert carried.dtype == np.float32
    np.testing.assert_allclose(transfer_values(carried, target, source), [0, -1.5, 5], atol=1e-6)
    # Two tokens have a character between them; nobody has the end token.
    np.testing.assert_allclose(
        transfer_values([1.0, 3.0], [(0, 1), (0, 1)], [(0, 1), (1, 1)], silent=7), [2, 7]
    )
    assert transfer_values([], [], []).shape == (0,)


@given(source=tokenizations(), target=tokenizations())
def test_against_a_loop_over_characters(source, target):
    values = numbers(source)
    if source == target:
        expected = values
    else:
        found = by_characters(values, source, target)
        expected = [-9 if value is None else value for value in found]
    carried = transfer_values(values, source, target, silent=-9)
    np.testing.assert_allclose(carried, expected, rtol=1e-5, atol=1e-6)


@given(source=tokenizations(), target=tokenizations())
def test_a_constant_stays_and_nothing_leaves_its_bounds(source, target):
    np.testing.assert_allclose(
        transfer_values(np.full(len(source), 0.5), source, target, silent=0.5), 0.5
    )
    values = numbers(source)
    carried = transfer_values(values, source, target, silent=values[0])
    assert carried.min() >= values.min() - 1e-6
    assert carried.max() <= values.max() + 1e-6


@given(source=cut_only, target=cut_only)
def test_the_mean_over_characters_stays(source, target):
    values = numbers(source)
    carried = transfer_values(values, source, target)
    weigh = lambda v, offsets: sum(x * (b - a) for x, (a, b) in zip(v, offsets, strict=True))  # noqa: E731
    np.testing.assert_allclose(weigh(carried, target), weigh(values, source), atol=1e-4)


@given(coarse=st.sets(st.integers(1, len(TEXT) - 1)), more=st.sets(st.integers(1, len(TEXT) - 1)))
def test_to_smaller_tokens_and_back_is_as_it_was(coarse, more):
    source, target = pieces(TEXT, coarse), pieces(TEXT, coarse | more)
    values = numbers(source)
    there = transfer_values(values, source, target)
    np.testing.assert_allclose(transfer_values(there, target, source), values, rtol=1e-5, atol=1e-6)


@given(tokens=tokenizations())
def test_the_same_tokens_keep_their_values(tokens):
    values = numbers(tokens)
    np.testing.assert_array_equal(
        transfer_values(values, tokens, tokens), values.astype(np.float32)
    )


@given(source=tokenizations(), target=tokenizations())
def test_probabilities_stay_probabilities_and_every_column_is_carried_alone(source, target):
    p = np.random.default_rng(0).dirichlet(np.ones(3), len(source))
    neutral = np.array([0.0, 1.0, 0.0])
    carried = transfer_values(p, source, target, silent=neutral)
    assert carried.shape == (len(target), 3)
    np.testing.assert_allclose(carried.sum(-1), 1, rtol=1e-5)
    for column in range(3):
        alone = transfer_values(p[:, column], source, target, silent=neutral[column])
        np.testing.assert_allclose(carried[:, column], alone, rtol=1e-6)


def test_values_that_are_not_one_a_token():
    with pytest.raises(ValueError, match=r"shape \(2,\), but source has 1 tokens"):
        transfer_values([1.0, 2.0], [(0, 1)], [(0, 1)])


# Spans


@given(source=tokenizations(), target=tokenizations(), data=st.data())
def test_a_span_covers_the_tokens_that_share_its_words(source, target, data):
    start = data.draw(st.integers(0, len(source)))
    end = data.draw(st.integers(start, len(source)))
    (carried,) = transfer_spans([TokenSpan(start, end, -1.0)], TEXT, source, target)
    assert carried.reward == -1.0
    covered = [c for a, b in source[start:end] for c in range(a, b)]
    if not covered:
        assert carried.start == carried.end
        return
    words = [c for c in covered if not TEXT[c].isspace()]
    if words:  # white space at the ends does not count
        covered = range(min(words), max(words) + 1)
    touched = [j for j, (a, b) in enumerate(target) if set(range(a, b)) & set(covered)]
    assert (carried.start, carried.end) == (touched[0], touched[-1] + 1)


def test_spans_keep_their_order_and_what_is_none_is_refused():
    source, target = [(0, 3), (3, 7), (7, 24)], [(0, 24)]
    spans = [TokenSpan(1, 2, 1.0), TokenSpan(0, 0, 0.0), TokenSpan(0, 1, -1.0)]
    carried = transfer_spans(spans, TEXT, source, target)
    assert carried == (TokenSpan(0, 1, 1.0), TokenSpan(0, 0, 0.0), TokenSpan(0, 1, -1.0))
    for start, end in ((0, 4), (2, 1), (-1, 1)):
        with pytest.raises(ValueError, match="is no span of 3 tokens"):
            transfer_spans([TokenSpan(start, end, 1.0)], TEXT, source, target)


# Between the tokenizers of the families

words = st.lists(
    st.sampled_from("The cat sat 12 café 漢字 👍🏽 row:".split()), min_size=1, max_size=8
)


@settings(max_examples=15)
@given(words=words, data=st.data())
def test_a_word_that_is_marked_in_one_tokenizer_is_marked_in_all(words, data):
    marked = data.draw(st.integers(0, len(words) - 1))
    text = " ".join(words)
    start = len(" ".join([*words[:marked], ""]))
    place = range(start, start + len(words[marked]))
    policy = TOKENIZERS[data.draw(st.sampled_from(sorted(TOKENIZERS)))]
    sampled = [*policy.encode(text), policy.end_id]
    source = policy.offsets(sampled)
    assert policy.decode(sampled) == text
    hit = [t for t, (a, b) in enumerate(source) if set(place) & set(range(a, b))]
    span = TokenSpan(hit[0], hit[-1] + 1, -1.0)
    values = np.zeros(len(sampled))
    values[hit] = -1
    for judge in TOKENIZERS.values():
        _, target = judge.encode_with_offsets(text)
        carried = transfer_values(values, source, target)
        (theirs,) = transfer_spans([span], text, source, target)
        for t, (a, b) in enumerate(target):
            shares = bool(set(place) & set(range(a, b)))
            assert (theirs.start <= t < theirs.end) >= shares
            assert (carried[t] < 0) >= shares
        # And back: the policy's tokens of the word are marked, with nothing lost.
        back = transfer_values(carried, target, source)
        assert all(back[t] < 0 for t in hit)
