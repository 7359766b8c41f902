"""Signs that a policy has collapsed, read from the log of its training.

What happens to the reward alone says too little: a policy that has stopped varying, answers with a
word, or gives one answer to every question may still score. Windows of steps are compared by their
medians, so that one odd step is no sign.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

WINDOW = 5
"""Steps of a window: the first ones are compared with the last ones."""
PLATEAU = 20
"""Steps that the accuracy has to stay at the floor before it is said to have ended up there."""
ENTROPY, LENGTH = 0.1, 0.25
"""Shares of the first window's entropy and length; below them is a sign."""
ALL = 0.999
"""Share from which something holds of all."""
SOLVED = 0.9
"""Accuracy from which low entropy is what one wants."""
CUT_OFF = 0.5
"""Share of completions that hit the length limit."""
RATIO, DIVERGENCE = 2.0, 0.1
"""Mean probability ratio (or its inverse), and KL of sampler and trainer in nats before an update,
which is 0 but for rounding."""
NEAR = 0.02
"""Distance from the floor that still is the floor."""

Line = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Collapse:
    """A sign: which, the step at which it was first seen, and in words."""

    kind: str
    step: int
    text: str


def collapses(
    lines: Sequence[Line], *, floor: float = math.nan, floor_policy: str = ""
) -> tuple[Collapse, ...]:
    """The signs in a log, each once, earliest first.

    Args:
      lines: of a policy's `metrics.jsonl`, oldest first; what they do not have is not looked at.
      floor, floor_policy: the accuracy of the best policy that solves nothing, and that policy.

    Returns:
      Signs of the kinds "entropy", "length", "cut off", "ratio", "sampler" and "floor", or, of a
      task that only grades, "reward"; "equal" and "nothing right", where there is nothing to
      compare or to reinforce; and, from the first steps, "unformatted" and "cut off", where no
      reward can be earned.
    """
    watch = Watch(floor=floor, floor_policy=floor_policy)
    return tuple(sign for line in lines for sign in watch.look(line))


class Watch:
    """`collapses` while the lines come in."""

    def __init__(self, *, floor: float = math.nan, floor_policy: str = ""):
        self._floor, self._policy = floor, floor_policy
        self._first: list[Line] = []
        self._last: list[Line] = []
        self._told: set[str] = set()

    def look(self, line: Line) -> list[Collapse]:
        """Adds a line; returns the signs that are new with it."""
        if len(self._first) < WINDOW:
            self._first.append(line)
            return self._new(line, itertools.chain(_equal(self._first), _never(self._first)))
        self._last = [*self._last, line][-PLATEAU:]
        if len(self._last) < WINDOW:
            return []
        return self._new(line, itertools.chain(_equal(self._last[-WINDOW:]), self._signs()))

    def _new(self, line: Line, signs: Iterable[tuple[str, str]]) -> list[Collapse]:
        new = [
            Collapse(kind, int(line["step"]), text)
            for kind, text in signs
            if kind not in self._told
        ]
        self._told |= {sign.kind for sign in new}
        return new

    def _signs(self) -> Iterator[tuple[str, str]]:
        recent = self._last[-WINDOW:]

        def medians(name: str) -> tuple[float, float]:
            return _median(self._first, name), _median(recent, name)

        at_first, accuracy = medians("accuracy")
        if math.isnan(accuracy) and self._reward_fell():
            before, now = medians("reward")
            yield (
                "reward",
                f"the reward fell from {before:.3g} to {now:.3g}: the policy has become worse than "
                "it was at first",
            )
        before, now = medians("entropy")
        if now < ENTROPY * before and not accuracy >= SOLVED:
            yield (
                "entropy",
                f"entropy fell from {before:.3g} to {now:.3g} nats: completions hardly vary",
            )
        before, now = medians("completion_tokens")
        if now < LENGTH * before:
            yield "length", f"completions shrank from {before:.0f} to {now:.0f} tokens on average"
        before, now = medians("cut_off")
        if before < CUT_OFF <= now:
            yield (
                "cut off",
                f"{now:.0%} of completions reach the length limit, {before:.0%} at first",
            )
        _, now = medians("ratio")
        if now > RATIO or now < 1 / RATIO:
            yield (
                "ratio",
                f"the probability ratio is {now:.3g} on average, and should be near 1: updates are "
                "too large",
            )
        _, now = medians("kl_sampler_trainer")
        if now > DIVERGENCE:
            yield (
                "sampler",
                f"sampler and trainer are {now:.2g} nats apart before the first update: what is "
                "trained is not what was sampled",
            )
        if at_first > self._floor + NEAR and accuracy <= self._floor + NEAR:
            yield "floor", f"the accuracy fell from {at_first:.1%} to {accuracy:.1%}, {self._at()}"
        elif self._on_the_floor():
            yield (
                "floor",
                f"the accuracy has stood at {accuracy:.1%} for {PLATEAU} steps, {self._at()}",
            )

        if len(self._last) == PLATEAU and _always(self._last, "accuracy", lambda v: v == 0):
            yield (
                "nothing right",
                f"no first attempt was right for {PLATEAU} steps: without feedback there is "
                "nothing to reinforce. Choose an easier task (task.settings), train the warm start "
                "longer (sft.steps), or begin with a better model",
            )

    def _on_the_floor(self) -> bool:
        half = PLATEAU // 2
        halves = self._last[:half], self._last[half:]
        return len(self._last) == PLATEAU and all(
            abs(_mean(part, "accuracy") - self._floor) <= NEAR for part in halves
        )

    def _reward_fell(self) -> bool:
        """Whether a whole window, of a task without accuracy, is below the worst of the first."""
        first, last = _values(self._first, "reward"), _values(self._last, "reward")
        return len(last) == PLATEAU and len(first) == WINDOW and max(last) < min(first)

    def _at(self) -> str:
        policy = f" ({self._policy})" if self._policy else ""
        return f"where the floor is: {self._floor:.1%}{policy}"


def _always(lines: Sequence[Line], name: str, holds: Callable[[float], bool]) -> bool:
    """Whether something holds in each step of a window, and is known."""
    values = _values(lines, name)
    return WINDOW <= len(values) == len(lines) and all(map(holds, values))


def _equal(window: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """No group whose rewards differ; where tokens have rewards of their own, that does not matter,
    and where all is solved it is as it should be."""
    of_tokens = any("span_reward" in line for line in window)
    if of_tokens or _mean(window, "accuracy") >= SOLVED:
        return
    if _always(window, "equal_groups", lambda share: share >= ALL):
        yield (
            "equal",
            f"in no group did rewards differ for {WINDOW} steps (equal_groups 1): first attempts "
            "are compared with equal ones, which teaches nothing. Raise group_size or "
            "sampling.temperature, choose an easier task (task.settings), or train the warm start "
            "longer (sft.steps)",
        )


def _never(first: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """What has not been there from the first step on."""
    if _always(first, "formatted", lambda share: share == 0):
        yield (
            "unformatted",
            f"no completion of the first {WINDOW} steps has the form that is scored (\\boxed{{}}): "
            "no reward can be earned. Teach the form with more sft.steps, or let the prompt ask "
            "for it (of a puzzle, task.prompt_style: full)",
        )
    if _always(first, "cut_off", lambda share: share >= ALL):
        yield (
            "cut off",
            f"all completions of the first {WINDOW} steps are cut off at sampling.max_new_tokens: "
            "an answer that does not end is never right. Raise sampling.max_new_tokens (and "
            "model.context_length)",
        )


def _values(lines: Sequence[Line], name: str) -> list[float]:
    values = [line.get(name) for line in lines]
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


def _median(lines: Sequence[Line], name: str) -> float:
    values = _values(lines, name)
    return statistics.median(values) if len(values) == len(lines) else math.nan


def _mean(lines: Sequence[Line], name: str) -> float:
    values = _values(lines, name)
    return statistics.fmean(values) if values else math.nan
