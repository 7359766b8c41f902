"""From unreduced losses to one number: the only place that divides them.

A mask is boolean or float; a float mask weighs. Whatever sits where the mask is 0, NaN included,
enters neither the value nor the gradient. An empty mask gives 0. `where=` is the mask by the name
that it has in jax.numpy and optax; without either, everything counts.

Inside `jax.shard_map`, each device reduces what it holds. Give `axis_name`, and the sums run over
the devices of that axis of the mesh as well: every device has the result of the whole batch, and
its gradient (with `check_vma`, as is the default). Under `jax.jit` with sharded arrays the sums do
so by themselves, and no `axis_name` is needed.
"""

import enum

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.numerics import Axis, AxisName, check_same_shape, chosen, same_shape, the_mask, total


class Reduction(enum.Enum):
    """How the [..., T] values of a loss become one number. Its string says the same.

    TOKEN_MEAN: every token of the batch counts the same (DAPO, arXiv 2503.14476).
    SEQUENCE_MEAN_TOKEN_MEAN: every sequence counts the same (GRPO, arXiv 2402.03300).
    SEQUENCE_MEAN_TOKEN_SUM: sums over tokens, averaged over sequences (Dr. GRPO, arXiv 2503.20783).

    >>> from t2g_jax import reductions
    >>> values, mask = [[1.0, 2.0, 3.0], [8.0, 0.0, 0.0]], [[1, 1, 1], [1, 0, 0]]
    >>> for how in reductions.Reduction:
    ...     print(f"{reductions.reduce(values, mask, how):4.1f}  {how.value}")
     3.5  token_mean
     5.0  sequence_mean_token_mean
     7.0  sequence_mean_token_sum
    """

    TOKEN_MEAN = "token_mean"
    SEQUENCE_MEAN_TOKEN_MEAN = "sequence_mean_token_mean"
    SEQUENCE_MEAN_TOKEN_SUM = "sequence_mean_token_sum"


def masked_sum(
    values: ArrayLike,
    mask: ArrayLike | None = None,
    axis: Axis = None,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Σ mask · values over `axis` (all axes by default).

    >>> from t2g_jax import reductions
    >>> reductions.masked_sum([[1.0, 2.0], [3.0, float("nan")]], [[1, 1], [1, 0]], axis=-1)
    Array([3., 3.], dtype=float32)

    Args:
      values: of any shape.
      mask: like values, or [..., 1] for one of each sequence.
      axis: which axes to sum over.
      where: the mask by another name.
      axis_name: see this module.

    Raises:
      ValueError: shapes differ, or mask and where are both given.
    """
    mask = the_mask(values, mask, where)
    values, mask = same_shape(values=values, mask=mask)
    return total(jnp.where(mask != 0, values, 0) * mask, axis, axis_name)


def masked_mean(
    values: ArrayLike,
    mask: ArrayLike | None = None,
    axis: Axis = None,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Σ mask · values / Σ mask over `axis` (all axes by default); 0 where the mask is empty.

    >>> from t2g_jax import reductions
    >>> reductions.masked_mean([[1.0, 2.0], [3.0, 9.0]], where=[[1, 1], [1, 0]])
    Array(2., dtype=float32)
    >>> reductions.masked_mean([[1.0, 2.0], [3.0, 9.0]], [[1, 1], [0, 0]], axis=-1)
    Array([1.5, 0. ], dtype=float32)

    Args, raises: see `masked_sum`.
    """
    mask = the_mask(values, mask, where)
    return _divide(
        masked_sum(values, mask, axis, axis_name=axis_name),
        masked_sum(mask, jnp.asarray(mask) != 0, axis, axis_name=axis_name),
    )


def reduce(
    values: ArrayLike,
    mask: ArrayLike | None = None,
    how: Reduction | str = Reduction.TOKEN_MEAN,
    *,
    denominator: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """One number from [..., T] values, such that micro-batches and shards add up.

    With nₜ the masked tokens in the sequence of token t:
      TOKEN_MEAN                Σ mask · values      / Σ mask
      SEQUENCE_MEAN_TOKEN_MEAN  Σ mask · values / nₜ / number of sequences with any masked token
      SEQUENCE_MEAN_TOKEN_SUM   Σ mask · values      / number of sequences with any masked token

    The first is `masked_mean`. All three are the same if every sequence has one token, the first
    two if all are equally long. `t2g_jax.reduce_loss` is this function.

    >>> from t2g_jax import reductions
    >>> values, mask = [[1.0, 2.0, 3.0], [8.0, 0.0, 0.0]], [[1, 1, 1], [1, 0, 0]]
    >>> reductions.reduce(values, mask, "sequence_mean_token_mean")
    Array(5., dtype=float32)
    >>> whole = reductions.count(mask, "token_mean")  # of both micro-batches
    >>> rows = zip(values, mask, strict=True)
    >>> sum(reductions.reduce(v, m, "token_mean", denominator=whole) for v, m in rows)
    Array(3.5, dtype=float32)

    Args:
      values: [..., T] float.
      mask: [..., T] bool or float, or [..., 1].
      how: one of the three above, or its string.
      denominator: scalar to divide by instead. Pass `count` of the whole batch and the results of
        its micro-batches sum to the result of the batch; pass a constant to normalize by it.
      segment_ids: [..., T] int, which sequence of a packed row each token belongs to; its tokens
        lie side by side. Without it each row is one sequence.
      where: the mask by another name.
      axis_name: see this module. A sequence must be whole on one device.

    Returns:
      scalar.

    Raises:
      ValueError: shapes differ, how is none of the three, or mask and where are both given.
    """
    values, mask = same_shape(values=values, mask=the_mask(values, mask, where))
    if segment_ids is not None:
        check_same_shape(values=values, segment_ids=segment_ids)
    how = _as_reduction(how)
    mask = mask.astype(jnp.result_type(values, mask))  # shares as exact as what they weigh
    if denominator is None:
        denominator = count(mask, how, segment_ids=segment_ids, axis_name=axis_name)
    if how is Reduction.SEQUENCE_MEAN_TOKEN_MEAN:
        mask = _share_of_sequence(mask, segment_ids)
    return _divide(masked_sum(values, mask, axis_name=axis_name), jnp.asarray(denominator))


def count(
    mask: ArrayLike | None = None,
    how: Reduction | str = Reduction.TOKEN_MEAN,
    *,
    segment_ids: ArrayLike | None = None,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """What `reduce` divides by: masked tokens, or sequences with at least one of them.

    >>> from t2g_jax import reductions
    >>> reductions.count([[1, 1, 1], [1, 0, 0], [0, 0, 0]], "sequence_mean_token_mean")
    Array(2., dtype=float32)

    Args:
      mask: [..., T] bool or float.
      how: see `Reduction`; its string will do.
      segment_ids: [..., T] int, see `reduce`.
      where: the mask by another name.
      axis_name: see this module.

    Returns:
      scalar float. Add it up over micro-batches and hosts for a global denominator.

    Raises:
      ValueError: shapes differ, how is none of the three, or of mask and where both are given, or
        neither, which leaves no shape to count in.
    """
    if mask is None and where is None:
        raise ValueError("count needs mask, or where: there are no values of whose shape all count")
    mask = the_mask(where if mask is None else mask, mask, where)
    if _as_reduction(how) is Reduction.TOKEN_MEAN:
        return masked_sum(mask, jnp.asarray(mask) != 0, axis_name=axis_name)
    return jnp.round(total(_share_of_sequence(mask, segment_ids), axis_name=axis_name))


def sequence_sum(
    values: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    segment_ids: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Σ mask · values over the sequence that each token belongs to, told to all its tokens.

    >>> from t2g_jax import reductions
    >>> reductions.sequence_sum([[1.0, 2.0, 5.0]], segment_ids=[[0, 0, 1]])
    Array([[3., 3., 5.]], dtype=float32)

    Args:
      values: [..., T] float.
      mask: [..., T] bool or float, or [..., 1].
      segment_ids: [..., T] int, see `reduce`; the tokens of a sequence lie side by side.
      where: the mask by another name.

    Returns:
      [..., T].

    Raises:
      ValueError: shapes differ, or mask and where are both given.
    """
    values, mask = same_shape(values=values, mask=the_mask(values, mask, where))
    values = jnp.where(mask != 0, values, 0) * mask
    if segment_ids is None:
        return jnp.broadcast_to(jnp.sum(values, axis=-1, keepdims=True), values.shape)
    check_same_shape(values=values, segment_ids=segment_ids)
    changes = jnp.diff(jnp.asarray(segment_ids), axis=-1) != 0
    border = jnp.ones_like(values[..., :1], dtype=bool)
    first = jnp.concatenate([border, changes], axis=-1)
    last = jnp.concatenate([changes, border], axis=-1)

    Part = tuple[jax.Array, jax.Array]

    def add(earlier: Part, later: Part) -> Part:  # sums that begin anew where a sequence does
        (began, sum_before), (begins, value) = earlier, later
        return began | begins, jnp.where(begins, value, sum_before + value)

    axis = values.ndim - 1
    _, so_far = lax.associative_scan(add, (first, values), axis=axis)
    _, to_come = lax.associative_scan(add, (last, values), reverse=True, axis=axis)
    return so_far + to_come - values


def _as_reduction(how: Reduction | str) -> Reduction:
    known = how.lower() if isinstance(how, str) else how  # "TOKEN_MEAN" is its name
    return Reduction(chosen("how", known, [r.value for r in Reduction]))


def _share_of_sequence(mask: ArrayLike, segment_ids: ArrayLike | None) -> jax.Array:
    """mask / (Σ mask over the token's sequence): sums to 1 over every sequence that has tokens."""
    (mask,) = same_shape(mask=mask)
    return _divide(mask, sequence_sum(jnp.ones_like(mask), mask, segment_ids=segment_ids))


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 0)
