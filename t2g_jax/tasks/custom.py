"""Tasks of one's own: found by the name that the config gives, and checked where they are used.

    task: {name: "my_module:make_task", settings: {level: 3}}

`make_task(level=3)` returns an object with `split("train" | "test")`, and `score(example,
completion)` or a judge in its place; see `Task` and `Capable`. Whatever it does wrong is said in a
line that names its file.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from t2g_jax import factories, user_code
from t2g_jax.errors import T2GError
from t2g_jax.tasks.base import Example, Floor, Score, Split, capability, prompt_text
from t2g_jax.tasks.rows import Malformed, checked_prompt

CHECKED = ("floor", "solve", "demonstrate", "judge")
"""What a task may have besides, see `Capable`."""


def make_custom_task(
    name: str, settings: Mapping[str, Any], factory: Callable[..., Any]
) -> CustomTask:
    """The task that a factory makes of settings, by the name that the config has for it.

    Raises:
      T2GError: it does not take the settings, it raises, or what it returns is no task.
    """
    made = factories.make(factory, settings, name=name, section="task")
    if capability(made, "split") is None:
        raise T2GError(
            f"task.name: {name} returned {user_code.shown(made)}; return an object with "
            "split('train' | 'test') and score(example, completion)"
        )
    return CustomTask(made, name)


class CustomTask:
    """A task of the user's, whose methods fail with one line that names them.

    Args:
      task: what the factory made.
      name: as the config has it, for messages.
    """

    def __init__(self, task: Any, name: str) -> None:
        self._task, self._name = task, name
        own = getattr(task, "name", None)
        self.name: str = own if isinstance(own, str) and own else name
        system = getattr(task, "system", None)
        if not isinstance(system, str | None):
            raise T2GError(f"task {name}: system is {user_code.shown(system)}; must be text")
        self.system: str = system or ""
        self._splits: dict[str, Sequence[Example]] = {}
        self._grades: bool | None = None  # whether it only grades, once it is known
        scores = capability(task, "score") or capability(task, "score_batch")
        self.score_batch: Callable[..., list[Score]] | None = self._scores if scores else None
        for method in CHECKED:
            setattr(self, method, self._guarded(method) if capability(task, method) else None)

    def split(self, split: Split) -> Sequence[Example]:
        """The examples of a split, checked: all at once if it is a list, else one by one.

        Raises:
          T2GError: it has none, or one of them cannot be used.
        """
        if split not in self._splits:
            self._splits[split] = self._checked(split)
        return self._splits[split]

    def notes(self) -> list[str]:
        """What is odd about the examples, where they are lists, in a line each."""
        train, test = self.split("train"), self.split("test")
        if isinstance(train, _Lazy) or isinstance(test, _Lazy):
            return []
        known = {prompt_text(example.prompt) for example in train}
        both = sum(prompt_text(example.prompt) in known for example in test)
        if not both:
            return []
        return [
            f"Warning: task {self._name}: {both} of {len(test)} test examples have a prompt that "
            "is trained on, too: what is measured on them says nothing of new ones"
        ]

    def _checked(self, split: Split) -> Sequence[Example]:
        where = f"split({split!r}) of the task {self._name}"
        found = user_code.call(f"{where} failed", self._task.split, split)
        if isinstance(found, str | bytes | Mapping) or not isinstance(found, Iterable):
            raise T2GError(f"{where} returned {user_code.shown(found)}; return a list of Example")
        if isinstance(found, Sequence) and not isinstance(found, list | tuple):
            if not user_code.call(f"{where} failed", len, found):
                raise T2GError(f"{where} has no examples")
            return _Lazy(found, where)
        examples = user_code.call(f"{where} failed", list, found)
        if not examples:
            raise T2GError(f"{where} has no examples")
        seen: set[str] = set()
        checked = []
        for i, example in enumerate(examples):
            checked.append(checked_example(example, f"{where}: example {i}"))
            if example.id in seen:
                raise T2GError(f"{where}: example {i}: id {example.id!r} is that of another, too")
            seen.add(example.id)
        return checked

    def _guarded(self, method: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            where = f"{method} of the task {self._name}"
            found = user_code.call(f"{where} failed", getattr(self._task, method), *args)
            return _CHECKS[method](found, where)

        return call

    def _scores(
        self, examples: Sequence[Example], completions: Sequence[str], **about: Any
    ) -> list[Score]:
        del about
        batched = capability(self._task, "score_batch")
        where = f"{'score_batch' if batched else 'score'} of the task {self._name}"
        what = f"{where} failed"
        if batched is None:
            pairs = zip(examples, completions, strict=True)
            found = [user_code.call(what, self._task.score, *pair) for pair in pairs]
        else:
            found = user_code.call(what, batched, list(examples), list(completions))
            if not isinstance(found, list | tuple) or len(found) != len(completions):
                raise T2GError(
                    f"{where} returned {user_code.shown(found)}; return a list of "
                    f"{len(completions)} scores, one for each completion"
                )
        where += user_code.defined(batched or self._task.score)
        scores = [checked_score(score, where) for score in found]
        for score in scores:
            grades = score.correct is None
            if self._grades is None:
                self._grades = grades
            if grades != self._grades:
                raise T2GError(
                    f"{where}: correct is None for some completions, and True or False for others; "
                    "say it of all, or of none"
                )
        return scores


class _Lazy(Sequence[Example]):
    """A sequence of the user's, whose examples are checked when they are asked for."""

    def __init__(self, examples: Sequence[Any], where: str) -> None:
        self._examples, self._where = examples, where

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[operator.index(index)]
        found = user_code.call(
            f"{self._where} failed at example {i}", self._examples.__getitem__, i
        )
        return checked_example(found, f"{self._where}: example {i}")


def checked_example(example: Any, where: str) -> Example:
    """An example that can be used.

    Raises:
      T2GError: it is none, or one of its fields is not what it must be.
    """
    if not isinstance(example, Example):
        raise T2GError(f"{where} is {user_code.shown(example)}; give a t2g_jax.tasks.Example")
    if not isinstance(example.id, str) or not example.id:
        raise T2GError(f"{where}: id is {user_code.shown(example.id)}; must be text")
    try:
        checked_prompt(example.prompt)
    except Malformed as error:
        raise T2GError(f"{where} ({example.id!r}): {error}") from error
    if not isinstance(example.answer, str):
        answer = user_code.shown(example.answer)
        raise T2GError(f"{where} ({example.id!r}): answer is {answer}; must be text")
    if not isinstance(example.metadata, dict):
        metadata = user_code.shown(example.metadata)
        raise T2GError(f"{where} ({example.id!r}): metadata is {metadata}; must be a dict")
    try:
        fields = [example.id, example.prompt, example.answer, example.metadata]
        json.dumps(fields, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise T2GError(f"{where} ({example.id!r}): half of a surrogate pair in a text") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise T2GError(f"{where} ({example.id!r}): metadata cannot be JSON: {error}") from error
    return example


def checked_score(score: Any, where: str) -> Score:
    """A score that can be learned from, of plain types.

    Raises:
      T2GError: it is none, or its reward is not finite.
    """
    if not isinstance(score, Score):
        raise T2GError(f"{where} returned {user_code.shown(score)}; return Score(reward, correct)")
    flags = {"correct": score.correct, "formatted": score.formatted}
    for name, flag in flags.items():
        if flag is not None and not _is_flag(flag):
            raise T2GError(
                f"{where}: {name} is {user_code.shown(flag)}; must be True, False or None"
            )
    if not isinstance(score.metrics, Mapping):
        raise T2GError(f"{where}: metrics is {user_code.shown(score.metrics)}; must be a dict")
    numbers = {"reward": score.reward, **score.metrics}
    for name, number in numbers.items():
        if not _is_finite(number):
            raise T2GError(f"{where}: {name} is {user_code.shown(number)}; must be a finite number")
    metrics = {str(name): float(number) for name, number in score.metrics.items()}
    known = {name: None if flag is None else bool(flag) for name, flag in flags.items()}
    return Score(float(score.reward), metrics=metrics, **known)


def _floor(found: Any, where: str) -> Floor | None:
    if not isinstance(found, Floor | None):
        raise T2GError(f"{where} returned {user_code.shown(found)}; return Floor(accuracy, policy)")
    return found


def _completion(found: Any, where: str) -> str | None:
    if not isinstance(found, str | None):
        raise T2GError(f"{where} returned {user_code.shown(found)}; return the completion's text")
    return found


def _judge(found: Any, where: str) -> Any:
    if not any(callable(getattr(found, name, None)) for name in ("critique", "critique_batch")):
        raise T2GError(
            f"{where} returned {user_code.shown(found)}; return an object with "
            "critique(example, completion)"
        )
    return found


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "floor": _floor,
    "solve": _completion,
    "demonstrate": _completion,
    "judge": _judge,
}


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # of numpy


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(float(value))
    except (OverflowError, ValueError):
        return False
