"""Policy-gradient losses, to minimize: unreduced, one value per sampled token.

No gradient flows to advantages or old log-probabilities. A token with a non-finite input has a NaN
loss and no gradient, so what sits in padding cannot reach a parameter.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.numerics import check_same_shape, defined
from t2g_jax.reductions import sequence_sum

# exp(20) ≈ 5e8: beyond any ratio that teaches, and far from overflow. No gradient flows past it.
MAX_LOG_RATIO = 20.0


def importance_ratio(logprobs: ArrayLike, sampled_logprobs: ArrayLike) -> jax.Array:
    """ρ = π(yₜ) / π_sampled(yₜ), the log-ratio clipped to ±20.

    Args:
      logprobs: [B, T] float, log π(yₜ) under the policy being trained.
      sampled_logprobs: [B, T] float, under the distribution that yₜ was really drawn from.

    Returns:
      [B, T].

    Raises:
      ValueError: shapes differ.
    """
    ok, logprobs, sampled = defined(logprobs=logprobs, sampled_logprobs=sampled_logprobs)
    return jnp.where(ok, _ratio(logprobs, sampled), jnp.nan)


def clipped_surrogate(
    logprobs: ArrayLike,
    old_logprobs: ArrayLike,
    advantages: ArrayLike,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
) -> jax.Array:
    """max(−ρA, −clip(ρ, 1−ε_low, 1+ε_high) A),   ρ = exp(log π − log π_old).

    "Proximal Policy Optimization Algorithms", Schulman et al., arXiv 1707.06347, Eq. 7; two
    epsilons as in DAPO, arXiv 2503.14476.

    Args:
      logprobs, old_logprobs: [B, T] float, of the sampled tokens under the policy and under the
        distribution that they were sampled from.
      advantages: [B, T] float.
      epsilon_low, epsilon_high: clip range below and above 1.

    Returns:
      [B, T].

    Raises:
      ValueError: shapes differ.
    """
    ok, logprobs, old_logprobs, advantages = defined(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages
    )
    advantages = lax.stop_gradient(advantages)
    ratio = _ratio(logprobs, old_logprobs)
    clipped = jnp.clip(ratio, 1 - epsilon_low, 1 + epsilon_high)
    return jnp.where(ok, jnp.maximum(-ratio * advantages, -clipped * advantages), jnp.nan)


def cispo(
    logprobs: ArrayLike,
    old_logprobs: ArrayLike,
    advantages: ArrayLike,
    *,
    epsilon_low: float,
    epsilon_high: float,
) -> jax.Array:
    """−sg[clip(ρ, 1−ε_low, 1+ε_high)] A log π,   ρ = exp(log π − log π_old).

    Clips the weight and keeps the gradient of every token. "MiniMax-M1", arXiv 2506.13585, Eq. 4;
    ε_low = 1 leaves the ratio unclipped from below, as the authors do.

    Args, returns, raises: see `clipped_surrogate`.
    """
    ok, logprobs, old_logprobs, advantages = defined(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages
    )
    ratio = jnp.clip(_ratio(logprobs, old_logprobs), 1 - epsilon_low, 1 + epsilon_high)
    weight = lax.stop_gradient(ratio * advantages)
    return jnp.where(ok, -weight * logprobs, jnp.nan)


def gspo(
    logprobs: ArrayLike,
    old_logprobs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    segment_ids: ArrayLike | None = None,
    epsilon_low: float = 3e-4,
    epsilon_high: float = 4e-4,
) -> jax.Array:
    """max(−sA, −clip(s, 1−ε_low, 1+ε_high) A) with one ratio s for all tokens of a sequence.

    A token's own gradient goes through sₜ = sg[s] π(yₜ) / sg[π(yₜ)]. With advantages that are equal
    over a sequence and SEQUENCE_MEAN_TOKEN_MEAN this is GSPO, otherwise GSPO-token. "Group Sequence
    Policy Optimization", arXiv 2507.18071, Eq. 5 and 14.

    Args:
      logprobs, old_logprobs, advantages: see `clipped_surrogate`.
      mask, segment_ids: see `sequence_ratio`.
      epsilon_low, epsilon_high: clip range; s is far closer to 1 than the ratio of a token.

    Returns:
      [B, T].

    Raises:
      ValueError: shapes differ.
    """
    ok, logprobs, old_logprobs, advantages = defined(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages
    )
    advantages = lax.stop_gradient(advantages)
    ratio = sequence_ratio(logprobs, old_logprobs, mask, segment_ids=segment_ids)
    ratio = lax.stop_gradient(ratio) * jnp.exp(logprobs - lax.stop_gradient(logprobs))
    clipped = jnp.clip(ratio, 1 - epsilon_low, 1 + epsilon_high)
    return jnp.where(ok, jnp.maximum(-ratio * advantages, -clipped * advantages), jnp.nan)


def sequence_ratio(
    logprobs: ArrayLike,
    sampled_logprobs: ArrayLike,
    mask: ArrayLike,
    *,
    segment_ids: ArrayLike | None = None,
    mean: bool = True,
) -> jax.Array:
    """s = exp(mean over the sequence of log π − log π_sampled), told to all its tokens.

    The log-ratio is clipped to ±20.

    Args:
      logprobs, sampled_logprobs: [B, T] float, see `importance_ratio`.
      mask: [B, T] bool or float, not 0 on the tokens that are averaged.
      segment_ids: [B, T] int, which sequence of a packed row a token belongs to; its tokens lie
        side by side. None: each row is one.
      mean: False takes the sum instead: s is then π(y) / π_sampled(y) of the whole sequence.

    Returns:
      [B, T]; 1 on sequences without tokens.

    Raises:
      ValueError: shapes differ.
    """
    given = {"mask": mask} if segment_ids is None else {"mask": mask, "segment_ids": segment_ids}
    check_same_shape(logprobs=logprobs, **given)
    ok, logprobs, sampled = defined(logprobs=logprobs, sampled_logprobs=sampled_logprobs)
    log_ratio = logprobs - lax.stop_gradient(sampled)
    counted = (jnp.asarray(mask) != 0).astype(log_ratio.dtype)
    total = sequence_sum(log_ratio, counted, segment_ids=segment_ids)
    if mean:
        total /= jnp.maximum(sequence_sum(counted, counted, segment_ids=segment_ids), 1)
    return jnp.where(ok, jnp.exp(jnp.clip(total, -MAX_LOG_RATIO, MAX_LOG_RATIO)), jnp.nan)


def clip_acts(
    surrogate: Literal["ppo", "gspo", "cispo", "reinforce"],
    ratio: ArrayLike,
    advantages: ArrayLike,
    *,
    epsilon_low: float,
    epsilon_high: float,
) -> jax.Array:
    """Where a surrogate's clip changes the loss; a ratio outside the range alone does not tell.

      ppo, gspo   ρ > 1 + ε_high and A > 0, or ρ < 1 − ε_low and A < 0: the clipped branch is the
                  larger loss, and the token has no gradient. Otherwise the clip lets go, as the
                  update would bring ρ back.
      cispo       ρ outside [1 − ε_low, 1 + ε_high] and A ≠ 0: the weight is another.
      reinforce   nowhere, as it clips nothing.

    For ppo and gspo as TRL and verl count, for cispo as verl does.

    Args:
      surrogate: whose clip.
      ratio, advantages: [B, T] float; the ratio is that of a token or of its sequence.
      epsilon_low, epsilon_high: the surrogate's clip range below and above 1.

    Returns:
      [B, T] bool, False where an input is not finite.

    Raises:
      ValueError: shapes differ, or the surrogate is unknown.
    """
    ok, ratio, advantages = defined(ratio=ratio, advantages=advantages)
    below, above = ratio < 1 - epsilon_low, ratio > 1 + epsilon_high
    match surrogate:
        case "ppo" | "gspo":
            acts = (below & (advantages < 0)) | (above & (advantages > 0))
        case "cispo":
            acts = (below | above) & (advantages != 0)
        case "reinforce":
            acts = jnp.zeros_like(ok)
        case _:
            raise ValueError(
                f"surrogate must be 'ppo', 'gspo', 'cispo' or 'reinforce', not {surrogate!r}"
            )
    return ok & acts


def reinforce(logprobs: ArrayLike, advantages: ArrayLike) -> jax.Array:
    """−A log π.

    "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
    Williams, 1992. With span rewards as A this is the NL-gradient of Text2Grad, arXiv 2505.22338.

    Args:
      logprobs: [B, T] float, of the sampled tokens.
      advantages: [B, T] float.

    Returns:
      [B, T].

    Raises:
      ValueError: shapes differ.
    """
    ok, logprobs, advantages = defined(logprobs=logprobs, advantages=advantages)
    return jnp.where(ok, -lax.stop_gradient(advantages) * logprobs, jnp.nan)


def _ratio(logprobs: jax.Array, sampled_logprobs: jax.Array) -> jax.Array:
    log_ratio = logprobs - lax.stop_gradient(sampled_logprobs)
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
