"""Advantages and returns: what the losses weigh log-probabilities with.

All of them are targets: no gradient flows through any result of this module. Masks are boolean or
float (non-zero is on); whatever sits outside the mask, NaN included, has no effect, and results are
zero there.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.deprecation import keep_old_names
from t2g_jax.numerics import same_shape

# Under the square root when dividing by a standard deviation, as the Text2Grad authors have it.
VARIANCE_EPSILON = 1e-8

# Values that are further apart by no more than so many units of their own rounding count as equal.
ROUNDING = 8

keep_old_names(__name__, {"group_centred": "group_centered"})


def gae(
    token_rewards: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimation along the masked tokens of each row.

    δₜ = rₜ + γ V₍ₜ₊₁₎ − Vₜ,   Aₜ = Σₗ (γλ)ˡ δ₍ₜ₊ₗ₎,   returns = A + V,   t counting only tokens
    with mask 1; V after the last of them is 0.

    "High-Dimensional Continuous Control Using Generalized Advantage Estimation", Schulman et al.,
    arXiv 1506.02438, Eq. 16. Unlike the Text2Grad authors' code, credit crosses masked tokens.

    Args:
      token_rewards: [..., T] float, span rewards minus the KL penalty.
      values: [..., T] float, V of the state before each token.
      mask: [..., T] bool or float, 1 on completion tokens.
      gamma, gae_lambda: discount and trace decay, in [0, 1].

    Returns:
      advantages, returns: [..., T] float32 (float64 from float64), zero where mask is 0; no
      gradient flows through them.

    Raises:
      ValueError: shapes differ.
    """
    rewards, values, mask = same_shape(token_rewards=token_rewards, values=values, mask=mask)
    keep = mask != 0
    rewards = lax.stop_gradient(jnp.where(keep, rewards, 0))
    values = lax.stop_gradient(jnp.where(keep, values, 0))
    advantages = _from_the_end(rewards, values, keep, gamma, gae_lambda)
    return advantages, advantages + values


@jax.jit  # a scan outside of jit is compiled at every call, and each program is kept
def _from_the_end(rewards, values, keep, gamma, gae_lambda):
    """The sums of `gae`, from the last token to the first."""

    def step(carry, token):
        next_advantage, next_value = carry
        reward, value, keep = token
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * gae_lambda * next_advantage
        # A masked token hands the state of the token after it to the token before it.
        carry = jnp.where(keep, advantage, next_advantage), jnp.where(keep, value, next_value)
        return carry, carry[0]

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (rewards, values, keep))
    after_the_last = jnp.zeros_like((rewards + values)[..., 0])
    _, advantages = lax.scan(step, (after_the_last, after_the_last), tokens, reverse=True, unroll=8)
    return jnp.where(keep, jnp.moveaxis(advantages, 0, -1), 0)


def whiten(x: ArrayLike, mask: ArrayLike, *, shift_mean: bool = True) -> jax.Array:
    """(x − mean) / √(var + 1e-8) over all masked entries, plus the mean unless `shift_mean`.

    The variance is the unbiased one. Where fewer than two entries are on, it counts as 0. Entries
    that are equal, or differ by rounding only (see `ROUNDING`), deviate by 0 and not by 0 / 1e-4.

    Args:
      x: any shape, float.
      mask: like x, bool or float.
      shift_mean: False keeps the mean and only rescales the deviations from it.

    Returns:
      like x, zero where mask is 0.

    Raises:
      ValueError: shapes differ.
    """
    x, mask = same_shape(x=x, mask=mask)
    keep = mask != 0
    x, exponent = _in_units(x, keep, axis=None)
    deviations, mean = _deviations(x, keep, axis=None)
    whitened = _scaled(deviations, x, keep, exponent, axis=None)
    if not shift_mean:
        whitened = whitened + jnp.ldexp(mean, exponent)
    return lax.stop_gradient(jnp.where(keep, whitened, 0))


def turn_returns(rewards: ArrayLike, turn_mask: ArrayLike, *, gamma: float) -> jax.Array:
    """Discounted return of every turn: R_h = Σ_{k ≥ h} γ^(k−h) r_k over the turns that took place.

    "Expanding the Capabilities of Reinforcement Learning via Text Feedback" (RLTF),
    arXiv 2602.02482; the authors use γ = 0.1.

    Args:
      rewards: [..., H] float.
      turn_mask: [..., H] bool or float, 1 on turns that took place. A correct turn ends the
        episode, so the turns after it are 0.
      gamma: discount per turn.

    Returns:
      [..., H], zero where turn_mask is 0.

    Raises:
      ValueError: shapes differ.
    """
    rewards, turn_mask = same_shape(rewards=rewards, turn_mask=turn_mask)
    keep = turn_mask != 0
    rewards = jnp.where(keep, rewards, 0)
    turns = jnp.arange(rewards.shape[-1])
    ahead = turns[None, :] - turns[:, None]
    discount = jnp.where(ahead >= 0, jnp.asarray(gamma, rewards.dtype) ** jnp.abs(ahead), 0)
    returns = jnp.sum(discount * rewards[..., None, :], axis=-1)
    return lax.stop_gradient(jnp.where(keep, returns, 0))


def group_centered(returns: ArrayLike, mask: ArrayLike, *, scale_by_std: bool = False) -> jax.Array:
    """Returns minus their mean over the group's trajectories that have them.

    A = R − mean_G R, divided by √(var_G + 1e-8) (unbiased) if `scale_by_std`. A group whose returns
    are equal gets 0, also if they differ by rounding and are to be scaled (see `ROUNDING`).

    GRPO, arXiv 2402.03300; without the division by the standard deviation as in Dr. GRPO,
    arXiv 2503.20783, and RLTF, arXiv 2602.02482.

    Args:
      returns: [P, G, ...] float: prompts, completions of each, and for instance turns.
      mask: like returns, bool or float, 1 where that trajectory has that turn.
      scale_by_std: divide by the standard deviation over the group.

    Returns:
      like returns, zero where mask is 0.

    Raises:
      ValueError: shapes differ, or there are fewer than two axes.
    """
    returns, mask = same_shape(returns=returns, mask=mask)
    _require_group_axis("returns", returns)
    keep = mask != 0
    returns, exponent = _in_units(returns, keep, axis=1)
    centered, _ = _deviations(returns, keep, axis=1)
    if scale_by_std:
        return lax.stop_gradient(_scaled(centered, returns, keep, exponent, axis=1))
    return lax.stop_gradient(jnp.ldexp(centered, exponent))


def leave_one_out(returns: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Returns minus the mean of the group's *other* trajectories.

    Aᵢ = Rᵢ − 1/(n−1) Σ_{j≠i} Rⱼ = n/(n−1) (Rᵢ − mean_G R), n trajectories; 0 where there is one.

    RLOO, "Back to Basics", Ahmadian et al., arXiv 2402.14740, Eq. 7: a baseline that does not
    depend on the sample that it is taken from, so that the policy gradient stays unbiased.

    Args, returns, raises: see `group_centered`.
    """
    returns, mask = same_shape(returns=returns, mask=mask)
    centered = group_centered(returns, mask)
    size = jnp.sum(mask != 0, axis=1, keepdims=True)
    return centered * (size / jnp.maximum(size - 1, 1))


def first_turn(final_rewards: ArrayLike, first_rewards: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Final rewards minus the group's mean first-turn reward, the baseline of RLTF-SD.

    A = r₁ − mean_G r₀, the mean over all the group's first turns. The mean of r₁ itself would make
    the signal vanish once the second turn always succeeds. arXiv 2602.02482.

    Args:
      final_rewards: [P, G] float, reward of the turn to distill.
      first_rewards: [P, G] float, reward of every first turn.
      mask: [P, G] bool or float, 1 where there is a later turn to distill. It does not restrict the
        baseline.

    Returns:
      [P, G], zero where mask is 0.

    Raises:
      ValueError: shapes differ, or there are fewer than two axes.
    """
    final_rewards, first_rewards, mask = same_shape(
        final_rewards=final_rewards, first_rewards=first_rewards, mask=mask
    )
    _require_group_axis("final_rewards", final_rewards)
    # Less one of them, so that what is equal leaves exactly 0.
    some = first_rewards[:, :1]
    baseline = jnp.mean(first_rewards - some, axis=1, keepdims=True)
    return lax.stop_gradient(jnp.where(mask != 0, final_rewards - some - baseline, 0))


def _in_units(x: jax.Array, keep: jax.Array, axis: int | None) -> tuple[jax.Array, jax.Array]:
    """x in units of 2ⁿ, n ≥ 0, of which no kept entry has more than one; and n, with x's axes.

    Exact, so that it changes nothing, but sums and squares of large entries cannot overflow.
    """
    x = lax.stop_gradient(x)
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True, where=keep, initial=0)
    exponent = jnp.maximum(jnp.frexp(largest)[1], 0)
    return jnp.ldexp(x, -exponent), exponent


def _deviations(x: jax.Array, keep: jax.Array, axis: int | None) -> tuple[jax.Array, jax.Array]:
    """Deviations of the kept entries from their mean, 0 elsewhere; and the mean, with its axes.

    Taken from the largest entry first: the mean of equal numbers is rounded, their distance is not.
    """
    size = jnp.sum(keep, axis=axis, keepdims=True)
    largest = jnp.max(x, axis=axis, keepdims=True, where=keep, initial=-jnp.inf)
    largest = jnp.where(size > 0, largest, 0)
    below = jnp.where(keep, x - largest, 0)
    mean = jnp.sum(below, axis=axis, keepdims=True) / jnp.maximum(size, 1)
    return jnp.where(keep, below - mean, 0), largest + mean


def _scaled(
    deviations: jax.Array, x: jax.Array, keep: jax.Array, exponent: jax.Array, axis: int | None
) -> jax.Array:
    """Deviations of x divided by √(unbiased variance + 1e-8); 0 if they are rounding alone.

    Deviations and x are in units of 2^exponent, see `_in_units`; their quotient has none.
    """
    size = jnp.sum(keep, axis=axis, keepdims=True)
    variance = jnp.sum(deviations**2, axis=axis, keepdims=True) / jnp.maximum(size - 1, 1)
    magnitude, widest = (
        jnp.max(jnp.abs(v), axis=axis, keepdims=True, where=keep, initial=0)
        for v in (x, deviations)
    )
    equal = widest <= ROUNDING * jnp.finfo(x.dtype).eps * magnitude
    epsilon = jnp.ldexp(jnp.asarray(VARIANCE_EPSILON, x.dtype), -2 * exponent)
    return jnp.where(equal, 0, deviations / jnp.sqrt(jnp.where(equal, 1, variance + epsilon)))


def _require_group_axis(name: str, x: jax.Array) -> None:
    if x.ndim < 2:
        raise ValueError(f"{name} must be [P, G, ...] with the group on axis 1, got {x.shape}")
