"""Judges that are asked about several completions at once: every one gets its own outcome."""

import asyncio
import collections
import threading
import time
import types

import pytest

from t2g_jax.errors import T2GError
from t2g_jax.judges import Critique, JudgeError, guard
from t2g_jax.judges.cache import CritiqueCache
from t2g_jax.judges.guard import Guard
from t2g_jax.runtime.preemption import Preempted
from t2g_jax.spans import Quote
from t2g_jax.tasks import Example

ONE = Example("1", "What is 1 + 1?", "2", {})
TEXTS = [str(i) for i in range(8)]


def judge_that(act):
    """`act` takes the completions of a call; what it was called with is in `calls`."""
    calls = []

    def critique_batch(examples, completions):
        assert len(examples) == len(completions)
        calls.append(list(completions))
        return act(completions)

    return types.SimpleNamespace(name="odd", critique_batch=critique_batch, calls=calls)


def praise(completions):
    return [Critique(f"on {completion}") for completion in completions]


def outcomes(guard, judge, texts=TEXTS):
    return list(guard.critiques(judge, [ONE] * len(texts), texts))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_batches_are_as_large_as_they_may_be_and_results_keep_their_order(workers, size):
    def slower_at_first(completions):
        time.sleep(0.05 if completions[0] == "0" else 0)
        return praise(completions)

    judge = judge_that(slower_at_first)
    found = outcomes(Guard(workers=workers, batch_size=size), judge)
    assert [critique.text for critique in found] == [f"on {text}" for text in TEXTS]
    expected = [TEXTS[i : i + size] for i in range(0, 8, size)]
    assert sorted(judge.calls) == expected
    if workers == 1:
        assert judge.calls == expected


def test_batches_are_asked_for_at_the_same_time():
    meet = threading.Barrier(2, timeout=20)  # breaks unless two come

    def wait(completions):
        meet.wait()
        return praise(completions)

    found = outcomes(Guard(workers=2, batch_size=4, timeout_seconds=60), judge_that(wait))
    assert all(isinstance(outcome, Critique) for outcome in found)


def test_a_judge_of_single_completions_is_asked_one_by_one():
    asked = []

    def critique(example, completion):
        asked.append((example.id, completion))
        return Critique("Right.")

    judge = types.SimpleNamespace(name="single", critique=critique)
    first = next(Guard(batch_size=4).critiques(judge, [ONE] * 8, TEXTS))
    assert first == Critique("Right.")
    assert asked == [("1", "0")]


def test_critique_batch_comes_before_critique():
    judge = judge_that(praise)
    judge.critique = lambda *_: Critique("one")
    assert outcomes(Guard(), judge, ["a"]) == [Critique("on a")]


def test_one_of_a_batch_may_fail_and_the_others_do_not():
    error = OSError("reset")
    odd = [
        Critique("Right."),
        JudgeError("too long", "12,000 tokens"),
        Critique("", ()),
        error,
        None,
        Critique("Hm.", (Quote("1", float("nan")),)),
        Critique("Good.", (Quote("7", 1.0),)),
        Critique("Right."),
    ]
    found = outcomes(Guard(max_failures_in_a_row=1), judge_that(lambda _: odd))
    assert [getattr(outcome, "reason", None) for outcome in found] == [
        *(None, "too long", "empty text", "raised OSError", "no critique", "bad reward", None, None)
    ]
    assert found[1].details == "12,000 tokens"
    assert "reset" in found[3].details
    assert found[6] == odd[6]


def _raise(error):
    raise error


async def _later(completions):
    await asyncio.sleep(0)
    return praise(completions)


@pytest.mark.parametrize(
    ("act", "reason", "details"),
    [
        (lambda c: praise(c)[:-1], "wrong number of critiques", "3 for 4 completions"),
        (lambda c: [*praise(c), Critique("?")], "wrong number of critiques", "more for 4 compl"),
        (lambda _: [], "wrong number of critiques", "0 for 4 completions"),
        (lambda _: None, "no list of critiques", "NoneType None; return a list of 4, each"),
        (lambda _: Critique("Right."), "no list of critiques", "it returned Critique"),
        (lambda _: "abcd", "no list of critiques", "it returned str 'abcd'"),
        (lambda c: dict(zip(c, praise(c), strict=True)), "no list of critiques", "returned dict"),
        (lambda c: (critique for critique in praise(c)), "no list of critiques", "generator"),
        (_later, "no list of critiques", "coroutine"),
        (lambda _: 1 / 0, "raised ZeroDivisionError", "test_batches.py, line"),
        (lambda _: _raise(SystemExit(3)), "raised SystemExit", "3 ("),
        (lambda _: _raise(JudgeError("no credit left", "0 $")), "no credit left", "0 $"),
        (lambda _: time.sleep(20), "timed out", "no answer after 0.2 seconds"),
    ],
)
def test_a_batch_that_fails_fails_for_each_of_its_completions(recwarn, act, reason, details):
    def now_and_then(completions):
        return act(completions) if completions[0] == "0" else praise(completions)

    judge = judge_that(now_and_then)
    found = outcomes(Guard(batch_size=4, timeout_seconds=0.2), judge)
    assert {(outcome.reason, details in outcome.details) for outcome in found[:4]} == {
        (reason, True)
    }
    assert found[4:] == praise(TEXTS[4:])
    assert judge.calls == [TEXTS[:4], TEXTS[4:]]  # none is asked about again
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]


def test_what_a_judge_does_to_its_lists_changes_nothing():
    def take_apart(completions):
        said = praise(completions)
        completions.clear()
        return said

    assert outcomes(Guard(), judge_that(take_apart)) == praise(TEXTS)


def test_a_late_batch_is_not_taken_for_another():
    late = threading.Event()

    def hang(completions):
        if completions[0] == "0":
            late.wait(10)
            return [Critique("too late")] * len(completions)
        late.set()
        time.sleep(0.05)
        return praise(completions)

    found = outcomes(Guard(batch_size=4, timeout_seconds=0.2), judge_that(hang))
    assert {outcome.reason for outcome in found[:4]} == {"timed out"}
    assert found[4:] == praise(TEXTS[4:])


def test_a_batch_without_any_critique_is_one_failure():
    def fail(completions):
        if completions[0] in "03":
            return [JudgeError("refused")] * len(completions)
        return [JudgeError("refused"), *praise(completions[1:])]

    strict = Guard(batch_size=3, max_failures_in_a_row=2)
    assert len(outcomes(strict, judge_that(fail), TEXTS[3:])) == 5  # one, and then another half
    asked = strict.critiques(judge_that(fail), [ONE] * 8, TEXTS)
    assert [next(asked).reason for _ in range(3)] == ["refused"] * 3
    with pytest.raises(T2GError, match=r"'odd' failed 2 times in a row .*the last time: refused"):
        next(asked)


def test_calls_that_hang_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(guard, "MAX_HUNG", 2)
    release = threading.Event()
    try:
        with pytest.raises(T2GError, match="2 calls of the judge 'odd' hang"):
            outcomes(
                Guard(batch_size=2, timeout_seconds=0.05),
                judge_that(lambda completions: release.wait(20)),
            )
    finally:
        release.set()


def test_only_what_is_not_known_is_in_a_batch(tmp_path):
    cache = CritiqueCache(tmp_path / "critiques.jsonl", "a")
    for text in ("1", "4"):
        cache.put(ONE, text, Critique(f"before {text}"))
    judge, tally = judge_that(praise), collections.Counter()
    texts = ["0", "1", "0", "2", "4", "3", "2", "5"]
    found = list(
        Guard(batch_size=3, cache=cache).critiques(judge, [ONE] * len(texts), texts, tally)
    )
    assert judge.calls == [["0", "2", "3"], ["5"]]
    assert [critique.text for critique in found] == [
        f"{'before' if text in '14' else 'on'} {text}" for text in texts
    ]
    assert tally == {"judge_calls": 4, "judge_cached": 4}


def test_a_batch_is_kept_as_soon_as_it_is_known(tmp_path):
    """Who stops in the middle of it has paid for all of it."""
    path = tmp_path / "critiques.jsonl"
    asked = Guard(batch_size=4, cache=CritiqueCache(path, "a")).critiques(
        judge_that(praise), [ONE] * 8, TEXTS
    )
    next(asked)
    asked.close()
    assert len(CritiqueCache(path, "a")) == 4


def test_failures_of_a_batch_are_not_kept(tmp_path):
    cache = CritiqueCache(tmp_path / "critiques.jsonl", "a")
    refuse = judge_that(lambda c: [JudgeError("refused"), *praise(c[1:])])
    outcomes(Guard(cache=cache), refuse)
    judge = judge_that(praise)
    outcomes(Guard(cache=cache), judge)
    assert judge.calls == [["0"]]


def test_a_judge_is_prepared_once_and_not_on_time():
    judge = judge_that(praise)
    prepared = []
    judge.prepare = lambda: prepared.append(time.sleep(0.3))
    patient = Guard(timeout_seconds=0.2)
    assert list(patient.critiques(judge, [], [])) == []
    assert not prepared
    assert outcomes(patient, judge) == outcomes(patient, judge) == praise(TEXTS)
    assert len(prepared) == 1


def test_who_stops_a_run_while_the_judge_is_prepared_has_stopped_it():
    judge = judge_that(praise)
    judge.prepare = lambda: _raise(Preempted())
    with pytest.raises(Preempted):
        outcomes(Guard(), judge)


def test_a_judge_that_cannot_be_prepared():
    judge = judge_that(praise)
    judge.prepare = lambda: 1 / 0
    expected = r"the judge 'odd' cannot be prepared: ZeroDivisionError: .*test_batches.py, line"
    with pytest.raises(T2GError, match=expected):
        outcomes(Guard(), judge)
    assert not judge.calls
