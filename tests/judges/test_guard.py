"""The guard: whatever a judge does comes back as a sound critique or as a counted failure."""

import threading
import time
import types

import numpy as np
import pytest

from t2g_jax.errors import T2GError
from t2g_jax.judges import Critique, JudgeError, guard
from t2g_jax.judges.guard import MAX_CHARACTERS, MAX_REWARD, Guard, checked, name_of
from t2g_jax.spans import Quote, align


def judge_that(act, name="odd"):
    return types.SimpleNamespace(name=name, critique=lambda _, completion: act(completion))


def outcomes(guard, act, texts):
    return list(guard.critiques(judge_that(act), [None] * len(texts), texts))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_outcomes_come_in_the_order_of_the_completions(workers):
    def slower_at_first(text):
        time.sleep(0.05 if text < "3" else 0)
        return Critique(f"on {text}")

    texts = [str(i) for i in range(8)]
    found = outcomes(Guard(workers=workers), slower_at_first, texts)
    assert [critique.text for critique in found] == [f"on {text}" for text in texts]


def test_quotes_are_found_once_and_within_the_judges_time(monkeypatch):
    calls, over = [], threading.Event()

    def slow(completion, quotes):
        calls.append(completion)
        if completion == "a long story":
            over.wait()
        return align(completion, quotes)

    monkeypatch.setattr(guard, "align", slow)
    critique = Critique("Good.", (Quote("long", 1.0),))
    late, soon = outcomes(
        Guard(timeout_seconds=1.5), lambda _: critique, ["a long story", "a longer long story"]
    )
    over.set()
    assert late.reason == "timed out"
    assert soon == critique
    found = guard.alignment_of("a longer long story", soon.quotes)
    assert [(span.start, span.end) for span in found.spans] == [(9, 13)]
    assert calls == ["a long story", "a longer long story"]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_are_how_many_are_asked_at_once(workers):
    lock, now, most = threading.Lock(), [0], [0]

    def count(_):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return Critique("Right.")

    outcomes(Guard(workers=workers), count, ["a"] * 9)
    assert most[0] == workers


def test_outcomes_come_as_soon_as_they_are_known():
    asked = []

    def note(text):
        asked.append(text)
        return Critique("Right.")

    found = Guard().critiques(judge_that(note), [None] * 3, ["a", "b", "c"])
    assert not asked
    next(found)
    assert asked == ["a"]


def test_a_call_that_hangs_times_out_and_its_late_answer_is_not_taken_for_another():
    late = threading.Event()

    def hang(text):
        if text == "a":
            late.wait(10)
            return Critique("too late")
        late.set()
        time.sleep(0.05)
        return Critique(f"on {text}")

    first, second = outcomes(Guard(timeout_seconds=0.2), hang, ["a", "b"])
    assert (first.reason, first.details) == ("timed out", "no answer after 0.2 seconds")
    assert second == Critique("on b")


def test_a_reason_to_count_by_is_kept_and_a_long_one_is_not():
    def refuse(text):
        raise JudgeError(text, "the balance is 0")

    short, long = outcomes(Guard(), refuse, ["no credit left", "x" * 61])
    assert (short.reason, short.details) == ("no credit left", "the balance is 0")
    assert long.reason == "gave no critique"
    assert "x" * 61 in long.details


def test_what_a_judge_raises_is_named_with_its_place():
    (failure,) = outcomes(Guard(), lambda _: 1 / 0, ["a"])
    assert failure.reason == "raised ZeroDivisionError"
    assert failure.details.startswith(f"division by zero ({__file__}, line ")


@pytest.mark.parametrize("workers", [1, 3])
def test_so_many_failures_in_a_row_and_no_fewer(workers):
    def act(text):
        if text == "bad":
            raise OSError("refused")
        return Critique("Right.")

    guard = Guard(max_failures_in_a_row=3, workers=workers)
    assert len(outcomes(guard, act, ["bad", "bad", "good", "bad", "bad"])) == 5
    # The third in a row, of two calls.
    with pytest.raises(T2GError, match=r"'odd' failed 3 times in a row .*raised OSError: refused"):
        next(guard.critiques(judge_that(act), [None, None], ["bad", "good"]))
    assert len(outcomes(guard, act, ["bad", "bad"])) == 2  # counted anew


def test_calls_that_hang_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(guard, "MAX_HUNG", 3)
    release = threading.Event()

    def now_and_then(text):
        if text == "hang":
            release.wait(20)
        return Critique("Right.")

    cautious = Guard(timeout_seconds=0.05, max_failures_in_a_row=10)
    try:
        outcomes(cautious, now_and_then, ["hang", "x", "hang", "x"])
        with pytest.raises(T2GError, match="3 calls of the judge 'odd' hang"):
            outcomes(cautious, now_and_then, ["hang"])
    finally:
        release.set()


SOUND = Critique("Wrong.", (Quote("1", -1.0, 2, "a", "b"), Quote("", 100)), "because")


def test_a_judge_without_a_name_has_that_of_its_class():
    class Stern:
        pass

    assert [name_of(judge) for judge in (judge_that(None), Stern(), judge_that(None, ""))] == [
        "odd",
        "Stern",
        "SimpleNamespace",
    ]


def test_a_sound_critique_is_let_through():
    assert checked(SOUND) == SOUND
    assert checked(Critique("Wrong.", [Quote("1", np.float32(0.5))])).quotes == (Quote("1", 0.5),)


@pytest.mark.parametrize(
    ("critique", "reason"),
    [
        (None, "no critique"),
        ("Wrong.", "no critique"),
        ({"text": "Wrong."}, "no critique"),
        (Critique(None), "text is not a string"),
        (Critique("Wrong.", reasoning=None), "text is not a string"),
        (Critique(""), "empty text"),
        (Critique("\ud83d"), "text is not Unicode"),
        (Critique("a" * (MAX_CHARACTERS + 1)), "too long"),
        (Critique("a", (Quote("b" * MAX_CHARACTERS, 1.0),)), "too long"),
        (Critique("a", None), "bad quote"),
        (Critique("a", "1"), "bad quote"),
        (Critique("a", (("1", 1.0),)), "bad quote"),
        (Critique("a", (Quote(1, 1.0),)), "bad quote"),
        (Critique("a", (Quote("1", 1.0, after=None),)), "bad quote"),
        (Critique("a", (Quote("1", 1.0, ordinal=[1]),)), "bad quote"),
        (Critique("a", (Quote("\udc00", 1.0),)), "text is not Unicode"),
        (Critique("a", (Quote("1", float("nan")),)), "bad reward"),
        (Critique("a", (Quote("1", float("-inf")),)), "bad reward"),
        (Critique("a", (Quote("1", MAX_REWARD + 1),)), "bad reward"),
        (Critique("a", (Quote("1", True),)), "bad reward"),
        (Critique("a", (Quote("1", None),)), "bad reward"),
    ],
)
def test_rubbish(critique, reason):
    with pytest.raises(JudgeError) as caught:
        checked(critique)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 500
