"""What every method learns from: sequences of tokens that say, per token, what counts, and why.

A `TokenSequence` has values *about its own tokens*: the advantage of token i stands at index i.
Only `batch.pack` knows where a value is used. A `Field` is one kind of value; the terms that read
it declare it, see `training.terms`. Sequences are checked when they are made, and never change:
`with_fields` makes another one.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Values = float | Sequence[float] | np.ndarray


class About(enum.Enum):
    """PREDICTION: what is said of predicting a token, by the state before it. TOKEN: of a token
    once it has been read."""

    PREDICTION = enum.auto()
    TOKEN = enum.auto()


@dataclasses.dataclass(frozen=True)
class Field:
    """A value for each token.

    name: unique among the fields of an objective. padding: its value on tokens that a sequence says
    nothing about. about: decides in which slot of a batch it stands.
    """

    name: str
    padding: float = 0.0
    about: About = About.PREDICTION


@dataclasses.dataclass(frozen=True)
class Weight(Field):
    """How much each token counts in the terms that it weighs; 0 on all others.

    sampled: whether its tokens were drawn by the sampler, so that they are scored at its
    temperature.
    """

    sampled: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherSequence:
    """Tokens of a sequence after another context: what a teacher reads in the student's place.

    tokens: [m] int, the teacher's context and what it shares with the student's sequence.
    index: [n] int, where each token of the student's sequence stands here; −1: the teacher is not
      asked about it.
    """

    tokens: np.ndarray
    index: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _tokens(self.tokens, "a teacher's sequence"))
        object.__setattr__(self, "index", _frozen(_integers(self.index, "index"), np.int32))

    def __len__(self) -> int:
        return len(self.tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSequence:
    """One sequence: tokens [n] int32, values [n] float32 by field, and a second sequence or none.

    Raises:
      ValueError: it has no token, or something that is no token; a field has not one value a token;
        a weight is negative, not finite, or not 0 where nothing predicts the token; the teacher's
        tokens are not the same.
    """

    tokens: np.ndarray
    values: Mapping[Field, np.ndarray] = dataclasses.field(default_factory=dict)
    teacher: TeacherSequence | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _tokens(self.tokens, "a sequence"))
        values = {field: _frozen(given, np.float32) for field, given in self.values.items()}
        object.__setattr__(self, "values", types.MappingProxyType(values))
        names = [field.name for field in values]
        for field, array in values.items():
            if names.count(field.name) > 1:
                raise ValueError(f"two fields of a sequence are called {field.name}")
            if array.shape != self.tokens.shape:
                raise ValueError(
                    f"{field.name} has shape {array.shape}, but there are {len(self)} tokens"
                )
            if isinstance(field, Weight):
                if not (np.isfinite(array) & (array >= 0)).all():
                    raise ValueError(f"{field.name} must be finite, and not negative")
                if field.about is About.PREDICTION and array[0] != 0:
                    raise ValueError(
                        f"{field.name} of the first token must be 0: nothing predicts it"
                    )
        if self.teacher is not None:
            self._check(self.teacher)

    def _check(self, teacher: TeacherSequence) -> None:
        index = teacher.index
        if index.shape != self.tokens.shape:
            raise ValueError(
                f"a teacher's index has shape {index.shape}, but there are {len(self)} tokens"
            )
        (asked,) = np.nonzero(index >= 0)
        if not len(asked):
            return
        if asked[0] == 0 or index[asked].min() == 0:
            raise ValueError("a teacher cannot be asked about a first token: nothing predicts it")
        if index.max() >= len(teacher):
            raise ValueError(
                f"a teacher's index goes to {index.max()}, but it reads {len(teacher)} tokens"
            )
        if (teacher.tokens[index[asked]] != self.tokens[asked]).any():
            raise ValueError("a teacher is asked about tokens that it does not read there")

    @classmethod
    def from_parts(
        cls, *parts: tuple[Sequence[int] | np.ndarray, Mapping[Field, Values]]
    ) -> TokenSequence:
        """Joins consecutive parts: (tokens, values), one value for all tokens or one for each.

        Tokens of a part that does not name a field get the field's padding.
        """
        tokens = [_integers(part) for part, _ in parts]
        fields = {field: None for _, values in parts for field in values}
        return cls(
            np.concatenate(tokens) if tokens else np.zeros(0, np.int32),
            {
                field: np.concatenate(
                    [
                        np.broadcast_to(
                            np.asarray(values.get(field, field.padding), np.float32), (len(part),)
                        )
                        for part, (_, values) in zip(tokens, parts, strict=True)
                    ]
                )
                for field in fields
            },
        )

    @property
    def fields(self) -> dict[str, np.ndarray]:
        """The values by the names of their fields."""
        return {field.name: values for field, values in self.values.items()}

    def with_fields(self, values: Mapping[Field, Values]) -> TokenSequence:
        """Another sequence that says this, too, of its tokens; what it said of them before goes."""
        known: dict[Field, Any] = dict(self.values)
        return dataclasses.replace(self, values=known | dict(values))

    def only(self, fields: Iterable[Field]) -> TokenSequence:
        """Another sequence with these fields alone, and no teacher."""
        return TokenSequence(self.tokens, {field: self.values[field] for field in fields})

    def with_teacher(self, context: Sequence[int] | np.ndarray, where: slice) -> TokenSequence:
        """Another sequence, about whose tokens `where` a teacher is asked that read `context`.

        Args:
          context: tokens that the teacher reads before them, one at least.
        """
        before = _integers(context)
        asked = np.arange(len(self))[where]
        index = np.full(len(self), -1, np.int32)
        index[asked] = len(before) + np.arange(len(asked))
        tokens = np.concatenate([before, self.tokens[asked]])
        return dataclasses.replace(self, teacher=TeacherSequence(tokens, index))

    def __len__(self) -> int:
        return len(self.tokens)


def to_arrays(rows: Sequence[TokenSequence]) -> dict[str, np.ndarray]:
    """Sequences as a few arrays, to be sent; `from_arrays` makes them again.

    Raises:
      ValueError: one has a teacher.
    """
    if any(row.teacher is not None for row in rows):
        raise ValueError("sequences with a teacher cannot be sent")
    fields = {field.name: field for row in rows for field in row.values}
    arrays: dict[str, Any] = {
        "lengths": np.array([len(row) for row in rows], np.int32),
        "tokens": np.concatenate([np.zeros(0, np.int32), *(row.tokens for row in rows)]),
    }
    for name, field in sorted(fields.items()):
        values = [row.values.get(field, np.full(len(row), field.padding)) for row in rows]
        arrays[name] = np.concatenate(values).astype(np.float32)
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray], fields: Iterable[Field]) -> list[TokenSequence]:
    """The sequences; a field that only some of them had is now in all, with its padding."""
    ends = np.cumsum(arrays["lengths"])[:-1]
    parts = {name: np.split(x, ends) for name, x in arrays.items() if name != "lengths"}
    tokens = parts.pop("tokens")
    known = {field.name: field for field in fields}
    return [
        TokenSequence(tokens[i], {known[name]: values[i] for name, values in parts.items()})
        for i in range(len(arrays["lengths"]))
    ]


def _integers(given: Sequence[int] | np.ndarray, what: str = "tokens") -> np.ndarray:
    """As int32, without copying what is; ValueError for what int32 cannot hold."""
    array = np.asarray(given)
    if not array.size:
        return array.astype(np.int32)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{what} must be integers, not {array.dtype}")
    for value in (array.min(), array.max()):
        if not -(2**31) <= int(value) < 2**31:
            raise ValueError(f"{what} must fit into 32 bits, but there is {value}")
    return array.astype(np.int32, copy=False)


def _tokens(tokens: Sequence[int] | np.ndarray, what: str) -> np.ndarray:
    array = _integers(tokens)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{what} needs one token at least, got shape {array.shape}")
    if array.min() < 0:
        raise ValueError(f"{what} has the token {array.min()}; tokens are not negative")
    return _frozen(array, np.int32)


def _frozen(values: Any, dtype: Any) -> np.ndarray:
    """A copy that nobody can write to; what is so already is its own, unless it is a view: of
    another's data, which that other may write to."""
    owned = isinstance(values, np.ndarray) and values.base is None
    if owned and values.dtype == dtype and not values.flags.writeable:
        return values
    array = np.array(values, dtype)
    array.setflags(write=False)
    return array
