"""One batch for every method: rows of tokens that say, per token, what it counts for and why.

A `Row` is one sequence with fields *about its tokens*: the advantage of token i stands at index i.
`pack` lays rows end to end into a `Batch` and moves each field to where it is used: everything
about predicting token i to the slot of token i−1, whose hidden state predicts it; span labels stay
on the token itself, whose hidden state classifies it.

Reductions are weights: a plain token mean has weight 1 on every token, a mean per sequence
1/length. The loss divides by the sum of the weights of the whole step, so packing, micro-batches
and sharding do not change it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from t2g_jax.parallel.shapes import round_up

PREDICTION_FIELDS = {
    "policy_weight": 0.0,
    "distill_weight": 0.0,
    "nll_weight": 0.0,
    "advantages": 0.0,
    "old_logprobs": 0.0,
    "sampler_logprobs": np.nan,
    "cutoffs": -np.inf,
    "teacher_logprobs": 0.0,
    "ref_logprobs": 0.0,
    "kl_weight": 0.0,
    "returns": 0.0,
    "old_values": 0.0,
}
"""Fields about predicting a token, and their value on tokens that a row says nothing about."""

TOKEN_FIELDS = {"span_weight": 0.0, "span_labels": 0.0}
"""Fields about a token once it has been read."""


class Batch(struct.PyTreeNode):
    """Rows of tokens, all arrays [B, T] (or [M, B, T] for M micro-batches); None = field not used.

    tokens, positions, segment_ids: int32, what the decoder reads; segment 0 is padding.
    targets: int32, the token that each slot predicts.
    policy_weight: weight in the policy-gradient term (and the value term, if there are returns).
    distill_weight: weight in the self-distillation term.
    nll_weight: weight in the negative log-likelihood (SFT, critiques, feedback modeling).
    advantages: of the policy-gradient and self-distillation terms.
    old_logprobs: log-probability before the round's updates, what ratios compare with.
    sampler_logprobs, cutoffs: when sampled (NaN: old_logprobs are), and the sampler's truncation.
    teacher_logprobs: log π(y₁|x₁) of self-distillation tokens.
    ref_logprobs, kl_weight: under the reference policy, for a KL term in the loss, and its weight.
    returns, old_values: targets and old predictions of the value head.
    span_weight, span_labels: of the span-reward head; labels −1, 0, +1, or severities between.
    """

    tokens: jax.Array
    targets: jax.Array
    positions: jax.Array
    segment_ids: jax.Array
    policy_weight: jax.Array | None = None
    distill_weight: jax.Array | None = None
    nll_weight: jax.Array | None = None
    advantages: jax.Array | None = None
    old_logprobs: jax.Array | None = None
    sampler_logprobs: jax.Array | None = None
    cutoffs: jax.Array | None = None
    teacher_logprobs: jax.Array | None = None
    ref_logprobs: jax.Array | None = None
    kl_weight: jax.Array | None = None
    returns: jax.Array | None = None
    old_values: jax.Array | None = None
    span_weight: jax.Array | None = None
    span_labels: jax.Array | None = None


@dataclasses.dataclass
class Row:
    """One sequence: tokens [n] and fields [n] by name (see `Batch`), each about its own token."""

    tokens: np.ndarray
    fields: dict[str, np.ndarray]

    def __post_init__(self):
        self.tokens = np.asarray(self.tokens, np.int32)
        if self.tokens.ndim != 1 or len(self.tokens) == 0:
            raise ValueError(f"a row needs one token at least, got shape {self.tokens.shape}")
        for name, values in self.fields.items():
            if name not in PREDICTION_FIELDS and name not in TOKEN_FIELDS:
                raise ValueError(f"a row has no field {name!r}")
            if len(values) != len(self.tokens):
                raise ValueError(f"{name} has {len(values)} values for {len(self.tokens)} tokens")
            if name.endswith("_weight") and name in PREDICTION_FIELDS and values[0] != 0:
                raise ValueError(f"{name} of the first token must be 0: nothing predicts it")

    def __len__(self):
        return len(self.tokens)


def row(*parts: tuple[Sequence[int], dict[str, float | Sequence[float]]]) -> Row:
    """Builds a row from consecutive parts: (tokens, fields), fields being scalars or one per token.

    Tokens of a part that does not name a field get the field's default.
    """
    tokens = np.concatenate([np.asarray(part, np.int32) for part, _ in parts])
    defaults = PREDICTION_FIELDS | TOKEN_FIELDS
    names = {name for _, fields in parts for name in fields}
    fields = {
        name: np.concatenate(
            [
                np.broadcast_to(
                    np.asarray(given.get(name, defaults[name]), np.float32), (len(part),)
                )
                for part, given in parts
            ]
        )
        for name in names
    }
    return Row(tokens, fields)


def to_arrays(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows as a few arrays, to be sent; `from_arrays` makes them again."""
    defaults = PREDICTION_FIELDS | TOKEN_FIELDS
    names = sorted({name for item in rows for name in item.fields})
    arrays = {"lengths": np.array([len(item) for item in rows], np.int32)}
    for name, parts in {
        "tokens": [item.tokens for item in rows],
        **{
            name: [item.fields.get(name, np.full(len(item), defaults[name])) for item in rows]
            for name in names
        },
    }.items():
        dtype = np.int32 if name == "tokens" else np.float32
        arrays[name] = np.concatenate([*parts, np.zeros(0)]).astype(dtype)
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> list[Row]:
    """The rows; a field that only some of them had is now in all, with its default."""
    ends = np.cumsum(arrays["lengths"])[:-1]
    parts = {name: np.split(x, ends) for name, x in arrays.items() if name != "lengths"}
    tokens = parts.pop("tokens")
    return [
        Row(tokens[i], {name: values[i] for name, values in parts.items()})
        for i in range(len(arrays["lengths"]))
    ]


Place = tuple[int, slice]
"""A batch row and slots in it: indexes the tokens of one row in arrays [B, T, ...]."""


def places(rows: Sequence[Row], length: int) -> list[Place]:
    """Where `pack` puts each row: end to end, in the first batch row that has room."""
    ends: list[int] = []
    found = []
    for item in rows:
        fit = next((i for i, end in enumerate(ends) if end + len(item) <= length), len(ends))
        if fit == len(ends):
            ends.append(0)
        found.append((fit, slice(ends[fit], ends[fit] + len(item))))
        ends[fit] += len(item)
    return found


def pack(
    rows: Iterable[Row], *, length: int, fields: Iterable[str] = (), multiple: int = 1
) -> Batch:
    """Lays rows end to end into a batch of NumPy arrays, see `places`.

    Args:
      rows: the sequences.
      length: T.
      fields: the optional fields of `Batch` to fill; fixed for a method, so that it compiles once.
      multiple: the number of batch rows becomes a multiple of this, see `round_up`; what is left
        over are empty rows.

    Raises:
      ValueError: a row is longer than `length`, or has a field that is not among `fields`.
    """
    rows = list(rows)
    return _fill(rows, places(rows, length), length, fields, multiple)


def pad(
    rows: Iterable[Row], *, length: int, fields: Iterable[str] = (), multiple: int = 1
) -> Batch:
    """As `pack`, with row i alone in batch row i."""
    rows = list(rows)
    where = [(i, slice(0, len(item))) for i, item in enumerate(rows)]
    return _fill(rows, where, length, fields, multiple)


def _fill(
    rows: Sequence[Row],
    where: Sequence[Place],
    length: int,
    fields: Iterable[str],
    multiple: int,
) -> Batch:
    count = round_up(1 + max((index for index, _ in where), default=-1), multiple)
    defaults = PREDICTION_FIELDS | TOKEN_FIELDS
    structure = ("tokens", "targets", "positions", "segment_ids")
    arrays: dict[str, Any] = {name: np.zeros((count, length), np.int32) for name in structure}
    arrays |= {name: np.full((count, length), defaults[name], np.float32) for name in fields}
    segments = [0] * count
    for item, (index, here) in zip(rows, where, strict=True):
        if here.stop > length:
            raise ValueError(f"a row of {len(item)} tokens does not fit into length {length}")
        before = slice(here.start, here.stop - 1)
        segments[index] += 1
        arrays["tokens"][index, here] = item.tokens
        arrays["targets"][index, before] = item.tokens[1:]
        arrays["positions"][index, here] = np.arange(len(item))
        arrays["segment_ids"][index, here] = segments[index]
        for name, values in item.fields.items():
            if name not in arrays:
                raise ValueError(f"a row has field {name!r}, which this batch does not take")
            if name in TOKEN_FIELDS:
                arrays[name][index, here] = values
            else:
                arrays[name][index, before] = values[1:]
    return Batch(**arrays)


def micro_batches(batch: Batch, count: int) -> Batch:
    """Splits [B, T] into [count, B/count, T]; the loss of the whole does not depend on `count`."""
    rows = batch.tokens.shape[0]
    if rows % count:
        raise ValueError(f"{rows} batch rows cannot be split into {count} micro-batches")
    return jax.tree.map(lambda x: x.reshape(count, rows // count, *x.shape[1:]), batch)
