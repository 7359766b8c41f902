"""The guard: whatever a judge does comes back as a sound critique or as a counted failure."""

import asyncio
import decimal
import fractions
import threading
import time
import types

import numpy as np
import pytest

from t2g_jax.errors import T2GError
from t2g_jax.judges import Critique, JudgeError, guard
from t2g_jax.judges.guard import (
    MAX_CHARACTERS,
    MAX_QUOTES,
    MAX_REWARD,
    Guard,
    checked,
    name_of,
)
from t2g_jax.spans import Quote, align
from t2g_jax.tasks.base import MAX_DETAILS, MAX_REASON


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
        (Critique("a", (Quote("1", np.float32("nan")),)), "bad reward"),
        (Critique("a", (Quote("1", fractions.Fraction(10**400)),)), "bad reward"),
        (Critique("a", (Quote("1", decimal.Decimal(1)),)), "bad reward"),
        (Critique("a", (Quote("1", 1.0, "first"),)), "bad quote"),
        (Critique("a", (Quote("1", 1.0, True),)), "bad quote"),
        (Critique("a", (Quote("1", 1.0, 0),)), "bad quote"),
        (Critique("a", (Quote("1", 1.0, 1.0),)), "bad quote"),
        (Critique("a", (quote for quote in ())), "bad quote"),
        (Critique("a", (Quote("", 1.0),) * (MAX_QUOTES + 1)), "too long"),
        (Critique("a", reasoning="b" * MAX_CHARACTERS), "too long"),
        (np.float64(1.0), "no critique"),
        ((text for text in ("Wrong.",)), "no critique"),
        (Critique, "no critique"),
    ],
)
def test_rubbish(critique, reason):
    with pytest.raises(JudgeError) as caught:
        checked(critique)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 500


def test_what_is_asynchronous_is_no_critique(recwarn):
    async def critique(_):
        await asyncio.sleep(0)
        return Critique("Wrong.")

    (failure,) = outcomes(Guard(), critique, ["a"])
    assert failure.reason == "no critique"
    assert "coroutine" in failure.details
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]


class Text(str):
    """Text with ideas of its own."""

    def __str__(self):
        raise ValueError("no")

    def __len__(self):
        raise ValueError("no")


def test_subclasses_become_plain_types():
    found = checked(
        Critique(Text("Wrong."), [Quote(Text("1"), np.float16(-1), np.int64(2))], Text("so"))
    )
    assert found == Critique("Wrong.", (Quote("1", -1.0, 2),), "so")
    (quote,) = found.quotes
    assert [type(v) for v in (found.text, found.reasoning, quote.text)] == [str] * 3
    assert (type(quote.reward), type(quote.ordinal)) == (float, int)


class Broken:
    def __str__(self):
        raise SystemError("no words")

    __repr__ = __str__


class Bare(JudgeError):
    def __init__(self):  # without ours
        pass


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (OSError(28, "No space left"), "[Errno 28] No space left"),
        (b"\xff\x00", "b'\\xff\\x00'"),
        (float("nan"), "nan"),
        (None, "None"),
        ({"a": [1]}, "{'a': [1]}"),
        ("\ud83d", "\\ud83d"),
        (Broken(), "(Broken)"),
        ("x" * 10_000_000, "x" * MAX_DETAILS),
    ],
)
def test_details_are_text_and_bounded(details, expected):
    error = JudgeError("http", details)
    assert (error.reason, error.details) == ("http", expected)
    assert type(error.details) is str
    assert len(str(error)) <= MAX_REASON + MAX_DETAILS + 2


@pytest.mark.parametrize("reason", ["", "x" * 1_000_000, Broken(), b"", None, 404, float("nan")])
def test_reasons_are_text_and_bounded(reason):
    error = JudgeError(reason, "more")
    assert type(error.reason) is str
    assert 0 < len(error.reason) <= MAX_REASON
    assert len(error.details) <= MAX_DETAILS
    assert "more" in error.details or len(error.details) == MAX_DETAILS


def _raise(error):
    raise error


def test_odd_failures_are_counted_like_any_other():
    changed = JudgeError("http")
    changed.reason, changed.details = {"code": 500}, ValueError("later")
    odd = {
        "a": Bare(),
        "b": changed,
        "c": type("E" * 500, (Exception,), {"__str__": Broken.__str__})(),
        "d": KeyboardInterrupt(),
        "e": GeneratorExit(),
    }
    found = outcomes(Guard(), lambda text: _raise(odd[text]), list(odd))
    assert [type(failure) for failure in found] == [JudgeError] * 5
    assert found[0].reason == "gave no critique"
    assert (found[1].reason, found[1].details) == ("{'code': 500}", "later")
    assert found[2].reason == "raised " + "E" * (MAX_REASON - 7)
    assert found[3].reason == "raised KeyboardInterrupt"
    assert all(len(failure.details) <= MAX_DETAILS for failure in found)


def test_a_judge_that_is_down_is_told_of_on_one_line():
    act = lambda _: _raise(OSError("\x1b[2J\nt2g: done"))  # noqa: E731
    with pytest.raises(T2GError) as caught:
        outcomes(Guard(max_failures_in_a_row=1), act, ["a"])
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_odd_names():
    class Nameless:
        @property
        def name(self):
            raise RuntimeError

    assert name_of(Nameless()) == "Nameless"
    assert name_of(judge_that(None, "x" * 1000)) == "x" * 100
    assert name_of(judge_that(None, "\ud83d")) == "\\ud83d"
    assert name_of(judge_that(None, 7)) == "SimpleNamespace"
