"""The span-reward head: its loss, and what its logits say of a token: good, poor or no span?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from t2g_jax.numerics import as_float, check_number, settled

ClassWeights = ArrayLike | Sequence[float]


def span_reward_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """−Σ_c w_c q_c log softmax(logits)_c, q the target of the label, unreduced, to minimize.

    The target of a label −1, 0 or +1 is its class alone, and the loss −w_y log softmax(logits)_y.
    A severity s between them is shared out, see `span_targets`: the expected reward of the
    distribution that minimizes the loss is then the mean severity, as Σ_c q_c · (−1, 0, 1)_c = s.
    Without weights and severities it is `nll` of the label among three.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import losses
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    >>> print(f"{losses.span_reward_cross_entropy(logits, [-1])[0]:.3f}")
    0.693

    Args:
      logits: [..., 3] float, for poor, neutral and good in this order.
      labels: [...] float or int in [−1, 1], −1 poor, 0 neutral, +1 good. Any other value means not
        labeled: loss 0 and no gradient.
      class_weights: [3] float, 0 or more, in the same order, 1 by default. Neutral tokens dominate,
        so give them less. The loss is not divided by the weights; what is learned is p_w ∝ w · p,
        see `span_probabilities`.
      where: [...] bool or float, tokens that count; elsewhere the loss is 0, without a gradient.

    Returns:
      [...], nats; NaN without a gradient where logits are not finite.

    Raises:
      ValueError: shapes do not fit, or a class weight is negative or NaN.
    """
    logits, labels = as_float(logits), jnp.asarray(labels)
    if logits.shape != (*labels.shape, 3):
        raise ValueError(
            "logits must have the shape of labels and an axis of 3 classes, but logits has shape "
            f"{logits.shape} and labels has shape {labels.shape}"
        )
    weights = _weights(class_weights, positive=False)
    logits, ok = _finite(logits)
    log_probs = jax.nn.log_softmax(logits)
    loss = -jnp.sum(span_targets(labels) * weights * log_probs, axis=-1)
    return settled(loss, ok[..., 0], where, like="labels")


def span_targets(labels: ArrayLike) -> jax.Array:
    """The distribution over poor, neutral and good that a label s stands for.

    q = (max(−s, 0), 1 − |s|, max(s, 0)), so that Σ q · (−1, 0, 1) = s: −½ is half poor and half
    neutral.

    >>> from t2g_jax import losses
    >>> losses.span_targets([-1, -0.5, 0, 1])
    Array([[1. , 0. , 0. ],
           [0.5, 0.5, 0. ],
           [0. , 1. , 0. ],
           [0. , 0. , 1. ]], dtype=float32)

    Args:
      labels: [...] float or int in [−1, 1].

    Returns:
      [..., 3] float; all 0 where a label is outside [−1, 1].
    """
    labels = as_float(labels)
    shares = jnp.maximum(-labels, 0), 1 - jnp.abs(labels), jnp.maximum(labels, 0)
    return jnp.where(jnp.abs(labels)[..., None] <= 1, jnp.stack(shares, axis=-1), 0)


def span_probabilities(
    logits: ArrayLike, *, class_weights: ClassWeights | None = None
) -> jax.Array:
    """p(poor), p(neutral), p(good) of each token: p ∝ softmax(logits) / w.

    A head that was trained with class weights w has learned p_w ∝ w · p: without the division a
    token that is good as often as poor gets a reward other than 0.

    >>> from t2g_jax import losses
    >>> p = losses.span_probabilities([0.0, 0.0, 0.0], class_weights=(1.0, 0.5, 1.0))
    >>> print(*(f"{x:.2f}" for x in p), f"expected reward {p[2] - p[0]:.2f}")
    0.25 0.50 0.25 expected reward 0.00

    Args:
      logits: [..., 3] float.
      class_weights: [3] float above 0, those of the training; 1 by default.

    Returns:
      [..., 3] float, adding up to 1; NaN without a gradient where logits are not finite.

    Raises:
      ValueError: shapes do not fit, or a class weight is not positive.
    """
    logits = as_float(logits)
    if logits.shape[-1:] != (3,):
        raise ValueError(f"logits must end in an axis of 3 classes, got shape {logits.shape}")
    logits, ok = _finite(logits)
    probabilities = jax.nn.softmax(logits - jnp.log(_weights(class_weights, positive=True)))
    return jnp.where(ok, probabilities, jnp.nan)


def _finite(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logits, 0 where any of a token's is not finite, and whether all are, [..., 1]."""
    ok = jnp.all(jnp.isfinite(logits), axis=-1, keepdims=True)
    return jnp.where(ok, logits, 0), ok


def _weights(class_weights: ClassWeights | None, *, positive: bool) -> jax.Array:
    if class_weights is not None:
        check_number("class_weights", class_weights, positive=positive)
    weights = as_float(jnp.ones(3) if class_weights is None else jnp.asarray(class_weights))
    if weights.shape != (3,):
        raise ValueError(f"class_weights must have shape (3,), one per label, not {weights.shape}")
    return weights
