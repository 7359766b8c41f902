"""Rewards of completions: by name, by a function of one's own, or a weighted sum of several.

    rewards = make_rewards([{"name": "numeric"}, {"name": "my_rewards:brevity", "weight": 0.1}])
    rewards.score(examples, completions)

Built-in ones compare a completion with the example's `answer`: 1 if it agrees, else 0. Functions
that were written for TRL's `reward_funcs` are in `reward_functions`.
"""

from __future__ import annotations

import collections
import dataclasses
import fractions
import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any, Protocol

import regex

from t2g_jax import user_code
from t2g_jax.errors import T2GError, nearest
from t2g_jax.tasks.base import Example, Score
from t2g_jax.tasks.math_answers import MathAnswers
from t2g_jax.tasks.puzzles.boxed import find_boxed
from t2g_jax.tasks.reward_functions import Batch, RewardFunction

BUILT_IN = ("exact", "numeric", "contains", "regex", "math")
REGEX_SECONDS = 1.0
"""What takes longer to match does not match: some patterns never end on some texts."""


class Reward(Protocol):
    """What a name stands for."""

    def values(self, batch: Batch) -> list[float | None]:
        """A value for each completion; None where it says nothing of one."""

    def problem(self, example: Example) -> str | None:
        """Why no completion of this example can be rewarded, or None."""


@dataclasses.dataclass(frozen=True)
class Term:
    """One reward of a sum.

    correct_from: a completion is right only if this reward is at least so much; None: it does not
      decide that. 1 for built-in ones, which compare with an answer; None for functions.
    """

    name: str
    reward: Reward
    weight: float
    correct_from: float | None


class Rewards:
    """A weighted sum of rewards; make it with `make_rewards`."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)

    @property
    def decides(self) -> bool:
        """Whether a completion can be right or wrong, and not only better or worse."""
        return any(term.correct_from is not None for term in self.terms)

    @property
    def built_in(self) -> bool:
        """Whether none of them is a function of one's own."""
        return not self._functions

    def problem(self, example: Example) -> str | None:
        """Why no completion of this example can be rewarded, or None."""
        said = (term.reward.problem(example) for term in self.terms)
        return next((problem for problem in said if problem), None)

    def expect(self, columns: Collection[str]) -> None:
        """Says which columns the rows have, see `RewardFunction.expect`.

        Raises:
          T2GError: a function asks for another.
        """
        for function in self._functions:
            function.expect(columns)

    def asks_for(self, name: str) -> bool:
        """Whether a function would be handed a column of this name."""
        return any(function.asks_for(name) for function in self._functions)

    @property
    def _functions(self) -> list[RewardFunction]:
        rewards = (term.reward for term in self.terms)
        return [reward for reward in rewards if isinstance(reward, RewardFunction)]

    def score(
        self,
        examples: Sequence[Example],
        completions: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        step: int = 0,
        steps: int = 0,
    ) -> list[Score]:
        """Σ wᵢ rᵢ over the rewards that say something of a completion; 0 if none does. Where there
        are several, `Score.metrics` has each.

        A completion is right if each reward that decides so reaches its `correct_from`.

        Args:
          examples, completions: of equal length.
          completion_ids, step, steps: for functions that ask for them, see `reward_functions`.

        Raises:
          T2GError: a function raised, or returned what is no list of so many finite numbers; or
            their sum is not finite.
        """
        batch = Batch(examples, completions, completion_ids, step, steps)
        columns = [term.reward.values(batch) for term in self.terms]
        logged = batch.logged_means()
        return [self._sum(values, logged) for values in zip(*columns, strict=True)]

    def _sum(self, values: Sequence[float | None], logged: Mapping[str, float]) -> Score:
        pairs = list(zip(self.terms, values, strict=True))
        parts = [(term.weight, value) for term, value in pairs if value is not None]
        try:
            total = math.fsum(weight * value for weight, value in parts)
        except (OverflowError, ValueError):  # on the way, or of infinities
            total = math.nan
        if not math.isfinite(total):
            said = " + ".join(f"{weight:g} × {value:g}" for weight, value in parts)
            raise T2GError(f"task.settings.reward: {said} is not finite; lower the weights")
        deciding = [(t.correct_from, value) for t, value in pairs if t.correct_from is not None]
        correct = (
            all(value is not None and value >= least for least, value in deciding)
            if deciding
            else None
        )
        metrics = dict(logged)
        if len(pairs) > 1:
            metrics |= {t.name: value for t, value in pairs if value is not None}
        return Score(total, correct, metrics=metrics)


def make_rewards(given: Any, *, aliases: Mapping[str, str] | None = None) -> Rewards:
    """The rewards of a config.

    Args:
      given: a name; a mapping of `name`, `weight`, `correct_from` and the reward's own options; or
        a list of these. A name is one of `BUILT_IN`, or `module:function`. Options:
          exact: the completion, blanks apart, is the answer. `extract`: only what the last match of
            this pattern has in its group, or what stands in `boxed`. `ignore_case`.
          numeric: its last number is that of the answer, to `tolerance`, which is relative: 1e-6,
            and 0 between whole numbers. `extract`.
          contains: the answer stands in it, as whole words. `ignore_case`.
          regex: `pattern` is found in it; `{answer}` in the pattern is the example's answer.
          math: its final expression equals the answer, by math-verify; `timeout_seconds`.
      aliases: other names of columns, by which functions may ask for them, too.

    Raises:
      T2GError: an unknown name or option, or a value that cannot be used.
    """
    items = given if isinstance(given, list | tuple) else [given]
    if not items:
        raise T2GError("task.settings.reward is empty; name at least one reward")
    counts: collections.Counter[str] = collections.Counter()
    terms = []
    for i, item in enumerate(items):
        key = f"task.settings.reward[{i}]" if len(items) > 1 else "task.settings.reward"
        term = _term(item, key, aliases or {})
        counts[term.name] += 1
        if counts[term.name] > 1:  # the same twice, with other options
            term = dataclasses.replace(term, name=f"{term.name}_{counts[term.name]}")
        terms.append(term)
    return Rewards(terms)


def _term(item: Any, key: str, aliases: Mapping[str, str]) -> Term:
    options = {"name": item} if isinstance(item, str) else item
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        raise T2GError(
            f"{key} is {user_code.shown(item)}; give the name of a reward, or a mapping with "
            f"`name`: {', '.join(BUILT_IN)}, or module:function"
        )
    name, options = options["name"], {k: v for k, v in options.items() if k != "name"}
    weight = _number(options.pop("weight", 1.0), f"{key}.weight")
    correct_from = options.pop("correct_from", 1.0 if name in BUILT_IN else None)
    if correct_from is not None:
        correct_from = _number(correct_from, f"{key}.correct_from")
    if name not in BUILT_IN:
        if not user_code.is_name(name):
            raise T2GError(
                f"{key}: unknown reward {name!r}{nearest(name, BUILT_IN)}; known: "
                f"{', '.join(BUILT_IN)}, or module:function of your own"
            )
        _no_more(options, (), key, name)
        function = RewardFunction(name, key=key, aliases=aliases)
        return Term(name.rpartition(":")[2].replace(".", "_"), function, weight, correct_from)
    kind = {
        "exact": Exact,
        "numeric": Numeric,
        "contains": Contains,
        "regex": Pattern,
        "math": Math,
    }[name]
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    _no_more(options, known, key, name)
    for option, value in options.items():
        _check_option(option, value, f"{key}.{option}")
    try:
        return Term(name, kind(**options), weight, correct_from)
    except TypeError as error:
        raise T2GError(f"{key}: {name} needs `pattern`, the regular expression to find") from error


# --- Built in ------------------------------------------------------------------------------------


class _Compared:
    """A reward that compares each completion with its example's answer: 1 or 0."""

    def values(self, batch: Batch) -> list[float | None]:
        pairs = zip(batch.examples, batch.completions, strict=True)
        return [float(self.agrees(example.answer, completion)) for example, completion in pairs]

    def agrees(self, answer: str, completion: str) -> bool:
        raise NotImplementedError

    def problem(self, example: Example) -> str | None:
        if example.answer.strip():
            return None
        return f"no `answer`, which the reward `{type(self).__name__.lower()}` compares with"


@dataclasses.dataclass(frozen=True)
class Exact(_Compared):
    """The completion is the answer; blanks at its ends and their number do not count."""

    extract: str | None = None
    ignore_case: bool = False

    def agrees(self, answer: str, completion: str) -> bool:
        said = extracted(completion, self.extract)
        return said is not None and self._tidy(said) == self._tidy(answer)

    def _tidy(self, text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text


@dataclasses.dataclass(frozen=True)
class Numeric(_Compared):
    """The last number of the completion is the last of the answer, to a relative tolerance.

    tolerance: None: 1e-6, and 0 between whole numbers.
    """

    extract: str | None = None
    tolerance: float | None = None

    def agrees(self, answer: str, completion: str) -> bool:
        text = extracted(completion, self.extract)
        said, wanted = (None if text is None else last_number(text)), last_number(answer)
        if said is None or wanted is None:
            return False
        whole = said.denominator == wanted.denominator == 1
        tolerance = (0.0 if whole else 1e-6) if self.tolerance is None else self.tolerance
        return abs(said - wanted) <= fractions.Fraction(tolerance) * abs(wanted)

    def problem(self, example: Example) -> str | None:
        if (missing := super().problem(example)) is not None:
            return missing
        if last_number(example.answer) is None:
            return "`answer` holds no number, which the reward `numeric` compares with"
        return None


@dataclasses.dataclass(frozen=True)
class Contains(_Compared):
    """The answer stands somewhere in the completion, not as a part of a longer word or number, and
    not as the number without its sign."""

    ignore_case: bool = False

    def agrees(self, answer: str, completion: str) -> bool:
        words = r"\s+".join(map(regex.escape, answer.split()))
        flags = regex.IGNORECASE if self.ignore_case else 0
        sign = r"(?<!(?<!\w)[-−])" if answer.strip()[:1].isdigit() else ""
        pattern = rf"(?<!\w)(?<!\d[.,]){sign}{words}(?!\w|[.,]\d)"
        return _found(pattern, completion, flags) is not None


@dataclasses.dataclass(frozen=True)
class Pattern(_Compared):
    """A regular expression is found in the completion, whose `.` is any character but an end of
    line."""

    pattern: str

    def agrees(self, answer: str, completion: str) -> bool:
        pattern = self.pattern.replace("{answer}", regex.escape(answer.strip()))
        return _found(pattern, completion) is not None

    def problem(self, example: Example) -> str | None:
        return super().problem(example) if "{answer}" in self.pattern else None


@dataclasses.dataclass(frozen=True)
class Math(_Compared):
    """The final expression equals the answer as mathematics; as text where the answer is none."""

    timeout_seconds: float = 5.0
    _answers: MathAnswers = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_answers", MathAnswers(self.timeout_seconds))

    def agrees(self, answer: str, completion: str) -> bool:
        if self._answers.compare(answer, completion).agrees:
            return True
        box = find_boxed(completion)
        said, wanted = (
            " ".join(text.split()).casefold()
            for text in (completion if box is None else box.content, answer)
        )
        return said == wanted


def extracted(completion: str, extract: str | None) -> str | None:
    r"""The part of a completion that counts: all of it; what the last `\boxed{…}` holds; or what
    the last match of a pattern has in its first group. None: there is none."""
    if extract is None:
        return completion
    if extract == "boxed":
        box = find_boxed(completion)
        return None if box is None else box.content
    try:
        matches = list(regex.finditer(extract, completion, timeout=REGEX_SECONDS))
    except TimeoutError:
        return None
    return (matches[-1][1] or "") if matches else None


_NUMBER = regex.compile(
    r"(?<![\w.])(?:[-−+](?=[\d.]))?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))"
    r"(?:[eE][-+]?\d{1,3}(?!\w))?(?:\s*/\s*\d+(?!\w))?"
)


def last_number(text: str) -> fractions.Fraction | None:
    """The last number in a text: 1,234.5, -3, 1e-4, 1/2. None: there is none."""
    found = [match[0] for match in _NUMBER.finditer(text[-20_000:]) if match[0]]
    if not found:
        return None
    digits = found[-1].replace(",", "").replace("−", "-").replace("+", "")
    above, _, below = digits.partition("/")
    try:
        return fractions.Fraction(above.strip()) / fractions.Fraction(below.strip() or "1")
    except (ValueError, ZeroDivisionError):
        return None


def _found(pattern: str, text: str, flags: int = 0) -> Any:
    try:
        return regex.search(pattern, text, flags, timeout=REGEX_SECONDS)
    except TimeoutError:
        return None


# --- Checks --------------------------------------------------------------------------------------


def _no_more(options: Mapping[str, Any], known: Sequence[str], key: str, name: str) -> None:
    for option in options:
        if option not in known:
            choice = ", ".join([*known, "weight", "correct_from"])
            raise T2GError(f"{key}: {name} has no option {str(option)!r}; known: {choice}")


def _check_option(option: str, value: Any, key: str) -> None:
    match option:
        case "ignore_case" if not isinstance(value, bool):
            raise T2GError(f"{key} is {user_code.shown(value)}; must be true or false")
        case "tolerance" if value is not None and _number(value, key) < 0:
            raise T2GError(f"{key} is {value}; must be at least 0")
        case "timeout_seconds" if not 0 < _number(value, key) <= 600:
            raise T2GError(f"{key} is {value}; must be above 0, and at most 600")
        case "pattern" | "extract" if value is not None or option == "pattern":
            _check_pattern(value, key, group=option == "extract")


def _check_pattern(value: Any, key: str, *, group: bool) -> None:
    if not isinstance(value, str) or not value:
        raise T2GError(f"{key} is {user_code.shown(value)}; must be a regular expression")
    if group and value == "boxed":
        return
    try:
        compiled = regex.compile(value.replace("{answer}", "x"))
    except regex.error as error:
        raise T2GError(f"{key} ({value!r}) is no regular expression: {error}") from error
    if group and compiled.groups < 1:
        raise T2GError(
            f"{key} ({value!r}) has no group; put what counts in parentheses, as in "
            r"'#### (.+)'"
        )


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise T2GError(f"{key} is {user_code.shown(value)}; must be a finite number")
    return float(value)
