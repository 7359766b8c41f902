"""Reward functions of one's own, with the signature that TRL's `reward_funcs` have.

    def brevity(prompts, completions, **columns):
        return [1.0 - len(completion) / 1000 for completion in completions]

A function gets a batch: `prompts` and `completions`, both texts, or both lists of messages where
the prompt is one (a completion then is `[{"role": "assistant", "content": …}]`); the columns of the
rows by name, as lists, with None where a row has none; `completion_ids`, lists of tokens;
`trainer_state` with `global_step` and `max_steps`; `log_metric(name, value)` and
`log_extra(column, values)`. What its signature does not name it is not given. It returns a number
for each completion, or None where it says nothing; an `async` function is awaited.
"""

from __future__ import annotations

import collections
import inspect
import math
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from t2g_jax import user_code
from t2g_jax.errors import T2GError
from t2g_jax.tasks.base import Example

GIVEN = (
    *("prompts", "completions", "completion_ids"),
    *("trainer_state", "log_extra", "log_metric"),
)
"""What is not a column of the rows."""


@dataclass(frozen=True)
class TrainerState:
    """What functions may read of transformers' `TrainerState`: batches so far, and in all."""

    global_step: int
    max_steps: int


@dataclass(frozen=True)
class Batch:
    """Completions to reward, see `Rewards.score`."""

    examples: Sequence[Example]
    completions: Sequence[str]
    completion_ids: Sequence[Sequence[int]] | None = None
    step: int = 0
    steps: int = 0
    logged: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))

    def log(self, name: str, value: float) -> None:
        """What functions get as `log_metric`.

        Raises:
          ValueError: the value is not finite.
        """
        if not _is_finite(value):
            raise ValueError(f"log_metric: {name} is {user_code.shown(value)}; must be finite")
        self.logged[str(name)].append(float(value))

    def logged_means(self) -> dict[str, float]:
        """Of what functions told `log_metric`."""
        return {name: math.fsum(values) / len(values) for name, values in self.logged.items()}


class RewardFunction:
    """A function of one's own as a reward.

    Args:
      name: `module:function`.
      key: of the config, for messages.
      aliases: other names of columns, by which the function may ask for them: name → column.

    Raises:
      T2GError: there is no such function.
    """

    def __init__(self, name: str, *, key: str, aliases: Mapping[str, str]) -> None:
        self.name, self.key, self.aliases = name, key, dict(aliases)
        self.columns: tuple[str, ...] = ()
        """Columns that it is given even of a batch in which no row has them."""
        self.function = user_code.load(name, key=key, takes="(prompts, completions, **columns)")
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):  # a compiled function
            self._named, self._takes_all, self._required = set[str](), True, list[str]()
            return
        keywords = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._named = {p.name for p in keywords}
        self._required = [p.name for p in keywords if p.default is p.empty]

    def expect(self, columns: Collection[str]) -> None:
        """Checks that the function asks only for columns that there are, and gives it them from now
        on, whether or not a row of the batch has them.

        Args:
          columns: what any row has besides its prompt, and `answer` if one has it.

        Raises:
          T2GError: it asks for another.
        """
        self.columns = tuple(columns)
        known = {*columns, "id", "prompt", *self.aliases}
        self._require([*GIVEN, *known], known)

    def asks_for(self, name: str) -> bool:
        """Whether a column of this name would be handed over."""
        return self._takes_all or name in self._named

    def values(self, batch: Batch) -> list[float | None]:
        """What the function returns for a batch, checked; see the module's text.

        Raises:
          T2GError: it raised, it asks for what rows do not have, or it returned something else.
        """
        if not batch.completions:
            return []
        given = self._arguments(batch)
        returned = user_code.call(f"the reward {self.name} failed", self.function, **given)
        return self._checked(returned, len(batch.completions))

    def problem(self, example: Example) -> str | None:
        """A row whose column has a name that means something else to the function."""
        taken = [name for name in (*example.metadata, *self.aliases) if name in GIVEN]
        return f"the column `{taken[0]}` has a name that rewards need; map it" if taken else None

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        examples = batch.examples
        prompts = [example.prompt for example in examples]
        here = (name for example in examples for name in example.metadata)
        given: dict[str, Any] = {
            name: [example.metadata.get(name) for example in examples]
            for name in dict.fromkeys([*self.columns, *here])
        }
        given["id"] = [example.metadata.get("id", example.id) for example in examples]
        if "answer" in given or any(example.answer for example in examples):
            given["answer"] = [
                example.metadata.get("answer", example.answer or None) for example in examples
            ]
        columns = given | {"prompt": prompts}
        given |= {alias: columns[name] for alias, name in self.aliases.items() if name in columns}
        given["prompts"] = prompts
        given["completions"] = [
            text if isinstance(example.prompt, str) else [{"role": "assistant", "content": text}]
            for example, text in zip(examples, batch.completions, strict=True)
        ]
        if batch.completion_ids is not None:
            given["completion_ids"] = [list(ids) for ids in batch.completion_ids]
        given["trainer_state"] = TrainerState(batch.step, batch.steps)
        given["log_metric"] = batch.log
        given["log_extra"] = lambda column, values: None  # a table that TRL prints
        self._require(given, [name for name in given if name not in GIVEN])
        if self._takes_all:
            return given
        return {name: value for name, value in given.items() if name in self._named}

    def _require(self, given: Collection[str], columns: Collection[str]) -> None:
        if missing := [name for name in self._required if name not in given]:
            raise T2GError(
                f"{self.key}: {self.name}{user_code.defined(self.function)} asks for "
                f"`{missing[0]}`, which the rows do not have; columns: {', '.join(sorted(columns))}"
            )

    def _checked(self, returned: Any, count: int) -> list[float | None]:
        where = f"the reward {self.name}{user_code.defined(self.function)}"
        wanted = f"return a list of {count} numbers, one for each completion"
        try:
            size = None if isinstance(returned, str | bytes | Mapping | Set) else len(returned)
        except TypeError:  # a number, or an array that is one
            size = None
        if size is None:
            raise T2GError(f"{where} returned {user_code.shown(returned)}; {wanted}")
        if size != count:
            raise T2GError(f"{where} returned {size} values; {wanted}")
        values: list[float | None] = []
        for i, value in enumerate(returned):
            if callable(item := getattr(value, "item", None)):  # of numpy, jax or torch
                value = user_code.call(f"{where} returned no number for completion {i}", item)
            if value is not None and not isinstance(value, Real):
                raise T2GError(
                    f"{where} returned {user_code.shown(value)} for completion {i}; {wanted}, or "
                    "None where the reward does not apply"
                )
            if value is not None and not _is_finite(value):
                raise T2GError(
                    f"{where} returned {user_code.shown(value)} for completion {i}; rewards must "
                    "be finite, or None where the reward does not apply"
                )
            values.append(None if value is None else float(value))
        return values


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value) and math.isfinite(float(value))
    except (OverflowError, TypeError, ValueError):
        return False
