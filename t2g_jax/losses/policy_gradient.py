"""Policy-gradient losses, to minimise: unreduced, one value per sampled token.

No gradient flows to advantages or old log-probabilities. A token with a non-finite input has a NaN
loss and no gradient, so what sits in padding cannot reach a parameter.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.numerics import defined

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
