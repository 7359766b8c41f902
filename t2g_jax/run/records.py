"""What phases write about themselves, as JSON: the keys that others read, and their types."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Interval, Len
from pydantic import AfterValidator
from typing_extensions import TypedDict

Share = Annotated[float, Interval(ge=0, le=1)]
Count = Annotated[int, Ge(0)]


class Record(TypedDict):
    """Any of them."""

    phase: str


class _ClassScore(TypedDict):
    label: str
    precision: float
    recall: float
    f1: float
    support: Count


class _Bin(TypedDict):
    low: float
    high: float
    tokens: Count
    predicted: float
    observed: float


class _Calibration(TypedDict):
    label: str
    error: float
    bins: list[_Bin]


class _Stretch(TypedDict):
    until: Count
    inputs: dict[str, Any]


class Made(TypedDict):
    """What a phase was made from, see `provenance`."""

    version: str
    inputs: dict[str, Any]
    parents: dict[str, str]
    tokenizer: str
    bases: dict[str, str]
    earlier: NotRequired[list[_Stretch]]


class Begun(Record):
    """begun.json: what the annotations of a folder are made from."""

    made: Made


class _Done(Record):
    made: NotRequired[Made]
    environment: NotRequired[dict[str, str]]
    seconds: Annotated[float, Ge(0)]
    lora_rank: NotRequired[Count]
    last: NotRequired[dict[str, Any]]
    judge: NotRequired[dict[str, Count]]
    quotes: NotRequired[Count]
    unaligned: NotRequired[Count]
    unaligned_examples: NotRequired[list[str]]
    class_scores: NotRequired[list[_ClassScore]]
    class_weights: NotRequired[Annotated[list[float], Len(3, 3)]]
    calibration: NotRequired[list[_Calibration]]
    log: NotRequired[str]


class Summary(_Done):
    """complete.json: a phase is done."""

    tokens_trained: NotRequired[Count]
    tokens_generated: NotRequired[Count]


class MethodSummary(_Done):
    """complete.json of a method."""

    step: Count
    tokens_trained: Count
    tokens_generated: Count


def _of_one_length(rows: list[list[int]]) -> list[list[int]]:
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError("the prompts have not the same number of samples")
    return rows


_Settings = TypedDict(
    "_Settings",
    {
        "seed": int,
        "sampling.temperature": float,
        "sampling.top_k": int,
        "sampling.top_p": float,
        "sampling.max_new_tokens": int,
        "judge.level": str,
        "evaluate.samples_per_prompt": int,
        "evaluate.checkpoint": str,
    },
)
"""The settings of an evaluation that the report shows; others may be numbers of any kind."""


class Evaluation(Record):
    """evaluation.json, see `evaluate`."""

    step: NotRequired[Count | None]
    fingerprint: NotRequired[str]
    settings: NotRequired[_Settings]
    judge: NotRequired[dict[str, Count]]
    formatted: NotRequired[Share | None]
    cut_off: NotRequired[Share]
    equal_groups: NotRequired[Share | None]
    accuracy: Share | None
    reward: float
    interval: Annotated[list[float], Len(2, 2)]
    second_turn: float | None
    floor: float | None
    floor_policy: str
    correct: Annotated[list[list[Literal[0, 1]]], Len(1), AfterValidator(_of_one_length)] | None
    rewards: Annotated[list[list[float]], Len(1), AfterValidator(_of_one_length)]
