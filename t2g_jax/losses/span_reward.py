"""The span-reward head's loss: is a token part of a good, a poor or no span?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from t2g_jax.numerics import as_float


def span_reward_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_weights: ArrayLike | Sequence[float] | None = None,
) -> jax.Array:
    """−w_y log softmax(logits)_y, y the class of the label, unreduced, to minimise.

    Args:
      logits: [..., 3] float, for poor, neutral and good in this order.
      labels: [...] int (or whole floats), −1 poor, 0 neutral, +1 good. Any other value means not
        labelled: loss 0 and no gradient.
      class_weights: [3] float in the same order, 1 by default. Neutral tokens dominate, so give
        them less. The loss is not divided by the weights.

    Returns:
      [...], nats; NaN without a gradient where logits are not finite.

    Raises:
      ValueError: shapes do not fit.
    """
    logits, labels = as_float(logits), jnp.asarray(labels)
    if logits.shape != (*labels.shape, 3):
        raise ValueError(
            "logits must have the shape of labels and an axis of 3 classes, but logits has shape "
            f"{logits.shape} and labels has shape {labels.shape}"
        )
    weights = as_float(jnp.ones(3) if class_weights is None else jnp.asarray(class_weights))
    if weights.shape != (3,):
        raise ValueError(f"class_weights must have shape (3,), one per label, not {weights.shape}")
    ok = jnp.all(jnp.isfinite(logits), axis=-1)
    log_probs = jax.nn.log_softmax(jnp.where(ok[..., None], logits, 0))
    loss = -jnp.sum((labels[..., None] == jnp.arange(-1, 2)) * weights * log_probs, axis=-1)
    return jnp.where(ok, loss, jnp.nan)
