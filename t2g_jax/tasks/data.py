"""A task from rows of one's own: prompts from a file or a dataset, rewarded as the config says.

task: {name: data, settings: {train: prompts.jsonl, reward: numeric}}
"""

from __future__ import annotations

import collections
import contextlib
import inspect
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t2g_jax import user_code
from t2g_jax.errors import T2GError, nearest
from t2g_jax.tasks.base import (
    Critique,
    CritiqueLevel,
    Example,
    Floor,
    JudgeError,
    Score,
    Split,
)
from t2g_jax.tasks.rewards import Rewards, make_rewards
from t2g_jax.tasks.rows import COLUMNS, Quarantined, Rows, Spool, read_rows
from t2g_jax.tasks.sources import Row, Source

HELD_OUT = 0.1
"""Share of the training rows that is held out where there are no test rows."""
MOST_HELD_OUT = 200


class DataTask:
    """Prompts from rows, see `rows` for their columns and `sources` for where they may be.

    Args:
      train: where the rows to train on are: a name, or a mapping of `source`, `split`, `config` and
        `revision` (see `Source`), or a list of these.
      test: likewise, the rows to evaluate on. None: as many as `test_size` of the training rows are
        held out. Either way no prompt of the test rows is trained on.
      reward: what completions earn, see `make_rewards`. None: what the judge's critique says.
      columns: what the rows call a column, e.g. {"prompt": "question"}.
      system: a system prompt, before prompts that have none of their own.
      test_size: rows to evaluate on, at most. None: all test rows, or 10 % of the training rows,
        200 at most.
      seed: which training rows are held out.

    Raises:
      T2GError: a setting is unknown or cannot be used, or no row can.
    """

    name = "data"

    def __init__(
        self,
        *,
        train: Any,
        test: Any = None,
        reward: Any = None,
        columns: Mapping[str, str] | None = None,
        system: str = "",
        test_size: int | None = None,
        seed: int = 0,
    ) -> None:
        _require_text("system", system)
        _require_whole("test_size", test_size, least=1, optional=True)
        _require_whole("seed", seed, least=0)
        columns = _checked_columns(columns or {})
        self.system = system
        aliases = {theirs: ours for ours, theirs in columns.items()}
        self.rewards: Rewards | None = (
            None if reward is None else make_rewards(reward, aliases=aliases)
        )
        self.score_batch = None if self.rewards is None else self._score_batch
        self._columns = columns
        self._names: dict[str, str] = {}
        self.quarantine: list[Quarantined] = []
        """Rows that are not used, and why."""
        rows = self._read("train", train)
        if test is None:
            of_test = rows
            kept, tests = self._held_out(rows, test_size, seed)
            self._test = Rows(rows, tests)
        else:
            of_test = self._read("test", test)
            known = np.isin(rows.prompts, of_test.prompts)
            kept, tests = np.flatnonzero(~known), np.arange(len(of_test))[:test_size]
            self._test = Rows(of_test, tests)
        self.duplicates = len(rows) - len(kept) - (len(tests) if test is None else 0)
        """Training rows that are left out because their prompt is one of the test rows'."""
        if not len(kept):
            raise T2GError(
                "task.settings.train: every prompt is one of the test rows', too, so that nothing "
                "is left to train on"
            )
        self._check_columns(rows, of_test)
        self._train = Rows(rows, kept)
        self.fingerprint = f"{rows.fingerprint()}-{of_test.fingerprint()}"
        """Changes when any row does."""
        self.columns = rows.columns
        """How many training rows have each column that is not empty."""
        self.demonstrate = self._demonstrate if rows.columns["demonstration"] else None
        decided = self.rewards is not None and self.rewards.decides and rows.columns["answer"]
        self.solve = self._solve if decided else None
        spoken = rows.columns["feedback"] + rows.columns["privileged_context"]
        self.judge = self._judge if spoken else None
        self.judge_quotes = False
        """Whether that judge quotes what it speaks of."""

    def split(self, split: Split) -> Sequence[Example]:
        """The rows of a split, read when they are asked for."""
        return self._test if split == "test" else self._train

    def floor(self, examples: Sequence[Example]) -> Floor | None:
        """A policy that always gives the most frequent answer, where built-in rewards decide."""
        if self.rewards is None or not self.rewards.decides or not self.rewards.built_in:
            return None
        answers = collections.Counter(example.answer for example in examples if example.answer)
        if not answers:
            return None
        ((answer, _),) = answers.most_common(1)
        scores = self.rewards.score(examples, [answer] * len(examples))
        right = sum(score.correct is True for score in scores)
        return Floor(right / len(scores), "always gives the most frequent answer")

    def _score_batch(
        self, examples: Sequence[Example], completions: Sequence[str], **about: Any
    ) -> list[Score]:
        return self.rewards.score(examples, completions, **about)

    def _demonstrate(self, example: Example, rng: random.Random) -> str | None:
        """The row's demonstration, None where it has none."""
        del rng
        return example.metadata.get("demonstration")

    def _solve(self, example: Example) -> str | None:
        """The row's answer, where the reward calls it right: what a second attempt is shown."""
        if not example.answer:
            return None
        (score,) = self._score_batch([example], [example.answer])
        return example.answer if score.correct else None

    def _judge(self, level: CritiqueLevel) -> FeedbackJudge:
        """Says what the row has to say, whatever the level."""
        del level
        return FeedbackJudge()

    def notes(self) -> list[str]:
        """What became of the rows, in a line each."""
        lines = [f"task: {len(self._train)} rows to train on, {len(self._test)} to evaluate on"]
        if self.duplicates:
            lines.append(
                f"task: {self.duplicates} training rows are left out, as their prompts are among "
                "the test rows'"
            )
        for name in self._columns:
            guess = nearest(name, COLUMNS)
            if guess and name not in COLUMNS and not (self.rewards and self.rewards.asks_for(name)):
                lines.append(f"Warning: task.settings.columns: {name!r} has no meaning here{guess}")
        if self.quarantine:
            lines.append(f"Warning: task: {self._set_aside()}")
        return lines

    def _set_aside(self) -> str:
        first, count = self.quarantine[0], len(self.quarantine)
        rows = "1 row" if count == 1 else f"{count} rows"
        return (
            f"{rows} cannot be used; the first is {first.source}, line {first.line}: {first.reason}"
        )

    def _held_out(
        self, rows: Spool, test_size: int | None, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        try:
            return _held_out(rows, test_size, seed)
        except T2GError as error:
            if not self.quarantine:
                raise
            raise T2GError(f"{error} ({self._set_aside()})") from error

    def _check_columns(self, train: Spool, test: Spool) -> None:
        """That somebody has what the settings ask for."""
        for ours, theirs in self._columns.items():
            if theirs not in train.read | test.read:
                have = ", ".join(sorted(train.read | test.read))
                raise T2GError(
                    f"task.settings.columns: no row has the column `{theirs}`, which is to be "
                    f"`{ours}`; columns: {have}"
                )
        if self.rewards:
            self.rewards.expect([*(train.columns | test.columns)])

    def _read(self, which: str, given: Any) -> Spool:
        sources = _sources(which, given)
        rows = itertools.chain.from_iterable(_rows_of(which, source) for source in sources)
        problem = self.rewards.problem if self.rewards else lambda example: None
        spool, bad = read_rows(rows, columns=self._columns, problem=problem, names=self._names)
        self.quarantine += bad
        if not len(spool):
            names = ", ".join(source.name for source in sources)
            if not bad:
                raise T2GError(f"task.settings.{which}: {names} has no rows")
            raise T2GError(
                f"task.settings.{which}: none of the {len(bad)} rows of {names} can be used; the "
                f"first, line {bad[0].line}: {bad[0].reason}"
            )
        return spool


class FeedbackJudge:
    """Says of any attempt what its row says: the `feedback`, and then the `privileged_context`."""

    name = "feedback"

    def critique(self, example: Example, completion: str) -> Critique:
        """Raises JudgeError if the row has neither."""
        del completion
        said = [example.metadata.get(name) for name in ("feedback", "privileged_context")]
        text = "\n\n".join(part for part in said if part)
        if not text:
            raise JudgeError("no feedback", f"{example.id} has no column `feedback`")
        return Critique(text)


def make_data_task(settings: Mapping[str, Any]) -> DataTask:
    """The task of a config's `task.settings`.

    Raises:
      T2GError: as `DataTask`.
    """
    known = list(inspect.signature(DataTask).parameters)
    for name in settings:
        if name not in known:
            guess = nearest(name, known) or f"; known: {', '.join(known)}"
            raise T2GError(f"task.settings: the task `data` has no setting {str(name)!r}{guess}")
    if settings.get("train") is None:
        raise T2GError(
            "task.settings: the task `data` needs `train`, a file or dataset of rows, e.g. "
            "{train: prompts.jsonl, reward: exact}"
        )
    return DataTask(**settings)


def _held_out(rows: Spool, test_size: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of rows to train on, and of rows to test on: none has a prompt of the other."""
    order = np.random.default_rng(seed).permutation(len(rows))
    prompts, first = np.unique(rows.prompts[order], return_index=True)
    if len(prompts) < 2:
        raise T2GError(
            "task.settings.train: all rows have the same prompt, so that none can be held out; "
            "give `test`, or rows of more prompts"
        )
    count = test_size or min(MOST_HELD_OUT, max(round(HELD_OUT * len(prompts)), 1))
    if count >= len(prompts):
        raise T2GError(
            f"task.settings.test_size ({count}) must be less than the {len(prompts)} different "
            "prompts of the training rows, as it is held out of them; lower it, or give `test`"
        )
    tests = np.sort(order[np.sort(first)[:count]])  # one row of each of the first prompts
    known = np.isin(rows.prompts, rows.prompts[tests])
    return np.flatnonzero(~known), tests


def _sources(which: str, given: Any) -> list[Source]:
    key = f"task.settings.{which}"
    sources: list[Source] = []
    for item in given if isinstance(given, list | tuple) else [given]:
        options = {"source": item} if isinstance(item, str) else item
        if not isinstance(options, Mapping) or not isinstance(options.get("source"), str):
            raise T2GError(
                f"{key} is {user_code.shown(item)}; give a file or dataset, or a mapping with "
                "`source`"
            )
        for name, value in options.items():
            if name not in ("source", "split", "config", "revision"):
                raise T2GError(
                    f"{key} has no option {str(name)!r}; known: source, split, config, revision"
                )
            _require_text(f"{which}.{name}", value)
        named = {name: value for name, value in options.items() if name != "source"}
        with _named(which):
            sources += Source(options["source"], **named).files()
    if not sources:
        raise T2GError(f"{key} is empty; name a file or dataset")
    return sources


def _rows_of(which: str, source: Source) -> Iterator[Row]:
    with _named(which):
        yield from source.rows(which)


@contextlib.contextmanager
def _named(which: str) -> Iterator[None]:
    """Errors say which setting named the source."""
    try:
        yield
    except T2GError as error:
        raise T2GError(f"task.settings.{which}: {error}") from error


def _checked_columns(columns: Any) -> dict[str, str]:
    if not isinstance(columns, Mapping):
        raise T2GError(
            f"task.settings.columns is {user_code.shown(columns)}; give a mapping such as "
            "{prompt: question}"
        )
    for ours, theirs in columns.items():
        _require_text(f"columns.{ours}", theirs)
    return dict(columns)


def _require_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise T2GError(f"task.settings.{name} is {user_code.shown(value)}; must be text")


def _require_whole(name: str, value: Any, *, least: int, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise T2GError(
            f"task.settings.{name} is {user_code.shown(value)}; must be a whole number from {least}"
        )
