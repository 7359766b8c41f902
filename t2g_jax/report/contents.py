"""What a report says, apart from how it looks: frozen records that survive a trip through JSON.

Phases write these records, `html.render` and `terminal` draw them. Nothing here knows about either.

The JSON is strict (RFC 8259): a float that is not finite is written as the string "NaN", "Infinity"
or "-Infinity" and read back as that float. Fields equal to their default are left out.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic

from t2g_jax.errors import nearest
from t2g_jax.runtime.files import parse_json


class _Strict:
    """Reading one of these from JSON refuses unknown keys."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True)
class Curve(_Strict):
    """One line of one chart.

    Attributes:
      label: whose line it is, usually the method; equal labels (seeds of one) share a color.
      metric: what is measured, with its unit in brackets if it has one: "KL to reference (nats)".
        Curves with the same metric and x_label share a chart.
      x_label: what `steps` counts: "optimizer steps", "tokens trained".
      steps, values: [N] float; a value that is not finite leaves a gap.
      single_turn: False for what is not of first attempts without feedback, and so is not compared
        with the floor of an accuracy.
    """

    label: str
    metric: str
    x_label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    single_turn: bool = True

    def __post_init__(self):
        if len(self.steps) != len(self.values):
            raise ValueError(
                f"curve {self.label!r}, {self.metric!r}: {len(self.steps)} steps but "
                f"{len(self.values)} values; give one value for each step"
            )


@dataclasses.dataclass(frozen=True)
class ResultRow(_Strict):
    """One method on one task: single-turn accuracy without feedback, before and after training; or
    mean reward, where the task only grades.

    Attributes:
      method, task: names.
      before, after: accuracy in [0, 1] (or a score on another scale, if the whole task uses it).
      before_interval, after_interval: (low, high), 95 %; see `statistics.clustered_interval`.
      graded: whether these are rewards.
      floor: the accuracy of the best policy that solves nothing, NaN if unknown.
      floor_policy: that policy in words: "copies the input".
      tokens_trained, tokens_generated: tokens with a loss, tokens sampled.
      seconds: wall-clock time of the run.
    """

    method: str
    task: str
    before: float
    before_interval: tuple[float, float]
    after: float
    after_interval: tuple[float, float]
    floor: float
    floor_policy: str
    tokens_trained: int
    tokens_generated: int
    seconds: float
    graded: bool = False


@dataclasses.dataclass(frozen=True)
class MadeWith(_Strict):
    """What a phase's result was made with, where that is not what the rest of the report says.

    Attributes:
      phase, step: whose result, and after how many steps; None if it has none.
      measured: how its accuracy was measured, in words; empty if it was not.
      differs: settings it was made with that are not those of the configuration shown.
      misfits: what it was made from that is not in the work directory any more.
    """

    phase: str
    step: int | None = None
    measured: str = ""
    differs: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PhaseTime(_Strict):
    """Wall-clock seconds spent in one phase, or one stage of it."""

    phase: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class ClassScore(_Strict):
    """The reward model on one token class (poor, neutral, good); `support` counts true tokens."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclasses.dataclass(frozen=True)
class ReliabilityBin(_Strict):
    """Tokens to which the reward model gives a class with a probability in [low, high).

    Attributes:
      tokens: how many.
      predicted: their mean probability.
      observed: the share of them that has the class.
    """

    low: float
    high: float
    tokens: int
    predicted: float
    observed: float


@dataclasses.dataclass(frozen=True)
class Calibration(_Strict):
    """How far the reward model's probabilities of a class come true.

    `error`: mean |predicted − observed| over the bins, weighed by their tokens.
    """

    label: str
    error: float
    bins: tuple[ReliabilityBin, ...] = ()


@dataclasses.dataclass(frozen=True)
class JudgeUse(_Strict):
    """What a phase asked the judge, and what became of it.

    Attributes:
      calls, cached: critiques asked for, and those that had been given before.
      failures: of the calls, by reason.
      quotes, unaligned: of the critiques, and those not found in their completion; None where they
        are not looked for.
      examples: some of those not found, "quote: why".
    """

    phase: str
    calls: int
    cached: int = 0
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    quotes: int | None = None
    unaligned: int | None = None
    examples: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TokenCell(_Strict):
    """One token of a completion. None where there is no such value.

    Attributes:
      text: the token as it appears in the completion, white space included.
      predicted: expected span reward under the reward model, in [-1, 1].
      true: the judge's label, -1, 0 or +1 (or a severity in between).
      advantage: what the policy gradient multiplied this token's score by; any real number.
    """

    text: str
    predicted: float | None = None
    true: float | None = None
    advantage: float | None = None


@dataclasses.dataclass(frozen=True)
class Retry(_Strict):
    """A later attempt of a conversation, made after the critique of the one before.

    Attributes:
      critique: of this attempt; empty if nobody was asked.
      predicted_critique: the reward model's, None if it was not asked.
      correct: whether the answer is right, None if that is not known.
      distillation: what this attempt's log-probability *after the first prompt alone* is multiplied
        by where it is distilled (RLTF-SD); None where it is not.
    """

    tokens: tuple[TokenCell, ...]
    reward: float
    critique: str = ""
    predicted_critique: str | None = None
    correct: bool | None = None
    distillation: float | None = None


@dataclasses.dataclass(frozen=True)
class Sample(_Strict):
    """A completion, the judge's critique of it and, if there is one, the reward model's.

    Attributes:
      critique: empty if nobody was asked.
      correct: whether the answer is right, None if that is not known.
      method, step: what the policy was being trained with, and for how many steps.
      retries: the attempts after this one, if it is the first of a conversation.
    """

    title: str
    prompt: str
    critique: str
    predicted_critique: str | None
    reward: float
    tokens: tuple[TokenCell, ...]
    correct: bool | None = None
    method: str = ""
    step: int | None = None
    retries: tuple[Retry, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report(_Strict):
    """Everything one report shows. Sections without contents are left out of the page.

    Attributes:
      title, subtitle: heading and one line below it.
      created: when the run ended, ISO 8601; None leaves it out (so equal runs give equal pages).
      warnings: what a reader should look at first; see `collapse`.
      config_yaml: the configuration of the run, as written.
      made_with: of each phase, how it was measured, and where it departs from that configuration.
      environment: name -> version or description: jax, devices, commit, seed.
    """

    title: str
    subtitle: str = ""
    created: str | None = None
    warnings: tuple[str, ...] = ()
    results: tuple[ResultRow, ...] = ()
    curves: tuple[Curve, ...] = ()
    phases: tuple[PhaseTime, ...] = ()
    class_scores: tuple[ClassScore, ...] = ()
    calibration: tuple[Calibration, ...] = ()
    judge: tuple[JudgeUse, ...] = ()
    samples: tuple[Sample, ...] = ()
    config_yaml: str = ""
    made_with: tuple[MadeWith, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """The report as strict JSON, readable by `from_json`."""
        return json.dumps(_plain(self), allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "report JSON") -> "Report":
        """Reads what `to_json` wrote.

        Args:
          text: JSON.
          source: where it came from, for error messages; usually the path.

        Raises:
          ValueError: not JSON, a key is missing, unknown, or of the wrong type. The message names
            `source`, the key's path and what would fit.
        """
        parse_json(text, where=source)  # pydantic would take 1e999 for infinity
        try:
            return _reader().validate_json(text)
        except pydantic.ValidationError as error:
            raise ValueError(f"{source}: " + "; ".join(_complaints(error))) from None


def reliability_rows(
    calibration: Sequence[Calibration],
) -> list[tuple[float, float, list[ReliabilityBin | None]]]:
    """The bins that hold tokens of any class: (low, high, those of each class or None)."""
    found: dict[tuple[float, float], list[ReliabilityBin | None]] = {}
    for index, of_class in enumerate(calibration):
        for cell in of_class.bins:
            row = found.setdefault((cell.low, cell.high), [None] * len(calibration))
            row[index] = cell
    return [(*bounds, found[bounds]) for bounds in sorted(found)]


_RECORDS = (
    *(Curve, ResultRow, MadeWith, PhaseTime, ClassScore, ReliabilityBin, Calibration),
    *(JudgeUse, TokenCell, Retry, Sample, Report),
)


@functools.cache
def _reader() -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(Report)


def _plain(value: Any) -> Any:
    """Dataclasses, tuples, array scalars and floats -> what strict JSON can hold."""
    if hasattr(value, "item"):  # a NumPy or JAX scalar
        value = value.item()
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(item)
            for field in dataclasses.fields(value)
            if (item := getattr(value, field.name)) != field.default
        }
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, str):  # A judge's JSON may hold half a surrogate pair; UTF-8 cannot.
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _complaints(error: pydantic.ValidationError) -> Iterator[str]:
    names = sorted({field.name for record in _RECORDS for field in dataclasses.fields(record)})
    for problem in error.errors(include_url=False)[:5]:
        path = ".".join(str(part) for part in problem["loc"]) or "top level"
        if problem["type"] == "unexpected_keyword_argument":
            hint = nearest(problem["loc"][-1], names) or "; remove it"
            yield f"{path}: unknown key{hint}"
        else:
            yield f"{path}: {problem['msg']}"
