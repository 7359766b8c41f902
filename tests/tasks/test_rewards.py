"""Built-in rewards: what each takes for right, their weighted sum, and bad options."""

import dataclasses
import time
from fractions import Fraction

import pytest

from t2g_jax.errors import T2GError
from t2g_jax.tasks.base import Example
from t2g_jax.tasks.math_answers import MathAnswers
from t2g_jax.tasks.rewards import last_number, make_rewards


def rewarded(given, answer, completion):
    (outcome,) = make_rewards(given).score([Example("id", "?", answer, {})], [completion])
    return outcome


@pytest.mark.parametrize(
    ("given", "answer", "right", "wrong"),
    [
        ("exact", "a b", ["a b", " a\n b "], ["a  c", "A b", "a b.", ""]),
        ({"name": "exact", "ignore_case": True}, "Paris", ["paris", "PARIS "], ["Pari"]),
        ({"name": "exact", "extract": "boxed"}, "x", ["so \\boxed{ x }"], ["x", "\\boxed{y}"]),
        ({"name": "exact", "extract": "#### (.+)"}, "7", ["#### 5 #### 6\n#### 7"], ["7", "####7"]),
        ("numeric", "1,234.5", ["it is 1234.5.", "2 or $1,234.50"], ["1234", "", "1234.5 then 3"]),
        ("numeric", "so it is\n#### 72", ["72", "= 72.0", "\\boxed{72}"], ["73", "x72", "-72"]),
        ("numeric", "0.5", ["1/2", "5e-1"], ["1/0", ".05"]),
        ("numeric", "-3", ["−3", "(-3)"], ["3", "1-3"]),
        ("numeric", "1234567", ["1234567.0"], ["1234568"]),
        ("numeric", "0.3333333", ["1/3"], ["0.333"]),
        ({"name": "numeric", "tolerance": 0.1}, "100", ["109", "91"], ["111", "89"]),
        ({"name": "numeric", "extract": "A: (.*)"}, "4", ["A: 4 B: x", "A: 4\n5"], ["4", "A: 5"]),
        ("contains", "4", ["4", "is 4.", "(4)", "8-4"], ["14", "4a", "4.5", "1,4", "is -4", "−4"]),
        ("contains", "-4", ["-4", "is -4."], ["4", "8-4"]),
        ("contains", "New York", ["in New\nYork!"], ["new york", "New Yorker"]),
        ({"name": "contains", "ignore_case": True}, "New York", ["new york"], ["newyork"]),
        ({"name": "regex", "pattern": r"^\d+$"}, "", ["12"], ["a12", ""]),
        ({"name": "regex", "pattern": r"<a>{answer}</a>"}, "1.5", ["<a>1.5</a>"], ["<a>105</a>"]),
        ("math", "1/2", ["$\\frac{2}{4}$", "so 0.5", "\\boxed{1/2}"], ["$\\frac{1}{3}$", "half"]),
        ("math", "x^2+1", ["$1+x^2$", "\\boxed{x^2 + 1}"], ["1", "$x^2$", ""]),
        ("math", "east of it", ["\\boxed{East of it}", "east  of it"], ["\\boxed{west}"]),
    ],
)
def test_what_is_right(given, answer, right, wrong):
    rewards = make_rewards(given)
    examples = [Example("id", "?", answer, {})] * (len(right) + len(wrong))
    outcomes = rewards.score(examples, [*right, *wrong])
    assert [outcome.reward for outcome in outcomes] == [1.0] * len(right) + [0.0] * len(wrong)
    assert [outcome.correct for outcome in outcomes] == [True] * len(right) + [False] * len(wrong)
    assert rewards.decides


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12,345,678 and", Fraction(12345678)),
        ("10,20", Fraction(20)),
        ("3.", Fraction(3)),
        ("4-5", Fraction(5)),
        ("1 / 3", Fraction(1, 3)),
        ("2e3", Fraction(2000)),
        ("v2", None),
        ("0/0", None),
    ],
)
def test_the_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize("digits", ["1" * 25_000, "1e999", "1" * 5000 + ".5", "1/" + "0" * 5000])
def test_numbers_of_any_length_end_nothing(digits):
    assert rewarded("numeric", "3", digits).reward == 0.0


def test_a_pattern_that_never_ends_does_not_match():
    began = time.monotonic()
    outcome = rewarded({"name": "regex", "pattern": r"(a|aa)+$"}, "", "a" * 5000 + "b")
    assert outcome.correct is False
    assert time.monotonic() - began < 60


def test_a_weighted_sum_keeps_its_parts():
    given = [
        {"name": "numeric"},
        {"name": "regex", "pattern": "^<", "weight": 0.25, "correct_from": None},
        {"name": "regex", "pattern": ">$", "weight": -0.5, "correct_from": None},
    ]
    outcome = rewarded(given, "3", "<3>")
    assert outcome.reward == pytest.approx(1 + 0.25 - 0.5)
    assert outcome.correct is True  # the number decides alone
    assert outcome.metrics == {"numeric": 1.0, "regex": 1.0, "regex_2": 1.0}
    assert rewarded(given, "3", "<4").correct is False


def test_all_that_decide_must_agree():
    given = ["numeric", {"name": "contains", "weight": 0.0}]
    assert rewarded(given, "3", "3").correct is True
    assert rewarded(given, "3", "3.0").correct is False  # the number, but not the text


def test_nothing_may_decide():
    outcome = rewarded({"name": "exact", "correct_from": None}, "a", "a")
    assert outcome.reward == 1.0
    assert outcome.correct is None
    assert not make_rewards({"name": "exact", "correct_from": None}).decides


@pytest.mark.parametrize("name", ["exact", "numeric", "contains", "math"])
def test_a_row_without_an_answer_cannot_be_rewarded(name):
    rewards = make_rewards(name)
    assert f"no `answer`, which the reward `{name}`" in rewards.problem(Example("i", "?", " ", {}))
    assert rewards.problem(Example("i", "?", "1", {})) is None


def test_other_rows_that_cannot():
    assert "no number" in make_rewards("numeric").problem(Example("i", "?", "many", {}))
    pattern = make_rewards({"name": "regex", "pattern": "{answer}"})
    assert "no `answer`" in pattern.problem(Example("i", "?", "", {}))
    assert (
        make_rewards({"name": "regex", "pattern": "a"}).problem(Example("i", "?", "", {})) is None
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("exakt", "unknown reward 'exakt'; did you mean 'exact'?"),
        ([], "reward is empty"),
        (["exact", 3], "reward[1] is int 3; give the name"),
        ({"weight": 1}, "give the name of a reward"),
        ({"name": "exact", "pattern": "x"}, "exact has no option 'pattern'; known: extract"),
        ({"name": "exact", "weight": "1"}, "reward.weight is str '1'; must be a finite number"),
        ({"name": "exact", "weight": float("nan")}, "must be a finite number"),
        ({"name": "exact", "weight": True}, "must be a finite number"),
        ({"name": "exact", "ignore_case": 1}, "ignore_case is int 1; must be true or false"),
        ({"name": "exact", "extract": "("}, "is no regular expression"),
        ({"name": "exact", "extract": "a"}, "has no group"),
        ({"name": "numeric", "tolerance": -1}, "must be at least 0"),
        ({"name": "regex"}, "regex needs `pattern`"),
        ({"name": "regex", "pattern": 3}, "must be a regular expression"),
        ({"name": "math", "timeout_seconds": 0}, "must be above 0"),
    ],
)
def test_bad_options_are_named(given, said):
    with pytest.raises(T2GError) as caught:
        make_rewards(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# --- math-verify in a process of its own ---------------------------------------------------------


def test_answers_may_come_from_any_thread():
    from concurrent.futures import ThreadPoolExecutor

    answers = MathAnswers()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda n: answers.compare("4", f"$2+{n}$").agrees, [2, 3, 2]))
    assert found == [True, False, True]


def test_a_process_that_crashed_is_begun_again():
    answers = MathAnswers()
    assert answers.compare("1", "1").agrees
    answers._worker.kill()
    answers._worker.wait()
    assert answers.compare("1", "1").agrees


def test_a_process_that_hangs_is_stopped(monkeypatch):
    import os
    import signal

    answers = MathAnswers(seconds=1)
    assert answers.compare("1", "1").agrees
    os.kill(answers._worker.pid, signal.SIGSTOP)  # as compiled code that heeds no signal
    outcome = answers.compare("1", "1")
    assert not outcome.agrees
    assert answers.compare("1", "1").agrees


def test_what_never_ends_or_takes_all_memory_is_not_right():
    answers = MathAnswers(seconds=1)
    for hostile in (
        "$10^{10^{10^{10}}}$",
        "$" + "\\frac{1}{" * 400 + "}" * 400 + "$",
        "$((((" * 900,
    ):
        assert not answers.compare("10^{10^{9}}+1", hostile).agrees
    assert answers.compare("1", "1").agrees


def test_without_math_verify_the_extra_is_named(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(T2GError, match=r"needs the math-verify package: pip install .*\[math\]"):
        make_rewards("math")


def test_the_process_ends_with_its_object():
    answers = MathAnswers()
    answers.compare("1", "1")
    worker = answers._worker
    del answers
    assert worker.poll() is not None


def test_what_a_reward_returns_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        rewarded("exact", "a", "a").reward = 2.0
