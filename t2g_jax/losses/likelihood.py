"""Maximum likelihood of given tokens: demonstrations, critiques, what an environment answered."""

from collections.abc import Mapping, Sequence
from numbers import Integral

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.numerics import as_float, by_token, defined, settled


def nll(
    logprobs: ArrayLike,
    *,
    token_weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """−w log π(yₜ | y₍<ₜ₎), unreduced, to minimize.

    Which tokens makes the method: those of demonstrations, it is supervised fine-tuning; those of
    a critique given the attempt, log π(cₜ | f_FM(x₀, y₀), c₍<ₜ₎), feedback modeling (RLTF-FM,
    arXiv 2602.02482, λ = 0.1 there); those of the environment's answers, ECHO, see `role_weights`.
    It is `reinforce` with an advantage of 1.

    >>> from t2g_jax import losses
    >>> losses.nll([[-1.0, -2.0, -3.0]], token_weights=[[1.0, 0.5, 0.0]])
    Array([[1., 1., 0.]], dtype=float32)

    Args:
      logprobs: [B, T] float, of the tokens to learn.
      token_weights: [B, T] float, or [B, 1]; 1 by default; no gradient flows to them. A token of
        weight 0 has loss 0 whatever its log-probability.
      where: [B, T] bool or float, tokens that count; elsewhere the loss is 0, without a gradient.

    Returns:
      [B, T]; NaN without a gradient where an input is not finite.

    Raises:
      ValueError: shapes differ.
    """
    ok, finite = defined(logprobs=logprobs)
    return weighted(settled(-finite, ok, where), token_weights)


def role_weights(roles: ArrayLike, weights: Mapping[int, float] | Sequence[float]) -> jax.Array:
    """The weight of each token by the role of the message that it stands in, for `nll`.

    ECHO, "Terminal Agents Learn World Models for Free", arXiv 2605.24517: in a conversation that an
    agent had, its own tokens get the policy gradient, and those that the environment answered get
    the cross-entropy, in the same forward pass, λ = 0.05. Each term has its own denominator, or
    long answers would dilute the policy's:

      L = reduce(clipped_surrogate(…), actions) + λ · reduce(nll(logprobs), observations)

    Roles may count differently, say a tool's output more than a user's reply.

    >>> from t2g_jax import losses
    >>> SYSTEM, USER, ASSISTANT, TOOL = range(4)
    >>> roles = [[SYSTEM, USER, ASSISTANT, TOOL, TOOL, -1]]  # -1: padding
    >>> weights = losses.role_weights(roles, {TOOL: 1.0, USER: 0.25})
    >>> weights
    Array([[0.  , 0.25, 0.  , 1.  , 1.  , 0.  ]], dtype=float32)
    >>> losses.nll([[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]], token_weights=weights)
    Array([[0. , 0.5, 0. , 4. , 5. , 0. ]], dtype=float32)

    Args:
      roles: [B, T] int, the role of each token, 0 or more; others have weight 0.
      weights: weight of each role: a mapping, in which a role that is missing has weight 0, or a
        sequence, by index.

    Returns:
      [B, T] float32.

    Raises:
      ValueError: roles are not integers, or a weight is of no role that there can be.
    """
    roles = jnp.asarray(roles)
    if not jnp.issubdtype(roles.dtype, jnp.integer):
        raise ValueError(f"roles must be integers, got {roles.dtype}")
    known = dict(weights) if isinstance(weights, Mapping) else dict(enumerate(weights))
    if bad := [role for role in known if not isinstance(role, Integral) or role < 0]:
        raise ValueError(
            f"roles are numbered from 0, but weights has {bad}; give the weight of each number "
            "that stands for a role in roles"
        )
    found = jnp.zeros_like(roles, dtype=jnp.float32)
    for role, weight in known.items():
        found = jnp.where(roles == role, weight, found)
    return found


def weighted(loss: jax.Array, token_weights: ArrayLike | None) -> jax.Array:
    """Weights times losses; 0 where the weight is 0, whatever the loss. None: all weigh 1.

    >>> import jax.numpy as jnp
    >>> from t2g_jax.losses.likelihood import weighted
    >>> weighted(jnp.array([1.0, jnp.nan]), jnp.array([2.0, 0.0]))
    Array([2., 0.], dtype=float32)
    """
    if token_weights is None:
        return loss
    weights = by_token("logprobs", loss, "token_weights", token_weights)
    weights = lax.stop_gradient(as_float(weights))
    return jnp.where(weights != 0, weights * jnp.where(weights != 0, loss, 0), 0)
