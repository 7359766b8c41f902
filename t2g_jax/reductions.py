"""From unreduced losses to one number: the only place that divides them.

A mask is boolean or float; a float mask weighs. Whatever sits where the mask is 0, NaN included,
enters neither the value nor the gradient. An empty mask gives 0.
"""

import enum

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.numerics import check_same_shape, same_shape

Axis = int | tuple[int, ...] | None


class Reduction(enum.Enum):
    """How the [..., T] values of a loss become one number.

    TOKEN_MEAN: every token of the batch counts the same (DAPO, arXiv 2503.14476).
    SEQUENCE_MEAN_TOKEN_MEAN: every sequence counts the same (GRPO, arXiv 2402.03300).
    SEQUENCE_MEAN_TOKEN_SUM: sums over tokens, averaged over sequences (Dr. GRPO, arXiv 2503.20783).
    """

    TOKEN_MEAN = "token_mean"
    SEQUENCE_MEAN_TOKEN_MEAN = "sequence_mean_token_mean"
    SEQUENCE_MEAN_TOKEN_SUM = "sequence_mean_token_sum"


def masked_sum(values: ArrayLike, mask: ArrayLike, axis: Axis = None) -> jax.Array:
    """Σ mask · values over `axis` (all axes by default).

    Args:
      values, mask: of one shape.

    Raises:
      ValueError: shapes differ.
    """
    values, mask = same_shape(values=values, mask=mask)
    return jnp.sum(jnp.where(mask != 0, values, 0) * mask, axis=axis)


def masked_mean(values: ArrayLike, mask: ArrayLike, axis: Axis = None) -> jax.Array:
    """Σ mask · values / Σ mask over `axis` (all axes by default); 0 where the mask is empty.

    Args:
      values, mask: of one shape.

    Raises:
      ValueError: shapes differ.
    """
    return _divide(masked_sum(values, mask, axis), masked_sum(mask, mask != 0, axis))


def reduce(
    values: ArrayLike,
    mask: ArrayLike,
    how: Reduction,
    *,
    denominator: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
) -> jax.Array:
    """One number from [..., T] values, such that micro-batches and shards add up.

    With nₜ the masked tokens in the sequence of token t:
      TOKEN_MEAN                Σ mask · values      / Σ mask
      SEQUENCE_MEAN_TOKEN_MEAN  Σ mask · values / nₜ / number of sequences with any masked token
      SEQUENCE_MEAN_TOKEN_SUM   Σ mask · values      / number of sequences with any masked token

    Args:
      values: [..., T] float.
      mask: [..., T] bool or float.
      how: one of the three above.
      denominator: scalar to divide by instead. Pass `count` of the whole batch and the results of
        its micro-batches sum to the result of the batch; pass a constant to normalize by it.
      segment_ids: [..., T] int, which sequence of a packed row each token belongs to; its tokens
        lie side by side. Without it each row is one sequence.

    Returns:
      scalar.

    Raises:
      ValueError: shapes differ.
    """
    values, mask = same_shape(values=values, mask=mask)
    if segment_ids is not None:
        check_same_shape(values=values, segment_ids=segment_ids)
    mask = mask.astype(jnp.result_type(values, mask))  # shares as exact as what they weigh
    if denominator is None:
        denominator = count(mask, how, segment_ids=segment_ids)
    if how is Reduction.SEQUENCE_MEAN_TOKEN_MEAN:
        mask = _share_of_sequence(mask, segment_ids)
    return _divide(masked_sum(values, mask), jnp.asarray(denominator))


def count(mask: ArrayLike, how: Reduction, *, segment_ids: ArrayLike | None = None) -> jax.Array:
    """What `reduce` divides by: masked tokens, or sequences with at least one of them.

    Args:
      mask: [..., T] bool or float.
      how: see `Reduction`.
      segment_ids: [..., T] int, see `reduce`.

    Returns:
      scalar float. Add it up over micro-batches and hosts for a global denominator.

    Raises:
      ValueError: shapes differ.
    """
    if not isinstance(how, Reduction):
        raise ValueError(f"how must be one of {[str(r) for r in Reduction]}, not {how!r}")
    if how is Reduction.TOKEN_MEAN:
        return masked_sum(mask, mask != 0)
    return jnp.round(jnp.sum(_share_of_sequence(mask, segment_ids)))


def sequence_sum(
    values: ArrayLike, mask: ArrayLike, *, segment_ids: ArrayLike | None = None
) -> jax.Array:
    """Σ mask · values over the sequence that each token belongs to, told to all its tokens.

    Args:
      values, mask: [..., T] of one shape.
      segment_ids: [..., T] int, see `reduce`; the tokens of a sequence lie side by side.

    Returns:
      [..., T].

    Raises:
      ValueError: shapes differ.
    """
    values, mask = same_shape(values=values, mask=mask)
    values = jnp.where(mask != 0, values, 0) * mask
    if segment_ids is None:
        return jnp.broadcast_to(jnp.sum(values, axis=-1, keepdims=True), values.shape)
    check_same_shape(values=values, segment_ids=segment_ids)
    changes = jnp.diff(jnp.asarray(segment_ids), axis=-1) != 0
    border = jnp.ones_like(values[..., :1], dtype=bool)
    first = jnp.concatenate([border, changes], axis=-1)
    last = jnp.concatenate([changes, border], axis=-1)

    def add(earlier, later):  # sums that begin anew where a sequence does
        (began, total), (begins, value) = earlier, later
        return began | begins, jnp.where(begins, value, total + value)

    axis = values.ndim - 1
    _, so_far = lax.associative_scan(add, (first, values), axis=axis)
    _, to_come = lax.associative_scan(add, (last, values), reverse=True, axis=axis)
    return so_far + to_come - values


def _share_of_sequence(mask: ArrayLike, segment_ids: ArrayLike | None) -> jax.Array:
    """mask / (Σ mask over the token's sequence): sums to 1 over every sequence that has tokens."""
    (mask,) = same_shape(mask=mask)
    return _divide(mask, sequence_sum(jnp.ones_like(mask), mask, segment_ids=segment_ids))


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 0)
