"""Token spans as arrays: masks and token rewards, on the device.

Spans are pairs of token indices [..., S], `end` exclusive. Empty spans (start = end) are padding.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from t2g_jax.numerics import as_float, check_count, check_same_shape, chosen

Overlap = Literal["poor", "sum", "mean", "last"]


def span_mask(starts: ArrayLike, ends: ArrayLike, length: int) -> jax.Array:
    """Which tokens are in any span.

    >>> from t2g_jax import spans
    >>> spans.span_mask([[0, 3]], [[2, 4]], length=5)
    Array([[ True,  True, False,  True, False]], dtype=bool)

    Args:
      starts, ends: [..., S] int, token indices, end exclusive. What lies outside [0, length) is
        ignored.
      length: T.

    Returns:
      [..., T] bool.

    Raises:
      ValueError: shapes differ, or length is negative.
      TypeError: length is no integer.
    """
    return jnp.any(_inside(starts, ends, length), axis=-2)


def token_rewards(
    starts: ArrayLike,
    ends: ArrayLike,
    rewards: ArrayLike,
    length: int,
    *,
    overlap: Overlap = "poor",
) -> jax.Array:
    """Reward of each token from the spans that cover it; 0 where none does.

    Where no spans overlap it is Σ reward · `span_mask`, whatever `overlap`.

    >>> from t2g_jax import spans
    >>> spans.token_rewards([[0, 1]], [[2, 4]], [[1.0, -1.0]], length=5)
    Array([[ 1., -1., -1., -1.,  0.]], dtype=float32)
    >>> spans.token_rewards([[0, 1]], [[2, 4]], [[1.0, -1.0]], length=5, overlap="sum")
    Array([[ 1.,  0., -1., -1.,  0.]], dtype=float32)

    Args:
      starts, ends: [..., S] int, token indices, end exclusive.
      rewards: [..., S] float, of each span.
      length: T.
      overlap: reward of a token in several spans: "poor" the lowest, "sum", "mean", or "last" that
        of the last span in the order given.

    Returns:
      [..., T] float.

    Raises:
      ValueError: shapes differ, length is negative, or overlap is none of the four.
      TypeError: length is no integer.
    """
    overlap = chosen("overlap", overlap, get_args(Overlap))
    check_same_shape(starts=starts, rewards=rewards)
    inside = _inside(starts, ends, length)
    rewards = as_float(rewards)[..., None]
    covered = jnp.any(inside, axis=-2)
    total = jnp.sum(jnp.where(inside, rewards, 0), axis=-2)
    if overlap == "sum":
        return total
    if overlap == "mean":
        return total / jnp.maximum(jnp.sum(inside, axis=-2), 1)
    if overlap == "poor":
        lowest = jnp.min(jnp.where(inside, rewards, jnp.inf), axis=-2, initial=jnp.inf)
        return jnp.where(covered, lowest, 0)
    order = jnp.arange(inside.shape[-2])[:, None]
    last = jnp.max(jnp.where(inside, order, -1), axis=-2, initial=-1, keepdims=True)
    return jnp.sum(jnp.where(order == last, rewards, 0), axis=-2)


def _inside(starts: ArrayLike, ends: ArrayLike, length: int) -> jax.Array:
    """[..., S, T] bool: is the token in the span?"""
    check_same_shape(starts=starts, ends=ends)
    check_count("length", length, least=0)
    starts, ends = jnp.asarray(starts)[..., None], jnp.asarray(ends)[..., None]
    tokens = jnp.arange(length)
    return (starts <= tokens) & (tokens < ends)
