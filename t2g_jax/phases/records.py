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


class _Done(Record):
    seconds: Annotated[float, Ge(0)]
    lora_rank: NotRequired[Count]
    last: NotRequired[dict[str, Any]]
    class_scores: NotRequired[list[dict[str, Any]]]


class Summary(_Done):
    """complete.json: a phase is done."""

    tokens_trained: NotRequired[Count]
    tokens_generated: NotRequired[Count]


class MethodSummary(_Done):
    """complete.json of a method."""

    tokens_trained: Count
    tokens_generated: Count


def _of_one_length(rows: list[list[int]]) -> list[list[int]]:
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError("the prompts have not the same number of samples")
    return rows


class Evaluation(Record):
    """evaluation.json, see `evaluate`."""

    step: NotRequired[Count | None]
    accuracy: Share
    interval: Annotated[list[float], Len(2, 2)]
    second_turn: Share | None
    floor: float
    floor_policy: str
    correct: Annotated[list[list[Literal[0, 1]]], Len(1), AfterValidator(_of_one_length)]
