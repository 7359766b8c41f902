"""Judges that misbehave at every third completion, by `judge.name`: "bad_judges:raises"."""

import math
import os
import threading
import time

from t2g_jax.spans import Quote
from t2g_jax.tasks.base import Critique, JudgeError


class Bad:
    """The puzzle's own judge, which does something else at some calls, counted from 1."""

    name = "bad"

    def __init__(self, own, act, when):
        self.own, self.act, self.when = own, act, when
        self.calls = 0
        self.lock = threading.Lock()

    def critique(self, example, completion):
        with self.lock:
            self.calls += 1
            now = self.when(self.calls)
        return self.act(completion) if now else self.own.critique(example, completion)


class BadBatch(Bad):
    """The same of a judge that is asked in batches: at some calls it does something else."""

    critique = None

    def critique_batch(self, examples, completions):
        with self.lock:
            self.calls += 1
            now = self.when(self.calls)
        if now:
            return self.act(completions)
        return list(map(self.own.critique, examples, completions))


def third(call):
    return call % 3 == 0


def judge_that(act, when=third):
    return lambda task, level: Bad(task.judge(level), act, when)


def batch_judge_that(act, when=third):
    return lambda task, level: BadBatch(task.judge(level), act, when)


def _raise(error):
    raise error


def _refuse(_):
    raise ConnectionError("connection refused")


def _hang(_):
    time.sleep(3600)


def _of(*quotes):
    return lambda _: Critique("Hm.", quotes)


def _in_turn(*acts):
    left = list(acts)
    return lambda completion: left.pop(0)(completion)


def _move(completion):
    """Renames the folder that `MOVED` names, as somebody might while the judge thinks."""
    os.rename(os.environ["MOVED"], os.environ["MOVED"] + "-elsewhere")
    return Critique("Hm.", ())


def all_that_is_bad(task, level):
    acts = (
        lambda _: _raise(KeyError("choices")),
        lambda _: _raise(SystemExit(1)),
        _hang,
        lambda _: None,
        lambda _: "Wrong.",
        lambda _: Critique(b"Wrong."),
        lambda _: Critique(" \n"),
        lambda _: Critique("\ud800"),
        lambda _: Critique("Wrong. " * 1_500_000),  # 10 MB
        _of("1"),
        _of(Quote(None, 1.0)),
        _of(Quote("1", math.nan)),
        _of(Quote("1", 1e30)),
        _of(Quote("1", "bad")),
    )
    return Bad(task.judge(level), _in_turn(*acts), lambda call: call <= len(acts))


def all_that_is_bad_in_batches(task, level):
    acts = (
        lambda _: _raise(KeyError("choices")),
        _hang,
        lambda _: None,
        lambda _: "Wrong.",
        lambda completions: [Critique("Hm.")] * (len(completions) - 1),
        lambda completions: [Critique("Hm.")] * (len(completions) + 1),
        lambda completions: [Critique("Hm."), *(JudgeError("no credit") for _ in completions[1:])],
    )
    return BadBatch(task.judge(level), _in_turn(*acts), lambda call: call <= len(acts))


def with_settings(*, model, retries=3, task, level):
    """Says what it was made with."""
    return Bad(task.judge(level), lambda _: Critique(f"{model} {retries}"), lambda call: True)


class Slow:
    """The puzzle's own judge, which takes its time."""

    name = "slow"

    def __init__(self, task, level):
        self.own = task.judge(level)

    def critique(self, example, completion):
        time.sleep(1.5)
        return self.own.critique(example, completion)


all_is_well = judge_that(None, lambda call: False)
all_is_well_in_batches = batch_judge_that(None, lambda call: False)
moves_the_folder = judge_that(_move, lambda call: call == 3)
raises = judge_that(lambda _: _raise(KeyError("choices")))
always_hangs = judge_that(_hang, lambda call: True)
always_raises = judge_that(_refuse, lambda call: True)
breaks_down = judge_that(_refuse, lambda call: call > 4)
batches_break_down = batch_judge_that(_refuse, lambda call: call > 2)
batches_raise = batch_judge_that(_refuse)
breaks_down_later = judge_that(_refuse, lambda call: call > 12)
invented_quotes = judge_that(_of(Quote("nowhere in any answer", -1.0)))
long_text = judge_that(lambda _: Critique("Wrong. " * 10_000))
only_invented_quotes = judge_that(_of(Quote("nowhere in any answer", -1.0)), lambda call: True)
