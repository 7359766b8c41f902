"""Policy-gradient losses, to minimize: unreduced, one value per sampled token.

All of them have the gradient −ρA ∇log π of `reinforce` where ρ = π / π_old is 1, as it is at the
first update after sampling, and differ in what they do once it is not:

  reinforce          −A log π               no ratio: right on policy only
  clipped_surrogate  max(−ρA, −clip(ρ) A)   stops the gradient of tokens that have moved far enough
  cispo              −sg[clip(ρ)] A log π   keeps every token's gradient, and bounds its weight
  gspo               as clipped_surrogate   with one ratio for all tokens of a sequence

No gradient flows to advantages or old log-probabilities. Advantages are [B, T], or [B, 1] for one
of each sequence. A token with a non-finite input has a NaN loss and no gradient, so what sits in
padding cannot reach a parameter; where `where` is off, the loss is 0 whatever the inputs.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.losses.importance import sequence_ratio, token_ratio
from t2g_jax.numerics import by_token, check_number, chosen, defined, settled, the_mask

Surrogate = Literal["ppo", "gspo", "cispo", "reinforce"]


def clipped_surrogate(
    logprobs: ArrayLike,
    old_logprobs: ArrayLike,
    advantages: ArrayLike,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    where: ArrayLike | None = None,
) -> jax.Array:
    """max(−ρA, −clip(ρ, 1−ε_low, 1+ε_high) A),   ρ = exp(log π − log π_old).

    "Proximal Policy Optimization Algorithms", Schulman et al., arXiv 1707.06347, Eq. 7; two
    epsilons as in DAPO, arXiv 2503.14476.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import losses
    >>> now, then = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.5]]))
    >>> losses.clipped_surrogate(now, then, [[1.0]])  # the first has moved as far as it may
    Array([[-1.2, -1. ]], dtype=float32)

    Args:
      logprobs, old_logprobs: [B, T] float, of the sampled tokens under the policy and under the
        distribution that they were sampled from.
      advantages: [B, T] float, or [B, 1].
      epsilon_low, epsilon_high: clip range below and above 1, 0 or more. Traced, they are not
        checked.
      where: [B, T] bool or float, tokens that count; elsewhere the loss is 0, without a gradient.

    Returns:
      [B, T].

    Raises:
      ValueError: shapes differ, or an epsilon is negative or NaN.
    """
    _check(epsilon_low, epsilon_high)
    advantages = by_token("logprobs", logprobs, "advantages", advantages)
    ok, logprobs, old_logprobs, advantages = defined(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages
    )
    advantages = lax.stop_gradient(advantages)
    ratio = token_ratio(logprobs, old_logprobs)
    clipped = jnp.clip(ratio, 1 - epsilon_low, 1 + epsilon_high)
    return settled(jnp.maximum(-ratio * advantages, -clipped * advantages), ok, where)


def cispo(
    logprobs: ArrayLike,
    old_logprobs: ArrayLike,
    advantages: ArrayLike,
    *,
    epsilon_low: float,
    epsilon_high: float,
    where: ArrayLike | None = None,
) -> jax.Array:
    """−sg[clip(ρ, 1−ε_low, 1+ε_high)] A log π,   ρ = exp(log π − log π_old).

    Clips the weight and keeps the gradient of every token: `reinforce` weighted by
    `truncated_importance`, which is clipped from above alone. "MiniMax-M1", arXiv 2506.13585,
    Eq. 4; ε_low = 1 leaves the ratio unclipped from below, as the authors do.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import losses
    >>> now, then = jnp.array([[-1.0, -2.0]]), jnp.array([[-3.0, -2.0]])
    >>> losses.cispo(now, then, [[1.0, 1.0]], epsilon_low=1.0, epsilon_high=0.5)
    Array([[1.5, 2. ]], dtype=float32)

    Args, returns, raises: see `clipped_surrogate`.
    """
    _check(epsilon_low, epsilon_high)
    advantages = by_token("logprobs", logprobs, "advantages", advantages)
    ok, logprobs, old_logprobs, advantages = defined(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages
    )
    ratio = jnp.clip(token_ratio(logprobs, old_logprobs), 1 - epsilon_low, 1 + epsilon_high)
    weight = lax.stop_gradient(ratio * advantages)
    return settled(-weight * logprobs, ok, where)


def gspo(
    logprobs: ArrayLike,
    old_logprobs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    segment_ids: ArrayLike | None = None,
    epsilon_low: float = 3e-4,
    epsilon_high: float = 4e-4,
    where: ArrayLike | None = None,
) -> jax.Array:
    """max(−sA, −clip(s, 1−ε_low, 1+ε_high) A) with one ratio s for all tokens of a sequence.

    s is `sequence_ratio`. A token's own gradient goes through sₜ = sg[s] π(yₜ) / sg[π(yₜ)]. With
    advantages that are equal over a sequence and SEQUENCE_MEAN_TOKEN_MEAN this is GSPO, otherwise
    GSPO-token. "Group Sequence Policy Optimization", arXiv 2507.18071, Eq. 5 and 14.

    >>> from t2g_jax import losses
    >>> losses.gspo([[-1.0, -2.0]], [[-2.0, -1.0]], [[1.0]])  # apart, but equal as a sequence
    Array([[-1., -1.]], dtype=float32)

    Args:
      logprobs, old_logprobs, advantages: see `clipped_surrogate`.
      mask, segment_ids: see `sequence_ratio`.
      epsilon_low, epsilon_high: clip range, 0 or more; s is far closer to 1 than the ratio of a
        token.
      where: in place of the mask: the loss is 0, without a gradient, where it is off.

    Returns:
      [B, T].

    Raises:
      ValueError: shapes differ, mask and where are both given, or an epsilon is negative or NaN.
    """
    _check(epsilon_low, epsilon_high)
    advantages = by_token("logprobs", logprobs, "advantages", advantages)
    mask = the_mask(logprobs, mask, where, like="logprobs")
    ok, logprobs, old_logprobs, advantages = defined(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages
    )
    advantages = lax.stop_gradient(advantages)
    ratio = sequence_ratio(logprobs, old_logprobs, mask, segment_ids=segment_ids)
    ratio = lax.stop_gradient(ratio) * jnp.exp(logprobs - lax.stop_gradient(logprobs))
    clipped = jnp.clip(ratio, 1 - epsilon_low, 1 + epsilon_high)
    return settled(jnp.maximum(-ratio * advantages, -clipped * advantages), ok, where)


def clip_acts(
    surrogate: Surrogate,
    ratio: ArrayLike,
    advantages: ArrayLike,
    *,
    epsilon_low: float,
    epsilon_high: float,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Where a surrogate's clip changes the loss; a ratio outside the range alone does not tell.

      ppo, gspo   ρ > 1 + ε_high and A > 0, or ρ < 1 − ε_low and A < 0: the clipped branch is the
                  larger loss, and the token has no gradient. Otherwise the clip lets go, as the
                  update would bring ρ back.
      cispo       ρ outside [1 − ε_low, 1 + ε_high] and A ≠ 0: the weight is another.
      reinforce   nowhere, as it clips nothing.

    For ppo and gspo as TRL and verl count, for cispo as verl does.

    >>> from t2g_jax import losses
    >>> losses.clip_acts("ppo", [[1.5, 1.5]], [[1.0, -1.0]], epsilon_low=0.2, epsilon_high=0.2)
    Array([[ True, False]], dtype=bool)

    Args:
      surrogate: whose clip.
      ratio: [B, T] float, that of a token or of its sequence.
      advantages: [B, T] float, or [B, 1].
      epsilon_low, epsilon_high: the surrogate's clip range below and above 1, 0 or more.
      where: [B, T] bool or float, tokens that count.

    Returns:
      [B, T] bool, False where an input is not finite and where `where` is off.

    Raises:
      ValueError: shapes differ, the surrogate is unknown, or an epsilon is negative or NaN.
    """
    _check(epsilon_low, epsilon_high)
    surrogate = chosen("surrogate", surrogate, get_args(Surrogate))
    advantages = by_token("ratio", ratio, "advantages", advantages)
    ok, ratio, advantages = defined(ratio=ratio, advantages=advantages)
    below, above = ratio < 1 - epsilon_low, ratio > 1 + epsilon_high
    if surrogate in ("ppo", "gspo"):
        acts = (below & (advantages < 0)) | (above & (advantages > 0))
    elif surrogate == "cispo":
        acts = (below | above) & (advantages != 0)
    else:
        acts = jnp.zeros_like(ok)
    return ok & acts & (the_mask(ratio, None, where, like="ratio") != 0)


def reinforce(
    logprobs: ArrayLike, advantages: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """−A log π.

    "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
    Williams, 1992. With span rewards as A this is the NL-gradient of Text2Grad, arXiv 2505.22338;
    with A = 1 it is `nll`.

    >>> from t2g_jax import losses
    >>> losses.reinforce([[-1.0, -2.0, -3.0]], [[1.0, -1.0, 0.0]])
    Array([[ 1., -2.,  0.]], dtype=float32)

    Args:
      logprobs: [B, T] float, of the sampled tokens.
      advantages: [B, T] float, or [B, 1].
      where: [B, T] bool or float, tokens that count; elsewhere the loss is 0, without a gradient.

    Returns:
      [B, T].

    Raises:
      ValueError: shapes differ.
    """
    advantages = by_token("logprobs", logprobs, "advantages", advantages)
    ok, logprobs, advantages = defined(logprobs=logprobs, advantages=advantages)
    return settled(-lax.stop_gradient(advantages) * logprobs, ok, where)


def _check(epsilon_low: float, epsilon_high: float) -> None:
    check_number("epsilon_low", epsilon_low)
    check_number("epsilon_high", epsilon_high)
