"""Importance weights: how likely the trained policy is to say what another distribution has said.

Ratios with a gradient (`importance_ratio`, `sequence_ratio`) are what the clipped losses are made
of. Weights without one (`truncated_importance`, `masked_importance`) multiply any loss, as its
`token_weights` or by hand, and mend the mismatch between a rollout engine and the trainer.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.numerics import (
    check_number,
    check_same_shape,
    chosen,
    defined,
    settled,
    the_mask,
)
from t2g_jax.reductions import sequence_sum

# exp(20) ≈ 5e8: beyond any ratio that teaches, and far from overflow. No gradient flows past it.
MAX_LOG_RATIO = 20.0

Level = Literal["token", "sequence", "geometric"]


def importance_ratio(
    logprobs: ArrayLike, sampled_logprobs: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """ρ = π(yₜ) / π_sampled(yₜ), the log-ratio clipped to ±20.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import losses
    >>> losses.importance_ratio(jnp.log(jnp.array([0.5, 0.25])), jnp.log(jnp.array([0.25, 0.25])))
    Array([2., 1.], dtype=float32)

    Args:
      logprobs: [B, T] float, log π(yₜ) under the policy being trained.
      sampled_logprobs: [B, T] float, under the distribution that yₜ was really drawn from.
      where: [B, T] bool or float, tokens that count; elsewhere the ratio is 0, without a gradient.

    Returns:
      [B, T].

    Raises:
      ValueError: shapes differ.
    """
    ok, logprobs, sampled = defined(logprobs=logprobs, sampled_logprobs=sampled_logprobs)
    return settled(token_ratio(logprobs, sampled), ok, where)


def sequence_ratio(
    logprobs: ArrayLike,
    sampled_logprobs: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    segment_ids: ArrayLike | None = None,
    mean: bool = True,
    where: ArrayLike | None = None,
) -> jax.Array:
    """s = exp(mean over the sequence of log π − log π_sampled), told to all its tokens.

    The geometric mean of `importance_ratio` over the sequence, or its product. The log-ratio is
    clipped to ±20.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import losses
    >>> now, then = jnp.log(jnp.array([[0.5, 0.5, 0.1]])), jnp.log(jnp.array([[0.25, 0.5, 0.9]]))
    >>> losses.sequence_ratio(now, then, [[1, 1, 0]], mean=False)
    Array([[2., 2., 2.]], dtype=float32)

    Args:
      logprobs, sampled_logprobs: [B, T] float, see `importance_ratio`.
      mask: [B, T] bool or float, not 0 on the tokens that are averaged; all by default.
      segment_ids: [B, T] int, which sequence of a packed row a token belongs to; its tokens lie
        side by side. None: each row is one.
      mean: False takes the sum instead: s is then π(y) / π_sampled(y) of the whole sequence.
      where: the mask by another name.

    Returns:
      [B, T]; 1 on sequences without tokens.

    Raises:
      ValueError: shapes differ, or mask and where are both given.
    """
    mask = the_mask(logprobs, mask, where, like="logprobs")
    if segment_ids is not None:
        check_same_shape(logprobs=logprobs, segment_ids=segment_ids)
    ok, logprobs, sampled = defined(logprobs=logprobs, sampled_logprobs=sampled_logprobs)
    log_ratio = logprobs - lax.stop_gradient(sampled)
    counted = (jnp.asarray(mask) != 0).astype(log_ratio.dtype)
    total = sequence_sum(log_ratio, counted, segment_ids=segment_ids)
    if mean:
        total /= jnp.maximum(sequence_sum(counted, counted, segment_ids=segment_ids), 1)
    return settled(jnp.exp(jnp.clip(total, -MAX_LOG_RATIO, MAX_LOG_RATIO)), ok)


def truncated_importance(
    logprobs: ArrayLike,
    sampled_logprobs: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    cap: float = 2.0,
    level: Level = "token",
    segment_ids: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Weights sg[min(ρ, C)]: importance sampling whose variance is bounded from above (TIS).

      token      ρₜ = π(yₜ) / π_sampled(yₜ)       each token by its own ratio
      sequence   ρ = Πₜ ρₜ over its tokens        unbiased below the cap; the variance grows with T
      geometric  ρ = (Πₜ ρₜ)^(1/T)                the mean log-ratio, as `gspo` has it

    "Truncated Importance Sampling", Ionides, 2008; between a rollout engine and a trainer: "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training", Yao et al., 2025.
    With C = ∞ and level token, `reinforce` so weighted is `self_distillation`'s importance; with
    C = 1 + ε_high it is `cispo` with ε_low = 1.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import losses
    >>> trainer, engine = jnp.log(jnp.array([[1.0, 0.25]])), jnp.log(jnp.array([[0.125, 0.5]]))
    >>> weights = losses.truncated_importance(trainer, engine, cap=2.0)
    >>> weights
    Array([[2. , 0.5]], dtype=float32)
    >>> loss = weights * losses.reinforce(trainer, [[1.0]])

    Args:
      logprobs: [B, T] float, under the trainer's policy: as it is, or as it was before the update
        if a clipped loss compares with that.
      sampled_logprobs: [B, T] float, of the distribution that the tokens were really drawn from.
      mask: [B, T] bool or float, tokens that count; all by default.
      cap: C > 0, the largest weight. Traced, it is not checked.
      level: whose ratio weighs a token; sequence and geometric are told to all of its tokens.
      segment_ids: [B, T] int, see `sequence_ratio`.
      where: the mask by another name.

    Returns:
      [B, T], in [0, C]; 0 where the mask is off, NaN where an input is not finite. No gradient.

    Raises:
      ValueError: shapes differ, cap or level is out of range, or mask and where are both given.
    """
    check_number("cap", cap, positive=True)
    mask = the_mask(logprobs, mask, where, like="logprobs")
    ratio = _ratio_of(level, logprobs, sampled_logprobs, mask, segment_ids)
    return jnp.where(mask != 0, jnp.minimum(ratio, cap), 0)


def masked_importance(
    logprobs: ArrayLike,
    sampled_logprobs: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    low: float = 0.5,
    high: float = 2.0,
    level: Level = "token",
    segment_ids: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Weights sg[ρ] where low ≤ ρ ≤ high, and 0 outside of the band (MIS).

    Where `truncated_importance` still learns from what the trainer finds far likelier than the
    engine did, this drops it: ratios so far from 1 are more often an engine's error than news.

    "Every Step Evolves" (IcePop), arXiv 2510.18855, by token; "When Speed Kills Stability", Liu et
    al., 2025, by sequence. They differ in what they divide by: tokens of weight 0 still count in a
    mean over the mask; for one over what is left, reduce with `where=weights > 0`.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import losses
    >>> trainer, engine = jnp.log(jnp.array([[1.0, 0.25]])), jnp.log(jnp.array([[0.125, 0.5]]))
    >>> losses.masked_importance(trainer, engine, low=0.25, high=5.0)
    Array([[0. , 0.5]], dtype=float32)

    Args:
      low, high: the band, 0 ≤ low ≤ high. Traced, they are not checked.
      logprobs, sampled_logprobs, mask, level, segment_ids, where: see `truncated_importance`.

    Returns:
      [B, T]; 0 outside of the band and where the mask is off, NaN where an input is not finite. No
      gradient.

    Raises:
      ValueError: shapes differ, the band or level is out of range, or mask and where are both
        given.
    """
    known = not any(isinstance(x, jax.core.Tracer) for x in (low, high))
    if known and not 0 <= low <= high:
        raise ValueError(f"low and high must be 0 ≤ low ≤ high, got {low} and {high}")
    mask = the_mask(logprobs, mask, where, like="logprobs")
    ratio = _ratio_of(level, logprobs, sampled_logprobs, mask, segment_ids)
    outside = (ratio < low) | (ratio > high)  # NaN is neither, and stays
    return jnp.where((mask != 0) & ~outside, ratio, 0)


def token_ratio(logprobs: jax.Array, sampled_logprobs: jax.Array) -> jax.Array:
    """`importance_ratio` of inputs that are finite.

    >>> import jax.numpy as jnp
    >>> from t2g_jax.losses.importance import token_ratio
    >>> token_ratio(jnp.array([0.0]), jnp.array([0.0]))
    Array([1.], dtype=float32)
    """
    log_ratio = logprobs - lax.stop_gradient(sampled_logprobs)
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _ratio_of(
    level: Level,
    logprobs: ArrayLike,
    sampled_logprobs: ArrayLike,
    mask: ArrayLike,
    segment_ids: ArrayLike | None,
) -> jax.Array:
    """ρ of each token at a level, without a gradient."""
    level = chosen("level", level, get_args(Level))
    if level == "token":
        return lax.stop_gradient(importance_ratio(logprobs, sampled_logprobs))
    mean = level == "geometric"
    return lax.stop_gradient(
        sequence_ratio(logprobs, sampled_logprobs, mask, segment_ids=segment_ids, mean=mean)
    )
