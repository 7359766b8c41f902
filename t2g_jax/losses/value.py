"""The value head's loss."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.numerics import check_number, defined, settled, the_mask


def clipped_value(
    values: ArrayLike,
    old_values: ArrayLike,
    returns: ArrayLike,
    *,
    epsilon: float = 0.2,
    where: ArrayLike | None = None,
) -> jax.Array:
    """½ max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²), unreduced, to minimize.

    The value loss of PPO's reference implementation, also that of the Text2Grad authors. Where V is
    within ε of V_old it is ½ (V − R)²; R is commonly the returns of `advantages.gae`.

    >>> from t2g_jax import losses
    >>> losses.clipped_value([[0.5, 0.5]], [[0.5, 0.0]], [[1.0, 1.0]], epsilon=0.25)
    Array([[0.125  , 0.28125]], dtype=float32)

    Args:
      values: [B, T] float, predictions of the value head being trained.
      old_values: [B, T] float, its predictions when the tokens were sampled; no gradient.
      returns: [B, T] float, targets; no gradient.
      epsilon: how far a prediction may move before its gradient stops, 0 or more. Traced, it is not
        checked.
      where: [B, T] bool or float, tokens that count; elsewhere the loss is 0, without a gradient.

    Returns:
      [B, T]; NaN without a gradient where an input is not finite.

    Raises:
      ValueError: shapes differ, or epsilon is negative or NaN.
    """
    check_number("epsilon", epsilon)
    ok, values, old_values, returns = defined(values=values, old_values=old_values, returns=returns)
    old_values, returns = lax.stop_gradient((old_values, returns))
    clipped = jnp.clip(values, old_values - epsilon, old_values + epsilon)
    loss = 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns))
    return settled(loss, ok, where, like="values")


def value_clip_acts(
    values: ArrayLike,
    old_values: ArrayLike,
    returns: ArrayLike,
    *,
    epsilon: float = 0.2,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Where `clipped_value` takes the clipped branch: its loss is the larger one.

    |clip(V, V_old − ε, V_old + ε) − R| > |V − R|: V has moved towards R by more than ε.

    >>> from t2g_jax import losses
    >>> losses.value_clip_acts([[0.5, 0.5]], [[0.5, 0.0]], [[1.0, 1.0]])
    Array([[False,  True]], dtype=bool)

    Args, raises: see `clipped_value`.

    Returns:
      [B, T] bool, False where an input is not finite and where `where` is off.
    """
    check_number("epsilon", epsilon)
    ok, values, old_values, returns = defined(values=values, old_values=old_values, returns=returns)
    clipped = jnp.clip(values, old_values - epsilon, old_values + epsilon)
    acts = jnp.abs(clipped - returns) > jnp.abs(values - returns)
    return ok & acts & (the_mask(values, None, where) != 0)
