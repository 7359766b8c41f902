"""Feedback modeling: learning to predict what the judge will say."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.numerics import defined, same_shape


def nll(logprobs: ArrayLike, *, token_weights: ArrayLike | None = None) -> jax.Array:
    """−w log π(cₜ | f_FM(x₀, y₀), c₍<ₜ₎), unreduced, to minimize.

    RLTF-FM, arXiv 2602.02482: the critique c₀ given a prompt with the attempt y₀; λ = 0.1 there.

    Args:
      logprobs: [B, T] float, of the critique's tokens.
      token_weights: [B, T] float, 1 by default; no gradient flows to them. A token of weight 0 has
        loss 0 whatever its log-probability.

    Returns:
      [B, T]; NaN without a gradient where an input is not finite.

    Raises:
      ValueError: shapes differ.
    """
    ok, finite = defined(logprobs=logprobs)
    loss = jnp.where(ok, -finite, jnp.nan)
    return loss if token_weights is None else weighted(loss, token_weights)


def weighted(loss: jax.Array, token_weights: ArrayLike) -> jax.Array:
    """Weights times losses; 0 where the weight is 0, whatever the loss."""
    loss, weights = same_shape(logprobs=loss, token_weights=token_weights)
    weights = lax.stop_gradient(weights)
    return jnp.where(weights != 0, weights * jnp.where(weights != 0, loss, 0), 0)
