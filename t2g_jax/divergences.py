"""How far a student's next-token distribution is from a teacher's: what distillation minimizes.

From log-probabilities over the whole vocabulary, or over the outcomes that are left when all but k
tokens are one outcome, the tail.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.kl import divergence_by_entry
from t2g_jax.numerics import as_float, check_number, check_same_shape


def check_divergence(alpha: float, entry_clip: float | None) -> None:
    """ValueError unless there is such a divergence; TypeError unless it is of Python numbers.

    >>> from t2g_jax.divergences import check_divergence
    >>> check_divergence(alpha=0.5, entry_clip=None)
    """
    check_number("alpha", alpha, 0, 1, static=True)
    if entry_clip is not None:
        check_number("entry_clip", entry_clip, positive=True, static=True)


def mixed_divergence(
    student: jax.Array, teacher: jax.Array, alpha: float, entry_clip: float | None = None
) -> jax.Array:
    """Σᵥ min(dᵥ, clip) over the last axis, with d by α as `losses.logit_distillation` has it.

    >>> import jax.numpy as jnp
    >>> from t2g_jax.divergences import mixed_divergence
    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{mixed_divergence(student, teacher, alpha=0.0):.3f}")  # KL(teacher ‖ student)
    0.368

    Args:
      student, teacher: [..., V] float, normalized log-probabilities; both have gradients.
      alpha, entry_clip: see `losses.logit_distillation`.

    Returns:
      [...], nats.
    """
    if alpha == 0:
        each = divergence_by_entry(teacher, student)
    elif alpha == 1:
        each = divergence_by_entry(student, teacher)
    else:
        mixture = _mixture(student, teacher, alpha)
        each = alpha * divergence_by_entry(teacher, mixture)
        each += (1 - alpha) * divergence_by_entry(student, mixture)
    return jnp.sum(each if entry_clip is None else jnp.minimum(each, entry_clip), axis=-1)


def entries_and_slopes(
    student: jax.Array, teacher: jax.Array, alpha: float, entry_clip: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """What `mixed_divergence` sums, and its derivative by the student's log-probability.

    By hand, for log-probabilities that are finite: chunks of a vocabulary are not differentiated
    by JAX, which would keep them all.

    >>> import jax.numpy as jnp
    >>> from t2g_jax.divergences import entries_and_slopes
    >>> entries_and_slopes(jnp.array([-1.0]), jnp.array([0.0]), alpha=0.0)  # t log(t / s), −t
    (Array([1.], dtype=float32), Array([-1.], dtype=float32))
    """
    s, t = jnp.exp(student), jnp.exp(teacher)
    if alpha == 0:
        each, slope = t * (teacher - student), -t
    elif alpha == 1:
        each = s * (student - teacher)
        slope = each + s
    else:
        mixture = _mixture(student, teacher, alpha)
        slope = (1 - alpha) * s * (student - mixture)  # what the mixture owes to s cancels
        each = alpha * t * (teacher - mixture) + slope
    if entry_clip is not None:
        each, slope = jnp.minimum(each, entry_clip), jnp.where(each < entry_clip, slope, 0)
    return each, slope


def top_and_tail(values: jax.Array, ranking: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k highest by a ranking, then log Σ exp of all others; and the places of the k.

    >>> import jax.numpy as jnp
    >>> from t2g_jax.divergences import top_and_tail
    >>> log_probs = jnp.log(jnp.array([0.25, 0.5, 0.25]))
    >>> outcomes, places = top_and_tail(log_probs, log_probs, 1)
    >>> places
    Array([1], dtype=int32)
    >>> print(*(f"{p:.2f}" for p in jnp.exp(outcomes)))
    0.50 0.50

    Args:
      values: [..., V] float; −inf is nothing.
      ranking: [..., V] float, no gradient. Of equal values the first ones are in.
      k: fewer than V.

    Returns:
      [..., k + 1] of the values, and [..., k] int.
    """
    highest, top = lax.top_k(ranking, k)
    lowest = highest[..., -1:]
    # Of equal values the first ones are in; comparing finds the others without a scatter.
    last_in = jnp.max(jnp.where(highest == lowest, top, -1), axis=-1, keepdims=True)
    outside = (ranking < lowest) | ((ranking == lowest) & (jnp.arange(ranking.shape[-1]) > last_in))
    own = jnp.take_along_axis(values, top, axis=-1)
    return jnp.concatenate([own, log_total(values, outside)[..., None]], axis=-1), top


def log_total(values: jax.Array, where: jax.Array) -> jax.Array:
    """log Σ exp over the last axis of what is chosen; −inf, without a gradient, if nothing is.

    Of a tail, this and not log(1 − Σ top): that is rounding error once the top holds nearly all.

    >>> import jax.numpy as jnp
    >>> from t2g_jax.divergences import log_total
    >>> log_total(jnp.zeros(3), jnp.array([False, True, False]))
    Array(0., dtype=float32)
    """
    where &= values != -jnp.inf
    any_there = jnp.any(where, axis=-1, keepdims=True)
    there = jnp.where(any_there, jnp.where(where, values, -jnp.inf), 0)
    return jnp.where(any_there[..., 0], jax.nn.logsumexp(there, axis=-1), -jnp.inf)


def put(array: jax.Array, places: jax.Array, values: jax.Array | bool) -> jax.Array:
    """The array [..., V] with values [..., k] at places of its last axis; beyond its end: dropped.

    >>> import jax.numpy as jnp
    >>> from t2g_jax.divergences import put
    >>> put(jnp.zeros(4), jnp.array([2, 4]), jnp.array([1.0, 9.0]))
    Array([0., 0., 1., 0.], dtype=float32)
    """

    def put_in_row(row: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
        return row.at[places].set(values, mode="drop")

    for _ in range(array.ndim - 1):  # rows that are sharded stay where they are
        put_in_row = jax.vmap(put_in_row)
    if isinstance(values, bool):
        values = jnp.full_like(places, values, dtype=array.dtype)
    return put_in_row(array, places, values)


def check_top_k(
    name: str, states: ArrayLike, token_ids: ArrayLike, teacher_logprobs: ArrayLike
) -> None:
    """ValueError unless a teacher's k tokens are of each hidden state, or of the logits of each.

    >>> import jax.numpy as jnp
    >>> from t2g_jax.divergences import check_top_k
    >>> check_top_k("hidden", jnp.zeros((2, 3, 8)), jnp.zeros((2, 3, 5), int), jnp.zeros((2, 3, 5)))
    """
    if not jnp.issubdtype(jnp.asarray(token_ids).dtype, jnp.integer):
        raise ValueError(f"token_ids must be integers, got {jnp.asarray(token_ids).dtype}")
    given = np.shape(states)
    for other, array in (("token_ids", token_ids), ("teacher_logprobs", teacher_logprobs)):
        shape = np.shape(array)
        if len(given) != len(shape) or given[:-1] != shape[:-1]:
            raise ValueError(
                f"{name} and {other} must agree in all but the last axis, but {name} has shape "
                f"{given} and {other} has shape {shape}"
            )
    check_same_shape(token_ids=token_ids, teacher_logprobs=teacher_logprobs)


def teacher_outcomes(
    token_ids: ArrayLike, logprobs: ArrayLike, tail: ArrayLike | None, vocabulary: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A teacher's k tokens: ids, padding being V; log-probabilities with the tail's; what is ok.

    The tail is what the k leave of 1, unless it is given. That difference is known to the rounding
    of the k alone: at less than that (1e-7 in float32), below 0 too, it is taken for as much. There
    is no tail if the k are the whole vocabulary.

    >>> import jax.numpy as jnp
    >>> from t2g_jax.divergences import teacher_outcomes
    >>> _, outcomes, _ = teacher_outcomes([4, 0], jnp.log(jnp.array([0.5, 0.25])), None, 9)
    >>> print(*(f"{p:.2f}" for p in jnp.exp(outcomes)))
    0.50 0.25 0.25

    Raises:
      ValueError: shapes do not fit.
    """
    token_ids, logprobs = jnp.asarray(token_ids), as_float(logprobs)
    padding = (token_ids < 0) | (token_ids >= vocabulary)
    token_ids = jnp.where(padding, vocabulary, token_ids)
    logprobs = lax.stop_gradient(jnp.where(padding, -jnp.inf, logprobs))
    ok = jnp.all(logprobs < jnp.inf, axis=-1)  # NaN is not either
    logprobs = jnp.where(ok[..., None], logprobs, -1.0)
    if tail is None:
        left = -jnp.expm1(jax.nn.logsumexp(logprobs, axis=-1))
        tail = jnp.log(jnp.maximum(left, jnp.finfo(left.dtype).eps))
    elif np.shape(tail) != token_ids.shape[:-1]:
        raise ValueError(
            "teacher_tail must have the shape of token_ids without its last axis, but teacher_tail "
            f"has shape {np.shape(tail)} and token_ids has shape {token_ids.shape}"
        )
    if token_ids.shape[-1] >= vocabulary:
        return token_ids, logprobs, ok
    tail = lax.stop_gradient(as_float(tail))
    ok &= tail < jnp.inf
    tail = jnp.where(ok, tail, -1.0)
    return token_ids, jnp.concatenate([logprobs, tail[..., None]], axis=-1), ok


def _mixture(student: jax.Array, teacher: jax.Array, alpha: float) -> jax.Array:
    """log (α t + (1 − α) s); −inf, without a gradient, for tokens that neither can say."""
    possible = (student != -jnp.inf) | (teacher != -jnp.inf)
    student, teacher = (jnp.where(possible, x, 0) for x in (student, teacher))
    mixture = jnp.logaddexp(teacher + math.log(alpha), student + math.log1p(-alpha))
    return jnp.where(possible, mixture, -jnp.inf)
