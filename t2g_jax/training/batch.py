"""One batch for every method: sequences laid end to end, each value in the slot where it is used.

`pack` moves everything about predicting token i to the slot of token i−1, whose hidden state
predicts it; what is about a token stays on it, as its own hidden state says it. `unpack` is the way
back, from what was computed in the slots to the tokens of each sequence. Nobody else shifts.

Reductions are weights: a plain token mean has weight 1 on every token, a mean per sequence
1/length. The loss divides by the sum of the weights of the whole step, so packing, micro-batches
and sharding do not change it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

from t2g_jax.parallel.shapes import round_up
from t2g_jax.training.sequences import About, Field, TokenSequence

Array = jax.Array


class Teacher(struct.PyTreeNode):
    """The second sequences of a batch's rows, see `TeacherSequence`; each in the batch row of its
    first one.

    tokens, targets, positions, segment_ids: int32 [B, T′], as those of a `Batch`.
    slots: int32 [B, T], for each slot of the batch the slot here, in the same batch row, that
      predicts the same token; −1: none.
    """

    tokens: Array
    targets: Array
    positions: Array
    segment_ids: Array
    slots: Array


class Batch(struct.PyTreeNode):
    """Sequences in slots, all arrays [B, T] (or [M, B, T] for M micro-batches).

    tokens, positions, segment_ids: int32, what the decoder reads; segment 0 is padding.
    targets: int32, the token that each slot predicts.
    fields: float32, what the terms of an objective read, by name; each term says what they mean.
    teacher: what a teacher reads, if a term asks for one.
    """

    tokens: Array
    targets: Array
    positions: Array
    segment_ids: Array
    fields: dict[str, Array] = struct.field(default_factory=dict)
    teacher: Teacher | None = None

    def __getitem__(self, field: Field) -> Array:
        return self.fields[field.name]

    def with_fields(self, **fields: Array) -> Batch:
        """Another batch with these fields in place of those of the same name."""
        return self.replace(fields=self.fields | fields)


Place = tuple[int, slice]
"""A batch row and slots in it: indexes the tokens of one sequence in arrays [B, T, ...]."""


class _Laid(NamedTuple):
    """A batch row, slots in it, and slots of its teacher's sequences."""

    row: int
    here: slice
    there: slice


def places(
    rows: Sequence[TokenSequence], length: int, teacher_length: int | None = None
) -> list[Place]:
    """Where `pack` puts each sequence: end to end, in the first batch row that has room."""
    return [(laid.row, laid.here) for laid in _lay(rows, length, teacher_length)]


def pack(
    rows: Iterable[TokenSequence],
    *,
    length: int,
    fields: Iterable[Field] = (),
    multiple: int = 1,
    teacher_length: int | None = None,
) -> Batch:
    """Lays sequences end to end into a batch of NumPy arrays, see `places`.

    Args:
      rows: the sequences.
      length: T.
      fields: what the batch has of each token, those of `Objective.fields`; fixed for a method, so
        that it compiles once.
      multiple: the number of batch rows becomes a multiple of this, see `round_up`; what is left
        over are empty rows.
      teacher_length: T′; None: the batch has no `teacher`.

    Raises:
      ValueError: a sequence, or its teacher's, is longer than there is room; it has a field that is
        not among `fields`, or a teacher where there is none.
    """
    rows, fields = list(rows), list(fields)
    laid = _lay(rows, length, teacher_length)
    count = round_up(1 + max((where.row for where in laid), default=-1), multiple)
    batch = _structure(count, length)
    batch["fields"] = {
        field.name: np.full((count, length), field.padding, np.float32) for field in fields
    }
    teacher: dict[str, Any] = _structure(count, teacher_length or 0)
    slots: Any = np.full((count, length), -1, np.int32)
    segments = [0] * count
    for row, (index, here, there) in zip(rows, laid, strict=True):
        segments[index] += 1
        _write(batch, row.tokens, index, here, segments[index])
        for field, values in row.values.items():
            if field not in fields:
                raise ValueError(
                    f"a sequence has field {field.name!r}, which this batch does not take"
                )
            slot = batch["fields"][field.name][index]
            if field.about is About.TOKEN:
                slot[here] = values
            else:
                slot[here.start : here.stop - 1] = values[1:]
        if row.teacher is not None:
            _write(teacher, row.teacher.tokens, index, there, segments[index])
            asked = row.teacher.index[1:]
            slots[index, here.start : here.stop - 1] = np.where(
                asked >= 0, there.start + asked - 1, -1
            )
    if teacher_length is not None:
        batch["teacher"] = Teacher(**teacher, slots=slots)
    return Batch(**batch)


def unpack(
    outputs: Mapping[str, np.ndarray], place: Place, on_token: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """What arrays [B, T, ...] computed in the slots of a batch say about each token of one
    sequence: arrays [n, ...].

    Args:
      on_token: names of outputs that are about tokens (`About.TOKEN`). The others are about
        predicting one, and 0 for the first token, which nothing predicts.
    """
    found = {}
    for name, array in outputs.items():
        values = np.asarray(array)[place]
        if name not in on_token:
            values = np.concatenate([np.zeros_like(values[:1]), values[:-1]])
        found[name] = values
    return found


def micro_batches(batch: Batch, count: int) -> Batch:
    """Splits [B, T] into [count, B/count, T]; the loss of the whole does not depend on `count`."""
    rows = batch.tokens.shape[0]
    if rows % count:
        raise ValueError(f"{rows} batch rows cannot be split into {count} micro-batches")
    return jax.tree.map(lambda x: x.reshape(count, rows // count, *x.shape[1:]), batch)


def _lay(rows: Sequence[TokenSequence], length: int, teacher_length: int | None) -> list[_Laid]:
    ends: list[tuple[int, int]] = []
    laid = []
    for row in rows:
        own, other = len(row), 0 if row.teacher is None else len(row.teacher)
        if own > length:
            raise ValueError(f"a row of {own} tokens does not fit into length {length}")
        if other and teacher_length is None:
            raise ValueError("a row has a teacher, which this batch does not take")
        if other > (teacher_length or 0):
            raise ValueError(
                f"a teacher's row of {other} tokens does not fit into length {teacher_length}"
            )
        fit = next(
            (
                i
                for i, (end, its) in enumerate(ends)
                if end + own <= length and its + other <= (teacher_length or 0)
            ),
            len(ends),
        )
        if fit == len(ends):
            ends.append((0, 0))
        end, its = ends[fit]
        laid.append(_Laid(fit, slice(end, end + own), slice(its, its + other)))
        ends[fit] = (end + own, its + other)
    return laid


def _structure(count: int, length: int) -> dict[str, Any]:
    names = ("tokens", "targets", "positions", "segment_ids")
    return {name: np.zeros((count, length), np.int32) for name in names}


def _write(
    arrays: dict[str, Any], tokens: np.ndarray, index: int, where: slice, segment: int
) -> None:
    arrays["tokens"][index, where] = tokens
    arrays["targets"][index, where.start : where.stop - 1] = tokens[1:]
    arrays["positions"][index, where] = np.arange(len(tokens))
    arrays["segment_ids"][index, where] = segment
