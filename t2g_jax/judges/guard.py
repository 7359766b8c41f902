"""What stands between a judge and a run: time limits, checks, and a stop when the judge is down."""

from __future__ import annotations

import collections
import functools
import math
import queue
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any

from t2g_jax.errors import T2GError
from t2g_jax.judges.cache import CritiqueCache
from t2g_jax.printing import one_line
from t2g_jax.spans.align import Alignment, Quote, align
from t2g_jax.tasks.base import (
    MAX_DETAILS,
    MAX_REASON,
    Critique,
    Example,
    Judge,
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

MAX_HUNG = 100
"""Calls that may hang at once after they timed out, before the judge counts as down."""


class Guard:
    """Asks judges. Whatever one does comes back as a sound critique or as a `JudgeError`.

    A judge may raise, hang, or return what is no critique; none of that is taken for praise, ends
    the run, or keeps the process from exiting. But a judge that is down ends the run: else it would
    go on for days without any feedback.

    Args:
      timeout_seconds: for one call, and for finding its quotes in the completion. The thread of a
        call that takes longer is left behind.
      max_failures_in_a_row: the run ends with this failure.
      workers: calls at the same time. With more than one the judge must be thread-safe.
      cache: of critiques that were given before; the judge is asked only about what is not there.
        None: it is asked each time.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float = 60.0,
        max_failures_in_a_row: int = 50,
        workers: int = 1,
        cache: CritiqueCache | None = None,
    ):
        self.timeout_seconds = timeout_seconds
        self.max_failures_in_a_row = max_failures_in_a_row
        self.workers = workers
        self.cache = cache
        self._failures_in_a_row = 0
        self._hung: list[threading.Thread] = []

    def critiques(
        self,
        judge: Judge,
        examples: Sequence[Example],
        completions: Sequence[str],
        tally: collections.Counter[str] | None = None,
    ) -> Iterator[Critique | JudgeError]:
        """Yields one outcome for each completion, in their order, as soon as it is known.

        With a cache, equal completions of a prompt are one question.

        Args:
          tally: counts "judge_calls", and "judge_cached", critiques without a call.

        Raises:
          T2GError: too many failures in a row; the last of them is named, and not yielded.
        """
        tally = collections.Counter() if tally is None else tally
        if self.cache is None:
            for outcome in self._asked(judge, examples, completions):
                tally["judge_calls"] += 1
                yield outcome
            return
        pairs = list(zip(examples, completions, strict=True))
        keys = [self.cache.key(*pair) for pair in pairs]
        known: dict[str, Critique | JudgeError | None] = {}
        for key, pair in zip(keys, pairs, strict=True):
            if key not in known:
                known[key] = self.cache.get(*pair)
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if known[key] is None}
        outcomes = self._asked(judge, [e for e, _ in new.values()], [c for _, c in new.values()])
        for key, pair in zip(keys, pairs, strict=True):
            outcome = known[key]
            if outcome is None:  # the next of `new`
                outcome = known[key] = next(outcomes)
                tally["judge_calls"] += 1
                if isinstance(outcome, Critique):
                    self.cache.put(*pair, outcome)
            else:
                tally["judge_cached"] += 1
            yield outcome

    def _asked(
        self, judge: Judge, examples: Sequence[Example], completions: Sequence[str]
    ) -> Iterator[Critique | JudgeError]:
        """What the judge says of each, in order."""
        waiting = collections.deque(enumerate(zip(examples, completions, strict=True)))
        answers: queue.SimpleQueue[tuple[int, Critique | JudgeError]] = queue.SimpleQueue()
        running: dict[int, tuple[float, threading.Thread]] = {}  # deadline first
        known: dict[int, Critique | JudgeError] = {}

        def ask(i: int, example: Example, completion: str) -> None:
            answers.put((i, _outcome(judge, example, completion)))

        for index in range(len(waiting)):
            while index not in known:
                while waiting and len(running) < self.workers:
                    i, pair = waiting.popleft()
                    thread = threading.Thread(target=ask, args=(i, *pair), daemon=True)
                    running[i] = time.monotonic() + self.timeout_seconds, thread
                    thread.start()
                earliest = min(running, key=lambda i: running[i][0])
                try:
                    patience = max(running[earliest][0] - time.monotonic(), 0.0)
                    i, outcome = answers.get(timeout=patience)
                except queue.Empty:
                    i, outcome = earliest, self._timed_out(judge, running[earliest][1])
                if i in running:  # else it comes too late
                    del running[i]
                    known[i] = outcome
            yield self._counted(judge, known.pop(index))

    def _timed_out(self, judge: Judge, thread: threading.Thread) -> JudgeError:
        self._hung = [other for other in self._hung if other.is_alive()] + [thread]
        if len(self._hung) >= MAX_HUNG:
            raise T2GError(
                f"{len(self._hung)} calls of the judge {name_of(judge)!r} hang: let it give up by "
                "itself, or raise judge.timeout_seconds. The same command goes on from here"
            )
        return JudgeError("timed out", f"no answer after {self.timeout_seconds:g} seconds")

    def _counted(self, judge: Judge, outcome: Critique | JudgeError) -> Critique | JudgeError:
        if isinstance(outcome, Critique):
            self._failures_in_a_row = 0
            return outcome
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self.max_failures_in_a_row:
            count, self._failures_in_a_row = self._failures_in_a_row, 0
            raise T2GError(
                f"the judge {name_of(judge)!r} failed {count} times in a row "
                f"(judge.max_failures_in_a_row), the last time: {one_line(outcome)}. See to the "
                "judge; the same command goes on from here"
            )
        return outcome


def checked(critique: Any) -> Critique:
    """A critique that can be learned from, of plain types: `str`, `float`, `int` and tuples.

    Raises:
      JudgeError: it is none, or its text is empty or too long, or a quote is no phrase with a
        finite reward. Whether the phrases are in the completion is for `spans.align` to say.
    """
    if not isinstance(critique, Critique):
        if callable(close := getattr(critique, "close", None)):
            close()  # of a coroutine that nobody awaits, or a generator
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


def name_of(judge: Judge) -> str:
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


def _outcome(judge: Judge, example: Example, completion: str) -> Critique | JudgeError:
    try:
        critique = checked(judge.critique(example, completion))
        alignment_of(completion, critique.quotes)
        return critique
    except JudgeError as error:
        return _plain(error)
    except BaseException as error:  # `sys.exit` too: nothing that a judge does may end the run
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"({frame.filename}, line {frame.lineno})"
        said = plain_text(error, MAX_DETAILS - len(where) - 1)
        kind = plain_text(type(error).__name__, MAX_REASON - len("raised "))
        return JudgeError(f"raised {kind}", f"{said} {where}")


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
