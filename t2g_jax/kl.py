"""KL(policy ‖ reference): estimators from sampled tokens, and the full sum over the vocabulary.

The estimators take log-probabilities of tokens sampled from the policy; k1 and k3 are unbiased for
the KL, k2 is a little biased: its mean is the KL to second order in d. J. Schulman, "Approximating
KL Divergence", http://joschu.net/blog/kl-approx.html. No gradient flows to the reference. A token
with a non-finite log-probability gets NaN and no gradient.

An estimator of the value is not one of the gradient. There are two places to charge it:

  reward  taken off the reward, as a number. The policy gradient of E[k] is E[k ∇log π], which for
          k1 is ∇KL(π ‖ ref). For k3 it is ∇KL(π ‖ ref) − ∇KL(ref ‖ π), and for k2 and abs it does
          not point to the reference either: at the reference all three lack a restoring force.
  loss    added to the loss and differentiated. E[∇k2] is ∇KL(π ‖ ref), E[∇k3] is ∇KL(ref ‖ π), and
          abs pulls each token back with equal force. E[∇k1] = E[∇log π] is 0.

So k1 (or `full`) belongs in the reward, and k2, k3 or abs in the loss.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.numerics import check_axis, defined, same_shape, settled

# exp(80) is the largest round power that float32 holds with room to spare. Only padding gets there.
MAX_EXPONENT = 80.0


def k1(
    logprobs: ArrayLike, ref_logprobs: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """d = log π(yₜ) − log π_ref(yₜ), unreduced. For the reward: in a loss its gradient is noise.

    >>> from t2g_jax import kl
    >>> kl.k1([-1.0, -2.0, -3.0], [-2.0, -2.0, -1.0])
    Array([ 1.,  0., -2.], dtype=float32)

    Args:
      logprobs, ref_logprobs: [B, T] float.
      where: [B, T] bool or float, tokens that count (non-zero is on); elsewhere the result is 0 and
        has no gradient.

    Returns:
      [B, T], nats; negative where the reference is the surer one.

    Raises:
      ValueError: shapes differ.
    """
    ok, difference = _log_ratio(logprobs, ref_logprobs)
    return settled(difference, ok, where)


def k2(
    logprobs: ArrayLike, ref_logprobs: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """½ d², d = log π(yₜ) − log π_ref(yₜ). For the loss: its gradient, d ∇log π, is unbiased.

    That is `losses.sampled_reverse_kl`'s gradient, too, whose value is d. See `k1`.

    >>> from t2g_jax import kl
    >>> kl.k2([-1.0, -2.0, -3.0], [-2.0, -2.0, -1.0])
    Array([0.5, 0. , 2. ], dtype=float32)
    """
    ok, difference = _log_ratio(logprobs, ref_logprobs)
    return settled(0.5 * jnp.square(difference), ok, where)


def k3(
    logprobs: ArrayLike, ref_logprobs: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """exp(−d) − 1 + d, d = log π(yₜ) − log π_ref(yₜ); never negative. For the loss. See `k1`.

    `k1` plus a term of mean 0, exp(−d) − 1, that takes most of its variance away.

    >>> from t2g_jax import kl
    >>> print(*(f"{value:.3f}" for value in kl.k3([-1.0, -2.0, -3.0], [-2.0, -2.0, -1.0])))
    0.368 0.000 4.389
    """
    ok, difference = _log_ratio(logprobs, ref_logprobs)
    difference = jnp.maximum(difference, -MAX_EXPONENT)
    return settled(jnp.expm1(-difference) + difference, ok, where)


def absolute(
    logprobs: ArrayLike, ref_logprobs: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """|d|, d = log π(yₜ) − log π_ref(yₜ). For the loss. See `k1`.

    >>> from t2g_jax import kl
    >>> kl.absolute([-1.0, -2.0, -3.0], [-2.0, -2.0, -1.0])
    Array([1., 0., 2.], dtype=float32)
    """
    ok, difference = _log_ratio(logprobs, ref_logprobs)
    return settled(jnp.abs(difference), ok, where)


def full(
    log_probs: ArrayLike,
    ref_log_probs: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis: int = -1,
) -> jax.Array:
    """Σᵥ π(v) (log π(v) − log π_ref(v)) over the vocabulary, exact: the mean of `k1` and of `k3`.

    Differentiated, it is the exact gradient where the token was chosen. As a reward it blames the
    state and not the token: a charge of 0 or more for every token, which pays for ending early.

    Entries that the policy excludes (log π = −∞) contribute 0.
    `logprobs.full_kl_from_hidden` gives the same from hidden states, without [B, T, V] in memory.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import kl
    >>> policy, reference = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
    >>> print(f"{kl.full(jnp.log(policy), jnp.log(reference)):.3f}")
    0.144

    Args:
      log_probs, ref_log_probs: [..., V] float, normalized log-probabilities.
      where: [...] bool or float, tokens that count, see `k1`.
      axis: the vocabulary's.

    Returns:
      [...], nats.

    Raises:
      ValueError: shapes differ, or there is no such axis.
    """
    log_probs, ref_log_probs = same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    check_axis("log_probs", log_probs, axis)
    log_probs, ref_log_probs = (jnp.moveaxis(x, axis, -1) for x in (log_probs, ref_log_probs))
    result = divergence(log_probs, lax.stop_gradient(ref_log_probs))
    return settled(result, jnp.ones_like(result, bool), where, like="log_probs[..., 0]")


def divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Σ p (log p − log q) over the last axis, differentiable in both. Equal shapes, floats.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import kl
    >>> sure, unsure = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])
    >>> print(f"{kl.divergence(jnp.log(sure), jnp.log(unsure)):.3f}")
    0.693
    """
    return jnp.sum(divergence_by_entry(log_p, log_q), axis=-1)


def divergence_by_entry(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """p (log p − log q), what `divergence` sums.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import kl
    >>> kl.divergence_by_entry(jnp.array([0.0, -jnp.inf]), jnp.array([-1.0, -jnp.inf]))
    Array([1., 0.], dtype=float32)
    """
    ok = jnp.isfinite(log_p) & jnp.isfinite(log_q) & (log_p < MAX_EXPONENT)
    safe_p, safe_q = jnp.where(ok, log_p, 0), jnp.where(ok, log_q, 0)
    # Outside the support 0; otherwise +inf (q excludes what p does not) or NaN, seen in the value.
    elsewhere = jnp.where(log_p == -jnp.inf, 0, lax.stop_gradient(jnp.exp(log_p) * (log_p - log_q)))
    return jnp.where(ok, jnp.exp(safe_p) * (safe_p - safe_q), elsewhere)


def _log_ratio(logprobs: ArrayLike, ref_logprobs: ArrayLike) -> tuple[jax.Array, jax.Array]:
    ok, logprobs, ref_logprobs = defined(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return ok, logprobs - lax.stop_gradient(ref_logprobs)
