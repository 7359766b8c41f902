import math

import pytest

from t2g_jax.report import formatting


def plain(text):
    return text.replace("\u202f", " ")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (9_999, "9999"), (12_345, "12.3 k"), (999_499, "999 k"), (999_950, "1 M"),
     (12_400_000, "12.4 M"), (3.2e9, "3.2 G"), (1.5e12, "1.5 T"), (math.nan, "–")],
)  # fmt: skip
def test_count(value, text):
    assert plain(formatting.count(value)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (42.31, "42.3 s"), (59.97, "1 min 00 s"), (750, "12 min 30 s"),
     (3599.7, "1 h 00 min"), (11_520, "3 h 12 min"), (math.inf, "–")],
)  # fmt: skip
def test_duration(seconds, text):
    assert plain(formatting.duration(seconds)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (-0.5, "−0.500"), (0, "0.000"), (1234.5, "1234"), (-250.0, "−250"),
     (1.2e-5, "1.20e-05"), (-1.2e-5, "−1.20e-05"), (None, "–"), (math.nan, "–")],
)  # fmt: skip
def test_decimal(value, text):
    assert formatting.decimal(value) == text


def test_accuracies_are_percentages_and_scores_are_not():
    assert plain(formatting.score(0.9764, unit=True)) == "97.6 %"
    assert formatting.score(8.8, unit=False) == "8.80"
    assert formatting.interval((0.961, 0.985), unit=True) == "96.1–98.5"
    assert formatting.interval((0.961, math.nan), unit=True) == "–"
    assert formatting.gain(0.1, 0.05, unit=True) == "−5.0"
    assert formatting.unit_scale([0.0, math.nan, 1.0])
    assert not formatting.unit_scale([0.5, 4.2])


def test_what_is_negative_has_a_minus_sign_everywhere():
    texts = [
        formatting.percent(-0.05),
        formatting.score(-0.5, unit=False),
        formatting.interval((-0.75, -0.25), unit=False),
        formatting.gain(0.5, 0.25, unit=False),
        formatting.count(-5),
        formatting.count(-25_000),
        formatting.decimal(-0.5),
    ]
    assert list(map(plain, texts)) == [
        "−5.0 %", "−0.50", "−0.75–−0.25", "−0.25", "−5", "−25 k", "−0.500",
    ]  # fmt: skip


def test_moment():
    assert formatting.moment("2026-02-11T09:30:00+00:00") == "11 February 2026, 09:30 UTC"
    assert formatting.moment("2026-02-11T09:30") == "11 February 2026, 09:30"
    assert formatting.moment("last Tuesday") == "last Tuesday"
