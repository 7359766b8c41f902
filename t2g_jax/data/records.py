"""What annotation leaves behind: a completion, its critique, and rewards on spans of its tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t2g_jax.errors import T2GError

TEXTS = ("id", "prompt_id", "prompt", "completion", "critique", "judge")
INTEGERS = ("prompt_tokens", "completion_tokens", "span_starts", "span_ends")
FLOATS = ("completion_logprobs", "span_rewards")

_ROUNDING = 1e-3
"""How far above 0 a log-probability may come out."""


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotationRecord:
    """One judged completion. Numbers are held in the precision they are stored in.

    id, prompt_id: unique name of this record; name of the prompt that its siblings share.
    prompt, prompt_tokens: rendered text, and the tokens [P] int32 that the sampler read.
    completion, completion_tokens: text, and the tokens [T] int32 that were sampled.
    completion_logprobs: [T] float32, natural log, of the distribution sampled from;
      empty where the completion was not sampled by us (imported text).
    critique: the judge's text feedback, without its reasoning.
    judge: the name of the judge.
    reward: the task's scalar reward (rounded to float32).
    correct: whether the completion is right; None: the task only grades.
    span_starts, span_ends, span_rewards: [S] half-open token ranges into the completion, and δ.
    unaligned: quotes of the judge that were not found in the completion, as "quote: reason".
    """

    id: str
    prompt_id: str
    prompt: str
    prompt_tokens: np.ndarray
    completion: str
    completion_tokens: np.ndarray
    completion_logprobs: np.ndarray
    critique: str
    judge: str
    reward: float
    correct: bool | None
    span_starts: np.ndarray
    span_ends: np.ndarray
    span_rewards: np.ndarray
    unaligned: tuple[str, ...] = ()

    def __post_init__(self):
        for name in INTEGERS:
            object.__setattr__(self, name, _integers(self.id, name, getattr(self, name)))
        for name in FLOATS:
            object.__setattr__(self, name, _floats(self.id, name, getattr(self, name)))
        (reward,) = _floats(self.id, "reward", [self.reward])
        object.__setattr__(self, "reward", float(reward))
        if self.correct is not None:
            if not isinstance(self.correct, bool | np.bool_):
                raise T2GError(
                    f"record {self.id!r}: correct is {self.correct!r}; pass true, false or None"
                )
            object.__setattr__(self, "correct", bool(self.correct))
        object.__setattr__(self, "unaligned", tuple(self.unaligned))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AnnotationRecord):
            return NotImplemented
        mine, theirs = self.to_example(), other.to_example()
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None

    def to_example(self) -> dict[str, Any]:
        """The fields by name: str, int32 and float32 arrays, float, list of str; `correct` is 1, 0,
        or −1 where it is not known."""
        example = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        correct = -1 if self.correct is None else int(self.correct)
        return example | {"unaligned": list(self.unaligned), "correct": correct}

    @classmethod
    def from_example(cls, example: Mapping[str, Any]) -> AnnotationRecord:
        """Reads `to_example` or `to_json` back; text may be UTF-8 bytes, as TFDS returns it.

        Raises:
          T2GError: a field is missing or unknown.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if example.keys() != names:
            missing, unknown = sorted(names - example.keys()), sorted(example.keys() - names)
            raise T2GError(
                f"record {_text(example.get('id', '?'))!r}: missing fields {missing}, "
                f"unknown fields {unknown}; it was written by another version, annotate again"
            )
        texts = {name: _text(example[name]) for name in TEXTS}
        unaligned = tuple(_text(item) for item in _sequence(example["unaligned"]))
        correct = {-1: None, 0: False, 1: True}.get(example["correct"], example["correct"])
        return cls(**{**example, **texts, "unaligned": unaligned, "correct": correct})

    def to_json(self) -> dict[str, Any]:
        """As `to_example`, with lists for arrays: fits a line of a journal, and nothing is lost."""
        arrays = {name: getattr(self, name).tolist() for name in INTEGERS + FLOATS}
        return self.to_example() | arrays


def validate(record: AnnotationRecord, *, vocabulary: int | None = None) -> None:
    """Checks that a record can be trained on.

    Args:
      vocabulary: number of tokens of the tokenizer; None: not known.

    Raises:
      T2GError (a ValueError): naming the record, the field and the fix.
    """

    def require(condition: bool, field: str, problem: str) -> None:
        if not condition:
            raise T2GError(f"record {record.id!r}: {field} {problem}")

    require(bool(record.id), "id", "is empty; give every record its own name")
    for name in TEXTS + ("unaligned",):
        value = getattr(record, name)
        for text in value if name == "unaligned" else (value,):
            require(isinstance(text, str), name, f"is {type(text).__name__}; pass text")
            require(_encodable(text), name, "has half a surrogate pair; repair the text as UTF-8")
    for name in INTEGERS + FLOATS:
        shape = getattr(record, name).shape
        require(len(shape) == 1, name, f"has shape {list(shape)}; pass one dimension")
    for name in ("prompt_tokens", "completion_tokens"):
        tokens = getattr(record, name)
        require(tokens.size > 0, name, "is empty; drop the record")
        require(tokens.min() >= 0, name, f"holds the token {tokens.min()}; remove the padding")
        require(
            vocabulary is None or tokens.max() < vocabulary,
            name,
            f"holds the token {tokens.max()}, but the tokenizer has {vocabulary}; annotate again",
        )
    length, sampled = record.completion_tokens.size, record.completion_logprobs.size
    require(
        sampled in (0, length),
        "completion_logprobs",
        f"has {sampled} values for {length} completion_tokens; pass one per token, or none",
    )
    highest = record.completion_logprobs.max(initial=-np.inf)
    require(
        bool(highest <= _ROUNDING),
        "completion_logprobs",
        f"holds {highest:g}; a log-probability is not above 0",
    )
    for name in FLOATS + ("reward",):
        finite = bool(np.isfinite(getattr(record, name)).all())
        require(finite, name, "is not finite; quarantine the record")
    spans = record.span_starts.size
    for name in ("span_ends", "span_rewards"):
        size = getattr(record, name).size
        require(size == spans, name, f"has {size} values for {spans} span_starts; pass one each")
    for start, end in zip(record.span_starts.tolist(), record.span_ends.tolist(), strict=True):
        require(
            0 <= start < end <= length,
            "span_starts, span_ends",
            f"hold [{start}, {end}), not a span of {length} completion tokens; "
            "align the quotes with this completion",
        )


def _integers(record: str, name: str, values: Sequence[int] | np.ndarray) -> np.ndarray:
    given = np.array(values)
    if given.size and given.dtype.kind not in "iu":
        raise T2GError(
            f"record {record!r}: {name} holds {given.dtype}, not whole numbers; pass token ids"
        )
    stored = given.astype(np.int32)
    if not np.array_equal(stored, given):
        raise T2GError(f"record {record!r}: {name} does not fit int32; pass token ids or indices")
    return stored


def _floats(record: str, name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    given = np.array(values)
    if given.size and given.dtype.kind not in "iuf":
        raise T2GError(f"record {record!r}: {name} holds {given.dtype}, not numbers; pass floats")
    return given.astype(np.float32)


def _sequence(values: Any) -> Sequence[Any]:
    if isinstance(values, str | bytes | Mapping):
        raise T2GError(f"unaligned is {type(values).__name__}; pass a list of texts")
    return values


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
