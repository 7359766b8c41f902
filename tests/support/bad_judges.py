"""Judges that misbehave at every third completion, by `judge.name`: "bad_judges:raises"."""

import math
import threading
import time

from t2g_jax.judges.base import Critique
from t2g_jax.spans import Quote


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


def third(call):
    return call % 3 == 0


def judge_that(act, when=third):
    return lambda task, level: Bad(task.judge(level), act, when)


def _raise(error):
    raise error


def _refuse(_):
    raise ConnectionError("connection refused")


def _hang(_):
    time.sleep(3600)


def _of(*quotes):
    return lambda _: Critique("Hm.", quotes)


all_is_well = judge_that(None, lambda call: False)
raises = judge_that(lambda _: _raise(KeyError("choices")))
exits = judge_that(lambda _: _raise(SystemExit(1)))
hangs = judge_that(_hang)
always_hangs = judge_that(_hang, lambda call: True)
always_raises = judge_that(_refuse, lambda call: True)
breaks_down = judge_that(_refuse, lambda call: call > 4)
breaks_down_later = judge_that(_refuse, lambda call: call > 12)
nothing = judge_that(lambda _: None)
a_string = judge_that(lambda _: "Wrong.")
text_of_bytes = judge_that(lambda _: Critique(b"Wrong."))
empty_text = judge_that(lambda _: Critique(" \n"))
half_a_character = judge_that(lambda _: Critique("\ud800"))
much_text = judge_that(lambda _: Critique("Wrong. " * 1_500_000))
quotes_of_text = judge_that(_of("1"))
nan_reward = judge_that(_of(Quote("1", math.nan)))
huge_reward = judge_that(_of(Quote("1", 1e30)))
text_reward = judge_that(_of(Quote("1", "bad")))
quote_of_none = judge_that(_of(Quote(None, 1.0)))
invented_quotes = judge_that(_of(Quote("nowhere in any answer", -1.0)))
long_text = judge_that(lambda _: Critique("Wrong. " * 10_000))
only_invented_quotes = judge_that(_of(Quote("nowhere in any answer", -1.0)), lambda call: True)
