"""What stands between a judge and a run: time limits, checks, and a stop when the judge is down."""

from __future__ import annotations

import collections
import functools
import itertools
import math
import queue
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any

from t2g_jax import user_code
from t2g_jax.errors import T2GError
from t2g_jax.judges.batches import AnyJudge, Outcome, batched, takes_batches
from t2g_jax.judges.cache import CritiqueCache
from t2g_jax.printing import one_line
from t2g_jax.spans.align import align
from t2g_jax.spans.quotes import Alignment, Quote
from t2g_jax.tasks.base import (
    MAX_DETAILS,
    MAX_REASON,
    Critique,
    Example,
    JudgeError,
    plain_text,
    shown,
)

MAX_CHARACTERS = 100_000
"""Longest critique: its text, its reasoning and what it quotes."""

MAX_QUOTES = 1000
"""Most quotes of a critique."""

MAX_REWARD = 100.0
"""A quote's reward lies between minus this and this."""

Question = tuple[Example, str]
"""An example and a completion."""

MAX_HUNG = 100
"""Calls that may hang at once after they timed out, before the judge counts as down."""


class Guard:
    """Asks judges. Whatever one does comes back as a sound critique or as a `JudgeError`.

    A judge may raise, hang, or return what is no critique; none of that is taken for praise, ends
    the run, or keeps the process from exiting. But a judge that is down ends the run: else it would
    go on for days without any feedback.

    A judge that has something to do before its first answer (to load a model) does it in
    `prepare()`, which is called once and without a time limit.

    A call is about a batch of completions. If it raises, takes too long, or does not return one
    outcome for each of them, all of them fail for that reason, and none is asked about by itself: a
    judge that is down would be asked once more for each. What it returns is checked one by one.

    Args:
      timeout_seconds: for one call, and for finding its quotes in the completions. The thread of a
        call that takes longer is left behind.
      max_failures_in_a_row: the run ends with this failed call; one fails that gives no critique
        at all.
      workers: calls at the same time. With more than one the judge must be thread-safe.
      batch_size: most completions in one call of a judge with `critique_batch`; another is asked
        about one at a time.
      cache: of critiques that were given before; the judge is asked only about what is not there.
        None: it is asked each time.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float = 60.0,
        max_failures_in_a_row: int = 50,
        workers: int = 1,
        batch_size: int = 16,
        cache: CritiqueCache | None = None,
    ):
        self.timeout_seconds = timeout_seconds
        self.max_failures_in_a_row = max_failures_in_a_row
        self.workers = workers
        self.batch_size = batch_size
        self.cache = cache
        self._failures_in_a_row = 0
        self._hung: list[threading.Thread] = []
        self._prepared: AnyJudge | None = None

    def critiques(
        self,
        judge: AnyJudge,
        examples: Sequence[Example],
        completions: Sequence[str],
        tally: collections.Counter[str] | None = None,
    ) -> Iterator[Outcome]:
        """Yields one outcome for each completion, in their order, as soon as it is known.

        With a cache, equal completions of a prompt are one question, and no batch has one whose
        critique is known.

        Args:
          tally: counts "judge_calls", completions that the judge was asked about, and
            "judge_cached", critiques without that.

        Raises:
          T2GError: too many failures in a row; the last of them is named, and not yielded. Or the
            judge cannot be prepared.
        """
        tally = collections.Counter() if tally is None else tally
        pairs = list(zip(examples, completions, strict=True))
        cache = self.cache
        keys = [str(i) if cache is None else cache.key(*pair) for i, pair in enumerate(pairs)]
        questions = dict(zip(keys, pairs, strict=True))
        known: dict[str, Outcome] = {}
        for key, pair in questions.items():
            if cache is not None and (critique := cache.get(*pair)) is not None:
                known[key] = critique
        new = [key for key in questions if key not in known]
        answers = self._answers(judge, [questions[key] for key in new])
        unanswered, asked = iter(new), set(new)
        for key in keys:
            if key not in known:  # the first of the next batch
                for outcome in next(answers):
                    answered = next(unanswered)
                    known[answered] = outcome
                    if cache is not None and isinstance(outcome, Critique):
                        cache.put(*questions[answered], outcome)
            tally["judge_calls" if key in asked else "judge_cached"] += 1
            asked.discard(key)
            yield known[key]

    def _answers(self, judge: AnyJudge, questions: Sequence[Question]) -> Iterator[list[Outcome]]:
        """What the judge says, in order, batch by batch."""
        if questions:
            self._prepare(judge)
        size = self.batch_size if takes_batches(judge) else 1
        batches = [questions[i : i + size] for i in range(0, len(questions), size)]
        waiting = collections.deque(range(len(batches)))
        answers: queue.SimpleQueue[tuple[int, list[Outcome]]] = queue.SimpleQueue()
        running: dict[int, tuple[float, threading.Thread]] = {}  # deadline first
        known: dict[int, list[Outcome]] = {}

        def ask(i: int) -> None:
            answers.put((i, _outcomes(judge, batches[i])))

        for index in range(len(batches)):
            while index not in known:
                while waiting and len(running) < self.workers:
                    i = waiting.popleft()
                    thread = threading.Thread(target=ask, args=(i,), daemon=True)
                    running[i] = time.monotonic() + self.timeout_seconds, thread
                    thread.start()
                earliest = min(running, key=lambda i: running[i][0])
                try:
                    patience = max(running[earliest][0] - time.monotonic(), 0.0)
                    i, outcomes = answers.get(timeout=patience)
                except queue.Empty:
                    i, failure = earliest, self._timed_out(judge, running[earliest][1])
                    outcomes = [failure] * len(batches[i])
                if i in running:  # else it comes too late
                    del running[i]
                    known[i] = outcomes
            yield self._counted(judge, known.pop(index))

    def _prepare(self, judge: AnyJudge) -> None:
        """Has a judge do what comes before its first answer, if it has `prepare`: not on time."""
        if judge is not self._prepared and callable(prepare := getattr(judge, "prepare", None)):
            user_code.call(f"the judge {name_of(judge)!r} cannot be prepared", prepare)
        self._prepared = judge

    def _timed_out(self, judge: AnyJudge, thread: threading.Thread) -> JudgeError:
        self._hung = [other for other in self._hung if other.is_alive()] + [thread]
        if len(self._hung) >= MAX_HUNG:
            raise T2GError(
                f"{len(self._hung)} calls of the judge {name_of(judge)!r} hang: let it give up by "
                "itself, or raise judge.timeout_seconds. The same command goes on from here"
            )
        return JudgeError("timed out", f"no answer after {self.timeout_seconds:g} seconds")

    def _counted(self, judge: AnyJudge, outcomes: list[Outcome]) -> list[Outcome]:
        if any(isinstance(outcome, Critique) for outcome in outcomes):
            self._failures_in_a_row = 0
            return outcomes
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self.max_failures_in_a_row:
            count, self._failures_in_a_row = self._failures_in_a_row, 0
            raise T2GError(
                f"the judge {name_of(judge)!r} failed {count} times in a row "
                f"(judge.max_failures_in_a_row), the last time: {one_line(outcomes[-1])}. See to "
                "the judge; the same command goes on from here"
            )
        return outcomes


def checked(critique: Any) -> Critique:
    """A critique that can be learned from, of plain types: `str`, `float`, `int` and tuples.

    Raises:
      JudgeError: it is none, or its text is empty or too long, or a quote is no phrase with a
        finite reward. Whether the phrases are in the completion is for `spans.align` to say.
    """
    if not isinstance(critique, Critique):
        _close(critique)
        raise JudgeError("no critique", f"it returned {shown(critique)}; return a Critique")
    if not isinstance(critique.text, str) or not isinstance(critique.reasoning, str):
        raise JudgeError("text is not a string", shown(critique.text))
    if not isinstance(critique.quotes, tuple | list):
        raise JudgeError("bad quote", f"quotes is {shown(critique.quotes)}; give a tuple of Quote")
    if len(critique.quotes) > MAX_QUOTES:
        raise JudgeError("too long", f"{len(critique.quotes)} quotes, more than {MAX_QUOTES}")
    quotes = tuple(map(_checked_quote, critique.quotes))
    text, reasoning = map(_exact, (critique.text, critique.reasoning))
    if not text.strip():
        raise JudgeError("empty text")
    texts = [text, reasoning]
    for quote in quotes:
        texts += quote.text, quote.before, quote.after
    if (size := sum(map(len, texts))) > MAX_CHARACTERS:
        raise JudgeError("too long", f"{size} characters, more than {MAX_CHARACTERS}")
    for part in texts:
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            raise JudgeError("text is not Unicode", str(error)[:200]) from error
    return Critique(text, quotes, reasoning)


@functools.lru_cache(maxsize=256)
def alignment_of(completion: str, quotes: tuple[Quote, ...]) -> Alignment:
    """`spans.align`. The guard calls it within the judge's time, and whoever asks again has it."""
    return align(completion, quotes)


def name_of(judge: AnyJudge) -> str:
    """The judge's own name, or that of its class."""
    try:
        name = judge.name
    except Exception:  # it has none
        name = ""
    return (plain_text(name, 100) if isinstance(name, str) else "") or type(judge).__name__


def _checked_quote(quote: Any) -> Quote:
    if not isinstance(quote, Quote):
        raise JudgeError("bad quote", f"{shown(quote)}; give a Quote")
    phrases = [quote.text, quote.before, quote.after]
    if not all(isinstance(phrase, str) for phrase in phrases):
        raise JudgeError("bad quote", f"text, before or after of {shown(quote)} is no string")
    ordinal = quote.ordinal
    if ordinal is not None and (
        isinstance(ordinal, bool) or not isinstance(ordinal, Integral) or not ordinal >= 1
    ):
        raise JudgeError("bad quote", f"ordinal {shown(ordinal)}; give 1, 2, … or None")
    if not _is_reward(quote.reward):
        limits = f"give a number from {-MAX_REWARD:g} to {MAX_REWARD:g}"
        raise JudgeError("bad reward", f"{shown(quote.reward)} of {shown(quote)}; {limits}")
    text, before, after = map(_exact, phrases)
    return Quote(
        text, float(quote.reward), None if ordinal is None else int(ordinal), before, after
    )


def _exact(text: str) -> str:
    """Text of a subclass of `str` as `str`."""
    return str.__getitem__(text, slice(None))


def _outcomes(judge: AnyJudge, questions: Sequence[Question]) -> list[Outcome]:
    """What one call of a judge comes to, for each question."""
    examples, completions = map(list, zip(*questions, strict=True))
    try:
        said = _list_of(batched(judge)(examples.copy(), completions.copy()), len(questions))
    except BaseException as error:  # `sys.exit` too: nothing that a judge does may end the run
        return [_failure(error)] * len(questions)
    return [_sound(critique, c) for critique, c in zip(said, completions, strict=True)]


def _list_of(said: Any, count: int) -> list[Any]:
    """What `critique_batch` returned, if there is one for each completion."""
    if not isinstance(said, Sequence) or isinstance(said, str | bytes):
        _close(said)
        advice = f"return a list of {count}, each a Critique or a JudgeError"
        raise JudgeError("no list of critiques", f"it returned {shown(said)}; {advice}")
    found = list(itertools.islice(said, count + 1))
    if len(found) != count:
        more = "more" if len(found) > count else f"{len(found)}"
        raise JudgeError("wrong number of critiques", f"{more} for {count} completions")
    return found


def _sound(critique: Any, completion: str) -> Outcome:
    """A critique that can be learned from and whose quotes can be looked for, or why there is none.

    What was raised for one completion may stand in its place.
    """
    if isinstance(critique, BaseException):
        return _failure(critique)
    try:
        found = checked(critique)
        alignment_of(completion, found.quotes)
        return found
    except BaseException as error:  # of a critique with ideas of its own
        return _failure(error)


def _failure(error: BaseException) -> JudgeError:
    """What a judge raised, as it is counted."""
    if isinstance(error, JudgeError):
        return _plain(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f"({frames[-1].filename}, line {frames[-1].lineno})" if frames else "(not raised)"
    said = plain_text(error, MAX_DETAILS - len(where) - 1)
    kind = plain_text(type(error).__name__, MAX_REASON - len("raised "))
    return JudgeError(f"raised {kind}", f"{said} {where}")


def _close(said: Any) -> None:
    """Closes a coroutine that nobody awaits, or a generator."""
    if callable(close := getattr(said, "close", None)):
        close()


def _plain(error: JudgeError) -> JudgeError:
    """A failure without what a subclass made of it, or what it was changed to since."""
    try:
        return JudgeError(error.reason, error.details)
    except Exception:  # it did not call our __init__
        return JudgeError("", error)


def _is_reward(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value) and abs(float(value)) <= MAX_REWARD
    except (OverflowError, TypeError, ValueError):  # a fraction, or somebody's own number
        return False
